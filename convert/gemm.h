// The matrix products of calibration on all cores (products.h has a GPU beside the first two), and the Cholesky's. Sums run in
// a fixed order: the bits do not depend on the number of threads, nor on the instruction set of a CPU that has FMA.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pith {

// Rows of x that keep every thread of multiply_transposed busy: a caller who needs little memory takes so many at a time.
uint32_t rows_at_once(uint32_t n_threads);

// y [n, m] = x [n, k] times w' (w: [m, k]). All row-major, dense.
void multiply_transposed(const float* x, uint32_t n, uint32_t k, const float* w, uint32_t m, float* y,
                         uint32_t n_threads);

// h [k, m] = the mean over n rows of (x - minus)' y, times scale (x, minus: [n, k], y: [n, m]); minus: null for none.
// Sums in double, a stripe of h at a time: besides h it takes 2,048 m bytes a thread, of many threads 512 m,
// between them 16,384 m.
void mean_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t k, uint32_t m,
                   double scale, float* h, uint32_t n_threads);

// c [n_rows, n_cols] -= a [n_rows, depth] times b [depth, n_cols], row-major, strides in elements; on the calling thread.
void subtract_product(double* c, size_t c_stride, const double* a, size_t a_stride, const double* b,
                      size_t b_stride, uint32_t n_rows, uint32_t depth, uint32_t n_cols);

}  // namespace pith
