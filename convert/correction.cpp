// E[(W (x - x^) + g) x^'] a stripe of rows at a time, in the cheaper of two ways: by the outputs' gap W (x - x^) + g token by
// token, 4 n_tokens n_rows n_cols operations; or without g by E[(x - x^) x^'], which all rows share, 2 n_tokens n_cols^2 and
// 2 n_rows n_cols^2, and which wide inputs (28,672 columns in Llama-2-70B: 3.3 GB) have no room for.
#include "convert/correction.h"

#include <algorithm>

namespace pith {

namespace {

constexpr uint32_t kStripe = 1024;  // rows

// W (x - x^) + g: [n_tokens, n_rows]. weights: rows [row, row + n_rows) of n_all_rows, the first one's.
std::vector<float> outputs_gap(const Drift& drift, const float* weights, uint32_t row, uint32_t n_rows,
                               uint32_t n_all_rows, const Products& products) {
  std::vector<float> gap(size_t{drift.n_tokens} * n_rows);
  const float scale = static_cast<float>(drift.gap_scale);
  const auto take = [&](uint32_t begin, uint32_t n_here, const float* y) {
    std::copy_n(y, size_t{n_here} * n_rows, gap.data() + size_t{begin} * n_rows);
    if (!drift.residual_original) return;
    for (size_t t = begin; t < begin + n_here; ++t)
      for (size_t r = 0; r < n_rows; ++r) {
        const size_t at = t * n_all_rows + row + r;
        gap[t * n_rows + r] += scale * (drift.residual_original[at] - drift.residual_quantized[at]);
      }
  };
  products.multiply_transposed(drift.original, drift.quantized, drift.n_tokens,
                               {weights, n_rows, drift.n_cols, nullptr}, 1, take);
  return gap;
}

}  // namespace

void retarget(std::vector<float>& weights, uint32_t n_rows, const Drift& drift, Metric& metric,
              const Products& products) {
  if (drift.n_tokens == 0) return;
  const size_t n = drift.n_cols;
  const bool by_outputs = drift.residual_original || n_rows <= n;
  std::vector<float> shared;  // E[x^ (x - x^)'], the rows of W times which is wanted
  ProductMatrix kept;
  if (!by_outputs) {
    shared.resize(n * n);
    products.mean_products(drift.original, drift.quantized, drift.quantized, drift.n_tokens, drift.n_cols,
                           drift.n_cols, drift.weight, shared.data());
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < i; ++j) std::swap(shared[i * n + j], shared[j * n + i]);
    kept = products.keep(shared.data(), drift.n_cols, drift.n_cols);
  }
  std::vector<float> change(std::min(kStripe, n_rows) * n);
  for (uint32_t row = 0; row < n_rows; row += kStripe) {
    const uint32_t n_here = std::min(kStripe, n_rows - row);
    float* const w = weights.data() + row * n;
    if (by_outputs) {
      const std::vector<float> gap = outputs_gap(drift, w, row, n_here, n_rows, products);
      products.mean_products(gap.data(), nullptr, drift.quantized, drift.n_tokens, n_here, drift.n_cols,
                             drift.weight, change.data());
    } else {
      products.multiply_transposed(w, nullptr, n_here, kept, 1,
                                   [&](uint32_t begin, uint32_t n_taken, const float* y) {
                                     std::copy_n(y, n_taken * n, change.data() + begin * n);
                                   });
    }
    metric.solve(change.data(), n_here);
    for (size_t i = 0; i < n_here * n; ++i) w[i] += change[i];
  }
}

}  // namespace pith
