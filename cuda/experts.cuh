// Bodies of experts.h. The small ones are latency-bound; the products are those of matvec_*.cuh and gemm_*.cuh with their
// matrix found in a table. Speed: not measured.
#pragma once
#include "cuda/experts.h"
#include "cuda/gemm_half.cuh"
#include "cuda/gemm_q24.cuh"
#include "cuda/matvec_plain.cuh"
#include "cuda/matvec_q24.cuh"
#include "cuda/token_ops.cuh"

namespace pith::cuda {

// At most 12 KiB: models have up to 1024 experts (models/spec.cpp).
inline uint32_t choose_experts_shared_bytes(const ChooseExperts& args) {
  return (args.n_experts + 2 * args.n_active) * 4;
}
// One warp a block and token. `shared`: [n_experts] floats, then [n_active] experts and [n_active] exponentials.
PITH_DEVICE void choose_experts_body(const ChooseExperts& args, uint8_t* shared) {
  launch_dependents();
  depend();
  const uint32_t token = block_index(), lane = thread_index() % kWarp;
  const float* const from = args.logits + uint64_t{token} * args.n_experts;
  float* const logits = reinterpret_cast<float*>(shared);
  int32_t* const chosen = reinterpret_cast<int32_t*>(logits + args.n_experts);
  float* const value = reinterpret_cast<float*>(chosen + args.n_active);
  constexpr float kLowest = -3e38f;
  float top = kLowest;
  for (uint32_t e = lane; e < args.n_experts; e += kWarp) {
    // What is no number counts as the smallest one: experts are n_active different ones whatever a file holds.
    logits[e] = from[e] > kLowest ? from[e] : kLowest;
    top = max_f32(top, logits[e]);
  }
  top = max_warp(top);
  float all = 0;
  for (uint32_t e = lane; e < args.n_experts; e += kWarp) all += exp_f32(logits[e] - top);
  all = sum_warp(all);
  float sum = 0;
  for (uint32_t i = 0; i < args.n_active; ++i) {
    Best best;
    for (uint32_t e = lane; e < args.n_experts; e += kWarp) best.take(logits[e], static_cast<int32_t>(e));
    best.take_from_warp();
    const uint32_t idx = static_cast<uint32_t>(best.idx);
    if (idx % kWarp == lane) {
      chosen[i] = static_cast<int32_t>(idx);
      value[i] = exp_f32(logits[idx] - top);
      logits[idx] = -INFINITY;
    }
    sync_warp();
    sum += value[i];
  }
  for (uint32_t i = lane; i < args.n_active; i += kWarp) {
    uint32_t rank = 0;
    for (uint32_t j = 0; j < args.n_active; ++j)
      rank += chosen[j] < chosen[i] || (chosen[j] == chosen[i] && j < i) ? 1 : 0;
    args.expert[uint64_t{token} * args.n_active + rank] = chosen[i];
    args.share[uint64_t{token} * args.n_active + rank] = divide_f32(value[i], args.renormalize ? sum : all);
  }
}

constexpr uint32_t kSortWarps = 16;
inline uint64_t slot_counts_bytes(uint64_t n_experts) {
  return (kSortWarps + 1) * n_experts * 4;
}
// One block. Warp w has an equal run of the tokens and counts its choices in a row of its own; a token's experts are different ones, so that
// its lanes count at once. `shared`: [n_warps + 1][n_experts] counts, the last row for all warps together.
//
// A thread an expert that reads every choice was simpler: 2 * n_tokens * n_active steps one after another, about 50 us a layer for 512
// tokens of 8 experts, a fifth of the layer's products. Here it is n_tokens / n_warps steps twice: about 6 us. (Estimates, not measured.)
PITH_DEVICE void sort_slots_body(const SortSlots& args, uint8_t* shared) {
  launch_dependents();
  depend();
  const ExpertSlots& to = args.to;
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, n_warps = n_threads() / kWarp;
  int32_t* const counts = reinterpret_cast<int32_t*>(shared);
  int32_t* const own = counts + warp * args.n_experts;
  int32_t* const all = counts + n_warps * args.n_experts;
  // Calls f(choice's index, place of its expert in the warp's row), tokens in order.
  const auto for_own_choices = [&](const auto& f) {
    for (uint32_t t = args.n_tokens * warp / n_warps; t < args.n_tokens * (warp + 1) / n_warps; ++t) {
      for (uint32_t i = t * args.n_active + lane; i < (t + 1) * args.n_active; i += kWarp)
        f(i, own[args.expert[i]]);
      sync_warp();
    }
  };
  for (uint32_t s = thread_index(); s < to.n_slots; s += n_threads()) to.token[s] = to.expert[s] = -1;
  for (uint32_t i = thread_index(); i < n_warps * args.n_experts; i += n_threads()) counts[i] = 0;
  sync_block();
  for_own_choices([](uint32_t, int32_t& count) { ++count; });
  sync_block();
  for (uint32_t e = thread_index(); e < args.n_experts; e += n_threads()) {
    int32_t before = 0;  // the warps' counts become their first ranks
    for (uint32_t w = 0; w < n_warps; ++w) {
      const int32_t count = counts[w * args.n_experts + e];
      counts[w * args.n_experts + e] = before;
      before += count;
    }
    to.count[e] = all[e] = before;
  }
  sync_block();
  if (thread_index() == 0) {
    constexpr int32_t kAlign = static_cast<int32_t>(kSlotAlign);
    int32_t at = 0;
    for (uint32_t e = 0; e < args.n_experts; ++e) {
      const int32_t count = all[e];
      to.begin[e] = all[e] = at;
      at += (count + kAlign - 1) / kAlign * kAlign;
    }
  }
  sync_block();
  for_own_choices([&](uint32_t i, int32_t& rank) {
    const int32_t at = all[args.expert[i]] + rank++;
    to.token[at] = static_cast<int32_t>(i / args.n_active);
    to.expert[at] = args.expert[i];
    to.of[i] = at;
  });
}

// Grid: (blocks, n_active).
template <Pipeline kPipeline>
PITH_DEVICE void matvec_experts_q24_body(const MatvecExperts& args, uint8_t* shared) {
  depend();  // which weights to load is what the kernel before decides
  const uint32_t i = block_index_y();
  const ExpertMatrix& expert = args.stack.experts[args.expert[i]];
  const Q24Weights w = expert.q24;
  Input input = args.input;
  input.x += uint64_t{i} * args.x_stride;
  Output output = args.output;
  output.bias = expert.bias;
  output.out += uint64_t{i} * args.out_stride;
  if (w.group == 16)
    matvec_q24_body<16, kPipeline, false>(w, input, output, args.shape.n_stages, shared);
  else
    matvec_q24_body<32, kPipeline, false>(w, input, output, args.shape.n_stages, shared);
}
template <PlainKind kKind, bool kVector>
PITH_DEVICE void matvec_experts_plain_body(const MatvecExperts& args, uint8_t* shared) {
  depend();
  const uint32_t i = block_index_y();
  const ExpertMatrix& expert = args.stack.experts[args.expert[i]];
  Input input = args.input;
  input.x += uint64_t{i} * args.x_stride;
  Output output = args.output;
  output.bias = expert.bias;
  output.out += uint64_t{i} * args.out_stride;
  matvec_plain_body<kKind, kVector, true>(expert.plain, input, output, 1, 0, 0, shared);
}

// One block a slot.
PITH_DEVICE void quantize_slots_body(const ProductExperts& args, uint8_t* shared) {
  launch_dependents();
  depend();
  const uint32_t slot = block_index();
  const int32_t expert = args.slots.expert[slot];
  if (expert < 0) return;
  const Q24Weights w = args.stack.experts[expert].q24;
  QuantizedTokens to = args.tokens;
  if (w.n_slots == 0) to.columns = nullptr;
  quantize_row(w, {args.x + uint64_t{slot} * args.x_stride, nullptr, 0}, to, slot, shared);
}

// Grid: (panels, n_experts * tiles of tokens). The expert's rows are the tokens of a product of its own.
PITH_DEVICE void gemm_experts_body(const ProductExperts& args, uint8_t* shared) {
  depend();
  const uint32_t n_tiles = (args.n_tokens + kTokenTile - 1) / kTokenTile;
  const uint32_t idx = block_index_y() / n_tiles, first = block_index_y() % n_tiles * kTokenTile;
  const uint32_t count = static_cast<uint32_t>(args.slots.count[idx]);
  if (first >= count) return;
  const uint64_t begin = static_cast<uint64_t>(args.slots.begin[idx]);
  const ExpertMatrix& expert = args.stack.experts[idx];
  const Q24Weights w = expert.q24;
  QuantizedTokens tokens = args.tokens;
  tokens.a += begin * kUnitCols;
  tokens.sums += begin * 16;
  tokens.scale += begin;
  tokens.columns += tokens.columns != nullptr ? begin : 0;
  tokens.n_tokens = count;
  Output output = args.output;
  output.bias = expert.bias;
  output.out += begin * args.out_stride;
  if (w.group == 16)
    gemm_q24_body<16>(w, tokens, output, args.out_stride, first, shared);
  else
    gemm_q24_body<32>(w, tokens, output, args.out_stride, first, shared);
}

// One block a slot.
PITH_DEVICE void halve_slots_body(const ProductExperts& args, uint8_t* shared) {
  launch_dependents();
  depend();
  const uint32_t slot = block_index();
  const int32_t expert = args.slots.expert[slot];
  if (expert < 0) return;
  const Input input{args.x + uint64_t{slot} * args.x_stride, nullptr, 0};
  if (args.stack.is_q24)
    halve_q24_row(args.stack.experts[expert].q24, input, args.half, slot, shared);
  else
    halve_plain_row(args.stack.like.plain.n_cols, input, args.half, slot, shared);
}

// Grid: (n_experts * tiles of tokens, tiles of rows). multiply(expert, tokens, output, first token) is the product.
template <typename Multiply>
PITH_DEVICE void gemm_experts_half_body(const ProductExperts& args, const Multiply& multiply) {
  depend();
  const uint32_t n_tiles = (args.n_tokens + kTokenTile - 1) / kTokenTile;
  const uint32_t idx = block_index() / n_tiles, first = block_index() % n_tiles * kTokenTile;
  const uint32_t count = static_cast<uint32_t>(args.slots.count[idx]);
  if (first >= count) return;
  const uint64_t begin = static_cast<uint64_t>(args.slots.begin[idx]);
  const ExpertMatrix& expert = args.stack.experts[idx];
  HalfTokens tokens = args.half;
  tokens.a += begin * kTileRowBytes;
  tokens.scale += begin;
  tokens.n_tokens = count;
  Output output = args.output;
  output.bias = expert.bias;
  output.out += begin * args.out_stride;
  multiply(expert, tokens, output, first);
}
PITH_DEVICE void gemm_experts_half_q24_body(const ProductExperts& args, uint8_t* shared) {
  gemm_experts_half_body(
      args, [&](const ExpertMatrix& expert, const HalfTokens& tokens, const Output& output, uint32_t first) {
        const Q24Weights w = expert.q24;
        if (w.group == 16)
          gemm_half_q24_body<16>(w, tokens, output, args.out_stride, first, block_index_y(), shared);
        else
          gemm_half_q24_body<32>(w, tokens, output, args.out_stride, first, block_index_y(), shared);
      });
}
template <PlainKind kKind, bool kWarpgroups>
PITH_DEVICE void gemm_experts_half_plain_body(const ProductExperts& args, uint8_t* shared) {
  gemm_experts_half_body(
      args, [&](const ExpertMatrix& expert, const HalfTokens& tokens, const Output& output, uint32_t first) {
        const PlainWeights w = expert.plain;
        gemm_half_plain_body<kKind, kWarpgroups>(w, tokens, output, args.out_stride, first, block_index_y(),
                                                 shared);
      });
}

// Grid: (blocks, n_experts).
template <PlainKind kKind, bool kVector>
PITH_DEVICE void product_experts_plain_body(const ProductExperts& args, uint8_t* shared) {
  depend();
  const uint32_t idx = block_index_y(), count = static_cast<uint32_t>(args.slots.count[idx]);
  if (count == 0) return;
  const uint64_t begin = static_cast<uint64_t>(args.slots.begin[idx]);
  const ExpertMatrix& expert = args.stack.experts[idx];
  Output output = args.output;
  output.bias = expert.bias;
  output.out += begin * args.out_stride;
  matvec_plain_body<kKind, kVector, false>(expert.plain, {args.x + begin * args.x_stride, nullptr, 0}, output,
                                           count, args.x_stride, args.out_stride, shared);
}

// One block a token.
PITH_DEVICE void combine_experts_body(const CombineExperts& args, uint8_t*) {
  launch_dependents();
  depend();
  const uint64_t token = block_index();
  float* const out = args.out + token * args.n_cols;
  for (uint32_t c = thread_index(); c < args.n_cols; c += n_threads()) {
    float sum = 0;
    for (uint32_t i = 0; i < args.n_active; ++i) {
      const uint64_t choice = token * args.n_active + i;
      const uint64_t slot = args.slot != nullptr ? static_cast<uint64_t>(args.slot[choice]) : i;
      sum = fma_f32(args.share[choice], args.y[slot * args.n_cols + c], sum);
    }
    out[c] = fma_f32(args.scale, sum, args.add ? out[c] : 0.0f);
  }
}

}  // namespace pith::cuda
