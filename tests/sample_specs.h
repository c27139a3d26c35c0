// Small specs that tests of the run time share, and tokens for them.
#pragma once
#include <cmath>
#include <random>
#include <vector>

#include "models/spec.h"

namespace pith::test {

// Two layers, awkward widths, no switch on. head_dim: even, at most 16.
inline ModelSpec plain_spec(uint32_t head_dim = 12) {
  constexpr float kFrequencies[] = {1.0f, 0.4f, 0.15f, 0.05f, 0.02f, 0.007f, 0.002f, 0.001f};
  ModelSpec spec;
  spec.family = "test";
  spec.vocab_size = 131, spec.dim = 48, spec.ffn_dim = 50, spec.n_layers = 2, spec.n_heads = 4,
  spec.n_kv_heads = 2;
  spec.head_dim = head_dim, spec.max_context = 700, spec.norm_eps = 1e-5f;
  spec.attn_scale = 1 / std::sqrt(static_cast<float>(head_dim));
  spec.ropes = {{{kFrequencies, kFrequencies + head_dim / 2}, 1}};
  spec.layers.assign(2, LayerSpec{});
  return spec;
}

// Every switch of a dense model that goes with the others.
inline ModelSpec everything_spec(uint32_t head_dim = 12) {
  ModelSpec spec = plain_spec(head_dim);
  spec.qkv_bias = spec.attn_out_bias = spec.mlp_bias = spec.qk_norm = spec.post_norms = spec.tied_embeddings =
      true;
  spec.activation = Activation::kGeluTanh;
  spec.embedding_scale = 1.5f, spec.residual_scale = 0.8f, spec.logit_scale = 0.7f;
  spec.attn_softcap = 4, spec.logit_softcap = 9;
  spec.ropes.push_back({{0.9f, 0.3f}, 1.2f});  // partial rotation
  spec.layers = {{5, 1}, {0, -1}};
  return spec;
}

inline std::vector<int32_t> random_ids(size_t n, uint32_t vocab, uint64_t seed = 3) {
  std::mt19937_64 rng(seed);
  std::vector<int32_t> ids(n);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % vocab);
  return ids;
}

}  // namespace pith::test
