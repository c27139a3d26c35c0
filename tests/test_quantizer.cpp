// The quantizer: what each lever must gain, on random matrices where the gain is known, and exactness where it is due.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <random>

#include "convert/budget.h"
#include "convert/gemm.h"
#include "convert/levers.h"
#include "convert/metric.h"
#include "convert/quantizer.h"
#include "format/error.h"
#include "tests/random_matrices.h"

using namespace pith;
using namespace pith::test;

namespace {

// hessian: null for none.
QuantizeResult quantize(const std::vector<float>& w, uint32_t n_rows, uint32_t n_cols, const Hessian* hessian,
                        const QuantizeOptions& options, uint32_t n_threads) {
  Metric metric = hessian ? Metric(*hessian, options.damping, options.shrinkage, n_threads) : Metric(n_cols);
  return quantize(w, n_rows, std::move(metric), options, n_threads);
}

std::vector<float> dequantized(const QuantizeResult& result) {
  const q24::Shape& shape = result.tensor.shape;
  std::vector<uint8_t> storage(result.report.size_bytes + q24::kLineBytes);
  uint8_t* const data =
      storage.data() + (q24::kLineBytes - reinterpret_cast<uintptr_t>(storage.data()) % q24::kLineBytes);
  q24::pack(result.tensor, {data, result.report.size_bytes});
  const q24::View view = q24::make_view(shape, data);
  q24::check(view, "test");
  std::vector<float> out(size_t{shape.n_rows} * shape.n_cols);
  for (uint32_t r = 0; r < shape.n_rows; ++r)
    q24::dequantize_row(view, r, out.data() + size_t{r} * shape.n_cols);
  return out;
}

// tr(E H E') / tr(W H W'), by definition.
double error_of(const std::vector<float>& w, const std::vector<float>& q, uint32_t n_rows,
                const Hessian* hessian) {
  const uint32_t n = static_cast<uint32_t>(w.size() / n_rows);
  double error = 0, norm = 0;
  for (uint32_t r = 0; r < n_rows; ++r)
    for (uint32_t i = 0; i < n; ++i) {
      const double ei = double{w[r * n + i]} - q[r * n + i], wi = w[r * n + i];
      if (!hessian) {
        error += ei * ei;
        norm += wi * wi;
        continue;
      }
      for (uint32_t j = 0; j < n; ++j) {
        const double h = hessian->values[i * n + j];
        error += ei * h * (double{w[r * n + j]} - q[r * n + j]);
        norm += wi * h * w[r * n + j];
      }
    }
  return error / norm;
}

double error_with(const std::vector<float>& w, uint32_t n_rows, const Hessian* hessian,
                  const QuantizeOptions& options) {
  const uint32_t n_cols = static_cast<uint32_t>(w.size() / n_rows);
  return error_of(w, dequantized(quantize(w, n_rows, n_cols, hessian, options, 2)), n_rows, hessian);
}

}  // namespace

TEST_CASE("2-bit groups of 16 lose less than 7.5 % of a Gaussian's variance, 4-bit ones less than 0.5 %") {
  const std::vector<float> w = gaussian(64 * 256, 1);
  QuantizeOptions options;
  CHECK(error_with(w, 64, nullptr, options) < 0.075);
  options.n_fine = 256;
  CHECK(error_with(w, 64, nullptr, options) < 0.005);
}

TEST_CASE("searched scales beat min-max, and a free minimum beats an integer zero point") {
  const std::vector<float> w = gaussian(64 * 256, 2);
  QuantizeOptions searched, min_max, integer_zero;
  min_max.search_scales = integer_zero.search_scales = false;
  integer_zero.integer_zero = true;
  const double error_searched = error_with(w, 64, nullptr, searched);
  const double error_min_max = error_with(w, 64, nullptr, min_max);
  CHECK(error_searched < 0.75 * error_min_max);
  CHECK(error_min_max < 0.95 * error_with(w, 64, nullptr, integer_zero));
}

TEST_CASE("with a Hessian every lever removes error") {
  constexpr uint32_t kRows = 64, kCols = 256;
  const std::vector<float> w = gaussian(kRows * kCols, 3);
  const Hessian h = correlated(kCols, 4);
  QuantizeOptions options;
  options.compensate = false;
  const double plain = error_with(w, kRows, &h, options);
  options.compensate = true;
  options.descent_rounds = 0;
  const double compensated = error_with(w, kRows, &h, options);
  options.descent_rounds = 4;
  const double descended = error_with(w, kRows, &h, options);
  options.n_slots = 2;
  const double with_outliers = error_with(w, kRows, &h, options);
  options.n_slots = 0;
  options.n_fine = 32;
  const double with_fine = error_with(w, kRows, &h, options);
  options.sensitivity = Sensitivity::kRandom;
  const double random_fine = error_with(w, kRows, &h, options);
  CHECK(compensated < 0.5 * plain);
  CHECK(descended < 0.99 * compensated);
  CHECK(with_outliers < 0.97 * descended);
  CHECK(with_fine < 0.85 * descended);
  CHECK(with_fine < 0.98 * random_fine);
}

TEST_CASE("the reported error is that of the packed tensor") {
  const std::vector<float> w = gaussian(40 * 100, 5);
  QuantizeOptions options;
  options.n_fine = 48;
  options.n_slots = 1;
  const QuantizeResult result = quantize(w, 40, 100, nullptr, options, 1);
  CHECK(result.report.relative_error == Approx(error_of(w, dequantized(result), 40, nullptr)).epsilon(0.01));
  CHECK(result.report.bits_per_weight == Approx(8.0 * static_cast<double>(result.report.size_bytes) / 4000));
  // With a Hessian, of whose square the quantizer reads one half: the shrunk and damped one counts.
  const Hessian h = correlated(100, 12);
  Hessian damped = h;
  for (size_t i = 0; i < damped.values.size(); ++i)
    if (i % 101 != 0) damped.values[i] *= static_cast<float>(1 - options.shrinkage);
  for (uint32_t c = 0; c < 100; ++c)
    damped.values[c * 100 + c] += static_cast<float>(options.damping * h.mean_diagonal());
  for (const bool compensate : {false, true}) {
    options.compensate = compensate;
    const QuantizeResult with = quantize(w, 40, 100, &h, options, 1);
    CHECK(with.report.relative_error == Approx(error_of(w, dequantized(with), 40, &damped)).epsilon(0.001));
  }
}

TEST_CASE("a shrunk Hessian of few tokens is nearer to the truth where compensation is concerned") {
  constexpr uint32_t kCols = 128, kRows = 48;
  const std::vector<float> w = gaussian(kRows * kCols, 6);
  const Hessian truth = correlated(kCols, 16);
  for (const auto& [n_tokens, bar] : {std::pair{kCols, 0.95}, std::pair{3 * kCols, 0.99}}) {
    const std::vector<float> x = correlated_inputs(kCols, 16, n_tokens);
    Hessian h{kCols, std::vector<float>(kCols * kCols)};
    mean_products(x.data(), nullptr, x.data(), n_tokens, kCols, kCols, 1, h.values.data(), 1);
    const auto error = [&](bool is_shrunk) {
      Levers levers;
      levers.shrunk_hessian = is_shrunk;
      QuantizeOptions options;
      levers.apply_to(options);
      return error_of(w, dequantized(quantize(w, kRows, kCols, &h, options, 1)), kRows, &truth);
    };
    CAPTURE(n_tokens);
    CHECK(error(true) < bar * error(false));
  }
}

TEST_CASE("awkward shapes are quantized whole") {
  for (const uint32_t group : {16u, 32u})
    for (const uint32_t n_rows : {1u, 31u, 33u})
      for (const uint32_t n_cols : {1u, 15u, 17u, 63u, 65u, 172u}) {
        INFO(n_rows << " x " << n_cols << ", group " << group);
        const std::vector<float> w = gaussian(size_t{n_rows} * n_cols, n_rows + n_cols);
        const Hessian h = correlated(n_cols, 6);
        QuantizeOptions options;
        options.group = group;
        options.n_slots = 1;
        CHECK(error_with(w, n_rows, nullptr, options) < 0.2);
        options.n_fine = (n_cols + 63) / 64 * 64 - (n_cols > 64 ? 64 : 0);
        options.n_slots = n_cols > 64 ? 1 : 0;
        CHECK(error_with(w, n_rows, &h, options) < 0.2);
        options.sort_columns = false;
        CHECK(error_with(w, n_rows, &h, options) < 0.3);
      }
}

TEST_CASE("a matrix of zeros, a constant and a lone spike survive") {
  QuantizeOptions options;
  std::vector<float> w(32 * 64);
  CHECK(dequantized(quantize(w, 32, 64, nullptr, options, 1)) == w);
  w[5] = 100;
  const std::vector<float> spike = dequantized(quantize(w, 32, 64, nullptr, options, 1));
  CHECK(spike[5] == Approx(100).epsilon(0.05));
  CHECK(spike[64] == 0);
  std::fill(w.begin(), w.end(), -3.0f);
  for (const float value : dequantized(quantize(w, 32, 64, nullptr, options, 1)))
    CHECK(value == Approx(-3).epsilon(0.05));
}

TEST_CASE("the result does not depend on the number of threads") {
  const std::vector<float> w = gaussian(70 * 200, 7);
  const Hessian h = correlated(200, 8);
  QuantizeOptions options;
  options.n_fine = 48;
  options.n_slots = 1;
  const q24::Unpacked one = quantize(w, 70, 200, &h, options, 1).tensor;
  for (const uint32_t n_threads : {2u, 3u, 8u}) {
    const q24::Unpacked many = quantize(w, 70, 200, &h, options, n_threads).tensor;
    CHECK(many.codes == one.codes);
    CHECK(many.s == one.s);
    CHECK(many.d == one.d);
    CHECK(many.outlier_delta == one.outlier_delta);
    CHECK(many.perm == one.perm);
  }
}

TEST_CASE("a dead input costs nothing and a Hessian that is not positive definite is refused") {
  const std::vector<float> w = gaussian(32 * 64, 9);
  Hessian h = correlated(64, 10);
  for (uint32_t i = 0; i < 64; ++i) h.values[i * 64 + 3] = h.values[3 * 64 + i] = 0;
  CHECK(error_with(w, 32, &h, {}) < 0.1);
  h.values[5 * 64 + 6] = h.values[6 * 64 + 5] = 1e6f;
  CHECK_THROWS_WITH(quantize(w, 32, 64, &h, {}, 1), Catch::Matchers::Contains("not positive definite"));
  std::fill(h.values.begin(), h.values.end(), 0.0f);
  CHECK_THROWS_WITH(quantize(w, 32, 64, &h, {}, 1), Catch::Matchers::Contains("mean diagonal 0"));
}

TEST_CASE("a budget meets its target within 0.01 bits on wide layers") {
  for (const double target : {2.3, 2.6, 2.85, 3.2, 4.25, 4.5}) {
    std::vector<LayerBudget> layers;
    for (int i = 0; i < 4; ++i)
      for (const auto& [rows, cols] :
           {std::pair(12288u, 4096u), {4096u, 4096u}, {22016u, 4096u}, {4096u, 11008u}})
        layers.push_back({rows, cols, rows == 4096 ? 1.5 : 0.8, 0.004, {}});
    const double bits = share_bits(layers, target);
    CHECK(bits <= target);
    CHECK(bits > target - 0.01);
    CHECK(bits == total_bits(layers));
  }
}

TEST_CASE("a budget that cannot be met gives the lowest figure") {
  std::vector<LayerBudget> layers = {{128, 64, 1, 0.004, {}}};
  const double bits = share_bits(layers, 2.3);
  CHECK(bits > 2.3);
  q24::Shape smallest{128, 64, 32, 0, 0};
  CHECK(q24::make_layout(layers[0].shape).size_bytes == q24::make_layout(smallest).size_bytes);
}

TEST_CASE("shapes chosen by loss meet the target within 0.01 bits and leave out no better exchange") {
  std::vector<std::vector<Candidate>> layers;
  for (uint32_t i = 0; i < 12; ++i) {
    const uint32_t n_cols = i % 2 == 0 ? 1024 : 4096;
    std::vector<Candidate> candidates;
    for (const uint32_t group : {16u, 32u})
      for (uint32_t n_fine = 0; n_fine <= n_cols; n_fine += group) {
        const double share = static_cast<double>(n_fine) / n_cols, rough = group == 16 ? 0.066 : 0.088;
        candidates.push_back({{2048, n_cols, group, n_fine, 0}, (1.0 + i) * rough * std::exp(-3 * share)});
      }
    layers.push_back(std::move(candidates));
  }
  for (const double target : {2.3, 2.6, 2.85, 3.2, 4.25}) {
    std::vector<q24::Shape> shapes;
    const double bits = choose_shapes(layers, target, shapes);
    CHECK(bits <= target);
    CHECK(bits > target - 0.01);
    REQUIRE(shapes.size() == layers.size());
    CHECK(shapes[10].n_fine >= shapes[0].n_fine);  // as wide, and worth eleven times as much
    double loss = 0, even_loss = 0;
    for (size_t i = 0; i < layers.size(); ++i)
      for (const Candidate& candidate : layers[i]) {
        if (candidate.shape.group == shapes[i].group && candidate.shape.n_fine == shapes[i].n_fine)
          loss += candidate.loss;
        // The same share of 4-bit columns everywhere, group 32, at no fewer bits.
        const double share = (target - 2.26) / 2;
        if (candidate.shape.group == 32 &&
            candidate.shape.n_fine == static_cast<uint32_t>(share * candidate.shape.n_cols) / 32 * 32)
          even_loss += candidate.loss;
      }
    CHECK(loss < even_loss);
  }
  std::vector<q24::Shape> shapes;
  CHECK(choose_shapes(layers, 2, shapes) > 2.2);  // not within reach: the smallest
  for (const q24::Shape& shape : shapes) CHECK(shape.n_fine + shape.n_slots == 0);
}

TEST_CASE("outliers stay in 2-bit columns unless the control puts them everywhere") {
  std::vector<float> w = gaussian(32 * 128, 30);
  for (uint32_t r = 0; r < 32; ++r)
    w[r * 128 + 5] = 20;  // makes column 5 a 4-bit one, with its row's largest weight
  QuantizeOptions options;
  options.n_fine = 16;
  options.n_slots = 1;
  options.sensitivity = Sensitivity::kRange;
  options.sort_columns = false;
  const auto n_in_fine = [&] {
    const q24::Unpacked tensor = quantize(w, 32, 128, nullptr, options, 1).tensor;
    return std::count_if(tensor.outlier_col.begin(), tensor.outlier_col.end(),
                         [](uint16_t c) { return c >= 112; });
  };
  for (const OutlierChoice choice : {OutlierChoice::kErrorRemoved, OutlierChoice::kSize}) {
    options.outlier_choice = choice;
    options.outliers = OutlierPlace::kCoarse;
    CHECK(n_in_fine() == 0);
    options.outliers = OutlierPlace::kEverywhere;
    CHECK(n_in_fine() >= 24);  // in some rows another outlier gains a little more
  }
  options.outliers = OutlierPlace::kNone;
  CHECK(quantize(w, 32, 128, nullptr, options, 1).tensor.outlier_col.empty());
}

TEST_CASE("weights far beyond what fp16 scales hold give a tensor that is valid") {
  for (const float size : {1e9f, 1e17f, 1e30f}) {
    std::vector<float> w = gaussian(32 * 64, 31);
    for (float& value : w) value *= size;
    const Hessian h = correlated(64, 32);
    for (const Hessian* hessian : {static_cast<const Hessian*>(nullptr), &h})
      for (const float value : dequantized(quantize(w, 32, 64, hessian, {}, 1))) CHECK(std::isfinite(value));
  }
}

TEST_CASE("levers are set by name, and describe themselves in the same syntax") {
  Levers levers;
  apply_levers("", levers);
  CHECK(levers == Levers{});
  apply_levers(
      "search=off,minimum=integer,sensitivity=random,outliers=everywhere,outlier-by=size,descent=7,budget="
      "even,group=32",
      levers);
  CHECK_FALSE(levers.search);
  CHECK_FALSE(levers.free_minimum);
  CHECK(levers.sensitivity == Sensitivity::kRandom);
  CHECK(levers.outliers == Outliers::kEverywhere);
  CHECK(levers.outlier_choice == OutlierChoice::kSize);
  CHECK(levers.descent == 7);
  CHECK(levers.budget == Budget::kEven);
  CHECK(levers.group == 32);
  for (const Levers& all : {levers, Levers::paper()}) {
    Levers again;
    apply_levers(describe(all), again);
    CHECK(again == all);
  }
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH(apply_levers("serch=off", levers),
                    Contains("--ablate serch=off: expected LEVER=VALUE of descent"));
  CHECK_THROWS_WITH(apply_levers("search=maybe", levers),
                    Contains("--ablate search=maybe: expected off, on"));
  CHECK_THROWS_WITH(apply_levers("descent=65", levers), Contains("expected 0 to 64"));
  CHECK_THROWS_WITH(apply_levers("search", levers), Contains("--ablate search=: expected off, on"));
}
