// Qwen2 and Qwen2.5 (bias on q, k, v), Qwen3 (no bias, a norm over each head of q and k).
#include "models/family.h"

namespace pith {

namespace {

// Only layers from max_window_layers on slide, and only with use_sliding_window; newer configs list
// layer_types too.
void read_windows(Config& config, ModelSpec& spec) {
  const bool slides = config.flag_or("use_sliding_window", false);
  const uint32_t window = config.count_or("sliding_window", 4096);
  const double first = config.number_or("max_window_layers", 28);
  const std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && types.size() != spec.n_layers)
    throw_error(ErrorCode::kFormat, "{}: layer_types has {} entries, expected num_hidden_layers, {}",
                config.where(), types.size(), spec.n_layers);
  for (uint32_t i = 0; i < spec.n_layers; ++i) {
    bool here = slides && i >= first;
    if (!types.empty()) {
      if (types[i] != "full_attention" && types[i] != "sliding_attention")
        throw_error(ErrorCode::kUnsupported,
                    "{}: layer type '{}', expected full_attention or sliding_attention", config.where(),
                    types[i]);
      here = types[i] == "sliding_attention";
    }
    spec.layers[i].window = here ? window : 0;
  }
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
  ModelSpec spec = read_dense_config(config);
  spec.family = "qwen3";
  spec.qk_norm = true;
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", false);
  refuse_mrope(config);
  read_windows(config, spec);
  return spec;
}

}  // namespace

Family qwen2_family() {
  return {"qwen2", {"Qwen2ForCausalLM"}, read_qwen2, plan_dense};
}
Family qwen3_family() {
  return {"qwen3", {"Qwen3ForCausalLM"}, read_qwen3, plan_dense};
}

}  // namespace pith
