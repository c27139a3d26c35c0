// Bodies of experts.h. The small ones are latency-bound; the products are those of matvec_q24.cuh, matvec_plain.cuh and gemm_q24.cuh with
// their matrix found in a table. Speed: not measured.
#pragma once
#include "cuda/experts.h"
#include "cuda/gemm_q24.cuh"
#include "cuda/matvec_plain.cuh"
#include "cuda/matvec_q24.cuh"
#include "cuda/token_ops.cuh"

namespace pith::cuda {

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
  float top = -INFINITY;
  for (uint32_t e = lane; e < args.n_experts; e += kWarp) {
    logits[e] = from[e];
    top = max_f32(top, from[e]);
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
    // Logits that are no numbers choose nobody: any expert will do.
    const uint32_t idx =
        static_cast<uint32_t>(best.idx) < args.n_experts ? static_cast<uint32_t>(best.idx) : i;
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

// One block; a thread an expert. Choices are few and all threads read the same one at a time.
PITH_DEVICE void sort_slots_body(const SortSlots& args, uint8_t*) {
  launch_dependents();
  depend();
  const ExpertSlots& to = args.to;
  const uint32_t n = args.n_tokens * args.n_active;
  for (uint32_t s = thread_index(); s < to.n_slots; s += n_threads()) to.token[s] = to.expert[s] = -1;
  for (uint32_t e = thread_index(); e < args.n_experts; e += n_threads()) {
    int32_t count = 0;
    for (uint32_t i = 0; i < n; ++i) count += args.expert[i] == static_cast<int32_t>(e) ? 1 : 0;
    to.count[e] = count;
  }
  sync_block();
  if (thread_index() == 0) {
    int32_t at = 0;
    for (uint32_t e = 0; e < args.n_experts; ++e) {
      to.begin[e] = at;
      at += (to.count[e] + static_cast<int32_t>(kSlotAlign) - 1) / static_cast<int32_t>(kSlotAlign) *
            static_cast<int32_t>(kSlotAlign);
    }
  }
  sync_block();
  for (uint32_t e = thread_index(); e < args.n_experts; e += n_threads()) {
    int32_t at = to.begin[e];
    for (uint32_t i = 0; i < n; ++i) {
      if (args.expert[i] != static_cast<int32_t>(e)) continue;
      to.token[at] = static_cast<int32_t>(i / args.n_active);
      to.expert[at] = static_cast<int32_t>(e);
      to.of[i] = at++;
    }
  }
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
