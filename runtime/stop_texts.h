// Texts that end a reply: found in a stream of text that is cut anywhere. What may be the beginning of one is held back.
#pragma once
#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "format/error.h"
#include "runtime/utf8.h"

namespace pith {

class StopTexts {
 public:
  static constexpr size_t kMaxTexts = 16, kMaxBytes = 256;

  // "" forgets all. Throws kInvalidArgument naming the limit, or the byte that is no UTF-8.
  void add(std::string_view text) {
    if (text.empty()) return texts_.clear();
    if (text.size() > kMaxBytes)
      throw_error(ErrorCode::kInvalidArgument, "stop: a text of {} bytes, expected at most {}", text.size(),
                  kMaxBytes);
    for (size_t at = 0; at < text.size();) {
      const CodePoint point = code_point_at(text, at);  // another never comes: what is made is UTF-8
      if (!point.valid)
        throw_error(ErrorCode::kInvalidArgument, "stop: byte {} of '{}' is not UTF-8", at, printable(text));
      at += point.n_bytes;
    }
    if (texts_.size() == kMaxTexts)
      throw_error(ErrorCode::kInvalidArgument, "stop: more than {} texts", kMaxTexts);
    texts_.emplace_back(text);
  }
  const std::vector<std::string>& texts() const { return texts_; }

  // Takes more of the stream and returns what cannot belong to a stop text any more. found: one of them is complete, the one that ends
  // first, of several that end there the longest; what came before it is returned, and nothing is held.
  std::string push(std::string_view text, bool& found) {
    held_.append(text);
    found = false;
    std::pair<size_t, size_t> first;  // end and begin
    for (const std::string& stop : texts_)
      if (const size_t begin = held_.find(stop); begin != std::string::npos) {
        const std::pair match(begin + stop.size(), begin);
        first = found ? std::min(first, match) : match;
        found = true;
      }
    if (found) {
      held_.resize(first.second);
      return flush();
    }
    size_t n_kept = 0;
    for (const std::string& stop : texts_)
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > n_kept; --n)
        if (held_.ends_with(std::string_view(stop).substr(0, n))) n_kept = n;
    std::string out = held_.substr(0, held_.size() - n_kept);
    held_.erase(0, out.size());
    return out;
  }
  // The stream ends: what is held is text.
  std::string flush() { return std::exchange(held_, {}); }
  const std::string& held() const { return held_; }

 private:
  std::vector<std::string> texts_;
  std::string held_;
};

}  // namespace pith
