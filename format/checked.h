// Overflow-checked 64-bit size arithmetic. Every size that comes from a file goes through here.
#pragma once
#include <cstdint>

#include "format/error.h"

namespace pith {

inline uint64_t checked_add(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) throw_error(ErrorCode::kFormat, "size overflow: {} + {}", a, b);
  return sum;
}

inline uint64_t checked_mul(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) throw_error(ErrorCode::kFormat, "size overflow: {} * {}", a, b);
  return product;
}

// Smallest multiple of `unit` (> 0) that is >= n.
inline uint64_t checked_round_up(uint64_t n, uint64_t unit) {
  return checked_mul(checked_add(n, unit - 1) / unit, unit);
}

// Whether [offset, offset + length) lies inside [0, size), without overflow.
inline bool range_fits(uint64_t offset, uint64_t length, uint64_t size) {
  return offset <= size && length <= size - offset;
}

}  // namespace pith
