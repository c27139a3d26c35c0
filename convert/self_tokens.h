// Calibration tokens that the model writes itself (`--calib self`; by default half of all, of models that are not too large).
//
// From BOS on (from EOS where it has none) at temperature 1, up to 64 texts side by side, in float32 on the CPU (a GPU's logits
// differ in the last bits, and the text with them). The same checkpoint gives the same tokens, whatever the number of threads and
// the memory. A step reads all weights once, for all texts: about two float32 passes over the tokens.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "convert/source.h"
#include "runtime/tokenizer.h"

namespace pith {

// What a text begins with; -1: the vocabulary has nothing.
int32_t first_of_text(const Tokenizer& tokenizer);

// n_tokens of them (fewer where the model hardly says anything), nothing between the texts: BOS in the middle of a window changes
// activations so much that it outweighs all else (stories260k at 3.17 bits, 16,384 tokens: perplexity 10.02 with it, 9.69
// without). memory_bytes: where the weights take less than half of it as floats they are kept there,
// otherwise they are read again at every step. progress: called with the tokens so far. Throws Error, among
// others kInvalidArgument where there is no first_of_text.
std::vector<int32_t> self_tokens(const Source& source, const Tokenizer& tokenizer, uint32_t n_tokens,
                                 uint32_t n_threads, uint64_t memory_bytes,
                                 const std::function<void(size_t)>& progress);

}  // namespace pith
