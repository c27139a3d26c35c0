// E[(W (x - x^) + g) x^'] a stripe of rows at a time, in the cheaper of two ways: by the outputs' gap W (x - x^) + g token by
// token, 4 n_tokens n_rows n_cols operations; or without g by E[(x - x^) x^'], which all rows share, 2 n_tokens n_cols^2 and
// 2 n_rows n_cols^2, and which wide inputs (28,672 columns in Llama-2-70B: 3.3 GB) have no room for.
#include "convert/correction.h"

#include <algorithm>

#include "convert/gemm.h"

namespace pith {

namespace {

constexpr uint32_t kStripe = 1024;  // rows

// W (x - x^) + g: [n_tokens, n_rows]. weights: rows [row, row + n_rows) of n_all_rows, the first one's.
std::vector<float> outputs_gap(const Drift& drift, const float* weights, uint32_t row, uint32_t n_rows,
                               uint32_t n_all_rows, uint32_t n_threads) {
  const size_t n = drift.n_cols;
  const uint32_t chunk = rows_at_once(n_threads);
  std::vector<float> gap(size_t{drift.n_tokens} * n_rows), difference(std::min(chunk, drift.n_tokens) * n);
  for (uint32_t begin = 0; begin < drift.n_tokens; begin += chunk) {
    const uint32_t n_here = std::min(chunk, drift.n_tokens - begin);
    for (size_t i = 0; i < n_here * n; ++i)
      difference[i] = drift.original[begin * n + i] - drift.quantized[begin * n + i];
    multiply_transposed(difference.data(), n_here, drift.n_cols, weights, n_rows,
                        gap.data() + size_t{begin} * n_rows, n_threads);
  }
  if (!drift.residual_original) return gap;
  const float scale = static_cast<float>(drift.gap_scale);
  for (size_t t = 0; t < drift.n_tokens; ++t)
    for (size_t r = 0; r < n_rows; ++r) {
      const size_t at = t * n_all_rows + row + r;
      gap[t * n_rows + r] += scale * (drift.residual_original[at] - drift.residual_quantized[at]);
    }
  return gap;
}

}  // namespace

void retarget(std::vector<float>& weights, uint32_t n_rows, const Drift& drift, Metric& metric,
              uint32_t n_threads) {
  if (drift.n_tokens == 0) return;
  const size_t n = drift.n_cols;
  const bool by_outputs = drift.residual_original || n_rows <= n;
  std::vector<float> shared;  // E[x^ (x - x^)'], the rows of W times which is wanted
  if (!by_outputs) {
    shared.resize(n * n);
    mean_products(drift.original, drift.quantized, drift.quantized, drift.n_tokens, drift.n_cols,
                  drift.n_cols, drift.weight, shared.data(), n_threads);
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < i; ++j) std::swap(shared[i * n + j], shared[j * n + i]);
  }
  std::vector<float> change(std::min(kStripe, n_rows) * n);
  for (uint32_t row = 0; row < n_rows; row += kStripe) {
    const uint32_t n_here = std::min(kStripe, n_rows - row);
    float* const w = weights.data() + row * n;
    if (by_outputs) {
      const std::vector<float> gap = outputs_gap(drift, w, row, n_here, n_rows, n_threads);
      mean_products(gap.data(), nullptr, drift.quantized, drift.n_tokens, n_here, drift.n_cols, drift.weight,
                    change.data(), n_threads);
    } else {
      multiply_transposed(w, n_here, drift.n_cols, shared.data(), drift.n_cols, change.data(), n_threads);
    }
    metric.solve(change.data(), n_here);
    for (size_t i = 0; i < n_here * n; ++i) w[i] += change[i];
  }
}

}  // namespace pith
