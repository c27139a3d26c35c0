// gpt-oss: experts in MXFP4, biases everywhere, attention sinks, clamped SwiGLU, windows in every other layer.
#include "models/family.h"

namespace pith {

namespace {

ModelSpec read_gpt_oss(Config& config) {
  // experts_per_token and initial_context_length repeat what num_experts_per_tok and rope_scaling say.
  config.ignore({"experts_per_token", "initial_context_length", "hidden_act"});
  ModelSpec spec = read_dense_config(config, {.norm_eps = 1e-5, .rope_theta = 150000, .reads_mxfp4 = true});
  spec.family = "gpt_oss";
  spec.activation = Activation::kClampedSwiglu;
  for (const auto& [key, expected] : {std::pair{"swiglu_limit", 7.0}, std::pair{"swiglu_alpha", 1.702}})
    if (const double value = config.number_or(key, expected); value != expected)
      throw_error(ErrorCode::kUnsupported, "{}: {} is {}, expected {}", config.where(), key, value, expected);
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", true);
  spec.mlp_bias = spec.router_bias = spec.attn_sinks = true;
  read_experts(config, spec, "num_local_experts");
  set_windows(config, spec, config.count_or("sliding_window", 128), [](uint32_t i) { return i % 2 == 0; });
  return spec;
}

}  // namespace

Family gpt_oss_family() {
  CheckpointNames names;
  names.router = "mlp.router";
  names.stacked_experts = true;
  return {"gpt_oss", {"GptOssForCausalLM"}, read_gpt_oss, names};
}

}  // namespace pith
