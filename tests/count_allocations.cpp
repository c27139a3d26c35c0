// Replaces the global operator new; see count_allocations.h. A file of its own, so that no caller is inlined into it.
#include "count_allocations.h"

#include <algorithm>
#include <cstdlib>
#include <new>

thread_local pith::test::AllocationCount pith::test::allocations;

void* operator new(size_t size) {
  auto& count = pith::test::allocations;
  count.largest_bytes = std::max(count.largest_bytes, size);
  count.total_bytes += size;
  if (void* const p = std::malloc(size)) return p;
  throw std::bad_alloc();
}

// Catch2 asks in this form; without it a sanitizer's own would answer, and find its memory freed by ours.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return std::malloc(size);
}

void operator delete(void* p) noexcept {
  std::free(p);
}

void operator delete(void* p, size_t) noexcept {
  std::free(p);
}
