// See memory.h. runtime/gpu_plan.cpp follows it.
#include "runtime/gpu/memory.h"

#include <algorithm>

#include "runtime/gpu/weights.h"

namespace pith::gpu {

namespace {

// Enough blocks to fill the device, none with fewer than 64 positions of a full context.
uint32_t attention_splits(const ModelSpec& spec, uint32_t n_ctx, uint32_t n_multiprocessors) {
  const uint32_t wanted = (n_multiprocessors + spec.n_kv_heads - 1) / spec.n_kv_heads;
  return std::clamp(wanted, 1u, std::max(n_ctx / 64, 1u));
}

uint64_t whole_tiles(uint64_t n) {
  return (n + cuda::kTokenTile - 1) / cuda::kTokenTile * cuda::kTokenTile;
}

}  // namespace

Cache::Cache(const ModelSpec& spec, KvType type, uint32_t n_ctx, const LayerRange& range, DeviceArena& arena)
    : first(range.begin) {
  const uint64_t n_rows = uint64_t{spec.n_kv_heads} * n_ctx;
  const uint64_t n_bytes = checked_mul(n_rows, uint64_t{spec.head_dim} * (type == KvType::kI8 ? 1 : 2));
  for (uint32_t i = range.begin; i < range.end; ++i) {
    LayerCache l{arena.take<uint8_t>(n_bytes), arena.take<uint8_t>(n_bytes), nullptr, nullptr};
    if (type == KvType::kI8) {
      l.k_scale = arena.take<float>(n_rows);
      l.v_scale = arena.take<float>(n_rows);
    }
    layers.push_back(l);
  }
}

Scratch::Scratch(const ModelSpec& spec, const Weights& weights, const SessionOptions& options,
                 uint32_t n_multiprocessors, bool warpgroups, DeviceArena& arena) {
  const uint64_t n = options.prefill_chunk, n_chosen = n * spec.n_active_experts;
  const uint64_t n_slots = n > 1 ? cuda::n_slots_for(n, spec.n_active_experts, spec.n_experts) : n_chosen;
  const bool has_experts = spec.n_experts != 0;
  n_splits = attention_splits(spec, options.n_ctx, n_multiprocessors);
  step = arena.take<int32_t>(1 + n);
  arrived = weights.range.begin != 0 ? arena.take<float>(n * spec.dim) : nullptr;
  x = arena.take<float>(n * spec.dim);
  qkv = arena.take<float>(n * (spec.q_rows() + 2 * spec.kv_rows()));
  attn = arena.take<float>(n * spec.q_rows());
  hidden = arena.take<float>((has_experts ? n_slots : n) * spec.ffn_padded());
  branch = spec.post_norms ? arena.take<float>(n * spec.dim) : nullptr;
  normed = weights.has_f32 ? arena.take<float>(n * spec.dim) : nullptr;
  logits = arena.take<float>(std::min<uint64_t>(kMaxLogitRows, n) * spec.vocab_size);
  const uint64_t rows = has_experts ? whole_tiles(n_slots + cuda::kTokenTile) : whole_tiles(n);
  const uint32_t half_cols = std::max(weights.max_half_cols, warpgroups ? weights.max_padded_cols : 0);
  if (n > 1 && half_cols != 0) {
    constexpr uint64_t kBlockCols = 64;
    half.n_padded = static_cast<uint32_t>(rows);
    half.a =
        arena.take<uint8_t>(checked_mul((half_cols + kBlockCols - 1) / kBlockCols * kBlockCols * 2, rows));
    half.scale = arena.take<float>(rows);
  }
  if (n > 1 && weights.max_padded_cols != 0 && !warpgroups) {
    const uint64_t blocks =
        (uint64_t{weights.max_padded_cols} + q24::kActivationBlock - 1) / q24::kActivationBlock;
    tokens.n_padded = static_cast<uint32_t>(rows);
    tokens.a = arena.take<uint8_t>(blocks * rows * q24::kActivationBlock);
    tokens.sums = arena.take<uint8_t>(blocks * rows * 16);
    tokens.scale = arena.take<float>(blocks * rows);
    if (weights.max_outlier_cols != 0)
      columns = arena.take<float>(checked_mul(weights.max_outlier_cols, rows));
  }
  if (has_experts) {
    router = arena.take<float>(n * spec.n_experts);
    expert = arena.take<int32_t>(n_chosen);
    share = arena.take<float>(n_chosen);
    slot_rows = arena.take<float>(n_slots * spec.dim);
    if (n > 1) {
      slots.begin = arena.take<int32_t>(spec.n_experts);
      slots.count = arena.take<int32_t>(spec.n_experts);
      slots.token = arena.take<int32_t>(n_slots);
      slots.expert = arena.take<int32_t>(n_slots);
      slots.of = arena.take<int32_t>(n_chosen);
    }
  }
  parts = arena.take<float>(uint64_t{spec.n_heads} * n_splits * (spec.head_dim + 2));
  counters = arena.take<uint32_t>(spec.n_kv_heads + 1);
  block_best = arena.take<float>(2 * uint64_t{n_multiprocessors});
  best = arena.take<int32_t>(1);
  for (const RopeSpec& rope : spec.ropes) {
    cos.push_back(arena.take<float>(uint64_t{options.n_ctx} * rope.inv_freq.size()));
    sin.push_back(arena.take<float>(uint64_t{options.n_ctx} * rope.inv_freq.size()));
  }
}

}  // namespace pith::gpu
