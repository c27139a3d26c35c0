// What the dense families of the Llama lineage share: config keys and tensor names.
#include <cmath>

#include "models/family.h"

namespace pith {

namespace {

Activation read_activation(Config& config) {
  const std::string name = config.text_or("hidden_act", "silu");
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  throw_error(ErrorCode::kUnsupported, "{}: hidden_act '{}', expected silu or gelu_pytorch_tanh",
              config.where(), name);
}

}  // namespace

ModelSpec read_dense_config(Config& config) {
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
                 "return_dict"});
  if (config.has("quantization_config"))
    throw_error(ErrorCode::kUnsupported,
                "{}: quantization_config: the checkpoint is quantized already, expected F32, F16 or BF16",
                config.where());

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
  spec.max_context = config.count_or("max_position_embeddings", 2048);
  spec.norm_eps = static_cast<float>(config.number_or("rms_norm_eps", 1e-6));
  spec.activation = read_activation(config);
  spec.tied_embeddings = config.flag_or("tie_word_embeddings", false);
  spec.attn_scale = static_cast<float>(1 / std::sqrt(1.0 * spec.head_dim));
  spec.ropes.push_back(read_rope(config, spec.head_dim, spec.max_context));
  spec.layers.assign(spec.n_layers, LayerSpec{});
  check_spec(spec, config.where());
  return spec;
}

std::vector<TensorPlan> plan_dense(const ModelSpec& spec) {
  std::vector<TensorPlan> plan;
  const auto add = [&](std::string name, TensorRole role, uint32_t n_rows, uint32_t n_cols,
                       std::initializer_list<std::string> sources, RowOrder order = RowOrder::kConcat) {
    TensorPlan tensor{std::move(name), role, n_rows, n_cols, {}, order, 0};
    for (const std::string& source : sources) tensor.sources.push_back({source, 0, 0});
    plan.push_back(std::move(tensor));
  };
  const uint32_t dim = spec.dim, qkv_rows = spec.q_rows() + 2 * spec.kv_rows();

  add("embed", TensorRole::kEmbedding, spec.vocab_size, dim, {"model.embed_tokens.weight"});
  add("norm", TensorRole::kNorm, 1, dim, {"model.norm.weight"});
  if (!spec.tied_embeddings) add("head", TensorRole::kHead, spec.vocab_size, dim, {"lm_head.weight"});

  for (uint32_t i = 0; i < spec.n_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attn = layer + "self_attn.", mlp = layer + "mlp.";
    const auto here = [&](const char* part) { return layer_tensor(i, part); };
    add(here("attn_norm"), TensorRole::kNorm, 1, dim, {layer + "input_layernorm.weight"});
    add(here("attn_qkv"), TensorRole::kLinear, qkv_rows, dim,
        {attn + "q_proj.weight", attn + "k_proj.weight", attn + "v_proj.weight"});
    if (spec.qkv_bias)
      add(here("attn_qkv_bias"), TensorRole::kBias, 1, qkv_rows,
          {attn + "q_proj.bias", attn + "k_proj.bias", attn + "v_proj.bias"});
    if (spec.qk_norm) {
      add(here("q_norm"), TensorRole::kNorm, 1, spec.head_dim, {attn + "q_norm.weight"});
      add(here("k_norm"), TensorRole::kNorm, 1, spec.head_dim, {attn + "k_norm.weight"});
    }
    add(here("attn_out"), TensorRole::kLinear, dim, spec.q_rows(), {attn + "o_proj.weight"});
    if (spec.attn_out_bias) add(here("attn_out_bias"), TensorRole::kBias, 1, dim, {attn + "o_proj.bias"});
    // Families with post norms name four norms a layer; the feed-forward's input norm is then
    // pre_feedforward.
    if (spec.post_norms)
      add(here("attn_post_norm"), TensorRole::kNorm, 1, dim, {layer + "post_attention_layernorm.weight"});
    add(here("ffn_norm"), TensorRole::kNorm, 1, dim,
        {layer + (spec.post_norms ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight")});
    add(here("ffn_gate_up"), TensorRole::kLinear, 2 * spec.ffn_padded(), dim,
        {mlp + "gate_proj.weight", mlp + "up_proj.weight"}, RowOrder::kInterleave16);
    if (spec.mlp_bias)
      add(here("ffn_gate_up_bias"), TensorRole::kBias, 1, 2 * spec.ffn_padded(),
          {mlp + "gate_proj.bias", mlp + "up_proj.bias"}, RowOrder::kInterleave16);
    add(here("ffn_down"), TensorRole::kLinear, dim, spec.ffn_dim, {mlp + "down_proj.weight"});
    if (spec.mlp_bias) add(here("ffn_down_bias"), TensorRole::kBias, 1, dim, {mlp + "down_proj.bias"});
    if (spec.post_norms)
      add(here("ffn_post_norm"), TensorRole::kNorm, 1, dim, {layer + "post_feedforward_layernorm.weight"});
  }
  return plan;
}

}  // namespace pith
