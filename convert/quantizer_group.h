// One group of 16 rows under search: the lane type that the quantizer computes in, and the searches for a group's scale,
// minimum and codes. Internal to quantizer_rows.
//
// The hot functions are compiled for each instruction set (isa.h) and take a register's width of lanes at a time. Lanes are
// independent and products are never fused (-ffp-contract=off), so all of them give the same bits. Lanes cross a call by
// reference only.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "convert/isa.h"
#include "convert/quantizer_rows.h"

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

// Elementwise, V: Lanes or a part of them.
template <typename V>
PITH_INLINE V splat(float x) {
  return x - V{};
}
template <typename V>
PITH_INLINE V max(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
PITH_INLINE V min(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
PITH_INLINE V clamp(V x, float high) {
  return min(max(x, V{}), splat<V>(high));
}
// Nearest integer of a number >= 0.
template <typename V>
PITH_INLINE V round_positive(V x) {
  return __builtin_convertvector(__builtin_convertvector(x + 0.5f, decltype(x < x)), V);
}
template <typename V>
PITH_INLINE V inverse_or_zero(V x) {
  return x > V{} ? 1.0f / x : V{};
}

// A group as the search sees it.
struct GroupProblem {
  uint32_t n;
  const Lanes* w;          // [n]
  const Lanes* a;          // [n], what earlier columns ask for
  const float* v;          // [n, n] upper factor, read above its diagonal; null: diagonal
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

// Of a group's targets t, those of outliers left out; 0 where nothing is left.
void target_range(const GroupProblem& g, const Lanes* t, Lanes& low, Lanes& high);

// The continuous scale and minimum of a group, as min-max gives them or searched for the least weighted square error.
// integer_zero: the minimum is a multiple of the scale.
void free_scale(const GroupProblem& g, bool search, bool integer_zero, Lanes& best_scale, Lanes& best_min);

// The best codes over nibbles near (s, m): all pairs within `radius`.
void search_nibbles(const GroupProblem& g, const Lanes& d, const Lanes& dmin, const Lanes& s, const Lanes& m,
                    int radius, GroupChoice& best);

// acc[k] += sum over j of e[j] * m[j, k] for k in [begin, end); e: [n_j].
void accumulate(Lanes* acc, uint32_t begin, uint32_t end, const Lanes* e, uint32_t n_j, const float* m,
                size_t stride);
// acc[j] += sum over k of m[j, k] * e[k] for j in [0, n_j), k in [0, n_k).
void accumulate_rows(Lanes* acc, uint32_t n_j, const Lanes* e, uint32_t n_k, const float* m, size_t stride);

// x [n] times a group's factor v [n, n]. With v null, times the diagonal.
void times_factor(const Lanes* x, uint32_t n, const float* v, const float* v_diag, Lanes* out);
// For descent (see quantizer_rows.h): b <- b V_g'^-1, and what the group costs as it is, |e_g V_g + b|^2.
void group_terms(const Lanes* e, uint32_t n, const float* v, const float* v_inverse, Lanes* b, Lanes& cost);

}  // namespace pith
