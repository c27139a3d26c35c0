// What the quantizer computes with: factors, metrics, the products of calibration, corrected weights, against their definitions.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>
#include <random>

#include "convert/correction.h"
#include "convert/factor.h"
#include "convert/gemm.h"
#include "convert/metric.h"
#include "tests/random_matrices.h"

using namespace pith;
using namespace pith::test;

TEST_CASE("factor_upper puts V with V V' = H above the diagonal of H for sizes around the block") {
  for (const uint32_t n : {1u, 2u, 127u, 128u, 129u, 300u}) {
    const size_t stride = n + 5;
    const Hessian h = correlated(n, 11);
    std::vector<float> square(n * stride, -7);
    for (uint32_t i = 0; i < n; ++i)
      for (uint32_t j = 0; j < n; ++j)
        square[i * stride + j] = h.values[size_t{i} * n + j] + (i == j ? 0.01f : 0);
    const std::vector<float> original = square;
    const UpperFactor factor = factor_upper(square.data(), n, stride, 2);
    REQUIRE(factor.n() == n);
    const auto v = [&](uint32_t i, uint32_t k) {
      return i == k ? factor.diagonal[i] : double{square[i * stride + k]};
    };
    double worst = 0;
    for (uint32_t i = 0; i < n; ++i)
      for (uint32_t j = 0; j <= i; ++j) {
        double sum = 0;
        for (uint32_t k = i; k < n; ++k) sum += v(i, k) * v(j, k);
        worst = std::max(worst, std::abs(sum - double{original[i * stride + j]}));
        CHECK(square[i * stride + j] == original[i * stride + j]);
      }
    CHECK(worst < 1e-5);
    // Rows of h solved for give the identity, whose diagonal is the inverse's times h.
    std::vector<float> rows(size_t{n} * n);
    for (uint32_t i = 0; i < n; ++i) rows[size_t{i} * n + i] = 1;
    solve_rows(factor, rows.data(), n, 2);
    const std::vector<double> inverse = inverse_diagonal(factor, 2);
    for (uint32_t i = 0; i < n; ++i) {
      CHECK(inverse[i] == Approx(double{rows[size_t{i} * n + i]}).epsilon(1e-4));
      double product = 0;
      for (uint32_t k = 0; k < n; ++k) product += double{rows[size_t{i} * n + k]} * original[k * stride + i];
      CHECK(product == Approx(1).epsilon(1e-3));
    }
    mirror(square.data(), n, stride, 2);
    CHECK(square == original);
  }
}

TEST_CASE(
    "a metric puts the Hessian into the order and scale of the storage, pads it and factors it in place") {
  constexpr uint32_t kCols = 150, kStride = 192;
  const Hessian h = correlated(kCols, 13);
  const double mean = h.mean_diagonal();
  std::vector<uint32_t> columns(kCols);
  std::iota(columns.begin(), columns.end(), 0u);
  std::shuffle(columns.begin(), columns.end(), std::mt19937_64(1));
  std::vector<float> scale(kStride);
  for (uint32_t c = 0; c < kStride; ++c) scale[c] = 0.5f + static_cast<float>(c / 16) / 8;
  Metric metric(h, 0.02, 0, 2);
  metric.inverse_diagonal();  // leaves a factor in input order, which must not be in the way
  metric.arrange(columns, scale, kStride, true);
  const float* const square = metric.square();
  for (uint32_t i = 0; i < kCols; ++i)
    for (uint32_t j = 0; j <= i; ++j) {
      const double wanted =
          (h.values[columns[i] * kCols + columns[j]] / mean + (i == j ? 0.02 : 0)) * scale[i] * scale[j];
      CHECK(double{square[i * kStride + j]} == Approx(wanted).margin(1e-6));
      double product = 0;
      for (uint32_t k = i; k < kCols; ++k)
        product += double{k == i ? metric.v_diagonal()[i] : square[i * kStride + k]} *
                   double{k == j ? metric.v_diagonal()[j] : square[j * kStride + k]};
      CHECK(product == Approx(wanted).margin(1e-5));
    }
  CHECK(std::all_of(square + kCols * kStride, square + kStride * kStride, [](float x) { return x == 0; }));
}

TEST_CASE("a metric of few samples has the diagonals of the Hessian that they make") {
  constexpr uint32_t kCols = 90;
  for (const uint32_t n_tokens : {1u, 40u, 89u, 90u, 200u}) {
    std::vector<float> x = gaussian(n_tokens * kCols, 14);
    for (uint32_t t = 0; t < n_tokens; ++t) x[t * kCols + 7] *= 30;  // as real inputs have: one large channel
    Hessian h{kCols, std::vector<float>(kCols * kCols)};
    mean_products(x.data(), nullptr, x.data(), n_tokens, kCols, kCols, 1, h.values.data(), 1);
    Metric dense(h, 0.02, 0, 1), sampled = Metric::of_samples(x, kCols, 0.02, 2);
    for (uint32_t c = 0; c < kCols; ++c) {
      CHECK(sampled.diagonal()[c] == Approx(dense.diagonal()[c]).epsilon(1e-4));
      CHECK(sampled.inverse_diagonal()[c] == Approx(dense.inverse_diagonal()[c]).epsilon(1e-3));
    }
    CHECK_FALSE(sampled.is_dense());
    // Nothing seen: all columns alike.
    CHECK(Metric::of_samples(std::vector<float>(n_tokens * kCols), kCols, 0.02, 1).diagonal()[3] == 1);
  }
}

TEST_CASE("the products of calibration equal the naive sums for sizes around a tile") {
  for (const uint32_t n : {1u, 15u, 257u, 300u})
    for (const uint32_t k : {1u, 8u, 17u, 33u})
      for (const uint32_t m : {1u, 7u, 16u, 35u}) {
        const std::vector<float> x = gaussian(size_t{n} * k, n), w = gaussian(size_t{m} * k, m),
                                 z = gaussian(size_t{n} * m, k);
        std::vector<float> y(size_t{n} * m);
        multiply_transposed(x.data(), n, k, w.data(), m, y.data(), 2);
        std::vector<float> products(size_t{k} * m), gram(size_t{k} * k);
        mean_products(x.data(), nullptr, z.data(), n, k, m, n, products.data(), 2);
        mean_products(x.data(), nullptr, x.data(), n, k, k, n, gram.data(), 2);
        double worst = 0;
        for (uint32_t i = 0; i < n; ++i)
          for (uint32_t j = 0; j < m; ++j) {
            double sum = 0;
            for (uint32_t c = 0; c < k; ++c) sum += double{x[i * k + c]} * w[j * k + c];
            worst = std::max(worst, std::abs(sum - double{y[i * m + j]}));
          }
        for (uint32_t i = 0; i < k; ++i) {
          for (uint32_t j = 0; j < m; ++j) {
            double sum = 0;
            for (uint32_t t = 0; t < n; ++t) sum += double{x[t * k + i]} * z[t * m + j];
            worst = std::max(worst, std::abs(sum - double{products[i * m + j]}));
          }
          for (uint32_t j = 0; j < k; ++j) {
            double sum = 0;
            for (uint32_t t = 0; t < n; ++t) sum += double{x[t * k + i]} * x[t * k + j];
            worst = std::max(worst, std::abs(sum - double{gram[i * k + j]}));
          }
        }
        CHECK(worst < 1e-3);  // 300 products of about 1 in float: 300 * 2^-24 * 10
      }
}

TEST_CASE("retargeted weights give the wanted output from inputs that have drifted") {
  constexpr uint32_t kTokens = 400, kCols = 12;
  for (const uint32_t n_rows : {8u, 20u}) {  // fewer than columns and more: two ways to the same
    const std::vector<float> w = gaussian(n_rows * kCols, 20), x = gaussian(kTokens * kCols, 21);
    std::vector<float> drifted = x, gap = gaussian(kTokens * n_rows, 23);
    const std::vector<float> noise = gaussian(kTokens * kCols, 22), nothing(kTokens * n_rows);
    for (size_t i = 0; i < x.size(); ++i) drifted[i] = 0.8f * x[i] + 0.3f * noise[i];
    for (uint32_t t = 0; t < kTokens; ++t)  // what the residual stream lacks: something the input tells of
      for (uint32_t r = 0; r < n_rows; ++r)
        gap[t * n_rows + r] = 0.2f * gap[t * n_rows + r] + 0.5f * drifted[t * kCols + r % kCols];
    Hessian h{kCols, std::vector<float>(kCols * kCols)};
    mean_products(drifted.data(), nullptr, drifted.data(), kTokens, kCols, kCols, 1, h.values.data(), 1);
    const auto miss = [&](const std::vector<float>& weights, double with_gap = 1) {
      std::vector<float> wanted(kTokens * n_rows), found(kTokens * n_rows);
      multiply_transposed(x.data(), kTokens, kCols, w.data(), n_rows, wanted.data(), 1);
      multiply_transposed(drifted.data(), kTokens, kCols, weights.data(), n_rows, found.data(), 1);
      double sum = 0;
      for (size_t i = 0; i < wanted.size(); ++i)
        sum += std::pow(double{wanted[i]} + with_gap * gap[i] - found[i], 2);
      return sum;
    };
    const auto retargeted = [&](Drift drift) {
      std::vector<float> weights = w;
      Metric metric(h, 1e-6, 0, 1);
      retarget(weights, n_rows, drift, false, metric, 2);
      return weights;
    };
    Drift drift{kTokens, kCols, x.data(), drifted.data()};
    const std::vector<float> without_gap = retargeted(drift);
    drift.residual_original = nothing.data();  // the way by outputs, whatever the rows
    drift.residual_quantized = nothing.data();
    const std::vector<float> by_outputs = retargeted(drift);
    drift.residual_original = gap.data();
    const std::vector<float> with_gap = retargeted(drift);
    for (size_t i = 0; i < w.size(); ++i) CHECK(by_outputs[i] == Approx(without_gap[i]).margin(1e-4));
    CHECK(miss(without_gap, 0) < 0.95 * miss(w, 0));
    CHECK(miss(with_gap) < 0.95 * miss(without_gap));
    // At the least square error no single weight can do better.
    for (const float step : {0.01f, -0.01f}) {
      std::vector<float> moved = with_gap;
      moved[5] += step;
      CHECK(miss(moved) > miss(with_gap));
    }
    drift.n_tokens = 0;
    CHECK(retargeted(drift) == w);
  }
}

TEST_CASE("a correction is shrunk to what two halves of the tokens agree on") {
  constexpr uint32_t kTokens = 2000, kCols = 64, kRows = 96;
  const std::vector<float> x = gaussian(kTokens * kCols, 30), w = gaussian(kRows * kCols, 31),
                           nothing(kTokens * kRows);
  std::vector<float> gap = gaussian(kTokens * kRows, 32);  // chance: no input tells of it
  for (uint32_t t = 0; t < kTokens;
       ++t)  // but the first half of the rows, which an input explains by a fifth
    for (uint32_t r = 0; r < kRows / 2; ++r) gap[t * kRows + r] += 0.5f * x[t * kCols + r];
  Hessian h{kCols, std::vector<float>(kCols * kCols)};
  mean_products(x.data(), nullptr, x.data(), kTokens, kCols, kCols, 1, h.values.data(), 1);
  const auto change = [&](uint32_t n_tokens, bool shrink, const std::vector<float>* residual) {
    std::vector<float> weights = w;
    Metric metric(h, 1e-6, 0, 1);
    Drift drift{n_tokens, kCols, x.data(), x.data()};
    if (residual) drift.residual_original = residual->data(), drift.residual_quantized = nothing.data();
    retarget(weights, kRows, drift, shrink, metric, 2);
    for (size_t i = 0; i < w.size(); ++i) weights[i] -= w[i];
    return weights;
  };
  const std::vector<float> full = change(kTokens, false, &gap), shrunk = change(kTokens, true, &gap);
  // What is learnt a row: 0.25 of signal, and of chance n_cols / n_tokens = 0.03. The halves' own moments differ by about as much
  // from those of all tokens, which costs the signal that share.
  double share_with_signal = 0, share_of_chance = 0;
  for (uint32_t r = 0; r < kRows; ++r) {
    double with = 0, without = 0, ratio = 0;
    for (uint32_t c = 0; c < kCols; ++c) {
      with += std::pow(double{shrunk[r * kCols + c]}, 2);
      without += std::pow(double{full[r * kCols + c]}, 2);
      ratio += double{shrunk[r * kCols + c]} * double{full[r * kCols + c]};
    }
    INFO("row " << r);
    CHECK(ratio * ratio == Approx(with * without));  // a multiple of it
    CHECK(with <= without * 1.001);
    const double share = std::sqrt(with / without);
    (r < kRows / 2 ? share_with_signal : share_of_chance) += share / (kRows / 2);
  }
  CHECK(share_with_signal == Approx(0.97 * 0.25 / 0.28).margin(0.02));
  CHECK(share_of_chance < 0.2);
  for (const std::vector<float>* residual : std::initializer_list<const std::vector<float>*>{&gap, nullptr})
    for (const float value : change(residual ? 1 : kTokens, true, residual)) CHECK(value == 0);
}
