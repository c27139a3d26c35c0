// SmolLM3: Llama with every 4th layer free of rotation.
#include "models/family.h"

namespace pith {

namespace {

ModelSpec read_smollm3(Config& config) {
  ModelSpec spec = read_dense_config(config, {.rope_theta = 2e6, .tied_embeddings = true});
  spec.family = "smollm3";
  config.ignore({"max_window_layers"});
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", false);
  spec.mlp_bias = config.flag_or("mlp_bias", false);
  // no_rope_layers has a 1 for layers that do rotate.
  const uint32_t interval = config.count_or("no_rope_layer_interval", 4);
  const std::vector<double> rotates = config.numbers("no_rope_layers");
  if (!rotates.empty() && rotates.size() != spec.n_layers)
    throw_error(ErrorCode::kFormat, "{}: no_rope_layers has {} entries, expected num_hidden_layers, {}",
                config.where(), rotates.size(), spec.n_layers);
  for (uint32_t i = 0; i < spec.n_layers; ++i) {
    const bool here = rotates.empty() ? (i + 1) % interval != 0 : rotates[i] != 0;
    spec.layers[i].rope_idx = here ? 0 : -1;
  }
  const bool slides = config.flag_or("use_sliding_window", false);
  const uint32_t window = config.count_or("sliding_window", 0);
  set_windows(config, spec, slides ? window : 0, [&](uint32_t i) { return spec.layers[i].rope_idx < 0; });
  return spec;
}

}  // namespace

Family smollm3_family() {
  return {"smollm3", {"SmolLM3ForCausalLM"}, read_smollm3};
}

}  // namespace pith
