// Cholesky from the last column to the first, in blocks: the trailing update is a matrix product by Eigen, a column
// stripe per task, so that the sums and hence the bits do not depend on the number of threads.
#include "convert/factor.h"

#include <Eigen/Dense>
#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

namespace pith {

namespace {

constexpr uint32_t kBlock = 128;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Block = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

Block block_of(std::vector<double>& h, uint32_t n, uint32_t row, uint32_t col, uint32_t n_rows,
               uint32_t n_cols) {
  return {h.data() + size_t{row} * n + col, n_rows, n_cols, Eigen::OuterStride<>(n)};
}

// The unblocked version, on the diagonal block [begin, end).
bool factor_diagonal(std::vector<double>& h, uint32_t n, uint32_t begin, uint32_t end) {
  for (uint32_t j = end; j-- > begin;) {
    double* row_j = h.data() + size_t{j} * n;
    double pivot = row_j[j];
    for (uint32_t k = j + 1; k < end; ++k) pivot -= row_j[k] * row_j[k];
    if (!(pivot > 0)) return false;
    pivot = std::sqrt(pivot);
    row_j[j] = pivot;
    for (uint32_t i = begin; i < j; ++i) {
      double* row_i = h.data() + size_t{i} * n;
      double sum = row_i[j];
      for (uint32_t k = j + 1; k < end; ++k) sum -= row_i[k] * row_j[k];
      row_i[j] = sum / pivot;
    }
  }
  return true;
}

}  // namespace

void parallel_for(uint32_t n, uint32_t n_threads, const std::function<void(uint32_t)>& body) {
  std::atomic<uint32_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      for (uint32_t i; (i = next.fetch_add(1)) < n;) body(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = n;
    }
  };
  std::vector<std::jthread> threads;
  for (uint32_t i = 1; i < std::min(n_threads, n); ++i) threads.emplace_back(work);
  work();
  threads.clear();
  if (failure) std::rethrow_exception(failure);
}

bool factor_upper(std::vector<double>& h, uint32_t n, uint32_t n_threads) {
  for (uint32_t end = n; end > 0;) {
    const uint32_t begin = end > kBlock ? end - kBlock : 0;
    if (!factor_diagonal(h, n, begin, end)) return false;
    // Rows above: X V_d' = H, V_d the diagonal block; then H -= X X' for what lies up and left, upper half only.
    const uint32_t width = end - begin, n_stripes = (begin + kBlock - 1) / kBlock;
    parallel_for(n_stripes, n_threads, [&](uint32_t stripe) {
      const uint32_t row = stripe * kBlock, n_rows = std::min(kBlock, begin - row);
      Block x = block_of(h, n, row, begin, n_rows, width);
      block_of(h, n, begin, begin, width, width)
          .transpose()
          .triangularView<Eigen::Lower>()
          .solveInPlace<Eigen::OnTheRight>(x);
    });
    parallel_for(n_stripes, n_threads, [&](uint32_t stripe) {
      const uint32_t col = stripe * kBlock, n_cols = std::min(kBlock, begin - col);
      block_of(h, n, 0, col, col + n_cols, n_cols).noalias() -=
          block_of(h, n, 0, begin, col + n_cols, width) *
          block_of(h, n, col, begin, n_cols, width).transpose();
    });
    end = begin;
  }
  for (uint32_t i = 1; i < n; ++i) std::fill_n(h.begin() + size_t{i} * n, i, 0.0);
  return true;
}

void solve_rows(const std::vector<double>& v, uint32_t n, double* x, uint32_t n_rows, uint32_t n_threads) {
  // x (V V')^-1 = (x V'^-1) V^-1
  const Block factor(const_cast<double*>(v.data()), n, n, Eigen::OuterStride<>(n));
  const uint32_t n_stripes = (n_rows + kBlock - 1) / kBlock;
  parallel_for(n_stripes, n_threads, [&](uint32_t stripe) {
    const uint32_t row = stripe * kBlock, n_here = std::min(kBlock, n_rows - row);
    Block part(x + size_t{row} * n, n_here, n, Eigen::OuterStride<>(n));
    factor.transpose().triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(part);
    factor.triangularView<Eigen::Upper>().solveInPlace<Eigen::OnTheRight>(part);
  });
}

std::vector<double> inverse_diagonal(const std::vector<double>& v, uint32_t n, uint32_t n_threads) {
  // h^-1 = U' U with U = V^-1, upper: [h^-1]_jj is the squared norm of U's column j.
  std::vector<double> diagonal(n);
  const uint32_t n_stripes = (n + kBlock - 1) / kBlock;
  parallel_for(n_stripes, n_threads, [&](uint32_t stripe) {
    const uint32_t col = stripe * kBlock, n_cols = std::min(kBlock, n - col), n_used = col + n_cols;
    Matrix x = Matrix::Zero(n_used, n_cols);
    x.bottomRows(n_cols).setIdentity();
    Block(const_cast<double*>(v.data()), n_used, n_used, Eigen::OuterStride<>(n))
        .triangularView<Eigen::Upper>()
        .solveInPlace(x);
    for (uint32_t j = 0; j < n_cols; ++j) diagonal[col + j] = x.col(j).squaredNorm();
  });
  return diagonal;
}

}  // namespace pith
