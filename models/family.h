// A family: how a checkpoint of one kind of architecture is read. One file each, listed in registry.cpp.
#pragma once
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "models/spec.h"

namespace pith {

// config.json with book-keeping: every key that is read is consumed; unconsumed() lists the rest.
// Getters throw Error(kFormat) naming file, key, expected and found type or range.
class Config {
 public:
  Config(nlohmann::json json, std::string where);
  bool has(const std::string& key);            // consumes it; null counts as absent
  bool is_null(const std::string& key) const;  // there, and null
  uint32_t count(const std::string& key);      // 1 .. 2^31
  uint32_t count_or(const std::string& key, uint32_t fallback);
  double number(const std::string& key);
  double number_or(const std::string& key, double fallback);
  bool flag_or(const std::string& key, bool fallback);
  std::string text_or(const std::string& key, const std::string& fallback);
  std::vector<std::string> texts(const std::string& key);  // a list of strings; empty when absent
  std::vector<double> numbers(const std::string& key);     // a list of numbers; empty when absent
  nlohmann::json object_or_null(const std::string& key);   // consumed whole: the reader checks its keys
  void ignore(std::initializer_list<const char*> keys);    // known, of no effect on inference
  // The value of a key that is not there, where the reference's configuration class has one of its own.
  void fill(const nlohmann::json& defaults);
  std::vector<std::string> unconsumed() const;
  const std::string& where() const;
  // What was asked for so far, there or not; for the table of supported keys.
  const std::set<std::string>& used_keys() const { return used_; }
  const std::set<std::string>& ignored_keys() const { return ignored_; }

 private:
  nlohmann::json json_;
  std::string where_;
  std::set<std::string> used_, ignored_, filled_;
};

// How a checkpoint names its tensors. The defaults are the Llama lineage's; "N." stands for layer N below.
struct CheckpointNames {
  const char* prefix = "model.";  // of everything but the head
  const char* head = "lm_head.weight";
  const char* attn_norm = "input_layernorm";
  const char* attn_post_norm = "post_attention_layernorm";  // with post norms
  const char* ffn_norm = "post_attention_layernorm";
  const char* ffn_post_norm = "post_feedforward_layernorm";
  bool fused_qkv = false;      // N.self_attn.qkv_proj instead of q_proj, k_proj, v_proj
  bool fused_gate_up = false;  // N.mlp.gate_up_proj instead of gate_proj, up_proj
  float norm_add = 0;          // norms are stored less this
  // Experts
  const char* router = "mlp.gate";
  const char* experts = "mlp.experts.";  // N.EXPERTS E.GATE.weight
  const char *gate = "gate_proj", *up = "up_proj", *down = "down_proj";
  bool stacked_experts =
      false;  // N.EXPERTS gate_up_proj, down_proj: all experts in one tensor, rows of gate and up in turn
  std::vector<std::string> ignored_prefixes = {};  // tensors of parts that pith leaves out (a vision tower)
};

struct Family {
  const char* name;
  std::vector<std::string> architectures;    // config.json "architectures" entries it answers to
  ModelSpec (*read_config)(Config& config);  // throws kUnsupported for a switch that pith lacks
  CheckpointNames names = {};

  std::vector<TensorPlan> plan(const ModelSpec& spec) const;
};

// One function a family, defined in its file and listed in registry.cpp.
Family llama_family();
Family mistral_family();
Family mistral_multimodal_family();
Family mixtral_family();
Family qwen2_family();
Family qwen3_family();
Family qwen3_moe_family();
Family gemma2_family();
Family gemma3_family();
Family gemma3_multimodal_family();
Family phi3_family();
Family olmo2_family();
Family olmo3_family();
Family granite_family();
Family smollm3_family();
Family gpt_oss_family();

const std::vector<Family>& families();  // registry.cpp
// Throws kUnsupported, listing the supported ones.
const Family& family_for(const std::string& architecture, const std::string& where);

// The container's tensors (names, roles, shapes), which follow from the spec alone, each with its sources by these names.
std::vector<TensorPlan> plan_tensors(const ModelSpec& spec, const CheckpointNames& names = {});  // plan.cpp
// Throws Error(kFormat), naming `where`, when `n_tensors` of a container or a checkpoint are fewer than the
// spec has by its layers and experts alone: before a plan of a million tensors is made for a file of a few
// kilobytes.
void check_n_tensors(const ModelSpec& spec, uint64_t n_tensors, const std::string& where,
                     const CheckpointNames& names = {});

// ---- Building blocks that family files share -----------------------------------------------------------------------

// What the reference's configuration class assumes where a key is missing.
struct DenseDefaults {
  const char *activation_key = "hidden_act", *activation = "silu";
  double norm_eps = 1e-6, rope_theta = 10000;
  bool tied_embeddings = false;
  bool reads_mxfp4 = false;
};
// Keys common to all families (dense.cpp). Layers have no window and rope 0.
ModelSpec read_dense_config(Config& config, const DenseDefaults& defaults = {});

// Which layers slide: layer_types where the config has it, otherwise slides(layer). Others see everything (dense.cpp).
template <typename Slides>
void set_windows(Config& config, ModelSpec& spec, uint32_t window, Slides&& slides);
// The entries of layer_types: one a layer, or none. Throws for any but full_attention and sliding_attention.
std::vector<std::string> read_layer_types(Config& config, const ModelSpec& spec);
// Experts' keys common to the families that have them.
void read_experts(Config& config, ModelSpec& spec, const char* n_experts_key);

// The language model inside a model that also sees: text_config, read by its own family's reader. The rest of the config and the
// tensors of the rest are left out.
ModelSpec read_text_config(Config& config, ModelSpec (*read)(Config& config));
CheckpointNames text_names(CheckpointNames names);

// Reads rope_theta, rope_scaling, rope_parameters, partial_rotary_factor: default, linear, dynamic, llama3, yarn, longrope. One
// rope, or that of full_attention and that of sliding_attention layers where the config has both (rope.cpp).
// max_context comes in as max_position_embeddings and goes out as what the scaling makes of it.
std::vector<RopeSpec> read_ropes(Config& config, uint32_t head_dim, double default_theta,
                                 uint32_t& max_context);
RopeSpec plain_rope(double theta, uint32_t n_dims);
// rope_theta beside or inside the one object that read_ropes has read.
double read_rope_theta(Config& config, double default_theta);

template <typename Slides>
void set_windows(Config& config, ModelSpec& spec, uint32_t window, Slides&& slides) {
  const std::vector<std::string> types = read_layer_types(config, spec);
  for (uint32_t i = 0; i < spec.n_layers; ++i) {
    const bool here = types.empty() ? slides(i) : types[i] == "sliding_attention";
    spec.layers[i].window = here ? window : 0;
  }
}

}  // namespace pith
