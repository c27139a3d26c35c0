// The CPU backend's activations and tables: taken once, for `chunk` tokens a batch.
#pragma once
#include <vector>

#include "models/experts.h"
#include "runtime/cpu/arena.h"
#include "runtime/cpu/weights.h"

namespace pith::cpu {

// Everything but weights and cache. Sizes are for `chunk` tokens.
struct Scratch {
  // A dry run when the arena only counts.
  Scratch(const ModelSpec& spec, const Weights& weights, uint32_t n_ctx, uint32_t chunk, uint32_t n_threads,
          Arena& arena);

  uint64_t out_stride, thread_stride, y_stride, panel_stride, attend_stride;
  uint32_t qkv_rows;
  float* x;       // [n, dim] residual stream
  float* normed;  // [n, dim]
  float* qkv;     // [n, q + 2 kv rows]
  float* attn;    // [n, q rows]
  float* hidden;  // [n, ffn_dim]; with experts [slots, ffn_dim]
  float* branch;  // [n, dim] before a post norm, and the sum of experts
  // Experts: what each token chose, and the same sorted by expert.
  struct Slot {
    uint32_t token;
    float share;
  };
  float* router = nullptr;           // [n, n_experts]
  float* gathered = nullptr;         // [n, dim] the input of one expert
  uint32_t* expert_begin = nullptr;  // [n_experts + 1] into slots
  Slot* slots = nullptr;             // [n * n_active_experts]
  ExpertShare* slot_of = nullptr;    // [n, n_active_experts], experts ascending
  // Quantized input of the current matrix: Input. For one token of a mixture of experts there is one for each of its experts,
  // a stride of max_blocks blocks apart.
  uint32_t max_blocks, max_summed_lines;
  int8_t* a;
  int16_t* sums;
  float* scales;
  float* x_hat;
  float* line_sums;
  // Of one token each thread rounds the line sums for itself: sums [threads, sums_stride], sum_steps [threads, experts].
  uint64_t sums_stride;
  float* sum_steps;
  float* thread_row;             // [threads, thread_stride] the normed token, for decode
  float* y;                      // [threads, 32, lanes]
  uint8_t* panel;                // [threads] kernel scratch
  float* attend;                 // [threads, attend_stride] kernel scratch
  float* sums_out;               // [n_heads, segments, out_stride]
  float* tile_out;               // [threads, 2, kMaxQueries, out_stride]
  float* sink_part;              // [threads, out_stride]
  float* logits;                 // [kMaxLogitRows, vocab]
  std::vector<float*> cos, sin;  // [n_ctx, rotary_dim / 2] for each rope
};

// Of the attention of one token over n positions.
inline uint32_t n_segments(uint32_t n_positions) {
  return (n_positions + kSegment - 1) / kSegment;
}

}  // namespace pith::cpu
