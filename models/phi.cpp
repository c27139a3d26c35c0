// Phi-3, Phi-3.5, Phi-4, Phi-4-mini: q, k, v in one tensor, gate and up in another; LongRoPE; part of a head rotated.
#include "models/family.h"

namespace pith {

namespace {

ModelSpec read_phi3(Config& config) {
  config.ignore({"embd_pdrop", "resid_pdrop", "original_max_position_embeddings"});
  ModelSpec spec = read_dense_config(config, {.norm_eps = 1e-5});
  spec.family = "phi3";
  for (const char* key : {"attention_bias", "mlp_bias", "lm_head_bias"})
    if (config.flag_or(key, false))
      throw_error(ErrorCode::kUnsupported, "{}: {} is true, expected false", config.where(), key);
  for (const char* key : {"interpolate_factor", "full_attn_mod"})
    if (const uint32_t value = config.count_or(key, 1); value != 1)
      throw_error(ErrorCode::kUnsupported, "{}: {} is {}, expected 1", config.where(), key, value);
  const uint32_t window = config.count_or("sliding_window", 0);
  for (LayerSpec& layer : spec.layers) layer.window = window;
  return spec;
}

}  // namespace

Family phi3_family() {
  CheckpointNames names;
  names.fused_qkv = names.fused_gate_up = true;
  return {"phi3", {"Phi3ForCausalLM"}, read_phi3, names};
}

}  // namespace pith
