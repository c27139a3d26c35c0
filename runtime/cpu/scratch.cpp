// How large each array is.
#include "runtime/cpu/scratch.h"

#include <algorithm>

#include "runtime/backend.h"

namespace pith::cpu {

Scratch::Scratch(const ModelSpec& spec, const Weights& weights, uint32_t n_ctx, uint32_t chunk,
                 uint32_t n_threads, Arena& arena) {
  const uint64_t n = chunk, t = n_threads;
  const uint32_t n_lanes = lanes_for(chunk);
  const uint64_t lanes = n_lanes;
  const uint64_t padded_head_dim = (spec.head_dim + 15) / 16 * 16;
  out_stride = padded_head_dim + 2;
  thread_stride = std::max({spec.dim, spec.q_rows(), spec.ffn_dim}) + kLanes;
  y_stride = lanes * kPanelRows;
  panel_stride =
      (panel_scratch_bytes(weights.max_padded_cols, weights.max_slots, weights.max_plain_cols, n_lanes) +
       63) /
      64 * 64;
  qkv_rows = spec.q_rows() + 2 * spec.kv_rows();
  x = arena.take<float>(n * spec.dim);
  normed = arena.take<float>(n * spec.dim);
  qkv = arena.take<float>(n * qkv_rows);
  attn = arena.take<float>(n * spec.q_rows());
  const uint64_t chosen_per_token = std::max(spec.n_active_experts, 1u);
  hidden = arena.take<float>(n * chosen_per_token * spec.ffn_dim);
  branch = spec.post_norms || spec.n_experts != 0 ? arena.take<float>(n * spec.dim) : nullptr;
  if (spec.n_experts != 0) {
    router = arena.take<float>(n * spec.n_experts);
    gathered = arena.take<float>(n * spec.dim);
    expert_begin = arena.take<uint32_t>(uint64_t{spec.n_experts} + 1);
    slots = arena.take<Slot>(n * chosen_per_token);
    slot_of = arena.take<ExpertShare>(n * chosen_per_token);
  }
  max_blocks = (weights.max_padded_cols + kBlock - 1) / kBlock;
  const uint64_t n_blocks = std::max(lanes, chosen_per_token) * max_blocks;
  a = arena.take<int8_t>(n_blocks * kBlock);
  max_summed_lines = (weights.max_padded_cols / 16 + 63) / 64 * 64;
  sums_stride = chosen_per_token * max_summed_lines;
  sums = arena.take<int16_t>(std::max(lanes * max_summed_lines, t * sums_stride));
  line_sums = arena.take<float>(sums_stride);
  sum_steps = arena.take<float>(std::max(lanes, t * chosen_per_token));
  scales = arena.take<float>(n_blocks);
  x_hat = arena.take<float>(chosen_per_token * max_blocks * kBlock);
  thread_row = arena.take<float>(t * thread_stride);
  y = arena.take<float>(t * y_stride);
  panel = arena.take<uint8_t>(t * panel_stride);
  attend_stride = attend_scratch(padded_head_dim);
  attend = arena.take<float>(t * attend_stride);
  // Decode: every head and segment; prefill: a tile's running sums and one part a thread.
  sums_out =
      arena.take<float>(std::max<uint64_t>(uint64_t{spec.n_heads} * n_segments(n_ctx), 1) * out_stride);
  tile_out = arena.take<float>(t * 2 * kMaxQueries * out_stride);
  sink_part = spec.attn_sinks ? arena.take<float>(t * out_stride) : nullptr;
  logits = arena.take<float>(uint64_t{std::min(kMaxLogitRows, chunk)} * spec.vocab_size);
  for (const RopeSpec& rope : spec.ropes) {
    cos.push_back(arena.take<float>(uint64_t{n_ctx} * rope.inv_freq.size()));
    sin.push_back(arena.take<float>(uint64_t{n_ctx} * rope.inv_freq.size()));
  }
}

}  // namespace pith::cpu
