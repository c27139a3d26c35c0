// A family: how a checkpoint of one kind of architecture is read. One file each, listed in registry.cpp.
#pragma once
#include <nlohmann/json.hpp>
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
  nlohmann::json object_or_null(const std::string& key);   // consumed whole: the reader checks its keys
  void ignore(std::initializer_list<const char*> keys);    // known, of no effect on inference
  std::vector<std::string> unconsumed() const;
  const std::string& where() const;

 private:
  nlohmann::json json_;
  std::string where_;
  std::vector<std::string> consumed_;
};

struct Family {
  const char* name;
  std::vector<std::string> architectures;    // config.json "architectures" entries it answers to
  ModelSpec (*read_config)(Config& config);  // throws kUnsupported for a switch that pith lacks
  std::vector<TensorPlan> (*plan)(const ModelSpec& spec);
};

// One function a family, defined in its file and listed in registry.cpp.
Family llama_family();
Family mistral_family();
Family qwen2_family();
Family qwen3_family();

const std::vector<Family>& families();  // registry.cpp
// Throws kUnsupported, listing the supported ones.
const Family& family_for(const std::string& architecture, const std::string& where);

// Building blocks that family files share (models/dense.cpp).
ModelSpec read_dense_config(Config& config);                // keys common to all dense families
std::vector<TensorPlan> plan_dense(const ModelSpec& spec);  // Hugging Face names of the Llama lineage
// Reads rope_theta, rope_scaling, rope_parameters, partial_rotary_factor: default, linear, llama3, yarn.
// max_context comes in as max_position_embeddings and goes out as what the scaling makes of it.
RopeSpec read_rope(Config& config, uint32_t head_dim, uint32_t& max_context);

}  // namespace pith
