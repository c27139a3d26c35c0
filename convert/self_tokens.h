// Calibration tokens that the model writes itself, for models that the built-in text does not suit (`--calib self`).
//
// From BOS on (from EOS where it has none) at temperature 1, text after text, at 16 bits in the runtime. The same checkpoint
// gives the same tokens, whatever the number of threads.
#pragma once
#include <string>
#include <vector>

#include "convert/converter.h"

namespace pith {

// n_tokens of them (fewer where the model hardly says anything), nothing between the texts: BOS in the middle of a window changes
// activations so much that it outweighs all else (stories260k at 3.17 bits, 16,384 tokens: perplexity 10.02 with it, 9.69
// without). Beside options.output a 16-bit file of the checkpoint stands meanwhile. Throws Error, among others
// kInvalidArgument where the vocabulary has nothing that a text begins with.
std::vector<int32_t> self_tokens(const std::string& dir, const ConvertOptions& options, uint32_t n_tokens);

}  // namespace pith
