// Config keys that the families share.
#include <cmath>

#include "models/family.h"

namespace pith {

namespace {

Activation read_activation(Config& config, const DenseDefaults& defaults) {
  const std::string name = config.text_or(defaults.activation_key, defaults.activation);
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  throw_error(ErrorCode::kUnsupported, "{}: {} '{}', expected silu or gelu_pytorch_tanh", config.where(),
              defaults.activation_key, name);
}

void check_quantization(Config& config, bool reads_mxfp4) {
  if (!config.has("quantization_config")) return;
  Config quantization(config.object_or_null("quantization_config"), config.where() + ": quantization_config");
  if (reads_mxfp4 && quantization.text_or("quant_method", "") == "mxfp4") return;
  throw_error(ErrorCode::kUnsupported,
              "{}: quantization_config: the checkpoint is quantized already, expected F32, F16 or BF16{}",
              config.where(), reads_mxfp4 ? ", or mxfp4" : "");
}

}  // namespace

ModelSpec read_dense_config(Config& config, const DenseDefaults& defaults) {
  // Training, bookkeeping and generation keys: of no effect on the forward pass. Token ids are read by the
  // tokenizer.
  config.ignore({"architectures",        "model_type",
                 "torch_dtype",          "dtype",
                 "transformers_version", "use_cache",
                 "initializer_range",    "attention_dropout",
                 "bos_token_id",         "eos_token_id",
                 "pad_token_id",         "unk_token_id",
                 "_name_or_path",        "auto_map",
                 "is_llama_config",      "transformers.js_config",
                 "pretraining_tp",       "unsloth_version",
                 "unsloth_fixed",        "_attn_implementation_autoset",
                 "output_attentions",    "output_hidden_states",
                 "return_dict",          "cache_implementation"});
  check_quantization(config, defaults.reads_mxfp4);

  ModelSpec spec;
  spec.vocab_size = config.count("vocab_size");
  spec.dim = config.count("hidden_size");
  spec.ffn_dim = config.count("intermediate_size");
  spec.n_layers = config.count("num_hidden_layers");
  if (spec.n_layers > kMaxLayers)
    throw_error(ErrorCode::kUnsupported, "{}: num_hidden_layers is {}, expected at most {}", config.where(),
                spec.n_layers, kMaxLayers);
  spec.n_heads = config.count("num_attention_heads");
  spec.n_kv_heads = config.count_or("num_key_value_heads", spec.n_heads);
  if (!config.has("head_dim") && spec.dim % spec.n_heads != 0)
    throw_error(ErrorCode::kFormat, "{}: hidden_size {} is not a multiple of num_attention_heads {}",
                config.where(), spec.dim, spec.n_heads);
  spec.head_dim = config.count_or("head_dim", spec.dim / spec.n_heads);
  if (spec.head_dim > kMaxHeadDim)  // before a rope of that length is made
    throw_error(ErrorCode::kUnsupported, "{}: head_dim is {}, expected at most {}", config.where(),
                spec.head_dim, kMaxHeadDim);
  spec.max_context = config.count_or("max_position_embeddings", 2048);
  spec.norm_eps = static_cast<float>(config.number_or("rms_norm_eps", defaults.norm_eps));
  spec.activation = read_activation(config, defaults);
  spec.tied_embeddings = config.flag_or("tie_word_embeddings", defaults.tied_embeddings);
  spec.attn_scale = static_cast<float>(1 / std::sqrt(1.0 * spec.head_dim));
  spec.ropes = read_ropes(config, spec.head_dim, defaults.rope_theta, spec.max_context);
  spec.layers.assign(spec.n_layers, LayerSpec{});
  check_spec(spec, config.where());
  return spec;
}

std::vector<std::string> read_layer_types(Config& config, const ModelSpec& spec) {
  std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && types.size() != spec.n_layers)
    throw_error(ErrorCode::kFormat, "{}: layer_types has {} entries, expected num_hidden_layers, {}",
                config.where(), types.size(), spec.n_layers);
  for (const std::string& type : types)
    if (type != "full_attention" && type != "sliding_attention")
      throw_error(ErrorCode::kUnsupported,
                  "{}: layer type '{}', expected full_attention or sliding_attention", config.where(), type);
  return types;
}

void read_experts(Config& config, ModelSpec& spec, const char* n_experts_key) {
  config.ignore({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"});
  spec.n_experts = config.count(n_experts_key);
  spec.n_active_experts = config.count("num_experts_per_tok");
  if (spec.n_active_experts > spec.n_experts)
    throw_error(ErrorCode::kFormat, "{}: num_experts_per_tok is {}, expected at most {}, {}", config.where(),
                spec.n_active_experts, n_experts_key, spec.n_experts);
}

ModelSpec read_text_config(Config& config, ModelSpec (*read)(Config& config)) {
  config.ignore({"architectures",
                 "model_type",
                 "torch_dtype",
                 "dtype",
                 "transformers_version",
                 "use_cache",
                 "initializer_range",
                 "bos_token_id",
                 "eos_token_id",
                 "pad_token_id",
                 "vision_config",
                 "image_token_id",
                 "image_token_index",
                 "boi_token_id",
                 "boi_token_index",
                 "eoi_token_id",
                 "eoi_token_index",
                 "mm_tokens_per_image",
                 "multimodal_projector_bias",
                 "projector_hidden_act",
                 "spatial_merge_size",
                 "vision_feature_layer"});
  if (!config.has("text_config"))
    throw_error(ErrorCode::kFormat, "{}: 'text_config' is missing, expected an object", config.where());
  Config text(config.object_or_null("text_config"), config.where() + ": text_config");
  // What the parts share may stand outside.
  for (const char* key : {"torch_dtype", "dtype"})
    if (config.has(key)) text.fill({{key, config.text_or(key, "")}});
  if (config.has("tie_word_embeddings"))
    text.fill({{"tie_word_embeddings", config.flag_or("tie_word_embeddings", false)}});
  ModelSpec spec = read(text);
  if (const std::vector<std::string> unknown = text.unconsumed(); !unknown.empty())
    throw_error(ErrorCode::kUnsupported, "{}: unknown key '{}'", text.where(), unknown[0]);
  return spec;
}

CheckpointNames text_names(CheckpointNames names) {
  names.prefix = "language_model.model.";
  names.head = "language_model.lm_head.weight";
  names.ignored_prefixes = {"vision_tower.", "multi_modal_projector."};
  return names;
}

}  // namespace pith
