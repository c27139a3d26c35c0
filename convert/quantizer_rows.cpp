// The state of 16 rows through a quantization: the sweep with its targets, outliers, rounds of descent, the
// refit of d and dmin.
#include "convert/quantizer_rows.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "convert/quantizer_group.h"
#include "format/float16.h"

namespace pith {

namespace {

// The state of 16 rows.
class Rows {
 public:
  Rows(const RowsProblem& p, const Lanes* w)
      : p_(p),
        w_(w),
        n_groups_(p.n / p.group),
        n_coarse_(n_groups_ - p.n_fine / p.group),
        e_(p.n),
        codes_(p.n),
        delta_(p.n),
        a_(p.n),
        s_(n_groups_),
        m_(n_groups_),
        n_with_outliers_(p.outliers_in_fine ? n_groups_ : n_coarse_),
        exact_(p.n),
        upper_e_(p.n),
        gain_(n_with_outliers_),
        gain_col_(n_with_outliers_) {}

  void choose_second_order();
  void sweep();          // LDLQ from left to right
  void pick_outliers();  // from the sweep's gains
  void refit_second_order();
  void descend();           // one round, right after a refit
  void finish_outliers();   // fp16 deltas
  Lanes cost(Lanes* norm);  // e H e', w H w'
  void store(RowsResult& result) const;

 private:
  GroupProblem group_problem(uint32_t g, const Lanes* a) const;
  PITH_INLINE Lanes value_at(uint32_t c) const;
  struct UpperProduct {
    const Lanes* x;
    Lanes* out;
  };
  void add_upper(std::initializer_list<UpperProduct> products) const;
  void times_group_factor(const Lanes* x, uint32_t g, Lanes* out) const;
  template <typename Solve>
  void weigh_outliers(uint32_t g, GroupProblem& problem, const GroupChoice& best, const Solve& solve);

  const RowsProblem& p_;
  const Lanes* w_;
  uint32_t n_groups_, n_coarse_;
  LaneArray e_, codes_, delta_, a_, s_, m_;
  uint32_t n_with_outliers_;  // the first groups, which may have outliers
  LaneArray exact_;
  LaneArray upper_e_;   // U of e_ (quantizer_rows.h) after a refit
  LaneArray gain_;      // [n_with_outliers] error that the group's best outlier removes
  LaneArray gain_col_;  // [n_with_outliers] its column
  Lanes d_, dmin_;
  bool has_outliers_ = false;
};

GroupProblem Rows::group_problem(uint32_t g, const Lanes* a) const {
  const uint32_t c = g * p_.group;
  const bool is_fine = g >= n_coarse_;
  return {p_.group,
          w_ + c,
          a,
          nullptr,
          p_.v_diag.data() + c,
          p_.v_inverse.data() + c,
          has_outliers_ && g < n_with_outliers_ ? exact_.masks() + c : nullptr,
          is_fine ? 0.25f : 1.0f,
          is_fine ? 15.0f : 3.0f};
}

PITH_INLINE Lanes Rows::value_at(uint32_t c) const {
  const uint32_t g = c / p_.group;
  const Lanes step = d_ * s_[g] * splat<Lanes>(g >= n_coarse_ ? 0.25f : 1.0f);
  return step * codes_[c] - dmin_ * m_[g] + delta_[c];
}

constexpr uint32_t kBlock = 64;  // columns, whole groups

// out += U x for each: one pass over the half square.
void Rows::add_upper(std::initializer_list<UpperProduct> products) const {
  if (!p_.square) return;
  constexpr uint32_t kCols = 512;  // of a block of rows, which the next product finds in the cache
  for (uint32_t block = 0; block < p_.n; block += kBlock) {
    const float* const rows = p_.square + size_t{block} * p_.n;
    for (uint32_t begin = 0; begin < block; begin += kCols)
      for (const auto& [x, out] : products)
        accumulate(out, begin, std::min(begin + kCols, block), x + block, kBlock, rows, p_.n);
    for (uint32_t c = block + p_.group; c < block + kBlock; c += p_.group)
      for (const auto& [x, out] : products)
        accumulate(out, block, c, x + c, p_.group, p_.square + size_t{c} * p_.n, p_.n);
  }
}

void Rows::times_group_factor(const Lanes* x, uint32_t g, Lanes* out) const {
  const uint32_t n = p_.group;
  times_factor(x + g * n, n, p_.square ? p_.group_v.data() + size_t{g} * n * n : nullptr,
               p_.v_diag.data() + g * n, out);
}

// Rounds to fp16, to its largest number where that is exceeded.
Lanes to_f16_and_back(Lanes x) {
  constexpr float kMax = 65504;
  for (uint32_t i = 0; i < kLanes; ++i) x[i] = f16_to_float(float_to_f16(std::clamp(x[i], -kMax, kMax)));
  return x;
}

// d and dmin: those whose multiples 0..15 come closest to the groups' free scales and minimums.
Lanes fit_unit(const LaneArray& free, const std::vector<float>& importance, uint32_t n) {
  Lanes top{};
  for (uint32_t g = 0; g < n; ++g) top = max(top, free[g]);
  Lanes best = top * splat<Lanes>(1 / kMaxNibble), best_cost = splat<Lanes>(1e30f);
  for (int i = 0; i < 24; ++i) {
    const Lanes unit = top * splat<Lanes>((1 - 0.025f * static_cast<float>(i)) / kMaxNibble),
                inverse = inverse_or_zero(unit);
    Lanes cost{};
    for (uint32_t g = 0; g < n; ++g) {
      const Lanes miss = free[g] - unit * round_positive(clamp(free[g] * inverse, kMaxNibble));
      cost += splat<Lanes>(importance[g]) * miss * miss;
    }
    const Mask better = cost < best_cost;
    best_cost = better ? cost : best_cost;
    best = better ? unit : best;
  }
  return to_f16_and_back(best);
}

void Rows::choose_second_order() {
  LaneArray scales(n_groups_), minimums(n_groups_);
  std::vector<float> importance(n_groups_);
  const Lanes zeros[kMaxGroup] = {};
  for (uint32_t g = 0; g < n_groups_; ++g) {
    const GroupProblem problem = group_problem(g, zeros);
    free_scale(problem, p_.search_scales, p_.integer_zero, scales[g], minimums[g]);
    for (uint32_t j = 0; j < p_.group; ++j) importance[g] += problem.v_diag[j] * problem.v_diag[j];
  }
  d_ = fit_unit(scales, importance, n_groups_);
  dmin_ = fit_unit(minimums, importance, n_groups_);
}

// What would it save to take the lowest or the highest target of group g out? solve(choice) quantizes the problem, best is its
// solution with all of them.
template <typename Solve>
void Rows::weigh_outliers(uint32_t g, GroupProblem& problem, const GroupChoice& best, const Solve& solve) {
  const uint32_t c = g * p_.group;
  Mask exact[kMaxGroup];
  Lanes low, high;
  target_range(problem, best.t, low, high);
  problem.exact = exact;
  for (int side = 0; side < 2; ++side) {
    Mask col{}, found{};
    for (uint32_t j = 0; j < p_.group; ++j) {
      exact[j] = ~found & (side == 0 ? best.t[j] <= low : best.t[j] >= high);
      if (problem.v_diag[j] == 0) exact[j] = Mask{};
      found |= exact[j];
      col = exact[j] ? Mask{} + static_cast<int32_t>(c + j) : col;
    }
    Lanes gain{};
    if (p_.outliers_by_size) {
      for (uint32_t j = 0; j < p_.group; ++j) {
        const Lanes size = w_[c + j] * splat<Lanes>(p_.v_diag[c + j]);
        gain = exact[j] ? size * size : gain;
      }
    } else {
      GroupChoice without;
      solve(without);
      gain = best.cost - without.cost;
    }
    const Mask better = gain > gain_[g];
    gain_[g] = better ? gain : gain_[g];
    gain_col_.masks()[g] = better ? col : gain_col_.masks()[g];
  }
  problem.exact = nullptr;
}

void Rows::sweep() {
  std::fill_n(a_.data(), p_.n, Lanes{});
  const bool with_gains = p_.n_slots > 0 && !has_outliers_;
  const Lanes inverse_d = inverse_or_zero(d_), inverse_dmin = inverse_or_zero(dmin_);
  for (uint32_t g = 0; g < n_groups_; ++g) {
    const uint32_t c = g * p_.group;
    GroupProblem problem = group_problem(g, a_.data() + c);
    const float* const rows = p_.compensate ? p_.square + size_t{c} * p_.n : nullptr;
    float v[kMaxGroup * kMaxGroup];
    if (p_.compensate) {
      for (uint32_t i = 0; i < p_.group; ++i)
        for (uint32_t j = i + 1; j < p_.group; ++j) v[i * p_.group + j] = rows[size_t{i} * p_.n + c + j];
      problem.v = v;
    }
    const auto solve = [&](GroupChoice & choice) __attribute__((always_inline)) {
      Lanes scale, minimum;
      free_scale(problem, p_.search_scales, p_.integer_zero, scale, minimum);
      const Lanes s = round_positive(clamp(scale * inverse_d, kMaxNibble));
      const Lanes m = round_positive(clamp(minimum * inverse_dmin, kMaxNibble));
      search_nibbles(problem, d_, dmin_, s, m, p_.search_scales ? 2 : 0, choice);
    };
    GroupChoice best;
    solve(best);
    if (with_gains && g < n_with_outliers_) weigh_outliers(g, problem, best, solve);
    s_[g] = best.s;
    m_[g] = best.m;
    for (uint32_t j = 0; j < p_.group; ++j) {
      codes_[c + j] = best.codes[j];
      e_[c + j] = best.e[j];
      delta_[c + j] = Lanes{};
      if (has_outliers_ && g < n_with_outliers_) {
        const Lanes exact_delta = w_[c + j] - best.e[j] - value_at(c + j);
        delta_[c + j] = exact_.masks()[c + j] ? exact_delta : Lanes{};
      }
    }
    if (!p_.compensate) continue;
    const uint32_t next = c + p_.group, block = c / kBlock * kBlock,
                   block_end = std::min(block + kBlock, p_.n);
    accumulate(a_.data(), next, block_end, e_.data() + c, p_.group, rows, p_.n);
    if (next == block_end)
      accumulate(a_.data(), next, p_.n, e_.data() + block, block_end - block,
                 p_.square + size_t{block} * p_.n, p_.n);
  }
}

void Rows::pick_outliers() {
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    std::vector<uint32_t> order;
    for (uint32_t g = 0; g < n_with_outliers_; ++g)
      if (gain_[g][lane] > 0) order.push_back(g);
    const uint32_t n = std::min<uint32_t>(p_.n_slots, static_cast<uint32_t>(order.size()));
    std::partial_sort(order.begin(), order.begin() + n, order.end(), [&](uint32_t a, uint32_t b) {
      return gain_[a][lane] != gain_[b][lane] ? gain_[a][lane] > gain_[b][lane] : a < b;
    });
    for (uint32_t i = 0; i < n; ++i)
      exact_.masks()[static_cast<uint32_t>(gain_col_.masks()[order[i]][lane])][lane] = -1;
  }
  has_outliers_ = true;
}

// Least squares for d and dmin with everything else fixed: two unknowns a row.
void Rows::refit_second_order() {
  LaneArray scale_part(p_.n), min_part(p_.n), upper_scale(p_.n), upper_min(p_.n);
  for (uint32_t c = 0; c < p_.n_real; ++c) {
    const uint32_t g = c / p_.group;
    scale_part[c] = s_[g] * codes_[c] * splat<Lanes>(g >= n_coarse_ ? 0.25f : 1.0f);
    min_part[c] = -m_[g];
    if (has_outliers_) {  // an outlier's value does not hang on d: its delta follows
      scale_part[c] = exact_.masks()[c] ? Lanes{} : scale_part[c];
      min_part[c] = exact_.masks()[c] ? Lanes{} : min_part[c];
    }
  }
  std::fill_n(upper_e_.data(), p_.n, Lanes{});
  add_upper({{scale_part.data(), upper_scale.data()},
             {min_part.data(), upper_min.data()},
             {e_.data(), upper_e_.data()}});
  Lanes ss{}, sm{}, mm{}, se{}, me{};
  for (uint32_t c = 0; c < p_.n_real; ++c) {
    ss += 2.0f * scale_part[c] * upper_scale[c];
    sm += scale_part[c] * upper_min[c] + min_part[c] * upper_scale[c];
    mm += 2.0f * min_part[c] * upper_min[c];
    se += scale_part[c] * upper_e_[c] + e_[c] * upper_scale[c];
    me += min_part[c] * upper_e_[c] + e_[c] * upper_min[c];
  }
  for (uint32_t g = 0; g < n_groups_; ++g) {
    Lanes scales[kMaxGroup], minimums[kMaxGroup], errors[kMaxGroup];
    times_group_factor(scale_part.data(), g, scales);
    times_group_factor(min_part.data(), g, minimums);
    times_group_factor(e_.data(), g, errors);
    for (uint32_t j = 0; j < p_.group; ++j) {
      ss += scales[j] * scales[j];
      sm += scales[j] * minimums[j];
      mm += minimums[j] * minimums[j];
      se += scales[j] * errors[j];
      me += minimums[j] * errors[j];
    }
  }
  const Lanes det = ss * mm - sm * sm;
  const Mask solvable = det > splat<Lanes>(1e-6f) * ss * mm;
  const Lanes inverse = inverse_or_zero(det);
  const Lanes d = to_f16_and_back(d_ + (se * mm - me * sm) * inverse);
  const Lanes dmin = to_f16_and_back(dmin_ + (me * ss - se * sm) * inverse);
  const Mask usable = solvable & (d > Lanes{}) & (dmin > Lanes{});
  const Lanes d_step = usable ? d - d_ : Lanes{}, dmin_step = usable ? dmin - dmin_ : Lanes{};
  d_ = usable ? d : d_;
  dmin_ = usable ? dmin : dmin_;
  for (uint32_t c = 0; c < p_.n_real; ++c) {
    if (has_outliers_) {
      delta_[c] = Lanes{};
      delta_[c] = exact_.masks()[c] ? w_[c] - e_[c] - value_at(c) : Lanes{};
    }
    e_[c] = w_[c] - value_at(c);
    upper_e_[c] -= d_step * upper_scale[c] + dmin_step * upper_min[c];
  }
}

void Rows::descend() {
  const uint32_t n = p_.group;
  for (uint32_t g = 0; g < n_groups_; ++g) {
    const uint32_t c = g * n;
    GroupProblem problem = group_problem(g, nullptr);
    const float* v = p_.group_v.data() + size_t{g} * n * n;
    Lanes b[kMaxGroup], now;
    float diag[kMaxGroup], inverse[kMaxGroup];
    for (uint32_t j = 0; j < n; ++j) {
      diag[j] = v[j * n + j];
      inverse[j] = diag[j] > 0 ? 1 / diag[j] : 0;
      b[j] = upper_e_[c + j];
    }
    accumulate_rows(b, n, e_.data(), c, p_.square + size_t{c} * p_.n, p_.n);
    group_terms(e_.data() + c, n, v, inverse, b, now);
    problem.v = v;
    problem.v_diag = diag;
    problem.v_inverse = inverse;
    problem.a = b;
    GroupChoice best;
    search_nibbles(problem, d_, dmin_, s_[g], m_[g], 1, best);
    const Mask better = best.cost < now;
    s_[g] = better ? best.s : s_[g];
    m_[g] = better ? best.m : m_[g];
    for (uint32_t j = 0; j < n; ++j) {
      codes_[c + j] = better ? best.codes[j] : codes_[c + j];
      e_[c + j] = better ? best.e[j] : e_[c + j];
    }
    if (has_outliers_ && g < n_with_outliers_)
      for (uint32_t j = 0; j < n; ++j) {
        delta_[c + j] = Lanes{};
        const Lanes exact_delta = w_[c + j] - e_[c + j] - value_at(c + j);
        delta_[c + j] = exact_.masks()[c + j] ? exact_delta : Lanes{};
      }
  }
}

void Rows::finish_outliers() {
  for (uint32_t c = 0; c < p_.n_real; ++c) {
    delta_[c] = to_f16_and_back(delta_[c]);
    e_[c] = w_[c] - value_at(c);
  }
}

Lanes Rows::cost(Lanes* norm) {
  LaneArray upper_w(p_.n);
  std::fill_n(upper_e_.data(), p_.n, Lanes{});
  add_upper({{e_.data(), upper_e_.data()}, {w_, upper_w.data()}});
  Lanes sum{};
  *norm = Lanes{};
  for (uint32_t c = 0; c < p_.n_real; ++c) {
    sum += 2.0f * e_[c] * upper_e_[c];
    *norm += 2.0f * w_[c] * upper_w[c];
  }
  for (uint32_t g = 0; g < n_groups_; ++g) {
    Lanes errors[kMaxGroup], weights[kMaxGroup];
    times_group_factor(e_.data(), g, errors);
    times_group_factor(w_, g, weights);
    for (uint32_t j = 0; j < p_.group; ++j) {
      sum += errors[j] * errors[j];
      *norm += weights[j] * weights[j];
    }
  }
  return sum;
}

void Rows::store(RowsResult& result) const {
  result.d.resize(kLanes);
  result.dmin.resize(kLanes);
  result.codes.resize(size_t{p_.n} * kLanes);
  result.s.resize(size_t{n_groups_} * kLanes);
  result.m.resize(size_t{n_groups_} * kLanes);
  result.outlier_col.assign(size_t{p_.n_slots} * kLanes, 0);
  result.outlier_delta.assign(size_t{p_.n_slots} * kLanes, 0);
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    result.d[lane] = float_to_f16(d_[lane]);
    result.dmin[lane] = float_to_f16(dmin_[lane]);
    for (uint32_t c = 0; c < p_.n_real; ++c)
      result.codes[size_t{c} * kLanes + lane] = static_cast<uint8_t>(codes_[c][lane]);
    for (uint32_t g = 0; g < n_groups_; ++g) {
      result.s[size_t{g} * kLanes + lane] = static_cast<uint8_t>(s_[g][lane]);
      result.m[size_t{g} * kLanes + lane] = static_cast<uint8_t>(m_[g][lane]);
    }
    uint32_t slot = 0;
    for (uint32_t c = 0; has_outliers_ && c < p_.n_real; ++c)
      if (exact_.masks()[c][lane]) {
        result.outlier_col[size_t{slot} * kLanes + lane] = static_cast<uint16_t>(c);
        result.outlier_delta[size_t{slot++} * kLanes + lane] = float_to_f16(delta_[c][lane]);
      }
  }
}

}  // namespace

void quantize_rows(const RowsProblem& problem, const float* w, RowsResult& result) {
  LaneArray lanes(problem.n);
  std::memcpy(static_cast<void*>(lanes.data()), w, problem.n * kLaneBytes);
  Rows rows(problem, lanes.data());
  rows.choose_second_order();
  rows.sweep();
  if (problem.n_slots > 0) {
    rows.pick_outliers();
    rows.sweep();
  }
  for (uint32_t round = 0; round < problem.descent_rounds; ++round) {
    rows.refit_second_order();
    rows.descend();
  }
  if (problem.search_scales) rows.refit_second_order();
  rows.finish_outliers();
  Lanes norm;
  const Lanes error = rows.cost(&norm);
  rows.store(result);
  result.error = result.norm = 0;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    result.error += error[lane];
    result.norm += norm[lane];
  }
}

}  // namespace pith
