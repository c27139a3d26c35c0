// Tiles of 8 rows by 48 columns (24 in double): the rows' elements are broadcast from where they lie, the columns packed so
// that the inner loop reads forward. Compiled with FMA where the CPU has it.
#include "convert/gemm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "convert/factor.h"
#include "convert/isa.h"
#include "convert/parallel_for.h"

namespace pith {

namespace {

constexpr uint32_t kRows = 8;
template <typename T>
constexpr uint32_t kCols = 192 / sizeof(T);  // three of the widest registers
constexpr uint32_t kDepth = 256;  // of a pass: its 48 columns (48 KB) stay in L2, 8 rows of it in L1

constexpr uint32_t kTokens = 5 * kCols<float>;  // of a task of multiply_transposed
constexpr uint32_t kStripe = 16 * kRows;        // rows of w whose sums it keeps at a time

// What is multiplied: row i's element k at rows[i * row_stride + k * step].
template <typename T>
struct TileRows {
  const T* rows;
  size_t row_stride, step;
};

// c [kRows, kCols] += the product of rows and of cols [n, kCols], each element's terms in the order of k.
template <typename T, uint32_t kWidth>
PITH_INLINE void tile_of(const TileRows<T>& a, const T* cols, uint32_t n, T* c) {
  using Vector = typename VectorOf<kWidth, T>::Elements;
  constexpr uint32_t kParts = 3, kLanes = sizeof(Vector) / sizeof(T), kAtOnce = kWidth == 16 ? 8 : 4;
  for (uint32_t row = 0; row < kRows; row += kAtOnce)
    for (uint32_t col = 0; col < kCols<T>; col += kParts * kLanes) {
      Vector sum[kAtOnce][kParts];
#pragma GCC unroll 8
      for (uint32_t i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 8
        for (uint32_t p = 0; p < kParts; ++p)
          sum[i][p] = *reinterpret_cast<const Vector*>(c + (row + i) * kCols<T> + col + p * kLanes);
      const T *x = a.rows + row * a.row_stride, *y = cols + col;
      for (uint32_t k = 0; k < n; ++k, x += a.step, y += kCols<T>) {
        Vector part[kParts];
#pragma GCC unroll 8
        for (uint32_t p = 0; p < kParts; ++p) part[p] = *reinterpret_cast<const Vector*>(y + p * kLanes);
#pragma GCC unroll 8
        for (uint32_t i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 8
          for (uint32_t p = 0; p < kParts; ++p) sum[i][p] += part[p] * x[i * a.row_stride];
      }
#pragma GCC unroll 8
      for (uint32_t i = 0; i < kAtOnce; ++i)
#pragma GCC unroll 8
        for (uint32_t p = 0; p < kParts; ++p)
          *reinterpret_cast<Vector*>(c + (row + i) * kCols<T> + col + p * kLanes) = sum[i][p];
    }
}

PITH_PER_ISA(void tile(const TileRows<float>& a, const float* cols, uint32_t n, float* c),
             { tile_of<float, kWidth>(a, cols, n, c); })
PITH_PER_ISA(void tile(const TileRows<double>& a, const double* cols, uint32_t n, double* c),
             { tile_of<double, kWidth>(a, cols, n, c); })

// sums [kRows, kCols] += c
PITH_PER_ISA(void add_tile(const float* c, double* sums), {
  for (uint32_t i = 0; i < kRows * kCols<float>; ++i) sums[i] += double{c[i]};
})

// n_rows (up to kRows) rows of depth elements, as a tile wants them: where they lie, or padded with zeros in `spare`.
template <typename T>
TileRows<T> rows_of(const T* rows, size_t stride, uint32_t n_rows, uint32_t depth, std::vector<T>& spare) {
  if (n_rows >= kRows) return {rows, stride, 1};
  spare.assign(size_t{kRows} * depth, 0);
  for (uint32_t i = 0; i < n_rows; ++i) std::copy_n(rows + i * stride, depth, &spare[size_t{i} * depth]);
  return {spare.data(), depth, 1};
}

}  // namespace

uint32_t rows_at_once(uint32_t n_threads) {
  return kTokens * std::max(n_threads, 4u);
}

void multiply_transposed(const float* x, uint32_t n, uint32_t k, const float* w, uint32_t m, float* y,
                         uint32_t n_threads) {
  constexpr uint32_t kWide = kCols<float>, kTile = kRows * kWide;
  const uint32_t n_blocks = (n + kTokens - 1) / kTokens;
  // Few rows of x: w is divided too.
  const uint32_t n_parts = std::clamp(n_threads / std::max(n_blocks, 1u), 1u, (m + kRows - 1) / kRows),
                 part_rows = (m + n_parts * kRows - 1) / (n_parts * kRows) * kRows;
  parallel_for(n_blocks * n_parts, n_threads, [&](uint32_t task) {
    const uint32_t begin = task / n_parts * kTokens, n_here = std::min(kTokens, n - begin);
    const uint32_t row_begin = task % n_parts * part_rows, row_end = std::min(m, row_begin + part_rows);
    const uint32_t n_panels = (n_here + kWide - 1) / kWide;
    std::vector<float> packed(size_t{n_panels} * k * kWide);  // [n_panels, k, kWide]
    for (uint32_t t = 0; t < n_here; ++t) {
      float* const to = packed.data() + size_t{t / kWide} * k * kWide + t % kWide;
      const float* const row = x + size_t{begin + t} * k;
      for (uint32_t i = 0; i < k; ++i) to[size_t{i} * kWide] = row[i];
    }
    std::vector<float> sums(size_t{n_panels} * kStripe * kWide), spare;
    for (uint32_t stripe = row_begin; stripe < row_end; stripe += kStripe) {
      const uint32_t n_rows = std::min(kStripe, row_end - stripe);
      std::ranges::fill(sums, 0.0f);
      for (uint32_t depth = 0; depth < k; depth += kDepth) {
        const uint32_t depth_here = std::min(kDepth, k - depth);
        for (uint32_t row = 0; row < n_rows; row += kRows) {
          const TileRows<float> rows =
              rows_of(w + size_t{stripe + row} * k + depth, k, n_rows - row, depth_here, spare);
          for (uint32_t p = 0; p < n_panels; ++p)
            tile(rows, packed.data() + (size_t{p} * k + depth) * kWide, depth_here,
                 &sums[(size_t{row / kRows} * n_panels + p) * kTile]);
        }
      }
      for (uint32_t t = 0; t < n_here; ++t)
        for (uint32_t row = 0; row < n_rows; ++row)
          y[size_t{begin + t} * m + stripe + row] =
              sums[(size_t{row / kRows} * n_panels + t / kWide) * kTile + row % kRows * kWide + t % kWide];
    }
  });
}

void mean_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t k, uint32_t m,
                   double scale, float* h, uint32_t n_threads) {
  constexpr uint32_t kWide = kCols<float>, kTile = kRows * kWide, kAhead = 8;
  const bool is_symmetric = x == y && !minus && k == m;  // then what lies above the diagonal is mirrored
  const double factor = scale / n;
  // Of a task: the more rows, the fewer times y is packed; but every thread needs some of them, and memory for its sums.
  const uint32_t stripe_rows =
      std::clamp(std::min(k / 4, 2048u) / n_threads / kRows * kRows, 8 * kRows, 32 * kRows);
  const uint32_t n_stripes = (k + stripe_rows - 1) / stripe_rows;
  parallel_for(n_stripes, n_threads, [&](uint32_t task) {
    const uint32_t row = (n_stripes - 1 - task) * stripe_rows;  // where the triangle is widest first
    const uint32_t n_rows = std::min(stripe_rows, k - row), n_groups = (n_rows + kRows - 1) / kRows;
    const uint32_t n_panels = ((is_symmetric ? row + n_rows : m) + kWide - 1) / kWide;
    std::vector<float> left(size_t{n_groups} * kDepth * kRows), right(size_t{kDepth} * kWide);
    std::vector<double> sums(size_t{n_panels} * n_groups * kTile);
    for (uint32_t begin = 0; begin < n; begin += kDepth) {
      const uint32_t depth = std::min(kDepth, n - begin);
      for (uint32_t t = 0; t < depth; ++t)
        for (uint32_t i = 0; i < n_rows; i += kRows) {
          const size_t at = size_t{begin + t} * k + row + i;
          float* const to = &left[size_t{i} * kDepth + t * kRows];  // [n_groups, kDepth, kRows]
          const auto copy = [&](uint32_t n_here) {
            for (uint32_t r = 0; r < n_here; ++r) to[r] = minus ? x[at + r] - minus[at + r] : x[at + r];
          };
          if (n_rows - i >= kRows)
            copy(kRows);  // a constant
          else
            copy(n_rows - i);
        }
      for (uint32_t p = 0; p < n_panels; ++p) {
        const uint32_t col = p * kWide, n_cols = std::min(kWide, m - col);
        for (uint32_t t = 0; t < depth; ++t) {
          const float* const from = y + size_t{begin + t} * m + col;
          for (uint32_t line = 0; t + kAhead < depth && line < kWide; line += 16)
            __builtin_prefetch(from + size_t{kAhead} * m + line);  // no hardware follows such strides
          std::memcpy(&right[t * kWide], from, n_cols * sizeof(float));
        }
        for (uint32_t g = 0; g < n_groups; ++g) {
          float c[kTile] = {};
          tile({&left[size_t{g} * kDepth * kRows], 1, kRows}, right.data(), depth, c);
          add_tile(c, &sums[(size_t{p} * n_groups + g) * kTile]);
        }
      }
    }
    for (uint32_t i = 0; i < n_rows; ++i)
      for (uint32_t col = 0; col < std::min(n_panels * kWide, m); ++col) {
        const size_t group = size_t{col / kWide} * n_groups + i / kRows;
        h[size_t{row + i} * m + col] =
            static_cast<float>(sums[group * kTile + i % kRows * kWide + col % kWide] * factor);
      }
  });
  if (is_symmetric) mirror(h, k, k, n_threads);
}

void subtract_product(double* c, size_t c_stride, const double* a, size_t a_stride, const double* b,
                      size_t b_stride, uint32_t n_rows, uint32_t depth, uint32_t n_cols) {
  constexpr uint32_t kWide = kCols<double>;
  std::vector<double> packed(size_t{depth} * kWide), spare;
  for (uint32_t col = 0; col < n_cols; col += kWide) {
    const uint32_t n_here = std::min(kWide, n_cols - col);
    for (uint32_t k = 0; k < depth; ++k)
      std::copy_n(b + k * b_stride + col, n_here, &packed[size_t{k} * kWide]);
    for (uint32_t row = 0; row < n_rows; row += kRows) {
      double sums[kRows * kWide] = {};
      tile(rows_of(a + row * a_stride, a_stride, n_rows - row, depth, spare), packed.data(), depth, sums);
      for (uint32_t i = 0; i < std::min(kRows, n_rows - row); ++i)
        for (uint32_t j = 0; j < n_here; ++j) c[(row + i) * c_stride + col + j] -= sums[i * kWide + j];
    }
  }
}

}  // namespace pith
