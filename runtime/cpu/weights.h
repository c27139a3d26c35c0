// A model's tensors as the CPU kernels want them: pointers into the container, plus the copies that they index with.
#pragma once
#include <vector>

#include "runtime/cpu/arena.h"
#include "runtime/cpu/kernels.h"
#include "runtime/model.h"

namespace pith::cpu {

struct ExpertWeights {
  const float *gate_up_bias, *down_bias;  // nullptr when absent
  Matrix gate_up, down;
};

struct LayerWeights {
  const float *attn_norm, *q_norm, *k_norm, *attn_post_norm, *ffn_norm,
      *ffn_post_norm;                                                // nullptr when absent
  const float *qkv_bias, *attn_out_bias, *gate_up_bias, *down_bias;  // nullptr when absent
  Matrix qkv, attn_out, gate_up, down;                               // the last two without experts
  const float *sinks, *router_bias;                                  // nullptr when absent
  Matrix router;
  std::vector<ExpertWeights> experts;
};

struct Weights {
  // Copies are taken from the arena (a dry run when it only counts).
  Weights(const Model& model, uint32_t n_layers, Arena& arena);

  std::vector<LayerWeights> layers;
  const float* norm;
  Matrix embed, head;

  uint32_t max_padded_cols = 0, max_slots = 0;  // of Q24 matrices
  uint32_t max_plain_cols = 0;                  // of the others
};

}  // namespace pith::cpu
