// Unigram segmentation of one word: the path of tokens with the largest sum of scores. Linear in the word's
// length, times the longest token's.
//
// As the reference: a code point that no token covers alone costs kUnknownPenalty less than the lowest score and is unknown;
// neighbouring unknowns are one, and become their bytes' tokens with byte fallback where all of these exist.
// Of equal paths the one found first stays, so shorter last tokens lose to longer ones. Special tokens are
// never found in text. Immutable after construction; any thread may encode with its own Scratch.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "format/metadata.h"
#include "runtime/bpe.h"
#include "runtime/token_hash.h"

namespace pith {

class Unigram {
 public:
  // Throws Error(kFormat): scores that do not fit it, or no unknown token.
  Unigram(const Metadata& metadata, const Vocabulary& vocabulary, const std::vector<bool>& special);

  struct Step {  // the best path to a byte offset
    double score;
    uint32_t begin;  // of its last token; kNone: not reached
    int32_t id;
  };
  struct Scratch {
    std::vector<Step> steps;
    std::vector<int32_t> ids;
  };
  // Appends the ids of a word of at most 1 GiB, valid UTF-8.
  void encode(std::string_view word, std::vector<int32_t>& ids, Scratch& scratch) const;

 private:
  struct Edge {  // child 0: free slot
    uint32_t parent = 0, child = 0;
    uint8_t byte = 0;
  };
  size_t slot(uint32_t parent, char c) const;
  void insert(std::string_view text, uint32_t id);
  void append_unknown(std::string_view text, std::vector<int32_t>& reversed) const;

  std::vector<float> scores_;
  double unknown_score_ = 0;
  int32_t unk_id_ = -1;
  std::vector<int32_t> byte_ids_;  // [256], -1 when absent; empty without byte fallback
  TokenHash hash_;
  std::vector<Edge> edges_;        // of a trie over the tokens' bytes; power-of-two table
  std::vector<int32_t> token_of_;  // by node, -1 = none; node 0 is the root
};

}  // namespace pith
