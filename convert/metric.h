// What an error of a matrix's columns costs: e H e', H the second moments of the layer's input, damped.
//
// A Hessian of n columns lies in one square of 4 n^2 bytes with its factor (factor.h) and is never copied: it is damped, put
// into the order of the columns in storage and factored where it is. A metric without a square is a diagonal.
#pragma once
#include <cstdint>
#include <vector>

#include "convert/factor.h"
#include "convert/products.h"

namespace pith {

// What calibration knows about a layer's input x: H = E[x x'] over tokens. [n_cols, n_cols], row-major, symmetric.
struct Hessian {
  uint32_t n_cols = 0;
  std::vector<float> values;

  // 0 when the input was 0 at every token.
  double mean_diagonal() const;
};

// Not thread safe. Errors: Error(kInvalidArgument) where the factor is asked for and H is not positive definite.
class Metric {
 public:
  Metric() = default;
  // All columns count alike.
  explicit Metric(uint32_t n_cols) : diagonal_(n_cols, 1), inverse_diagonal_(n_cols, 1) {}
  // damping: of the mean diagonal, added to the diagonal. shrinkage: 0..1, of the other elements. Throws when the mean diagonal
  // is not above 0. The values become the square: move them here.
  Metric(Hessian hessian, double damping, double shrinkage, uint32_t n_threads);
  // From a few tokens, x: [n_tokens, n_cols]: the diagonals alone, without a square, nor on the way to them one of more columns
  // than there are tokens.
  static Metric of_samples(const std::vector<float>& x, uint32_t n_cols, double damping,
                           const Products& products);

  uint32_t n_cols() const { return static_cast<uint32_t>(diagonal_.size()); }
  bool is_dense() const { return !square_.empty(); }
  // Of the damped H over its mean diagonal, and of its inverse, by input column.
  const std::vector<double>& diagonal() const { return diagonal_; }
  const std::vector<double>& inverse_diagonal();
  // x [n_rows, n_cols] <- x (H + damping)^-1, in the Hessian's own units. Dense metrics, before arrange.
  void solve(float* x, uint32_t n_rows);

  // Puts column columns[i], times scale[i], in place i, and pads up to stride; with_factor: V is wanted. Once, at the end.
  void arrange(const std::vector<uint32_t>& columns, const std::vector<float>& scale, uint32_t stride,
               bool with_factor);
  // After it: H on and below the diagonal, [stride, stride], V above where it was wanted; null: H is diagonal.
  const float* square() const { return square_.empty() ? nullptr : square_.data(); }
  // sqrt(H_ii), with a factor V_ii. [n_cols]
  const std::vector<float>& v_diagonal() const { return v_diagonal_; }

 private:
  void factor();

  uint32_t n_threads_ = 1;
  double mean_ = 1;
  std::vector<float> square_;
  std::vector<double> diagonal_, inverse_diagonal_;
  UpperFactor factor_;  // in input order; empty until it is asked for
  std::vector<float> v_diagonal_;
};

}  // namespace pith
