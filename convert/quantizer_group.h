// One group of 16 rows under search: the lane type that the quantizer computes in, and the searches for a group's scale,
// minimum and codes. Internal to quantizer_rows.
//
// The hot functions are compiled for each instruction set, and the loader picks. Lanes are independent and products are
// never fused (-ffp-contract=off), so all of them give the same bits. Lanes cross a call by reference only.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "convert/quantizer_rows.h"

#if defined(__clang__)  // refuses vectors as arguments between functions of different targets, inlined or not
#define PITH_CLONES
#else
#define PITH_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#define PITH_INLINE inline __attribute__((always_inline))

namespace pith {

constexpr size_t kLaneBytes = 4 * kLanes;
typedef float Lanes __attribute__((vector_size(kLaneBytes), aligned(kLaneBytes)));
typedef int32_t Mask __attribute__((vector_size(kLaneBytes), aligned(kLaneBytes)));  // -1 or 0

// Zeroed and aligned. Not std::vector: a template argument loses the type's alignment.
class LaneArray {
 public:
  explicit LaneArray(size_t n)
      : data_(static_cast<char*>(std::aligned_alloc(kLaneBytes, (n + 1) * kLaneBytes))) {
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, n * kLaneBytes);
  }
  Lanes* data() const { return reinterpret_cast<Lanes*>(data_.get()); }
  Mask* masks() const { return reinterpret_cast<Mask*>(data_.get()); }
  Lanes& operator[](size_t i) const { return data()[i]; }

 private:
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };
  std::unique_ptr<char, Free> data_;
};

constexpr uint32_t kMaxGroup = 32;
constexpr float kMaxNibble = 15;

PITH_INLINE Lanes splat(float x) {
  return x - Lanes{};
}
PITH_INLINE Lanes max(Lanes a, Lanes b) {
  return a > b ? a : b;
}
PITH_INLINE Lanes min(Lanes a, Lanes b) {
  return a < b ? a : b;
}
PITH_INLINE Lanes clamp(Lanes x, float high) {
  return min(max(x, Lanes{}), splat(high));
}
// Nearest integer of a number >= 0.
PITH_INLINE Lanes round_positive(Lanes x) {
  return __builtin_convertvector(__builtin_convertvector(x + splat(0.5f), Mask), Lanes);
}
PITH_INLINE Lanes inverse_or_zero(Lanes x) {
  return x > Lanes{} ? splat(1) / x : Lanes{};
}

// A group as the search sees it.
struct GroupProblem {
  uint32_t n;
  const Lanes* w;  // [n]
  const Lanes* a;  // [n], what earlier columns ask for
  const float* v;  // [n, stride] upper factor; null: diagonal
  size_t stride;
  const float* v_diag;     // [n]
  const float* v_inverse;  // [n]
  const Mask* exact;       // [n] outliers: these lanes take their target as it is; null: none
  float step, max_code;    // of q: 1 and 3, or 1/4 and 15
};

struct GroupChoice {
  Lanes s, m, cost;
  Lanes codes[kMaxGroup];
  Lanes e[kMaxGroup];
  Lanes t[kMaxGroup];  // targets
};

// Targets without the hand-on inside the group: enough to find scales by.
PITH_INLINE void plain_targets(const GroupProblem& g, Lanes* t) {
  for (uint32_t j = 0; j < g.n; ++j) t[j] = g.w[j] + g.a[j] * splat(g.v_inverse[j]);
}

struct Range {
  Lanes low, high;
};
PITH_INLINE Range range_of(const GroupProblem& g, const Lanes* t) {
  Range range{splat(1e30f), splat(-1e30f)};
  for (uint32_t j = 0; j < g.n; ++j) {
    if (g.v_diag[j] == 0) continue;
    Lanes low = t[j], high = t[j];
    if (g.exact) {
      low = g.exact[j] ? splat(1e30f) : low;
      high = g.exact[j] ? splat(-1e30f) : high;
    }
    range.low = min(range.low, low);
    range.high = max(range.high, high);
  }
  const Mask empty = range.high < range.low;
  range.low = empty ? Lanes{} : range.low;
  range.high = empty ? Lanes{} : range.high;
  return range;
}

// The continuous scale and minimum of a group, as min-max gives them or searched for the least weighted square error.
// integer_zero: the minimum is a multiple of the scale.
void free_scale(const GroupProblem& g, bool search, bool integer_zero, Lanes& best_scale, Lanes& best_min);

// The best codes over nibbles near (s, m): all pairs within `radius`.
void search_nibbles(const GroupProblem& g, const Lanes& d, const Lanes& dmin, const Lanes& s, const Lanes& m,
                    int radius, GroupChoice& best);

// acc[k] += sum over j of e[j] * v[j, k] for k in [begin, end); e: [n_j].
void accumulate(Lanes* acc, uint32_t begin, uint32_t end, const Lanes* e, uint32_t n_j, const float* v,
                size_t stride);

// For descent (see quantizer_rows.h): b = (e H_:g - e_g H_gg) V_g'^-1, and what the group costs as it is.
void group_terms(const Lanes* gradient, const Lanes* e, uint32_t n, const float* h, size_t stride,
                 const float* v, const float* v_inverse, Lanes* b, Lanes& cost);

}  // namespace pith
