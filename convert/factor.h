// The triangular factor that the quantizer compensates with.
//
// A symmetric matrix and its factor share one square of floats, [n, stride] row-major: on and below the diagonal lies h,
// above it V, upper triangular with h = V V', whose own diagonal is apart. So n columns take 4 n^2 bytes, and 1,024 n more
// while they are factored. Sums run in double and only V's elements are rounded to float: each moves h_ij by
// 2^-24 sqrt(h_ii h_jj), far below any damping. Deterministic, whatever n_threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pith {

struct UpperFactor {
  const float* square = nullptr;  // [n, stride]
  size_t stride = 0;
  std::vector<double> diagonal;  // [n] of V; empty: h is not positive definite

  uint32_t n() const { return static_cast<uint32_t>(diagonal.size()); }
};

// square: h, both halves. What lies above the diagonal becomes V's, or a ruin when h is not positive definite.
UpperFactor factor_upper(float* square, uint32_t n, size_t stride, uint32_t n_threads);
// The half below the diagonal copied to the one above it.
void mirror(float* square, uint32_t n, size_t stride, uint32_t n_threads);

// diag(h^-1): [n].
std::vector<double> inverse_diagonal(const UpperFactor& v, uint32_t n_threads);

// x [n_rows, n] <- x h^-1.
void solve_rows(const UpperFactor& v, float* x, uint32_t n_rows, uint32_t n_threads);

}  // namespace pith
