// Calibration tokens that the model writes itself, for models that the built-in text does not suit (`--calib self`).
//
// From BOS on (from EOS where it has none) at temperature 1, text after text, at 16 bits in the runtime. The same checkpoint
// gives the same tokens, whatever the number of threads.
#pragma once
#include <string>
#include <vector>

#include "convert/converter.h"

namespace pith {

// n_tokens of them, nothing between the texts: what a window begins with would stand in the middle, and what it does to
// activations would outweigh all else (stories260k at 3.17 bits: perplexity 10.02 with BOS between them, 9.42 without). Beside options.output a 16-bit file of the checkpoint stands meanwhile. Throws
// Error, among others kInvalidArgument where the vocabulary has nothing that a text begins with.
std::vector<int32_t> self_tokens(const std::string& dir, const ConvertOptions& options, uint32_t n_tokens);

}  // namespace pith
