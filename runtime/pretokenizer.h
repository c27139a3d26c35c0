// Cuts normalized text into the words that BPE and Unigram work on, and the normalizer that comes before: both are lists of
// ops, run in order, that the converter writes from what a tokenizer's files declare (convert/tokenizer_import*.cpp).
//
// Normalizer ops: "prepend" S | "replace" FROM TO | "replace_pattern" REGEX TO | "nfc" | "nfd" | "nfkc" | "nfkd" |
//   "lowercase" | "strip" "0|1" "0|1" (left, right) | "strip_accents" | "charsmap" BASE64
// Pre-tokenizer ops: "split" REGEX BEHAVIOR "0|1" (inverted) | "split_text" S BEHAVIOR "0|1" | "prefix_space" |
//   "digits" "0|1" (each on its own) | "punctuation" BEHAVIOR | "white_space" (removed) |
//   "metaspace" S "always|first|never" "0|1" (split)
// BEHAVIOR: isolated, removed, merged_with_previous, merged_with_next, contiguous.
//
// Constructors throw Error(kFormat) on an unknown op or argument, kUnsupported on a pattern. Texts are valid UTF-8. What the ops
// put into them is bounded by the budget of the encode() that runs them.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/charsmap.h"
#include "runtime/encode_budget.h"
#include "runtime/regex.h"

namespace pith {

class Normalizer {
 public:
  explicit Normalizer(const std::vector<std::string>& ops);
  // with_prefix: whether "prepend" ops run; they do not when the text goes on mid-stream.
  std::string apply(std::string_view text, bool with_prefix, EncodeBudget& budget) const;
  bool empty() const { return ops_.empty(); }

 private:
  struct Op {
    enum Kind {
      kPrepend,
      kReplace,
      kReplacePattern,
      kNfc,
      kNfd,
      kNfkc,
      kNfkd,
      kLowercase,
      kStrip,
      kStripAccents,
      kCharsMap
    } kind;
    std::string a, b;
    bool left = false, right = false;
    std::shared_ptr<const Pattern> pattern;
    std::shared_ptr<const CharsMap> charsmap;
  };
  std::vector<Op> ops_;
};

// Words of one text: ranges of `text` in order, none empty. Removed parts lie in no range.
struct Words {
  std::string text;
  std::vector<TextRange> ranges;
};

class PreTokenizer {
 public:
  explicit PreTokenizer(const std::vector<std::string>& ops);
  // with_prefix: as above, for "prefix_space" and "metaspace". at_start: the text begins the whole input, which is
  // where metaspace's scheme "first" puts its prefix.
  Words split(std::string text, bool with_prefix, bool at_start, EncodeBudget& budget) const;

 private:
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Op {
    enum Kind { kSplit, kSplitText, kPrefixSpace, kDigits, kPunctuation, kWhiteSpace, kMetaspace } kind;
    std::string text, scheme;
    Behavior behavior = Behavior::kIsolated;
    bool flag = false;
    std::shared_ptr<const Pattern> pattern;
  };
  static Behavior behavior_of(const std::string& name);
  static std::vector<TextRange> matches(const Op& op, std::string_view word, EncodeBudget& budget);
  static void split_word(const Op& op, std::string_view text, TextRange word, std::vector<TextRange>& out,
                         EncodeBudget& budget);
  static void prefix(const Op& op, bool at_start, Words& words, EncodeBudget& budget);
  std::vector<Op> ops_;
};

}  // namespace pith
