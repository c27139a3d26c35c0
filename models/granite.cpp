// Granite 3: Llama with multipliers on embeddings, scores, branches and logits.
#include "models/family.h"

namespace pith {

namespace {

float positive(Config& config, const char* key) {
  const double value = config.number_or(key, 1);
  if (!(value > 0 && value < 1e6))
    throw_error(ErrorCode::kFormat, "{}: {} is {}, expected 0 < value < 1e6", config.where(), key, value);
  return static_cast<float>(value);
}

ModelSpec read_granite(Config& config) {
  ModelSpec spec = read_dense_config(config);
  spec.family = "granite";
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", false);
  spec.mlp_bias = config.flag_or("mlp_bias", false);
  spec.embedding_scale = positive(config, "embedding_multiplier");
  spec.attn_scale = positive(config, "attention_multiplier");
  spec.residual_scale = positive(config, "residual_multiplier");
  spec.logit_scale = 1 / positive(config, "logits_scaling");
  return spec;
}

}  // namespace

Family granite_family() {
  return {"granite", {"GraniteForCausalLM"}, read_granite};
}

}  // namespace pith
