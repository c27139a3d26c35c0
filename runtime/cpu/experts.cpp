// The feed-forward part of a mixture of experts. Many tokens are sorted by expert, and all threads work on one expert after
// another. Of one token the threads share all of its experts' panels: each has few, and waiting after each cost a tenth.
#include "runtime/cpu/phases.h"

namespace pith::cpu {

// slot_of to slots: the tokens of each expert, ascending.
void CpuBackend::sort_by_expert() {
  const uint32_t n_chosen = n_ * spec_.n_active_experts;
  uint32_t* const begin = scratch_.expert_begin;
  std::fill_n(begin, spec_.n_experts + 1, 0u);
  for (uint32_t i = 0; i < n_chosen; ++i) ++begin[scratch_.slot_of[i].expert + 1];
  for (uint32_t e = 0; e < spec_.n_experts; ++e) begin[e + 1] += begin[e];
  for (uint32_t i = 0; i < n_chosen; ++i) {
    const ExpertShare& chosen = scratch_.slot_of[i];
    scratch_.slots[begin[chosen.expert]++] = {i / spec_.n_active_experts, chosen.share};
  }
  for (uint32_t e = spec_.n_experts; e > 0; --e) begin[e] = begin[e - 1];
  begin[0] = 0;
}

// normed = norm(x), and slot_of: the experts of each token, by the router.
void CpuBackend::choose_for_tokens(uint32_t thread, const LayerWeights& w) {
  const uint32_t n_threads = pool_.n_threads();
  const Range tokens = share(n_, thread, n_threads);
  for (uint32_t t = tokens.begin; t < tokens.end; ++t) {
    const float* const x = scratch_.x + size_t{t} * spec_.dim;
    float* const normed = scratch_.normed + size_t{t} * spec_.dim;
    if (w.ffn_norm != nullptr)
      kernels_.rms_norm(x, w.ffn_norm, spec_.dim, spec_.norm_eps, normed);
    else
      std::copy_n(x, spec_.dim, normed);
  }
  const Input in = prepare(thread, w.router, scratch_.normed, spec_.dim, n_, nullptr);
  if (n_ == 1) pool_.barrier();  // prepare has none for one token and a plain matrix, which routers are
  multiply(thread, w.router, in, [&](uint32_t first, uint32_t n_rows, const float* y) {
    for (uint32_t t = 0; t < n_; ++t)
      for (uint32_t r = 0; r < n_rows; ++r)
        scratch_.router[size_t{t} * spec_.n_experts + first + r] =
            y[size_t{r} * in.n_lanes + t] + (w.router_bias != nullptr ? w.router_bias[first + r] : 0.0f);
  });
  pool_.barrier();
  for (uint32_t t = tokens.begin; t < tokens.end; ++t)
    choose_experts(spec_, scratch_.router + size_t{t} * spec_.n_experts,
                   scratch_.slot_of + size_t{t} * spec_.n_active_experts);
}

// Router, then gate and up of each expert for its tokens. All threads work on one expert after another.
void CpuBackend::experts_in(uint32_t layer) {
  if (n_ == 1) return one_token_in(layer);
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    choose_for_tokens(thread, w);
    pool_.barrier();
    if (thread == 0) sort_by_expert();
    pool_.barrier();
    for (uint32_t e = 0; e < spec_.n_experts; ++e) {
      const uint32_t begin = scratch_.expert_begin[e], n = scratch_.expert_begin[e + 1] - begin;
      if (n == 0) continue;
      const Range rows = share(n, thread, pool_.n_threads());
      for (uint32_t i = rows.begin; i < rows.end; ++i)
        std::copy_n(scratch_.normed + size_t{scratch_.slots[begin + i].token} * spec_.dim, spec_.dim,
                    scratch_.gathered + size_t{i} * spec_.dim);
      pool_.barrier();
      const ExpertWeights& expert = w.experts[e];
      const Input mine = prepare(thread, expert.gate_up, scratch_.gathered, spec_.dim, n, nullptr);
      gate_up(thread, expert.gate_up, expert.gate_up_bias, mine,
              scratch_.hidden + size_t{begin} * spec_.ffn_dim);
      pool_.barrier();  // the next expert overwrites gathered and the quantized input
    }
  });
}

// branch = sum over a token's experts, in their order, of share * (down . hidden + bias); then as any branch.
void CpuBackend::experts_out(uint32_t layer) {
  if (n_ == 1) return one_token_out(layer);
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Range tokens = share(n_, thread, pool_.n_threads());
    std::fill(scratch_.branch + size_t{tokens.begin} * spec_.dim,
              scratch_.branch + size_t{tokens.end} * spec_.dim, 0.0f);
    pool_.barrier();
    for (uint32_t e = 0; e < spec_.n_experts; ++e) {
      const uint32_t begin = scratch_.expert_begin[e], n = scratch_.expert_begin[e + 1] - begin;
      if (n == 0) continue;
      const ExpertWeights& expert = w.experts[e];
      const float* const hidden = scratch_.hidden + size_t{begin} * spec_.ffn_dim;
      const Input in = prepare(thread, expert.down, hidden, spec_.ffn_dim, n, nullptr);
      multiply(thread, expert.down, in, [&](uint32_t first, uint32_t n_rows, const float* y) {
        for (uint32_t i = 0; i < n; ++i) {
          const Scratch::Slot& slot = scratch_.slots[begin + i];
          float* const out = scratch_.branch + size_t{slot.token} * spec_.dim + first;
          for (uint32_t r = 0; r < n_rows; ++r)
            out[r] += slot.share * (y[size_t{r} * in.n_lanes + i] +
                                    (expert.down_bias != nullptr ? expert.down_bias[first + r] : 0.0f));
        }
      });
      pool_.barrier();
    }
    add_post_normed(thread, n_, w.ffn_post_norm);
  });
  if (layer + 1 == n_layers()) end_batch();
}

// ---- one token ----------------------------------------------------------------------------------------------------

// Quantizes row_of(slot) for those matrix_of(slot) that want it; all have as many columns. The threads share the blocks.
template <typename MatrixOf, typename RowOf>
void CpuBackend::quantize_slots(uint32_t thread, MatrixOf&& matrix_of, RowOf&& row_of) {
  const uint32_t n_blocks = (matrix_of(0).n_cols + kBlock - 1) / kBlock;
  const Range mine = share(spec_.n_active_experts * n_blocks, thread, pool_.n_threads());
  for (uint32_t at = mine.begin, end; at < mine.end; at = end) {
    const uint32_t slot = at / n_blocks, first = slot * n_blocks;
    end = std::min(first + n_blocks, mine.end);
    const float* const x = row_of(slot);
    if (matrix_of(slot).is_q24())
      kernels_.quantize(matrix_of(slot), x, at - first, end - first, input_of_one(thread, slot, x));
  }
  pool_.barrier();
  for (uint32_t slot = 0; slot < spec_.n_active_experts; ++slot)
    if (matrix_of(slot).is_q24())
      kernels_.quantize_sums(matrix_of(slot), input_of_one(thread, slot, row_of(slot)));
}

void CpuBackend::one_token_in(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  const auto expert = [&](uint32_t slot) -> const ExpertWeights& {
    return w.experts[scratch_.slot_of[slot].expert];
  };
  pool_.run([&](uint32_t thread) {
    choose_for_tokens(thread, w);
    pool_.barrier();
    quantize_slots(
        thread, [&](uint32_t slot) -> const Matrix& { return expert(slot).gate_up; },
        [&](uint32_t) { return scratch_.normed; });
    const uint32_t n_panels = expert(0).gate_up.n_panels();
    pool_.for_each(thread, spec_.n_active_experts * n_panels, [&](uint32_t item) {
      const uint32_t slot = item / n_panels;
      const Input in = input_of_one(thread, slot, scratch_.normed);
      multiply_panel(thread, expert(slot).gate_up, item % n_panels, in,
                     [&](uint32_t first, uint32_t, float* y) {
                       store_gate(first, expert(slot).gate_up_bias, in, y,
                                  scratch_.hidden + size_t{slot} * spec_.ffn_dim);
                     });
    });
  });
}

// A panel of all experts at a time: their sum keeps its order.
void CpuBackend::one_token_out(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  const auto expert = [&](uint32_t slot) -> const ExpertWeights& {
    return w.experts[scratch_.slot_of[slot].expert];
  };
  const auto hidden = [&](uint32_t slot) { return scratch_.hidden + size_t{slot} * spec_.ffn_dim; };
  pool_.run([&](uint32_t thread) {
    quantize_slots(
        thread, [&](uint32_t slot) -> const Matrix& { return expert(slot).down; }, hidden);
    pool_.for_each(thread, expert(0).down.n_panels(), [&](uint32_t panel) {
      const uint32_t first = panel * kPanelRows, n_rows = std::min(kPanelRows, spec_.dim - first);
      float* const out = scratch_.branch + first;
      std::fill_n(out, n_rows, 0.0f);
      for (uint32_t slot = 0; slot < spec_.n_active_experts; ++slot)
        multiply_panel(thread, expert(slot).down, panel, input_of_one(thread, slot, hidden(slot)),
                       [&](uint32_t, uint32_t, float* y) {
                         add_bias(expert(slot).down_bias, first, n_rows, 1, y);
                         for (uint32_t r = 0; r < n_rows; ++r) out[r] += scratch_.slot_of[slot].share * y[r];
                       });
    });
    pool_.barrier();
    add_post_normed(thread, 1, w.ffn_post_norm);
  });
  if (layer + 1 == n_layers()) end_batch();
}

}  // namespace pith::cpu
