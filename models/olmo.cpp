// OLMo 2: norms only after each block, and over all heads of q and of k together. OLMo 3: the same with windows in 3 of 4 layers.
#include "models/family.h"

namespace pith {

namespace {

ModelSpec read_olmo(Config& config, double rope_theta) {
  ModelSpec spec = read_dense_config(config, {.norm_eps = 1e-5, .rope_theta = rope_theta});
  spec.family = "olmo2";
  spec.pre_norms = false;
  spec.post_norms = spec.qk_norm_whole = true;
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", false);
  return spec;
}

ModelSpec read_olmo2(Config& config) {
  return read_olmo(config, 1e4);
}

ModelSpec read_olmo3(Config& config) {
  constexpr double kTheta = 5e5;
  ModelSpec spec = read_olmo(config, kTheta);
  spec.family = "olmo3";
  set_windows(config, spec, config.count_or("sliding_window", 4096),
              [](uint32_t i) { return (i + 1) % 4 != 0; });
  // RoPE scaling is for the layers that see everything, its base for all.
  if (spec.ropes.size() == 1)
    spec.ropes.push_back(plain_rope(read_rope_theta(config, kTheta), spec.head_dim));
  for (LayerSpec& layer : spec.layers) layer.rope_idx = layer.window != 0 ? 1 : 0;
  return spec;
}

}  // namespace

Family olmo2_family() {
  return {"olmo2", {"Olmo2ForCausalLM"}, read_olmo2};
}
Family olmo3_family() {
  return {"olmo3", {"Olmo3ForCausalLM"}, read_olmo3};
}

}  // namespace pith
