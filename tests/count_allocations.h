// Counts what operator new is asked for, for tests that bound memory. Linked into the tests that include it.
#pragma once
#include <cstddef>

namespace pith::test {

struct AllocationCount {
  size_t largest_bytes = 0, total_bytes = 0;
};
extern thread_local AllocationCount allocations;  // tests set it to {} and look later

}  // namespace pith::test
