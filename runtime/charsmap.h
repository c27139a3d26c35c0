// sentencepiece's table of character replacements (a tokenizer.json's normalizer "Precompiled"): a
// double-array trie over the bytes to be replaced, and the texts that replace them.
//
//   bytes of the trie (u32), the trie's units (u32 each), then texts, each ended by a zero byte. All little-endian.
//   A unit: bits 0-7 label, 8 has a leaf, 9 offset is shifted by 8, 10-30 offset; of a leaf: bits 0-30 where its text begins.
//
// As the reference runs it: a grapheme of fewer than 6 bytes that begins with a key is replaced whole by the
// shortest such key's text; otherwise each of its code points on its own. Immutable; any thread may apply.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/encode_budget.h"

namespace pith {

class CharsMap {
 public:
  // Throws Error(kFormat): sizes that do not fit, a text that does not end or is not UTF-8.
  explicit CharsMap(std::string_view bytes);
  std::string apply(std::string_view text, EncodeBudget& budget) const;  // text: valid UTF-8

 private:
  std::optional<std::string_view> find(std::string_view key) const;
  std::vector<uint32_t> units_;
  std::string texts_;
};

}  // namespace pith
