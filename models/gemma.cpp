// Gemma 2 and 3 (text): norms before and after each block, stored less one; embeddings times sqrt(dim); GELU; windows in some
// layers. Gemma 2 caps scores and logits; Gemma 3 norms the heads of q and k and rotates layers that slide by another base.
#include <cmath>

#include "format/float16.h"
#include "models/family.h"

namespace pith {

namespace {

CheckpointNames gemma_names() {
  CheckpointNames names;
  names.ffn_norm = "pre_feedforward_layernorm";
  names.norm_add = 1;
  return names;
}

ModelSpec read_gemma(Config& config, double rope_theta) {
  config.ignore({"hidden_act"});
  if (config.flag_or("use_bidirectional_attention", false))
    throw_error(ErrorCode::kUnsupported, "{}: use_bidirectional_attention is true, expected false",
                config.where());
  config.fill({{"head_dim", 256}, {"query_pre_attn_scalar", 256}, {"sliding_window", 4096}});
  ModelSpec spec = read_dense_config(config, {.activation_key = "hidden_activation",
                                              .activation = "gelu_pytorch_tanh",
                                              .rope_theta = rope_theta,
                                              .tied_embeddings = true});
  spec.post_norms = true;
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", false);
  const double scalar = config.number("query_pre_attn_scalar");
  if (!(scalar > 0))
    throw_error(ErrorCode::kFormat, "{}: query_pre_attn_scalar is {}, expected more than 0", config.where(),
                scalar);
  spec.attn_scale = static_cast<float>(1 / std::sqrt(scalar));
  // The reference multiplies in the checkpoint's type: sqrt(1152) is 34 in bfloat16.
  spec.embedding_scale = static_cast<float>(std::sqrt(1.0 * spec.dim));
  const std::string type = config.text_or("dtype", config.text_or("torch_dtype", "bfloat16"));
  if (type == "bfloat16") spec.embedding_scale = bf16_to_float(float_to_bf16(spec.embedding_scale));
  spec.attn_softcap = static_cast<float>(config.number_or("attn_logit_softcapping", 0));
  spec.logit_softcap = static_cast<float>(config.number_or("final_logit_softcapping", 0));
  return spec;
}

ModelSpec read_gemma2(Config& config) {
  // Published configs have the caps; the reference's class defaults to the same.
  config.fill({{"attn_logit_softcapping", 50.0}, {"final_logit_softcapping", 30.0}});
  ModelSpec spec = read_gemma(config, 1e4);
  spec.family = "gemma2";
  config.ignore({"sliding_window_size"});
  set_windows(config, spec, config.count_or("sliding_window", 0), [](uint32_t i) { return i % 2 == 0; });
  return spec;
}

ModelSpec read_gemma3(Config& config) {
  config.fill({{"vocab_size", 262208},
               {"num_attention_heads", 8},
               {"num_key_value_heads", 4},
               {"max_position_embeddings", 131072}});
  ModelSpec spec = read_gemma(config, 1e6);
  spec.family = "gemma3";
  spec.qk_norm = true;
  const double local_theta = config.number_or("rope_local_base_freq", 1e4);
  if (spec.ropes.size() == 1) spec.ropes.push_back(plain_rope(local_theta, spec.head_dim));
  const uint32_t pattern =
      config.count_or("sliding_window_pattern", config.count_or("_sliding_window_pattern", 6));
  set_windows(config, spec, config.count("sliding_window"),
              [&](uint32_t i) { return (i + 1) % pattern != 0; });
  for (LayerSpec& layer : spec.layers) layer.rope_idx = layer.window != 0 ? 1 : 0;
  return spec;
}

// Gemma 3 of 4B and more.
ModelSpec read_gemma3_multimodal(Config& config) {
  return read_text_config(config, read_gemma3);
}

}  // namespace

Family gemma2_family() {
  return {"gemma2", {"Gemma2ForCausalLM"}, read_gemma2, gemma_names()};
}
Family gemma3_family() {
  return {"gemma3", {"Gemma3ForCausalLM"}, read_gemma3, gemma_names()};
}
Family gemma3_multimodal_family() {
  return {"gemma3_multimodal",
          {"Gemma3ForConditionalGeneration"},
          read_gemma3_multimodal,
          text_names(gemma_names())};
}

}  // namespace pith
