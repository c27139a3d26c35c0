// The float32 product of calibration and the layout of its operands. Both must give the bits of the formula in gemm_float.cuh.
//
// Built twice, as test_cuda_products.cpp.
#include <catch2/catch.hpp>

#include "cuda_testing.h"

namespace pith::cuda {
namespace {

// By gemm_float.cuh's order: fma by depth, passes of 256.
std::vector<float> reference(const std::vector<float>& a, const std::vector<float>& b, uint32_t depth,
                             uint32_t n_rows, uint32_t n_cols, std::vector<float> c, bool adds) {
  for (uint32_t i = 0; i < n_rows; ++i)
    for (uint32_t j = 0; j < n_cols; ++j) {
      float& sum = c[size_t{i} * n_cols + j];
      if (!adds) sum = 0;
      for (uint32_t begin = 0; begin < depth; begin += 256) {
        float part = 0;
        for (uint32_t d = begin; d < std::min(depth, begin + 256); ++d)
          part = std::fma(a[size_t{d} * n_rows + i], b[size_t{d} * n_cols + j], part);
        sum += part;
      }
    }
  return c;
}

}  // namespace

TEST_CASE("float products have the bits of their formula, for one pass and several, set and added") {
  struct Case {
    uint32_t depth, n_rows, n_cols;
    bool adds;
  };
  for (const Case& c : {Case{16, 128, 128, false}, Case{256, 128, 256, true}, Case{592, 256, 128, true},
                        Case{528, 128, 128, false}}) {
    INFO("depth " << c.depth << " rows " << c.n_rows << " columns " << c.n_cols << " adds " << c.adds);
    const std::vector<float> a = random_vector(size_t{c.depth} * c.n_rows),
                             b = random_vector(size_t{c.depth} * c.n_cols),
                             old = random_vector(size_t{c.n_rows} * c.n_cols);
    const DeviceBuffer on_a = to_device(a), on_b = to_device(b);
    const DeviceBuffer on_c = c.adds ? to_device(old) : poisoned(old.size());
    launch_gemm_float(
        {on_a.as<float>(), on_b.as<float>(), on_c.as<float>(), c.depth, c.n_rows, c.n_cols, c.adds, false},
        how());
    CHECK(to_host<float>(on_c, old.size()) == reference(a, b, c.depth, c.n_rows, c.n_cols, old, c.adds));
  }
}

TEST_CASE(
    "a sum that is cut at 256 depths is the same, and a symmetric one leaves out what is above the "
    "diagonal") {
  constexpr uint32_t kDepth = 800, kRows = 256;
  const std::vector<float> a = random_vector(size_t{kDepth} * kRows);
  const std::vector<float> expected =
      reference(a, a, kDepth, kRows, kRows, std::vector<float>(kRows * kRows), false);
  const DeviceBuffer on_a = to_device(a), c = poisoned(kRows * kRows);
  for (uint32_t begin = 0; begin < kDepth; begin += 512) {
    const float* const from = on_a.as<float>() + size_t{begin} * kRows;
    launch_gemm_float(
        {from, from, c.as<float>(), std::min(512u, kDepth - begin), kRows, kRows, begin > 0, true}, how());
  }
  const std::vector<float> found = to_host<float>(c, kRows * kRows);
  for (uint32_t i = 0; i < kRows; ++i)
    for (uint32_t j = 0; j < kRows; ++j) {
      INFO(i << " " << j);
      if (i / kFloatTile < j / kFloatTile)
        REQUIRE(std::isnan(found[i * kRows + j]));
      else
        REQUIRE(found[i * kRows + j] == expected[i * kRows + j]);
    }
}

TEST_CASE("operands are laid out with zeros around them, transposed or not") {
  struct Case {
    uint32_t n_rows, n_cols, to_rows, to_cols, to_stride;
    bool transposed;
  };
  for (const Case& c : {Case{1, 1, 32, 128, 128, false}, Case{33, 100, 64, 128, 256, false},
                        Case{1, 1, 128, 128, 128, true}, Case{100, 70, 96, 128, 384, true}}) {
    INFO(c.n_rows << " x " << c.n_cols << (c.transposed ? " transposed" : ""));
    const std::vector<float> from = random_vector(size_t{c.n_rows} * c.n_cols);
    const DeviceBuffer on = to_device(from), to = poisoned(size_t{c.to_rows} * c.to_stride);
    launch_lay_out(
        {on.as<float>(), to.as<float>(), c.n_rows, c.n_cols, c.to_rows, c.to_cols, c.to_stride, c.transposed},
        how());
    const std::vector<float> found = to_host<float>(to, size_t{c.to_rows} * c.to_stride);
    for (uint32_t i = 0; i < c.to_rows; ++i)
      for (uint32_t j = 0; j < c.to_stride; ++j) {
        const uint32_t row = c.transposed ? j : i, col = c.transposed ? i : j;
        const float value = found[size_t{i} * c.to_stride + j];
        INFO(i << " " << j);
        if (j >= c.to_cols)
          REQUIRE(std::isnan(value));
        else
          REQUIRE(value == (row < c.n_rows && col < c.n_cols ? from[size_t{row} * c.n_cols + col] : 0));
      }
  }
}

}  // namespace pith::cuda
