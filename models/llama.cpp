// Llama 2 and 3, TinyLlama, SmolLM2 and everything else that calls itself LlamaForCausalLM.
#include "models/family.h"

namespace pith {

namespace {

ModelSpec read_llama(Config& config) {
  ModelSpec spec = read_dense_config(config);
  spec.family = "llama";
  spec.qkv_bias = spec.attn_out_bias = config.flag_or("attention_bias", false);
  spec.mlp_bias = config.flag_or("mlp_bias", false);
  if (config.flag_or("rope_interleaved", false))
    throw_error(ErrorCode::kUnsupported, "{}: rope_interleaved is true, expected false", config.where());
  return spec;
}

}  // namespace

Family llama_family() {
  return {"llama", {"LlamaForCausalLM"}, read_llama};
}

}  // namespace pith
