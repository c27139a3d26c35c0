#include "convert/quantizer_group.h"

#include <algorithm>

namespace pith {

namespace {

// Codes for scale S and minimum M in every lane, columns from left to right, each error handed on within the group.
PITH_INLINE void quantize_group(const GroupProblem& g, Lanes scale, Lanes minimum, GroupChoice& out) {
  Lanes a[kMaxGroup];
  for (uint32_t j = 0; j < g.n; ++j) a[j] = g.a[j];
  const Lanes step = scale * splat(g.step), inverse = inverse_or_zero(step);
  Lanes cost{};
  for (uint32_t j = 0; j < g.n; ++j) {
    const Lanes t = g.w[j] + a[j] * splat(g.v_inverse[j]);
    const Lanes code = round_positive(clamp((t + minimum) * inverse, g.max_code));
    Lanes value = step * code - minimum;
    if (g.exact) value = g.exact[j] ? t : value;
    const Lanes miss = (t - value) * splat(g.v_diag[j]);
    cost += miss * miss;
    out.codes[j] = code;
    out.t[j] = t;
    out.e[j] = g.w[j] - value;
    if (g.v)
      for (uint32_t k = j + 1; k < g.n; ++k) a[k] += out.e[j] * splat(g.v[j * g.stride + k]);
  }
  out.cost = cost;
}

PITH_INLINE void take(GroupChoice& best, const GroupChoice& next, uint32_t n, Mask better) {
  best.s = better ? next.s : best.s;
  best.m = better ? next.m : best.m;
  best.cost = better ? next.cost : best.cost;
  for (uint32_t j = 0; j < n; ++j) {
    best.codes[j] = better ? next.codes[j] : best.codes[j];
    best.e[j] = better ? next.e[j] : best.e[j];
    best.t[j] = better ? next.t[j] : best.t[j];
  }
}

}  // namespace

PITH_CLONES void free_scale(const GroupProblem& g, bool search, bool integer_zero, Lanes& best_scale,
                            Lanes& best_min) {
  Lanes t[kMaxGroup];
  plain_targets(g, t);
  const Range range = range_of(g, t);
  const float top = g.max_code * g.step;
  const Lanes low = min(range.low, Lanes{}), span = max(range.high, low) - low;
  best_scale = span * splat(1 / top);
  best_min = -low;
  if (integer_zero) best_min = best_scale * round_positive(-low * inverse_or_zero(best_scale));
  if (!search) return;

  Lanes best_cost = splat(1e30f);
  for (int i = 0; i < 14; ++i) {
    const Lanes scale = span * splat((0.45f + 0.05f * static_cast<float>(i)) / top);
    const Lanes step = scale * splat(g.step), inverse = inverse_or_zero(step);
    Lanes minimum = (scale * splat(top) - (range.high + range.low)) * splat(0.5f);  // centred
    minimum = max(minimum, Lanes{});
    for (int round = 0; round < 3; ++round) {
      Lanes cost{}, sum{}, weight{};
      for (uint32_t j = 0; j < g.n; ++j) {
        Lanes importance = splat(g.v_diag[j] * g.v_diag[j]);
        if (g.exact) importance = g.exact[j] ? Lanes{} : importance;
        const Lanes code = round_positive(clamp((t[j] + minimum) * inverse, g.max_code));
        const Lanes gap = step * code - t[j];  // the best minimum for these codes is its mean
        const Lanes miss = gap - minimum;
        cost += importance * miss * miss;
        sum += importance * gap;
        weight += importance;
      }
      const Mask better = cost < best_cost;
      best_cost = better ? cost : best_cost;
      best_scale = better ? scale : best_scale;
      best_min = better ? minimum : best_min;
      minimum = max(sum * inverse_or_zero(weight), Lanes{});
      if (integer_zero) minimum = scale * round_positive(minimum * inverse_or_zero(scale));
    }
  }
}

PITH_CLONES void search_nibbles(const GroupProblem& g, const Lanes& d, const Lanes& dmin, const Lanes& s,
                                const Lanes& m, int radius, GroupChoice& best) {
  GroupChoice next;
  Mask is_first = Mask{} - 1;  // taken whatever it costs
  for (int ds = -radius; ds <= radius; ++ds)
    for (int dm = -radius; dm <= radius; ++dm) {
      next.s = clamp(s + splat(static_cast<float>(ds)), kMaxNibble);
      next.m = clamp(m + splat(static_cast<float>(dm)), kMaxNibble);
      quantize_group(g, d * next.s, dmin * next.m, next);
      take(best, next, g.n, is_first | (next.cost < best.cost));
      is_first = Mask{};
    }
}

PITH_CLONES void accumulate(Lanes* acc, uint32_t begin, uint32_t end, const Lanes* e, uint32_t n_j,
                            const float* v, size_t stride) {
  uint32_t k = begin;
  for (; k + 8 <= end; k += 8) {
    Lanes sum[8];
    for (uint32_t i = 0; i < 8; ++i) sum[i] = acc[k + i];
    for (uint32_t j = 0; j < n_j; ++j) {
      const float* row = v + j * stride + k;
      for (uint32_t i = 0; i < 8; ++i) sum[i] += e[j] * splat(row[i]);
    }
    for (uint32_t i = 0; i < 8; ++i) acc[k + i] = sum[i];
  }
  for (; k < end; ++k)
    for (uint32_t j = 0; j < n_j; ++j) acc[k] += e[j] * splat(v[j * stride + k]);
}

PITH_CLONES void group_terms(const Lanes* gradient, const Lanes* e, uint32_t n, const float* h, size_t stride,
                             const float* v, const float* v_inverse, Lanes* b, Lanes& cost) {
  for (uint32_t j = 0; j < n; ++j) {
    b[j] = gradient[j];
    for (uint32_t i = 0; i < n; ++i) b[j] -= e[i] * splat(h[i * stride + j]);
  }
  for (uint32_t j = n; j-- > 0;) {
    for (uint32_t k = j + 1; k < n; ++k) b[j] -= b[k] * splat(v[j * n + k]);
    b[j] *= splat(v_inverse[j]);
  }
  cost = Lanes{};
  for (uint32_t j = 0; j < n; ++j) {
    Lanes sum = b[j];
    for (uint32_t i = 0; i <= j; ++i) sum += e[i] * splat(v[i * n + j]);
    cost += sum * sum;
  }
}

}  // namespace pith
