// Marks are a list of ranges in order; neighbours of one kind are one range.
#include "runtime/chat_template_text.h"

#include <algorithm>

namespace pith {

void TemplateText::append(std::string_view bytes, bool from_message) {
  if (bytes.empty()) return;
  bytes_ += bytes;
  if (!runs_.empty() && runs_.back().from_message == from_message) {
    runs_.back().end = bytes_.size();
  } else {
    runs_.push_back({bytes_.size(), from_message});
  }
}

void TemplateText::append(const TemplateText& other, size_t begin, size_t end) {
  auto run = std::upper_bound(other.runs_.begin(), other.runs_.end(), begin,
                              [](size_t at, const Run& r) { return at < r.end; });
  while (begin < end) {
    const size_t stop = std::min(run->end, end);
    append(std::string_view(other.bytes_).substr(begin, stop - begin), run->from_message);
    begin = stop;
    ++run;
  }
}

}  // namespace pith
