// convert/gemm.h against sums in double, at sizes around every edge of its tiles; the same bits from any number of threads.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <random>
#include <vector>

#include "convert/gemm.h"

using namespace pith;

namespace {

template <typename T = float>
std::vector<T> random_values(size_t n, std::mt19937_64& rng) {
  std::normal_distribution<T> normal;
  std::vector<T> values(n);
  for (T& value : values) value = normal(rng);
  return values;
}

// Whether `found` is `sum`, but for roundings of a float sum of terms that are `size` together.
bool is_near(double found, double sum, double size) {
  return std::fabs(found - sum) <= 1e-6 * size + 1e-30;
}

}  // namespace

TEST_CASE("multiply_transposed is the product, whatever the number of threads") {
  std::mt19937_64 rng(1);
  for (const uint32_t n : {1u, 47u, 49u, 250u})
    for (const uint32_t k : {1u, 255u, 300u})
      for (const uint32_t m : {1u, 7u, 9u, 131u}) {
        CAPTURE(n, k, m);
        const std::vector<float> x = random_values(size_t{n} * k, rng), w = random_values(size_t{m} * k, rng);
        std::vector<float> y(size_t{n} * m, NAN), by_three(y);
        multiply_transposed(x.data(), n, k, w.data(), m, y.data(), 1);
        multiply_transposed(x.data(), n, k, w.data(), m, by_three.data(), 3);
        REQUIRE(y == by_three);
        for (size_t t = 0; t < n; ++t)
          for (size_t r = 0; r < m; ++r) {
            double sum = 0, size = 0;
            for (size_t i = 0; i < k; ++i) {
              sum += double{x[t * k + i]} * double{w[r * k + i]};
              size += std::fabs(double{x[t * k + i]} * double{w[r * k + i]});
            }
            REQUIRE(is_near(double{y[t * m + r]}, sum, size));
          }
      }
}

TEST_CASE("mean_products is the mean of the products, whatever the number of threads") {
  std::mt19937_64 rng(2);
  for (const uint32_t n : {1u, 255u, 300u})
    for (const uint32_t k : {1u, 9u, 131u})
      for (const uint32_t m : {1u, 49u, 131u})
        for (const bool with_minus : {false, true}) {
          CAPTURE(n, k, m, with_minus);
          const std::vector<float> x = random_values(size_t{n} * k, rng),
                                   other = random_values(size_t{n} * std::max(k, m), rng);
          const float* const minus = with_minus ? other.data() : nullptr;
          const float* const y = k == m && !with_minus ? x.data() : other.data();  // then symmetric
          std::vector<float> h(size_t{k} * m, NAN), by_three(h);
          mean_products(x.data(), minus, y, n, k, m, 0.5, h.data(), 1);
          mean_products(x.data(), minus, y, n, k, m, 0.5, by_three.data(), 3);
          REQUIRE(h == by_three);
          for (size_t i = 0; i < k; ++i)
            for (size_t j = 0; j < m; ++j) {
              double sum = 0, size = 0;
              for (size_t t = 0; t < n; ++t) {
                const float left = x[t * k + i] - (minus ? minus[t * k + i] : 0.0f);
                sum += double{left} * double{y[t * m + j]};
                size += std::fabs(double{left} * double{y[t * m + j]});
              }
              REQUIRE(is_near(double{h[i * m + j]}, sum / n * 0.5, size / n * 0.5));
            }
        }
}

TEST_CASE("subtract_product takes a product from a part of a matrix and touches nothing else") {
  std::mt19937_64 rng(3);
  for (const uint32_t n_rows : {1u, 8u, 13u})
    for (const uint32_t depth : {1u, 128u})
      for (const uint32_t n_cols : {1u, 24u, 31u}) {
        CAPTURE(n_rows, depth, n_cols);
        constexpr size_t kStride = 140;
        const auto a = random_values<double>(n_rows * kStride, rng),
                   b = random_values<double>(depth * kStride, rng),
                   before = random_values<double>(n_rows * kStride, rng);
        std::vector<double> c = before;
        subtract_product(c.data(), kStride, a.data(), kStride, b.data(), kStride, n_rows, depth, n_cols);
        for (size_t i = 0; i < n_rows; ++i)
          for (size_t j = 0; j < kStride; ++j) {
            double sum = 0;
            for (size_t d = 0; j < n_cols && d < depth; ++d) sum += a[i * kStride + d] * b[d * kStride + j];
            REQUIRE(std::fabs(c[i * kStride + j] - (before[i * kStride + j] - sum)) < 1e-11);
            if (j >= n_cols) REQUIRE(c[i * kStride + j] == before[i * kStride + j]);
          }
      }
}
