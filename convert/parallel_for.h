// A loop over threads.
#pragma once
#include <cstdint>
#include <functional>

namespace pith {

// Calls body(i) for i in [0, n) from n_threads threads, in no order. The first exception is rethrown.
// Error(kOutOfMemory) where the system does not start that many.
void parallel_for(uint32_t n, uint32_t n_threads, const std::function<void(uint32_t)>& body);

}  // namespace pith
