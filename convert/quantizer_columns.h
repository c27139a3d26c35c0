// The order of a layer's columns in storage: 2-bit columns first, 4-bit columns last.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "convert/quantizer.h"

namespace pith {

// Storage position -> input column, [n_cols] (pads not included). weights: [n_rows, n_cols].
// Asks the metric for the inverse's diagonal where the sensitivity needs it.
std::vector<uint32_t> order_columns(std::span<const float> weights, uint32_t n_rows, Metric& metric,
                                    const QuantizeOptions& options);

}  // namespace pith
