// Segments of the template become one text, whose ranges say where special tokens may be.
#include "runtime/chat_render.h"

namespace pith {

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const std::vector<ChatSegment>& segments) {
  std::string text;
  std::vector<TextRange> ranges;
  for (const ChatSegment& segment : segments) {
    if (segment.from_template) {
      if (!ranges.empty() && ranges.back().end == text.size()) {
        ranges.back().end += segment.text.size();
      } else {
        ranges.push_back({text.size(), text.size() + segment.text.size()});
      }
    }
    text += segment.text;
  }
  EncodeOptions options;
  options.parse_special = !ranges.empty();  // no range would mean everywhere
  options.special_ranges = ranges;
  return tokenizer.encode(text, options);
}

}  // namespace pith
