// A regular expression from a checkpoint, executed by PCRE2 (this module alone includes it).
//
// Matching is by Unicode properties over valid UTF-8. It runs interpreted on the heap: no machine stack grows with the
// text, and steps, memory and the time of all matches are limited, so that a hostile pattern ends in an
// error. Checkpoints write for Oniguruma or Rust; `\s \S \w \W` are rewritten to those libraries' classes
// where PCRE2's differ, and `a{2}+`, `a{,2}` and `(?m)` to what they are to Oniguruma: (a{2})+, a{0,2} and a
// dot that is any character.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/encode_budget.h"
#include "runtime/utf8.h"

namespace pith {

class Pattern {
 public:
  // Throws Error(kUnsupported) naming the pattern and PCRE2's complaint or the construct.
  explicit Pattern(const std::string& source);
  ~Pattern();
  Pattern(Pattern&&) noexcept;

  // All matches in valid UTF-8, left to right, not overlapping; an empty one splits text but never follows a match
  // directly. Throws Error(kUnsupported) when the limits are reached, or the budget's time is used up.
  std::vector<TextRange> find_all(std::string_view text, EncodeBudget& budget) const;

 private:
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
  std::string source_;
};

}  // namespace pith
