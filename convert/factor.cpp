// Cholesky from the last columns to the first, in blocks, each taking what the finished ones leave of it (left-looking): a
// stripe of rows per task, blocks widened to double as they are used, the products by gemm.h, triangles by Eigen. The order of
// the sums, and so the bits, does not depend on the number of threads.
#include "convert/factor.h"

#include <Eigen/Dense>
#include <algorithm>

#include "convert/gemm.h"
#include "convert/parallel_for.h"

namespace pith {

namespace {

constexpr uint32_t kBlock = 128;
constexpr uint32_t kPanel = 16;  // rows of a task of the diagonal block
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Part of the square, as double.
Matrix widened(const float* square, size_t stride, uint32_t row, uint32_t col, uint32_t n_rows,
               uint32_t n_cols) {
  return Eigen::Map<const FloatMatrix, 0, Eigen::OuterStride<>>(
             square + row * stride + col, n_rows, n_cols,
             Eigen::OuterStride<>(static_cast<ptrdiff_t>(stride)))
      .cast<double>();
}

// Blocks of V; the one on the diagonal is to be read as triangular.
Matrix block_of(const UpperFactor& v, uint32_t row, uint32_t col) {
  Matrix block =
      widened(v.square, v.stride, row, col, std::min(kBlock, v.n() - row), std::min(kBlock, v.n() - col));
  if (row == col)
    for (uint32_t i = 0; i < block.rows(); ++i) block(i, i) = v.diagonal[row + i];
  return block;
}

// c -= a b, all of them parts of row-major matrices.
template <typename C, typename A, typename B>
void subtract(C&& c, const A& a, const B& b) {
  subtract_product(c.data(), static_cast<size_t>(c.outerStride()), a.data(),
                   static_cast<size_t>(a.outerStride()), b.data(), static_cast<size_t>(b.outerStride()),
                   static_cast<uint32_t>(c.rows()), static_cast<uint32_t>(b.rows()),
                   static_cast<uint32_t>(c.cols()));
}

// Overwrites symmetric h by its factor, zeros below the diagonal.
bool factor_block(Matrix& h) {
  const uint32_t n = static_cast<uint32_t>(h.rows());
  for (uint32_t j = n; j-- > 0;) {
    const uint32_t n_right = n - j - 1;
    const double pivot = h(j, j) - h.row(j).tail(n_right).squaredNorm();
    if (!(pivot > 0)) return false;
    h(j, j) = std::sqrt(pivot);
    for (uint32_t i = 0; i < j; ++i)
      h(i, j) = (h(i, j) - h.row(i).tail(n_right).dot(h.row(j).tail(n_right))) / h(j, j);
    h.col(j).tail(n_right).setZero();
  }
  return true;
}

}  // namespace

UpperFactor factor_upper(float* square, uint32_t n, size_t stride, uint32_t n_threads) {
  UpperFactor factor{square, stride, std::vector<double>(n)};
  const uint32_t last = n > 0 ? (n - 1) / kBlock * kBlock : 0;
  for (uint32_t begin = last; n > 0; begin -= kBlock) {
    const uint32_t width = std::min(kBlock, n - begin), end = begin + width;
    // Rows of h's block column, less what the columns to the right have taken.
    const Matrix right = widened(square, stride, begin, end, width, n - end).transpose();
    const auto reduced = [&](uint32_t row, uint32_t n_rows) {
      Matrix rest = widened(square, stride, row, begin, n_rows, width);
      for (uint32_t k = end; k < n; k += kBlock) {
        const uint32_t depth = std::min(kBlock, n - k);
        subtract(rest, widened(square, stride, row, k, n_rows, depth), right.middleRows(k - end, depth));
      }
      return rest;
    };
    Matrix block(width, width);
    parallel_for((width + kPanel - 1) / kPanel, n_threads, [&](uint32_t panel) {
      const uint32_t row = panel * kPanel, n_rows = std::min(kPanel, width - row);
      block.middleRows(row, n_rows) = reduced(begin + row, n_rows);
    });
    if (!factor_block(block)) return {};
    for (uint32_t i = 0; i < width; ++i) {
      factor.diagonal[begin + i] = block(i, i);
      for (uint32_t j = i + 1; j < width; ++j)
        square[(begin + i) * stride + begin + j] = static_cast<float>(block(i, j));
    }
    // Rows above: X block' = rest.
    parallel_for(begin / kBlock, n_threads, [&](uint32_t stripe) {
      Matrix x = reduced(stripe * kBlock, kBlock);
      block.transpose().triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(x);
      for (uint32_t i = 0; i < kBlock; ++i)
        for (uint32_t j = 0; j < width; ++j)
          square[(stripe * kBlock + i) * stride + begin + j] = static_cast<float>(x(i, j));
    });
    if (begin == 0) break;
  }
  return factor;
}

void mirror(float* square, uint32_t n, size_t stride, uint32_t n_threads) {
  constexpr uint32_t kTile = 64;  // its lines stay in the nearest cache
  parallel_for((n + kTile - 1) / kTile, n_threads, [&](uint32_t stripe) {
    const uint32_t row_end = std::min(n, (stripe + 1) * kTile);
    for (uint32_t col = stripe * kTile; col < n; col += kTile)
      for (uint32_t i = stripe * kTile; i < row_end; ++i)
        for (uint32_t j = std::max(col, i + 1); j < std::min(n, col + kTile); ++j)
          square[i * stride + j] = square[j * stride + i];
  });
}

void solve_rows(const UpperFactor& v, float* x, uint32_t n_rows, uint32_t n_threads) {
  // x (V V')^-1 = (x V'^-1) V^-1
  const uint32_t n = v.n(), last = n > 0 ? (n - 1) / kBlock * kBlock : 0;
  parallel_for((n_rows + kBlock - 1) / kBlock, n_threads, [&](uint32_t stripe) {
    const uint32_t n_here = std::min(kBlock, n_rows - stripe * kBlock);
    Eigen::Map<FloatMatrix> rows(x + size_t{stripe} * kBlock * n, n_here, n);
    Matrix y = rows.cast<double>();
    const auto columns = [&](uint32_t at) { return y.middleCols(at, std::min(kBlock, n - at)); };
    for (uint32_t at = last;; at -= kBlock) {
      auto here = columns(at);
      for (uint32_t k = at + kBlock; k < n; k += kBlock)
        subtract(here, columns(k), Matrix(block_of(v, at, k).transpose()));
      block_of(v, at, at).transpose().triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(here);
      if (at == 0) break;
    }
    for (uint32_t at = 0; at < n; at += kBlock) {
      auto here = columns(at);
      for (uint32_t k = 0; k < at; k += kBlock) subtract(here, columns(k), block_of(v, k, at));
      block_of(v, at, at).triangularView<Eigen::Upper>().solveInPlace<Eigen::OnTheRight>(here);
    }
    rows = y.cast<float>();
  });
}

std::vector<double> inverse_diagonal(const UpperFactor& v, uint32_t n_threads) {
  // h^-1 = U' U with U = V^-1, upper: [h^-1]_jj is the squared norm of U's column j.
  const uint32_t n = v.n(), n_stripes = (n + kBlock - 1) / kBlock;
  std::vector<double> diagonal(n);
  parallel_for(n_stripes, n_threads, [&](uint32_t task) {
    const uint32_t col = (n_stripes - 1 - task) * kBlock, n_cols = std::min(kBlock, n - col);
    Matrix x = Matrix::Zero(col + n_cols, n_cols);
    x.bottomRows(n_cols).setIdentity();
    for (uint32_t at = col;; at -= kBlock) {
      auto here = x.middleRows(at, std::min(kBlock, col + n_cols - at));
      for (uint32_t k = at + kBlock; k < col + n_cols; k += kBlock)
        subtract(here, block_of(v, at, k), x.middleRows(k, std::min(kBlock, col + n_cols - k)));
      block_of(v, at, at).triangularView<Eigen::Upper>().solveInPlace(here);
      if (at == 0) break;
    }
    for (uint32_t j = 0; j < n_cols; ++j) diagonal[col + j] = x.col(j).squaredNorm();
  });
  return diagonal;
}

}  // namespace pith
