// A string that knows which of its bytes came from messages.
//
// Every operation of the template language that makes a string from strings goes through here, so the mark follows
// the bytes through trimming, slicing, joining and replacing, and the renderer can tell at the end what a user wrote.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/utf8.h"

namespace pith {

class TemplateText {
 public:
  struct Run {
    size_t end;  // the run goes from the previous one's end to here
    bool from_message;
  };

  TemplateText() = default;
  TemplateText(std::string bytes, bool from_message) : bytes_(std::move(bytes)) {
    if (!bytes_.empty()) runs_.push_back({bytes_.size(), from_message});
  }
  const std::string& bytes() const { return bytes_; }
  const std::vector<Run>& runs() const { return runs_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  size_t memory_bytes() const { return bytes_.size() + runs_.size() * sizeof(Run); }

  void append(std::string_view bytes, bool from_message);
  void append(const TemplateText& other) { append(other, 0, other.size()); }
  void append(const TemplateText& other, size_t begin, size_t end);  // other[begin, end)
  TemplateText slice(size_t begin, size_t end) const {
    TemplateText out;
    out.append(*this, begin, end);
    return out;
  }

  // Calls f(code point, its bytes, from_message) for each code point.
  template <typename F>
  void for_each(const F& f) const;

 private:
  std::string bytes_;
  std::vector<Run> runs_;  // neighbours differ in from_message; the last end is size()
};

template <typename F>
void TemplateText::for_each(const F& f) const {
  size_t run = 0;
  for (size_t at = 0; at < bytes_.size();) {
    while (runs_[run].end <= at) ++run;
    const CodePoint point = code_point_at(bytes_, at);
    f(point.value, std::string_view(bytes_).substr(at, point.n_bytes), runs_[run].from_message);
    at += point.n_bytes;
  }
}

}  // namespace pith
