// What a matrix's weights should be when its input is not what it was: the input x^ comes from layers that are quantized
// already, x came from the original ones, and the residual stream, to which the output may be added, lacks g.
// C (H + damping)^-1, C = E[(W (x - x^) + g) x^'], H = E[x^ x^'], added to W, maps x^ to W x + g with the least square error.
//
// That is learnt from some thousand tokens, n_cols numbers a row, and much of it is chance: on other text half of the change
// can be too much. So each row's is scaled by the share of it that two halves of the tokens agree on (shrinkage after James and
// Stein, the noise taken from the halves): (C1 (H + damping)^-1 C2') / (C (H + damping)^-1 C'), between 0 and 1.
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

// weights: [n_rows, drift.n_cols], in place. metric: of H, not arranged yet. shrink: by what the halves agree on. Fewer than two
// tokens change nothing.
void retarget(std::vector<float>& weights, uint32_t n_rows, const Drift& drift, bool shrink, Metric& metric,
              const Products& products);

}  // namespace pith
