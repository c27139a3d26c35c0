// What the one-token kernels ask for ahead of their loads. Weights are read once a token: fetched past L2, whose evictions
// would only add traffic to L3. Distances from 2 to 8 KB do alike; without, one Zen 5 thread streams at 28 instead of 33 GB/s.
#pragma once
#include <immintrin.h>

#include "runtime/cpu/kernels.h"

namespace pith::cpu {
namespace {  // compiled for each instruction set

// Inlined by order: to GCC a function that only prefetches has no effect, and it drops calls of it.
//
// The long planes are fetched some lines ahead in place, the short ones a panel ahead, a line of each a step.
class ReadAhead {
 public:
  [[gnu::always_inline]] ReadAhead(const Matrix& m, uint32_t panel) {
    const q24::Layout& l = m.view.layout;
    n_fine_ = l.n_fine_lines;
    n_slots_ = l.shape.n_slots;
    fine_ = m.view.fine + (size_t{panel} + 1) * n_fine_ * q24::kLineBytes;
    slots_ =
        reinterpret_cast<const uint8_t*>(m.view.outliers) + (size_t{panel} + 1) * n_slots_ * q24::kLineBytes;
    fetch_line(reinterpret_cast<const uint8_t*>(m.view.row_scale) + (size_t{panel} + 1) * q24::kLineBytes);
  }

  // For pair `pair` of the panel's lines, which lie at `base`; scales: the panel's.
  template <uint32_t kGroup>
  [[gnu::always_inline]] void fetch(const uint8_t* base, const uint8_t* scales, uint32_t pair) const {
    fetch_line(base + kAhead);
    fetch_line(base + kAhead + q24::kLineBytes);
    _mm_prefetch(reinterpret_cast<const char*>(scales + size_t{pair} * (kGroup == 16 ? 64 : 32) + kAhead / 4),
                 _MM_HINT_NTA);
    if (pair < n_fine_)
      fetch_line(fine_ + size_t{pair} * q24::kLineBytes);
    else if (pair - n_fine_ < n_slots_)
      fetch_line(slots_ + size_t{pair - n_fine_} * q24::kLineBytes);
  }

 private:
  static constexpr size_t kAhead = 4096;
  [[gnu::always_inline]] static void fetch_line(const uint8_t* line) {
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_NTA);
    _mm_prefetch(reinterpret_cast<const char*>(line + 64), _MM_HINT_NTA);
  }

  uint32_t n_fine_, n_slots_;
  const uint8_t *fine_, *slots_;
};

}  // namespace
}  // namespace pith::cpu
