// Mistral 7B, Nemo, Small: Llama with an optional sliding window and an explicit head_dim. Mixtral: the same with experts.
#include "models/family.h"

namespace pith {

namespace {

ModelSpec read_mistral(Config& config) {
  ModelSpec spec = read_dense_config(config);
  spec.family = "mistral";
  config.ignore({"max_sequence_length"});
  // The reference implementation's default is 4096; only an explicit null switches the window off.
  const bool off = config.is_null("sliding_window");
  const uint32_t window = config.count_or("sliding_window", off ? 0 : 4096);
  set_windows(config, spec, window, [](uint32_t) { return true; });
  return spec;
}

// Mistral Small 3.1 and later.
ModelSpec read_mistral_multimodal(Config& config) {
  return read_text_config(config, read_mistral);
}

ModelSpec read_mixtral(Config& config) {
  ModelSpec spec = read_dense_config(config, {.norm_eps = 1e-5, .rope_theta = 1e6});
  spec.family = "mixtral";
  config.ignore({"max_sequence_length"});
  const uint32_t window = config.count_or("sliding_window", 0);
  set_windows(config, spec, window, [](uint32_t) { return true; });
  read_experts(config, spec, "num_local_experts");
  return spec;
}

}  // namespace

Family mistral_family() {
  return {"mistral", {"MistralForCausalLM"}, read_mistral};
}
Family mistral_multimodal_family() {
  return {"mistral_multimodal",
          {"Mistral3ForConditionalGeneration"},
          read_mistral_multimodal,
          text_names(CheckpointNames{})};
}
Family mixtral_family() {
  CheckpointNames names;
  names.router = "block_sparse_moe.gate";
  names.experts = "block_sparse_moe.experts.";
  names.gate = "w1", names.up = "w3", names.down = "w2";
  return {"mixtral", {"MixtralForCausalLM"}, read_mixtral, names};
}

}  // namespace pith
