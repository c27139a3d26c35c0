// Qwen2 and Qwen2.5 (bias on q, k, v), Qwen3 (no bias, a norm over each head of q and k), Qwen3-MoE (the same with experts).
#include "models/family.h"

namespace pith {

namespace {

// Only layers from max_window_layers on slide, and only with use_sliding_window; newer configs list layer_types too.
void read_windows(Config& config, ModelSpec& spec) {
  const bool slides = config.flag_or("use_sliding_window", false);
  const uint32_t window = config.count_or("sliding_window", 4096);
  const double first = config.number_or("max_window_layers", 28);
  set_windows(config, spec, window, [&](uint32_t layer) { return slides && layer >= first; });
}

void refuse_mrope(Config& config) {
  if (config.flag_or("use_mrope", false))
    throw_error(ErrorCode::kUnsupported, "{}: use_mrope is true, expected false", config.where());
}

ModelSpec read_qwen2(Config& config) {
  ModelSpec spec = read_dense_config(config);
  spec.family = "qwen2";
  spec.qkv_bias = true;
  refuse_mrope(config);
  read_windows(config, spec);
  return spec;
}

ModelSpec read_qwen3(Config& config) {
  config.fill({{"head_dim", 128}});
  ModelSpec spec = read_dense_config(config);
  spec.family = "qwen3";
  spec.qk_norm = true;
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", false);
  refuse_mrope(config);
  read_windows(config, spec);
  return spec;
}

ModelSpec read_qwen3_moe(Config& config) {
  ModelSpec spec = read_dense_config(config);
  spec.family = "qwen3_moe";
  spec.qk_norm = true;
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", false);
  refuse_mrope(config);
  // Unlike in Qwen3, all layers slide or none.
  config.ignore({"max_window_layers"});
  const bool slides = config.flag_or("use_sliding_window", false);
  const uint32_t window = config.count_or("sliding_window", 4096);
  for (LayerSpec& layer : spec.layers) layer.window = slides ? window : 0;
  // Newer configs say num_local_experts for what older ones call num_experts.
  read_experts(config, spec, config.has("num_experts") ? "num_experts" : "num_local_experts");
  spec.router_renormalize = config.flag_or("norm_topk_prob", false);
  spec.ffn_dim = config.count("moe_intermediate_size");
  // Published models have experts in every layer.
  if (config.count_or("decoder_sparse_step", 1) != 1 || !config.numbers("mlp_only_layers").empty())
    throw_error(ErrorCode::kUnsupported, "{}: layers without experts (decoder_sparse_step, mlp_only_layers)",
                config.where());
  return spec;
}

}  // namespace

Family qwen2_family() {
  return {"qwen2", {"Qwen2ForCausalLM"}, read_qwen2};
}
Family qwen3_family() {
  return {"qwen3", {"Qwen3ForCausalLM"}, read_qwen3};
}
Family qwen3_moe_family() {
  return {"qwen3_moe", {"Qwen3MoeForCausalLM"}, read_qwen3_moe};
}

}  // namespace pith
