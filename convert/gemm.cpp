// Tiles of 8 x 16 accumulators over panels that are packed so that the inner loop reads forward.
#include "convert/gemm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "convert/factor.h"
#include "convert/isa.h"

namespace pith {

namespace {

constexpr uint32_t kRows = 8, kCols = 16;
constexpr uint32_t kTokens =
    16 * kCols;                   // of a task of multiply_transposed: its packed panels stay in the cache
constexpr uint32_t kDepth = 256;  // of one pass in float before the sum moves to double (mean_products)

// Rows [0, kAtOnce) of a tile: eight sums in registers, each element's in the order of k.
template <uint32_t kWidth, uint32_t kAtOnce>
PITH_INLINE void tile_rows(const float* a, size_t a_stride, const float* b, size_t b_stride, uint32_t n,
                           float* c) {
  using Vector = typename VectorOf<kWidth>::Floats;
  constexpr uint32_t kParts = kCols / kWidth;
  Vector sum[kAtOnce][kParts] = {};
  for (uint32_t k = 0; k < n; ++k, a += a_stride, b += b_stride) {
#pragma GCC unroll 8
    for (uint32_t p = 0; p < kParts; ++p) {
      const Vector row = *reinterpret_cast<const Vector*>(b + p * kWidth);
#pragma GCC unroll 8
      for (uint32_t i = 0; i < kAtOnce; ++i) sum[i][p] += row * a[i];
    }
  }
  for (uint32_t i = 0; i < kAtOnce; ++i)
    for (uint32_t p = 0; p < kParts; ++p) *reinterpret_cast<Vector*>(c + i * kCols + p * kWidth) = sum[i][p];
}

// c[8][16] = sum over k of a[k][8] * b[k][16], strides in floats.
PITH_PER_ISA(void tile(const float* a, size_t a_stride, const float* b, size_t b_stride, uint32_t n,
                       float* c),
             {
               constexpr uint32_t kAtOnce = kWidth / 2;
               for (uint32_t i = 0; i < kRows; i += kAtOnce)
                 tile_rows<kWidth, kAtOnce>(a + i, a_stride, b, b_stride, n, c + i * kCols);
             })

// out[k][width] = rows begin.. of m [n_rows, n_k], transposed; rows past the end are zero.
void pack(const float* m, uint32_t n_rows, uint32_t n_k, uint32_t begin, uint32_t width, float* out) {
  for (uint32_t i = 0; i < width; ++i) {
    const float* row = m + size_t{begin + i} * n_k;
    if (begin + i < n_rows)
      for (uint32_t k = 0; k < n_k; ++k) out[size_t{k} * width + i] = row[k];
    else
      for (uint32_t k = 0; k < n_k; ++k) out[size_t{k} * width + i] = 0;
  }
}

}  // namespace

uint32_t rows_at_once(uint32_t n_threads) {
  return kTokens * std::max(n_threads, 4u);
}

void multiply_transposed(const float* x, uint32_t n, uint32_t k, const float* w, uint32_t m, float* y,
                         uint32_t n_threads) {
  const uint32_t n_blocks = (n + kTokens - 1) / kTokens;
  // Few rows of x: w is divided too.
  const uint32_t n_parts = std::clamp(n_threads / std::max(n_blocks, 1u), 1u, (m + kRows - 1) / kRows),
                 part_rows = (m + n_parts * kRows - 1) / (n_parts * kRows) * kRows;
  parallel_for(n_blocks * n_parts, n_threads, [&](uint32_t task) {
    const uint32_t begin = task / n_parts * kTokens, n_here = std::min(kTokens, n - begin);
    const uint32_t row_begin = task % n_parts * part_rows, row_end = std::min(m, row_begin + part_rows);
    const uint32_t n_panels = (n_here + kCols - 1) / kCols;
    std::vector<float> packed(size_t{n_panels} * k * kCols), rows(size_t{k} * kRows);
    for (uint32_t p = 0; p < n_panels; ++p)
      pack(x, n, k, begin + p * kCols, kCols, packed.data() + size_t{p} * k * kCols);
    float c[kRows * kCols];
    for (uint32_t row = row_begin; row < row_end; row += kRows) {
      pack(w, m, k, row, kRows, rows.data());
      for (uint32_t p = 0; p < n_panels; ++p) {
        tile(rows.data(), kRows, packed.data() + size_t{p} * k * kCols, kCols, k, c);
        const uint32_t token = begin + p * kCols;
        for (uint32_t j = 0; j < kCols && token + j < n; ++j)
          for (uint32_t i = 0; i < kRows && row + i < m; ++i)
            y[size_t{token + j} * m + row + i] = c[i * kCols + j];
      }
    }
  });
}

void mean_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t k, uint32_t m,
                   double scale, float* h, uint32_t n_threads) {
  const bool is_symmetric = x == y && !minus && k == m;  // then what lies above the diagonal is mirrored
  constexpr uint32_t kStripe =
      8 * kRows;  // rows of a task: a panel of y serves them all from the nearest cache
  const uint32_t n_stripes = (k + kStripe - 1) / kStripe;
  parallel_for(n_stripes, n_threads, [&](uint32_t stripe) {
    const uint32_t row = stripe * kStripe, n_rows = std::min(kStripe, k - row);
    std::vector<float> left(size_t{kDepth} * kStripe), right(size_t{kDepth} * kCols);
    std::vector<double> sums(size_t{n_rows} * m);
    float c[kRows * kCols];
    for (uint32_t begin = 0; begin < n; begin += kDepth) {
      const uint32_t depth = std::min(kDepth, n - begin);
      for (uint32_t t = 0; t < depth; ++t) {
        const size_t at = size_t{begin + t} * k + row;
        for (uint32_t i = 0; i < n_rows; ++i)  // [kStripe / kRows][kDepth][kRows]
          left[(i / kRows * kDepth + t) * kRows + i % kRows] = minus ? x[at + i] - minus[at + i] : x[at + i];
      }
      for (uint32_t col = 0; col < (is_symmetric ? row + n_rows : m); col += kCols) {
        const uint32_t n_cols = std::min(kCols, m - col);
        for (uint32_t t = 0; t < depth; ++t)
          std::memcpy(&right[t * kCols], y + size_t{begin + t} * m + col, n_cols * sizeof(float));
        for (uint32_t part = 0; part * kRows < n_rows; ++part) {
          tile(left.data() + size_t{part} * kDepth * kRows, kRows, right.data(), kCols, depth, c);
          double* const to = sums.data() + size_t{part} * kRows * m + col;
          for (uint32_t i = 0; i < std::min(kRows, n_rows - part * kRows); ++i)
            for (uint32_t j = 0; j < n_cols; ++j) to[size_t{i} * m + j] += double{c[i * kCols + j]};
        }
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) h[size_t{row} * m + i] = static_cast<float>(sums[i] / n * scale);
  });
  if (is_symmetric) mirror(h, k, k, n_threads);
}

}  // namespace pith
