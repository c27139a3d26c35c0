// The two matrix products of calibration, float, on all cores. Sums run in a fixed order: the bits do not depend on the
// number of threads or the instruction set.
#pragma once
#include <cstdint>

namespace pith {

// y [n, m] = x [n, k] times w' (w: [m, k]). All row-major, dense.
void multiply_transposed(const float* x, uint32_t n, uint32_t k, const float* w, uint32_t m, float* y,
                         uint32_t n_threads);

// h [k, m] += (x - minus)' y over n rows (x, minus: [n, k], y: [n, m]); minus: null for none.
void accumulate_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t k,
                         uint32_t m, double* h, uint32_t n_threads);

}  // namespace pith
