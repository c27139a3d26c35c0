// Damping and shrinking in place; diagonals of an inverse from samples, by the smaller of the two squares
// that give them.
#include "convert/metric.h"

#include <algorithm>
#include <cmath>

#include "convert/parallel_for.h"
#include "format/error.h"

namespace pith {

double Hessian::mean_diagonal() const {
  double sum = 0;
  for (size_t c = 0; c < n_cols; ++c) sum += double{values[c * n_cols + c]};
  return sum / n_cols;
}

Metric::Metric(Hessian hessian, double damping, double shrinkage, uint32_t n_threads)
    : n_threads_(n_threads), mean_(hessian.mean_diagonal()), diagonal_(hessian.n_cols) {
  if (!(mean_ > 0) || !std::isfinite(mean_))
    throw_error(ErrorCode::kInvalidArgument, "Hessian with mean diagonal {}, expected a number above 0",
                mean_);
  square_ = std::move(hessian.values);
  const size_t n = n_cols();
  for (size_t c = 0; c < n; ++c) diagonal_[c] = double{square_[c * n + c]} / mean_ + damping;
  const double factor = (1 - shrinkage) / mean_;
  parallel_for(n_cols(), n_threads, [&](uint32_t r) {
    float* const row = square_.data() + r * n;
    for (size_t c = 0; c < n; ++c) row[c] = static_cast<float>(double{row[c]} * factor);
    row[r] = static_cast<float>(diagonal_[r]);
  });
}

// The diagonals of a Hessian that fits, or with A = x / sqrt(n_tokens mean) and H = A' A + damping: H^-1 = (1 - A' (A A' + damping)^-1 A) / damping.
Metric Metric::of_samples(const std::vector<float>& x, uint32_t n_cols, double damping,
                          const Products& products) {
  const uint32_t n_threads = products.n_threads();
  const uint32_t n_tokens = static_cast<uint32_t>(x.size() / n_cols);
  if (n_tokens >= n_cols) {  // n_cols^3 instead of n_tokens^2 n_cols
    Hessian hessian{n_cols, std::vector<float>(size_t{n_cols} * n_cols)};
    products.mean_products(x.data(), nullptr, x.data(), n_tokens, n_cols, n_cols, 1, hessian.values.data());
    if (hessian.mean_diagonal() == 0) return Metric(n_cols);
    Metric metric(std::move(hessian), damping, 0, n_threads);
    metric.inverse_diagonal();
    metric.factor_ = {};
    metric.square_ = {};
    return metric;
  }
  std::vector<double> squares(n_cols);
  for (size_t t = 0; t < n_tokens; ++t)
    for (size_t c = 0; c < n_cols; ++c) squares[c] += double{x[t * n_cols + c]} * double{x[t * n_cols + c]};
  double sum = 0;
  for (const double square : squares) sum += square;
  Metric metric(n_cols);
  if (!(sum > 0)) return metric;
  const double unit = sum / n_cols;  // n_tokens mean
  for (size_t c = 0; c < n_cols; ++c) metric.diagonal_[c] = squares[c] / unit + damping;

  std::vector<float> gram(size_t{n_tokens} * n_tokens), columns(x.size()), solved;
  products.multiply_transposed(x.data(), n_tokens, n_cols, x.data(), n_tokens, gram.data());
  for (float& value : gram) value = static_cast<float>(double{value} / unit);
  for (size_t t = 0; t < n_tokens; ++t) gram[t * n_tokens + t] += static_cast<float>(damping);
  for (size_t t = 0; t < n_tokens; ++t)
    for (size_t c = 0; c < n_cols; ++c) columns[c * n_tokens + t] = x[t * n_cols + c];
  solved = columns;
  const UpperFactor factor = factor_upper(gram.data(), n_tokens, n_tokens, n_threads);
  if (factor.n() == 0)
    throw_error(ErrorCode::kInvalidArgument, "Hessian is not positive definite, even after damping");
  solve_rows(factor, solved.data(), n_cols, n_threads);
  for (size_t c = 0; c < n_cols; ++c) {
    double taken = 0;
    for (size_t t = 0; t < n_tokens; ++t)
      taken += double{columns[c * n_tokens + t]} * double{solved[c * n_tokens + t]};
    // Never below the inverse of the diagonal, but for rounding.
    metric.inverse_diagonal_[c] = std::max((1 - taken / unit) / damping, 1 / metric.diagonal_[c]);
  }
  return metric;
}

void Metric::factor() {
  if (factor_.n() > 0) return;
  factor_ = factor_upper(square_.data(), n_cols(), n_cols(), n_threads_);
  if (factor_.n() == 0)
    throw_error(ErrorCode::kInvalidArgument, "Hessian is not positive definite, even after damping");
}

const std::vector<double>& Metric::inverse_diagonal() {
  if (inverse_diagonal_.empty()) {
    factor();
    inverse_diagonal_ = pith::inverse_diagonal(factor_, n_threads_);
  }
  return inverse_diagonal_;
}

void Metric::solve(float* x, uint32_t n_rows) {
  factor();
  solve_rows(factor_, x, n_rows, n_threads_);
  for (size_t i = 0; i < size_t{n_rows} * n_cols(); ++i) x[i] = static_cast<float>(double{x[i]} / mean_);
}

void Metric::arrange(const std::vector<uint32_t>& columns, const std::vector<float>& scale, uint32_t stride,
                     bool with_factor) {
  const size_t n = n_cols();
  v_diagonal_.resize(n);
  for (size_t i = 0; i < n; ++i)
    v_diagonal_[i] = static_cast<float>(std::sqrt(diagonal_[columns[i]])) * scale[i];
  if (!is_dense()) return;

  float* square = square_.data();
  if (factor_.n() > 0) mirror(square, n_cols(), n, n_threads_);
  factor_ = {};
  std::vector<uint32_t> place(n);
  for (uint32_t i = 0; i < n; ++i) place[columns[i]] = i;
  // Elements within their rows; scales are fp16 numbers, so that their product is exact and the square stays symmetric.
  parallel_for(n_cols(), n_threads_, [&](uint32_t r) {
    float* const row = square + r * n;
    const std::vector<float> from(row, row + n);
    for (size_t i = 0; i < n; ++i) row[i] = from[columns[i]] * (scale[place[r]] * scale[i]);
  });
  // Rows, along the permutation's cycles.
  std::vector<float> first(n);
  for (uint32_t begin = 0; begin < n; ++begin) {
    if (place[begin] == UINT32_MAX) continue;
    std::copy_n(square + begin * n, n, first.data());
    uint32_t to = begin;
    for (uint32_t from = columns[to]; from != begin; to = from, from = columns[to]) {
      std::copy_n(square + from * n, n, square + to * n);
      place[to] = UINT32_MAX;
    }
    std::copy_n(first.data(), n, square + to * n);
    place[to] = UINT32_MAX;
  }
  if (stride > n) {
    square_.resize(size_t{stride} * stride);
    square = square_.data();
    for (size_t r = n; r-- > 0;) {
      std::copy_backward(square + r * n, square + (r + 1) * n, square + r * stride + n);
      std::fill_n(square + r * stride + n, stride - n, 0.0f);
    }
    std::fill(square_.begin() + static_cast<ptrdiff_t>(n * stride), square_.end(), 0.0f);
  }
  if (!with_factor) return;
  const UpperFactor factor = factor_upper(square, n_cols(), stride, n_threads_);
  if (factor.n() == 0)
    throw_error(ErrorCode::kInvalidArgument, "Hessian is not positive definite, even after damping");
  for (size_t i = 0; i < n; ++i) v_diagonal_[i] = static_cast<float>(factor.diagonal[i]);
}

}  // namespace pith
