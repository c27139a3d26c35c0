// The triangular factor that the quantizer compensates with, and loops over all cores.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace pith {

// Overwrites symmetric h [n, n] by the upper triangular V with h = V V' (zeros below the diagonal).
// False, h in ruins, when h is not positive definite. Deterministic, whatever n_threads.
bool factor_upper(std::vector<double>& h, uint32_t n, uint32_t n_threads);

// diag(h^-1) from h's factor V: [n].
std::vector<double> inverse_diagonal(const std::vector<double>& v, uint32_t n, uint32_t n_threads);

// x [n_rows, n] <- x h^-1, from h's factor V.
void solve_rows(const std::vector<double>& v, uint32_t n, double* x, uint32_t n_rows, uint32_t n_threads);

// Calls body(i) for i in [0, n) from n_threads threads, in no order. The first exception is rethrown.
void parallel_for(uint32_t n, uint32_t n_threads, const std::function<void(uint32_t)>& body);

}  // namespace pith
