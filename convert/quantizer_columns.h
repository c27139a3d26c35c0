// The order of a layer's columns in storage: 2-bit columns first, 4-bit columns last.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "convert/quantizer.h"

namespace pith {

// Storage position -> input column, [n_cols] (pads not included).
// h_diagonal: of the damped Hessian, [n_cols]; h_inverse_diagonal likewise (both 1 without a Hessian).
std::vector<uint32_t> order_columns(std::span<const float> weights, uint32_t n_rows, uint32_t n_cols,
                                    const std::vector<double>& h_diagonal,
                                    const std::vector<double>& h_inverse_diagonal,
                                    const QuantizeOptions& options);

}  // namespace pith
