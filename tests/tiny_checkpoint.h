// A small Llama checkpoint made by a test: config.json, model.safetensors, tokenizer.json. Everything in it can be changed
// before it is written.
#pragma once
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "format/error.h"
#include "format/float16.h"
#include "temp_folder.h"

namespace pith::test {

struct TinyTensor {
  std::string dtype;
  std::vector<uint64_t> shape;
  std::string data;
};

class TinyCheckpoint {
  TempFolder folder_;

 public:
  // In a folder of its own, removed at the end.
  explicit TinyCheckpoint(uint32_t dim = 64, uint32_t ffn_dim = 96, uint32_t n_layers = 2)
      : dir(folder_.path()) {
    std::filesystem::create_directories(dir / "model");
    config = {{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"hidden_size", dim},
              {"intermediate_size", ffn_dim},
              {"num_hidden_layers", n_layers},
              {"num_attention_heads", 4},
              {"num_key_value_heads", 2},
              {"vocab_size", 300},
              {"max_position_embeddings", 256},
              {"rms_norm_eps", 1e-5},
              {"rope_theta", 10000.0},
              {"hidden_act", "silu"},
              {"tie_word_embeddings", false},
              {"bos_token_id", 1},
              {"eos_token_id", 2},
              {"torch_dtype", "bfloat16"}};
    add("model.embed_tokens.weight", {300, dim});
    add("lm_head.weight", {300, dim});
    add("model.norm.weight", {dim});
    for (uint32_t i = 0; i < n_layers; ++i) {
      const std::string layer = fmt::format("model.layers.{}.", i);
      add(layer + "input_layernorm.weight", {dim});
      add(layer + "post_attention_layernorm.weight", {dim});
      add(layer + "self_attn.q_proj.weight", {dim, dim});
      add(layer + "self_attn.k_proj.weight", {dim / 2, dim});
      add(layer + "self_attn.v_proj.weight", {dim / 2, dim});
      add(layer + "self_attn.o_proj.weight", {dim, dim});
      add(layer + "mlp.gate_proj.weight", {ffn_dim, dim});
      add(layer + "mlp.up_proj.weight", {ffn_dim, dim});
      add(layer + "mlp.down_proj.weight", {dim, ffn_dim});
    }
    // A sentencepiece-style BPE of bytes alone.
    nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
    for (int byte = 0; byte < 256; ++byte) {
      char text[8];
      std::snprintf(text, sizeof text, "<0x%02X>", byte);
      vocab[text] = 3 + byte;
    }
    tokenizer = {{"version", "1.0"},
                 {"added_tokens", nlohmann::json::array()},
                 {"normalizer", nullptr},
                 {"pre_tokenizer", nullptr},
                 {"post_processor", nullptr},
                 {"decoder", {{"type", "ByteFallback"}}},
                 {"model",
                  {{"type", "BPE"},
                   {"unk_token", "<unk>"},
                   {"byte_fallback", true},
                   {"vocab", vocab},
                   {"merges", nlohmann::json::array()}}}};
    int id = 0;
    for (const char* text : {"<unk>", "<s>", "</s>"})
      tokenizer["added_tokens"].push_back({{"id", id++},
                                           {"content", text},
                                           {"single_word", false},
                                           {"lstrip", false},
                                           {"rstrip", false},
                                           {"normalized", false},
                                           {"special", true}});
  }

  // Random bf16, of a trained layer's size.
  void add(const std::string& name, std::vector<uint64_t> shape) {
    uint64_t n = 1;
    for (const uint64_t d : shape) n *= d;
    const float scale = shape.size() == 1 ? 1.0f : 1.0f / std::sqrt(static_cast<float>(shape.back()));
    std::normal_distribution<float> normal(shape.size() == 1 ? 1.0f : 0.0f, scale);
    std::string data(n * 2, '\0');
    for (uint64_t i = 0; i < n; ++i) {
      const uint16_t bits = float_to_bf16(normal(random_));
      std::memcpy(data.data() + 2 * i, &bits, 2);
    }
    tensors[name] = {"BF16", std::move(shape), std::move(data)};
  }
  // Changes one element of a bf16 tensor.
  void set(const std::string& name, uint64_t index, float value) {
    const uint16_t bits = float_to_bf16(value);
    std::memcpy(tensors.at(name).data.data() + 2 * index, &bits, 2);
  }

  std::string model_dir() const { return (dir / "model").string(); }
  std::string output() const { return (dir / "out.pith").string(); }
  // Files beside the model folder: what a conversion left.
  std::vector<std::string> leftovers() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir))
      if (entry.path().filename() != "model") names.push_back(entry.path().filename().string());
    return names;
  }
  void write() const {
    nlohmann::json header;
    uint64_t offset = 0;
    for (const auto& [name, tensor] : tensors) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", tensor.shape},
                      {"data_offsets", {offset, offset + tensor.data.size()}}};
      offset += tensor.data.size();
    }
    const std::string json = header.dump();
    std::ofstream file(dir / "model" / "model.safetensors", std::ios::binary);
    for (int i = 0; i < 8; ++i) file.put(static_cast<char>(json.size() >> 8 * i & 255));
    file << json;
    for (const auto& [name, tensor] : tensors) file << tensor.data;
    std::ofstream(dir / "model" / "config.json") << config.dump(1);
    std::ofstream(dir / "model" / "tokenizer.json") << tokenizer.dump();
  }

  std::filesystem::path dir;
  nlohmann::json config, tokenizer;
  std::map<std::string, TinyTensor> tensors;

 private:
  std::mt19937_64 random_{7};
};

}  // namespace pith::test
