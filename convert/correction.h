// What a matrix's weights should be when its input is not what it was: the input x^ comes from layers that are quantized
// already, x came from the original ones, and the residual stream, to which the output may be added, lacks g.
// W + E[(W (x - x^) + g) x^'] (H + damping)^-1, H = E[x^ x^'], maps x^ to W x + g with the least square error.
#pragma once
#include <cstdint>
#include <vector>

#include "convert/metric.h"
#include "convert/products.h"

namespace pith {

// The tokens' activations that it is taken from. Borrowed.
struct Drift {
  uint32_t n_tokens = 0, n_cols = 0;
  const float* original = nullptr;   // x, [n_tokens, n_cols]
  const float* quantized = nullptr;  // x^, likewise
  // [n_tokens, n_rows], g their difference times gap_scale; null: no g
  const float *residual_original = nullptr, *residual_quantized = nullptr;
  double gap_scale = 1;
  double weight = 1;  // of the whole change
};

// weights: [n_rows, drift.n_cols], in place. metric: of H, not arranged yet.
void retarget(std::vector<float>& weights, uint32_t n_rows, const Drift& drift, Metric& metric,
              const Products& products);

}  // namespace pith
