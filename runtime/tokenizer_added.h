// Added tokens: texts that are tokens as a whole, found before (or after) normalization, the longest first.
//
// split() follows the reference library's rules for lstrip, rstrip and single_word. Which tokens are looked for is the
// caller's choice: special ones never in text that a user typed. Immutable; any thread may split.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "format/metadata.h"
#include "runtime/tokenizer_keys.h"
#include "runtime/utf8.h"

namespace pith {

struct AddedToken {
  int32_t id;
  std::string text;
  uint32_t flags;  // AddedFlag bits
  bool special() const { return (flags & kAddedSpecial) != 0; }
};

// Reads tokenizer.added_*. Throws Error(kFormat): arrays out of step, ids >= vocab_size or twice, unknown flags.
std::vector<AddedToken> read_added_tokens(const Metadata& metadata, uint32_t vocab_size);

class AddedTokens {
 public:
  struct Part {
    std::string_view text;
    int32_t id;  // -1: ordinary text
  };

  // Later tokens win over earlier ones with the same text. Empty texts are never found.
  explicit AddedTokens(const std::vector<AddedToken>& tokens);
  bool empty() const { return matches_.empty(); }
  // Cuts text at the tokens; specials only when asked for, and only inside special_ranges unless those are empty. No
  // part is empty.
  std::vector<Part> split(std::string_view text, bool specials,
                          std::span<const TextRange> special_ranges = {}) const;

 private:
  struct Match {
    int32_t id;
    uint32_t flags;
  };
  // A trie: child of node n by byte b at (n << 8 | b); node 0 is the root, a node's token in node_match_.
  std::unordered_map<uint64_t, uint32_t> children_;
  std::vector<int32_t> node_match_;  // index into matches_ or -1
  std::vector<Match> matches_;
  bool first_byte_[256] = {};
};

}  // namespace pith
