// Byte-pair encoding of one word: vocabulary, merge table and the merge loop. n log n in the word's length.
//
// Constructors check everything and throw Error(kFormat): ids in range, merges join existing tokens to the one that their texts
// make. Immutable after construction; any thread may encode with its own Scratch.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "format/metadata.h"
#include "runtime/token_hash.h"
#include "runtime/tokenizer_keys.h"

namespace pith {

// Token texts by id and ids by text (open addressing over the concatenated texts).
class Vocabulary {
 public:
  Vocabulary(const Metadata& metadata, uint32_t vocab_size);
  uint32_t size() const { return static_cast<uint32_t>(ends_.size()); }
  TokenKind kind(uint32_t id) const { return static_cast<TokenKind>(kinds_[id]); }
  std::string_view text(uint32_t id) const;
  int32_t find(std::string_view text) const;  // among tokens of kind kText; -1 when absent

 private:
  std::string bytes_;
  std::vector<uint32_t> ends_;
  Bytes kinds_;
  TokenHash hash_;
  std::vector<uint32_t> slots_;  // id + 1, 0 = free
  size_t max_token_bytes_ = 0;
};

class Bpe {
 public:
  // special[id]: tokens that merging must never produce.
  Bpe(const Metadata& metadata, uint32_t vocab_size, const std::vector<bool>& special);
  const Vocabulary& vocabulary() const { return vocabulary_; }
  bool byte_level() const { return byte_level_; }

  struct Symbol {
    uint32_t begin, end;  // bytes of the word; begin == end: merged away
    uint32_t prev, next;  // symbol index, kNone at the ends
    int32_t id;
  };
  struct Candidate {
    uint32_t rank, symbol;
    int32_t id;
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;
  };
  // Appends the ids of a word of at most 1 GiB: any bytes when byte-level, else valid UTF-8.
  void encode(std::string_view word, std::vector<int32_t>& ids, Scratch& scratch) const;

 private:
  struct Merge {
    uint32_t left, right;
    uint32_t rank;
    int32_t result;  // -1 = free slot
  };
  void load_merges(const std::vector<uint32_t>& merges);
  bool is_special(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < special_.size() && special_[static_cast<size_t>(id)];
  }
  void start(std::string_view word, Scratch& scratch) const;
  Candidate merge_of(std::string_view word, const Scratch& scratch, uint32_t left) const;

  Vocabulary vocabulary_;
  bool byte_level_, byte_fallback_, fuse_unk_, ignore_merges_, merge_by_id_;
  int32_t unk_id_ = -1;
  std::vector<bool> special_;
  std::vector<int32_t>
      byte_ids_;  // [256]: of one-byte texts (byte-level) or of "<0xXX>" tokens, -1 when absent
  TokenHash hash_;
  std::vector<Merge> merges_;  // power-of-two table
};

}  // namespace pith
