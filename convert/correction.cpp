// C = E[(W (x - x^) + g) x^'] a stripe of rows at a time, in the cheaper of two ways: by the outputs' gap W (x - x^) + g token by
// token, 4 n_tokens n_rows n_cols operations; or without g by E[(x - x^) x^'], which all rows share, 2 n_tokens n_cols^2 and
// 2 n_rows n_cols^2, and which wide inputs (28,672 columns in Llama-2-70B: 3.3 GB) have no room for.
#include "convert/correction.h"

#include <algorithm>
#include <array>

namespace pith {

namespace {

constexpr uint32_t kStripe = 512;  // rows

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

// Tokens [begin, begin + n_tokens).
struct Span {
  uint32_t begin, n_tokens;
};
using Halves = std::array<std::vector<float>, 2>;

// C of a stripe of rows, over each half of the tokens.
class Moments {
 public:
  Moments(const Drift& drift, uint32_t n_rows, uint32_t half, const Products& products)
      : drift_(drift),
        n_rows_(n_rows),
        spans_{{{0, half}, {half, drift.n_tokens - half}}},
        products_(products),
        by_outputs_(drift.residual_original || n_rows <= drift.n_cols) {
    if (by_outputs_) return;
    for (size_t i = 0; i < 2; ++i) {
      shared_[i] = shared(spans_[i]);
      kept_[i] = products.keep(shared_[i].data(), drift.n_cols, drift.n_cols);
    }
  }

  // w: rows [row, row + n_here). out: of each half, [n_here, n_cols].
  void get(const float* w, uint32_t row, uint32_t n_here, Halves& out) const {
    const size_t n = drift_.n_cols;
    std::vector<float> gap;
    if (by_outputs_) gap = outputs_gap(drift_, w, row, n_here, n_rows_, products_);
    for (size_t i = 0; i < 2; ++i) {
      const auto [begin, n_tokens] = spans_[i];
      if (by_outputs_)
        products_.mean_products(gap.data() + size_t{begin} * n_here, nullptr, drift_.quantized + begin * n,
                                n_tokens, n_here, drift_.n_cols, drift_.weight, out[i].data());
      else
        products_.multiply_transposed(w, nullptr, n_here, kept_[i], 1,
                                      [&](uint32_t first, uint32_t n_taken, const float* y) {
                                        std::copy_n(y, n_taken * n, out[i].data() + first * n);
                                      });
    }
  }

 private:
  // E[(x - x^) x^'], transposed: the rows of W times which is wanted.
  std::vector<float> shared(Span span) const {
    const size_t n = drift_.n_cols, at = span.begin * n;
    std::vector<float> moments(n * n);
    products_.mean_products(drift_.original + at, drift_.quantized + at, drift_.quantized + at, span.n_tokens,
                            drift_.n_cols, drift_.n_cols, drift_.weight, moments.data());
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < i; ++j) std::swap(moments[i * n + j], moments[j * n + i]);
    return moments;
  }

  const Drift& drift_;
  uint32_t n_rows_;
  std::array<Span, 2> spans_;
  Products products_;
  bool by_outputs_;
  Halves shared_;
  std::array<ProductMatrix, 2> kept_;
};

double dot(const float* a, const float* b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

// The share of a row's change that the halves agree on. first: C1 (H + damping)^-1.
float agreement(const float* first, const float* c2, const float* change, const float* c, size_t n) {
  const double all = dot(change, c, n);
  return all > 0 ? static_cast<float>(std::clamp(dot(first, c2, n) / all, 0.0, 1.0)) : 0;
}

}  // namespace

void retarget(std::vector<float>& weights, uint32_t n_rows, const Drift& drift, bool shrink, Metric& metric,
              const Products& products) {
  const size_t n = drift.n_cols;
  const uint32_t half = drift.n_tokens / 2;
  if (half == 0) return;
  const Moments moments(drift, n_rows, half, products);
  Halves c;
  for (std::vector<float>& of_half : c) of_half.resize(std::min(kStripe, n_rows) * n);
  auto& [first, last] = c;
  for (uint32_t row = 0; row < n_rows; row += kStripe) {
    const uint32_t n_here = std::min(kStripe, n_rows - row);
    float* const w = weights.data() + row * n;
    moments.get(w, row, n_here, c);
    const float first_share = static_cast<float>(half) / static_cast<float>(drift.n_tokens);
    std::vector<float> all(n_here * n);
    for (size_t i = 0; i < all.size(); ++i) all[i] = first_share * first[i] + (1 - first_share) * last[i];
    std::vector<float> change = all;
    metric.solve(change.data(), n_here);
    if (shrink) metric.solve(first.data(), n_here);
    for (size_t r = 0; r < n_here; ++r) {
      const size_t at = r * n;
      const float share = shrink ? agreement(&first[at], &last[at], &change[at], &all[at], n) : 1;
      for (size_t i = at; i < at + n; ++i) w[i] += share * change[i];
    }
  }
}

}  // namespace pith
