// The bits per weight that a conversion can be asked for: --bits of the linear layers, everything counted, and --embed-bits of
// embedding and head.
#pragma once
#include <cstdint>
#include <string_view>

namespace pith {

// 2.3 to 4.5, 16 or 32. Throws Error(kInvalidArgument) naming --bits.
void check_bits(double bits);
// The same from text.
double parse_bits(std::string_view text);

// 4 or 16. Throws Error(kInvalidArgument) naming --embed-bits.
void check_embed_bits(uint32_t bits);

}  // namespace pith
