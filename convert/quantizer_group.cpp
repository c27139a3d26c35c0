// Searches over 16 rows at once, a register of lanes at a time, compiled for each instruction set.
#include "convert/quantizer_group.h"

#include <algorithm>

namespace pith {

namespace {

constexpr uint32_t kColsAtOnce = 256;  // their lanes stay in the nearest cache

template <uint32_t kWidth>
using Floats = typename VectorOf<kWidth>::Floats;
template <uint32_t kWidth>
using Ints = typename VectorOf<kWidth>::Ints;

// Lanes [at, at + kWidth).
template <uint32_t kWidth>
PITH_INLINE const Floats<kWidth>& part(const Lanes& x, uint32_t at) {
  return *reinterpret_cast<const Floats<kWidth>*>(reinterpret_cast<const float*>(&x) + at);
}
template <uint32_t kWidth>
PITH_INLINE Floats<kWidth>& part(Lanes& x, uint32_t at) {
  return *reinterpret_cast<Floats<kWidth>*>(reinterpret_cast<float*>(&x) + at);
}
template <uint32_t kWidth>
PITH_INLINE const Ints<kWidth>& part(const Mask& x, uint32_t at) {
  return *reinterpret_cast<const Ints<kWidth>*>(reinterpret_cast<const int32_t*>(&x) + at);
}

template <uint32_t kWidth>
PITH_INLINE void range_of(const GroupProblem& g, uint32_t at, const Floats<kWidth>* t, Floats<kWidth>& low,
                          Floats<kWidth>& high) {
  using V = Floats<kWidth>;
  low = splat<V>(1e30f);
  high = splat<V>(-1e30f);
  for (uint32_t j = 0; j < g.n; ++j) {
    if (g.v_diag[j] == 0) continue;
    V here_low = t[j], here_high = t[j];
    if (g.exact) {
      const auto exact = part<kWidth>(g.exact[j], at);
      here_low = exact ? splat<V>(1e30f) : here_low;
      here_high = exact ? splat<V>(-1e30f) : here_high;
    }
    low = min(low, here_low);
    high = max(high, here_high);
  }
  const auto empty = high < low;
  low = empty ? V{} : low;
  high = empty ? V{} : high;
}

// Codes for scale S and minimum M in every lane, columns from left to right, each error handed on within the group. Returns
// what they cost. out: null when that is all that is wanted.
template <uint32_t kWidth>
PITH_INLINE Floats<kWidth> quantize_group(const GroupProblem& g, uint32_t at, Floats<kWidth> scale,
                                          Floats<kWidth> minimum, GroupChoice* out) {
  using V = Floats<kWidth>;
  V a[kMaxGroup];
  for (uint32_t j = 0; j < g.n; ++j) a[j] = part<kWidth>(g.a[j], at);
  const V step = scale * g.step, inverse = inverse_or_zero(step);
  V cost{};
  for (uint32_t j = 0; j < g.n; ++j) {
    const V w = part<kWidth>(g.w[j], at);
    const V t = w + a[j] * g.v_inverse[j];
    const V code = round_positive(clamp((t + minimum) * inverse, g.max_code));
    V value = step * code - minimum;
    if (g.exact) value = part<kWidth>(g.exact[j], at) ? t : value;
    const V miss = (t - value) * g.v_diag[j];
    cost += miss * miss;
    const V e = w - value;
    if (out) {
      part<kWidth>(out->codes[j], at) = code;
      part<kWidth>(out->t[j], at) = t;
      part<kWidth>(out->e[j], at) = e;
    }
    if (g.v)
      for (uint32_t k = j + 1; k < g.n; ++k) a[k] += e * g.v[j * g.n + k];
  }
  return cost;
}

template <uint32_t kWidth>
PITH_INLINE void free_scale_of(const GroupProblem& g, uint32_t at, bool search, bool integer_zero,
                               Floats<kWidth>& best_scale, Floats<kWidth>& best_min) {
  using V = Floats<kWidth>;
  V t[kMaxGroup];  // without the hand-on inside the group: enough to find scales by
  for (uint32_t j = 0; j < g.n; ++j)
    t[j] = part<kWidth>(g.w[j], at) + part<kWidth>(g.a[j], at) * g.v_inverse[j];
  V range_low, range_high;
  range_of<kWidth>(g, at, t, range_low, range_high);
  const float top = g.max_code * g.step;
  const V low = min(range_low, V{}), span = max(range_high, low) - low;
  best_scale = span * (1 / top);
  best_min = -low;
  if (integer_zero) best_min = best_scale * round_positive(-low * inverse_or_zero(best_scale));
  if (!search) return;

  V best_cost = splat<V>(1e30f);
  for (int i = 0; i < 14; ++i) {
    const V scale = span * ((0.45f + 0.05f * static_cast<float>(i)) / top);
    const V step = scale * g.step, inverse = inverse_or_zero(step);
    V minimum = (scale * top - (range_high + range_low)) * 0.5f;  // centred
    minimum = max(minimum, V{});
    for (int round = 0; round < 3; ++round) {
      V cost{}, sum{}, weight{};
      for (uint32_t j = 0; j < g.n; ++j) {
        V importance = splat<V>(g.v_diag[j] * g.v_diag[j]);
        if (g.exact) importance = part<kWidth>(g.exact[j], at) ? V{} : importance;
        const V code = round_positive(clamp((t[j] + minimum) * inverse, g.max_code));
        const V gap = step * code - t[j];  // the best minimum for these codes is its mean
        const V miss = gap - minimum;
        cost += importance * miss * miss;
        sum += importance * gap;
        weight += importance;
      }
      const auto better = cost < best_cost;
      best_cost = better ? cost : best_cost;
      best_scale = better ? scale : best_scale;
      best_min = better ? minimum : best_min;
      minimum = max(sum * inverse_or_zero(weight), V{});
      if (integer_zero) minimum = scale * round_positive(minimum * inverse_or_zero(scale));
    }
  }
}

template <uint32_t kWidth>
PITH_INLINE void search_nibbles_of(const GroupProblem& g, uint32_t at, const Lanes& d_lanes,
                                   const Lanes& dmin_lanes, Floats<kWidth> s, Floats<kWidth> m, int radius,
                                   GroupChoice& best) {
  using V = Floats<kWidth>;
  const V d = part<kWidth>(d_lanes, at), dmin = part<kWidth>(dmin_lanes, at);
  V best_s{}, best_m{}, best_cost{};
  bool is_first = true;  // taken whatever it costs
  for (int ds = -radius; ds <= radius; ++ds)
    for (int dm = -radius; dm <= radius; ++dm) {
      const V next_s = clamp(s + static_cast<float>(ds), kMaxNibble);
      const V next_m = clamp(m + static_cast<float>(dm), kMaxNibble);
      const V cost = quantize_group<kWidth>(g, at, d * next_s, dmin * next_m, nullptr);
      auto better = cost < best_cost;
      if (is_first) better = better == better;
      is_first = false;
      best_s = better ? next_s : best_s;
      best_m = better ? next_m : best_m;
      best_cost = better ? cost : best_cost;
    }
  part<kWidth>(best.s, at) = best_s;
  part<kWidth>(best.m, at) = best_m;
  part<kWidth>(best.cost, at) = quantize_group<kWidth>(g, at, d * best_s, dmin * best_m, &best);
}

// Rows j .. j + kRows of m for columns [begin, end): eight registers of sums.
template <uint32_t kWidth, uint32_t kRows>
PITH_INLINE void accumulate_of(Lanes* acc, uint32_t begin, uint32_t end, const Lanes* e, const float* m,
                               size_t stride) {
  using V = Floats<kWidth>;
  constexpr uint32_t kCols = kWidth / 2, kParts = kLanes / kWidth;
  uint32_t k = begin;
  for (; k + kCols <= end; k += kCols) {
    V sum[kCols][kParts];
#pragma GCC unroll 8
    for (uint32_t i = 0; i < kCols; ++i)
#pragma GCC unroll 4
      for (uint32_t p = 0; p < kParts; ++p) sum[i][p] = part<kWidth>(acc[k + i], p * kWidth);
    for (uint32_t j = 0; j < kRows; ++j) {
      const float* const row = m + j * stride + k;
#pragma GCC unroll 4
      for (uint32_t p = 0; p < kParts; ++p) {
        const V x = part<kWidth>(e[j], p * kWidth);
#pragma GCC unroll 8
        for (uint32_t i = 0; i < kCols; ++i) sum[i][p] += x * row[i];
      }
    }
#pragma GCC unroll 8
    for (uint32_t i = 0; i < kCols; ++i)
#pragma GCC unroll 4
      for (uint32_t p = 0; p < kParts; ++p) part<kWidth>(acc[k + i], p * kWidth) = sum[i][p];
  }
  for (; k < end; ++k)
    for (uint32_t j = 0; j < kRows; ++j)
      for (uint32_t p = 0; p < kLanes; p += kWidth)
        part<kWidth>(acc[k], p) += part<kWidth>(e[j], p) * m[j * stride + k];
}

template <uint32_t kWidth, uint32_t kRows>
PITH_INLINE void accumulate_rows_of(Lanes* acc, const Lanes* e, uint32_t n_k, const float* m, size_t stride) {
  using V = Floats<kWidth>;
  constexpr uint32_t kParts = kLanes / kWidth;
  V sum[kRows][kParts];
#pragma GCC unroll 8
  for (uint32_t j = 0; j < kRows; ++j)
#pragma GCC unroll 4
    for (uint32_t p = 0; p < kParts; ++p) sum[j][p] = part<kWidth>(acc[j], p * kWidth);
  for (uint32_t k = 0; k < n_k; ++k)
#pragma GCC unroll 4
    for (uint32_t p = 0; p < kParts; ++p) {
      const V x = part<kWidth>(e[k], p * kWidth);
#pragma GCC unroll 8
      for (uint32_t j = 0; j < kRows; ++j) sum[j][p] += x * m[j * stride + k];
    }
#pragma GCC unroll 8
  for (uint32_t j = 0; j < kRows; ++j)
#pragma GCC unroll 4
    for (uint32_t p = 0; p < kParts; ++p) part<kWidth>(acc[j], p * kWidth) = sum[j][p];
}

template <uint32_t kWidth>
PITH_INLINE void times_factor_of(const Lanes* x, uint32_t n, const float* v, const float* v_diag, uint32_t at,
                                 Lanes* out) {
  for (uint32_t j = 0; j < n; ++j) {
    Floats<kWidth> sum{};
    if (v)
      for (uint32_t i = 0; i <= j; ++i) sum += part<kWidth>(x[i], at) * v[i * n + j];
    else
      sum = part<kWidth>(x[j], at) * v_diag[j];
    part<kWidth>(out[j], at) = sum;
  }
}

template <uint32_t kWidth>
PITH_INLINE void group_terms_of(const Lanes* e, uint32_t n, const float* v, const float* v_inverse,
                                uint32_t at, Lanes* b_lanes, Lanes& cost) {
  using V = Floats<kWidth>;
  V b[kMaxGroup];
  for (uint32_t j = n; j-- > 0;) {
    b[j] = part<kWidth>(b_lanes[j], at);
    for (uint32_t k = j + 1; k < n; ++k) b[j] -= b[k] * v[j * n + k];
    b[j] *= v_inverse[j];
  }
  V total{};
  for (uint32_t j = 0; j < n; ++j) {
    V sum = b[j];
    for (uint32_t i = 0; i <= j; ++i) sum += part<kWidth>(e[i], at) * v[i * n + j];
    total += sum * sum;
    part<kWidth>(b_lanes[j], at) = b[j];
  }
  part<kWidth>(cost, at) = total;
}

}  // namespace

PITH_PER_ISA(void target_range(const GroupProblem& g, const Lanes* t, Lanes& low, Lanes& high), {
  for (uint32_t at = 0; at < kLanes; at += kWidth) {
    Floats<kWidth> here[kMaxGroup];
    for (uint32_t j = 0; j < g.n; ++j) here[j] = part<kWidth>(t[j], at);
    range_of<kWidth>(g, at, here, part<kWidth>(low, at), part<kWidth>(high, at));
  }
})

PITH_PER_ISA(void free_scale(const GroupProblem& g, bool search, bool integer_zero, Lanes& scale,
                             Lanes& minimum),
             {
               for (uint32_t at = 0; at < kLanes; at += kWidth) {
                 Floats<kWidth> here_scale;
                 Floats<kWidth> here_min;
                 free_scale_of<kWidth>(g, at, search, integer_zero, here_scale, here_min);
                 part<kWidth>(scale, at) = here_scale;
                 part<kWidth>(minimum, at) = here_min;
               }
             })

PITH_PER_ISA(void search_nibbles(const GroupProblem& g, const Lanes& d, const Lanes& dmin, const Lanes& s,
                                 const Lanes& m, int radius, GroupChoice& best),
             {
               for (uint32_t at = 0; at < kLanes; at += kWidth)
                 search_nibbles_of<kWidth>(g, at, d, dmin, part<kWidth>(s, at), part<kWidth>(m, at), radius,
                                           best);
             })

PITH_PER_ISA(void accumulate(Lanes* acc, uint32_t begin, uint32_t end, const Lanes* e, uint32_t n_j,
                             const float* m, size_t stride),
             {
               constexpr uint32_t kRows = 16;
               for (uint32_t k = begin; k < end; k += kColsAtOnce) {
                 const uint32_t k_end = std::min(end, k + kColsAtOnce);
                 uint32_t j = 0;
                 for (; j + kRows <= n_j; j += kRows)
                   accumulate_of<kWidth, kRows>(acc, k, k_end, e + j, m + j * stride, stride);
                 for (; j < n_j; ++j) accumulate_of<kWidth, 1>(acc, k, k_end, e + j, m + j * stride, stride);
               }
             })

PITH_PER_ISA(void accumulate_rows(Lanes* acc, uint32_t n_j, const Lanes* e, uint32_t n_k, const float* m,
                                  size_t stride),
             {
               constexpr uint32_t kRows = kWidth / 2;
               for (uint32_t k = 0; k < n_k; k += kColsAtOnce) {
                 const uint32_t n_here = std::min(kColsAtOnce, n_k - k);
                 uint32_t j = 0;
                 for (; j + kRows <= n_j; j += kRows)
                   accumulate_rows_of<kWidth, kRows>(acc + j, e + k, n_here, m + j * stride + k, stride);
                 for (; j < n_j; ++j)
                   accumulate_rows_of<kWidth, 1>(acc + j, e + k, n_here, m + j * stride + k, stride);
               }
             })

PITH_PER_ISA(void times_factor(const Lanes* x, uint32_t n, const float* v, const float* v_diag, Lanes* out), {
  for (uint32_t at = 0; at < kLanes; at += kWidth) times_factor_of<kWidth>(x, n, v, v_diag, at, out);
})

PITH_PER_ISA(void group_terms(const Lanes* e, uint32_t n, const float* v, const float* v_inverse, Lanes* b,
                              Lanes& cost),
             {
               for (uint32_t at = 0; at < kLanes; at += kWidth)
                 group_terms_of<kWidth>(e, n, v, v_inverse, at, b, cost);
             })

}  // namespace pith
