// What the one-token kernels ask for ahead of their loads: into L2, far enough ahead that a line is there when it is wanted.
//
// Not into L1: its few miss buffers (a Zen 4 core keeps some two dozen) are what the loads need, and prefetches that fill
// them make even loads that L2 has wait. And as evenly as possible: while a panel's outliers are looked up, a tenth of its
// time, its loop asks for nothing, so memory would idle. The outliers' steps ask for the next panel's lines instead. (That its
// loop asks for these again costs nothing: leaving them out there cost 1 %, by each matrix's first panel, for which nobody asked.)
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
    n_pairs_ = l.n_lines / 2;
    next_base_ = m.view.base + (size_t{panel} + 1) * l.n_lines * q24::kLineBytes;
    fine_ = m.view.fine + (size_t{panel} + 1) * n_fine_ * q24::kLineBytes;
    slots_ =
        reinterpret_cast<const uint8_t*>(m.view.outliers) + (size_t{panel} + 1) * n_slots_ * q24::kLineBytes;
    fetch_line(reinterpret_cast<const uint8_t*>(m.view.row_scale) + (size_t{panel} + 1) * q24::kLineBytes);
  }

  // For pair `pair` of the panel's lines, which lie at `base`; scales: the panel's.
  template <uint32_t kGroup>
  [[gnu::always_inline]] void fetch(const uint8_t* base, const uint8_t* scales, uint32_t pair) const {
    fetch_pair(base);
    fetch_half_line(scales + size_t{pair} * (kGroup == 16 ? 64 : 32) + kAhead / 4);
    if (pair + n_pairs_ < n_fine_)  // mostly 4-bit: two a step
      fetch_line(fine_ + size_t{pair + n_pairs_} * q24::kLineBytes);
    if (pair < n_fine_)
      fetch_line(fine_ + size_t{pair} * q24::kLineBytes);
    else if (pair - n_fine_ < n_slots_)
      fetch_line(slots_ + size_t{pair - n_fine_} * q24::kLineBytes);
  }
  // For a slot of the panel's outliers, once for each: what fetch() asks for at pair `slot` of the next panel.
  [[gnu::always_inline]] void fetch_beside_outliers(uint32_t slot) const {
    fetch_pair(next_base_ + size_t{slot} * 2 * q24::kLineBytes);
  }

 private:
  // Granite Rapids: 2 to 4 KB alike, 16 are 7 % slower. Zen 5: 2 to 32 KB alike; Zen 4: 8 to 32, less was not tried.
  static constexpr size_t kAhead = 4096;
  [[gnu::always_inline]] static void fetch_half_line(const uint8_t* half) {
    _mm_prefetch(reinterpret_cast<const char*>(half), _MM_HINT_T1);
  }
  [[gnu::always_inline]] static void fetch_line(const uint8_t* line) {
    fetch_half_line(line);
    fetch_half_line(line + q24::kLineBytes / 2);
  }
  [[gnu::always_inline]] static void fetch_pair(const uint8_t* base) {
    fetch_line(base + kAhead);
    fetch_line(base + kAhead + q24::kLineBytes);
  }

  uint32_t n_fine_, n_slots_, n_pairs_;
  const uint8_t *next_base_, *fine_, *slots_;
};

}  // namespace
}  // namespace pith::cpu
