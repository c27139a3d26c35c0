// Mistral 7B, Nemo, Small: Llama with an optional sliding window and an explicit head_dim.
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
  for (LayerSpec& layer : spec.layers) layer.window = window;
  return spec;
}

}  // namespace

Family mistral_family() {
  return {"mistral", {"MistralForCausalLM"}, read_mistral, plan_dense};
}

}  // namespace pith
