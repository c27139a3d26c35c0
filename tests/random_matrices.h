// Random matrices for the tests of the quantizer.
#pragma once
#include <cmath>
#include <random>
#include <vector>

#include "convert/metric.h"

namespace pith::test {

inline std::vector<float> gaussian(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// H = A A' / n with columns of uneven weight: correlated inputs, as a trained layer sees them.
inline Hessian correlated(uint32_t n, uint64_t seed) {
  const std::vector<float> a = gaussian(size_t{n} * n, seed), log_scale = gaussian(n, seed + 1);
  Hessian h{n, std::vector<float>(size_t{n} * n)};
  for (uint32_t i = 0; i < n; ++i)
    for (uint32_t j = 0; j < n; ++j) {
      double sum = 0;
      for (uint32_t k = 0; k < n / 4; ++k) sum += double{a[i * n + k]} * a[j * n + k];
      const double scale = std::exp(0.5 * (double{log_scale[i]} + log_scale[j]));
      h.values[i * n + j] = static_cast<float>(scale * (sum / n + (i == j ? 0.05 : 0)));
    }
  return h;
}

// Inputs whose second moments are correlated(n, seed): [n_tokens, n].
inline std::vector<float> correlated_inputs(uint32_t n, uint64_t seed, uint32_t n_tokens) {
  const std::vector<float> a = gaussian(size_t{n} * n, seed), log_scale = gaussian(n, seed + 1),
                           z = gaussian(size_t{n_tokens} * n, seed + 2), own = gaussian(z.size(), seed + 3);
  std::vector<float> x(z.size());
  for (uint32_t t = 0; t < n_tokens; ++t)
    for (uint32_t i = 0; i < n; ++i) {
      double sum = 0;
      for (uint32_t k = 0; k < n / 4; ++k) sum += double{a[i * n + k]} * z[t * n + k];
      x[t * n + i] = static_cast<float>(std::exp(0.5 * double{log_scale[i]}) *
                                        (sum / std::sqrt(n) + std::sqrt(0.05) * double{own[t * n + i]}));
    }
  return x;
}

}  // namespace pith::test
