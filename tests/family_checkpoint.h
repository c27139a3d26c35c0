// A golden case of tests/golden/families: its checkpoint, rebuilt from names and shapes, and what the reference made of it.
// make_family_goldens.py is the other half: it says how weights come from names.
#pragma once
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "format/float16.h"
#include "format_samples.h"

namespace pith::test {

struct FamilyCase {
  std::string name, switches;
  nlohmann::json config, saved_config, tensors;  // tensors: name to shape
  double norm_offset = 0;
  std::vector<int32_t> ids;
  std::vector<float> logits;  // [ids, vocab]

  size_t vocab_size() const { return logits.size() / ids.size(); }
  std::string architecture() const { return config["architectures"][0]; }
};

inline std::string families_dir() {
  return PITH_SOURCE_DIR "/tests/golden/families/";
}

// Names of the cases, sorted.
inline std::vector<std::string> family_case_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(families_dir()))
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem());
  std::sort(names.begin(), names.end());
  return names;
}

inline FamilyCase read_family_case(const std::string& name) {
  std::ifstream file(families_dir() + name + ".json");
  const nlohmann::json json = nlohmann::json::parse(file);
  FamilyCase c{json["name"],    json["switches"],    json["config"], json["saved_config"],
               json["tensors"], json["norm_offset"], json["ids"],    {}};
  const std::vector<uint8_t> bytes = read_file(families_dir() + name + ".logits");
  c.logits.resize(bytes.size() / sizeof(float));
  std::memcpy(c.logits.data(), bytes.data(), bytes.size());
  return c;
}

class FamilyTensor {
 public:
  FamilyTensor(const std::string& name, const std::vector<uint64_t>& shape, double norm_offset)
      : name_(name), norm_offset_(norm_offset), scale_(scale_of(shape)) {
    for (const uint64_t n : shape) size_ *= n;
    for (const char c : name) seed_ = (seed_ ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  bool is_bytes() const { return name_.ends_with("_blocks") || name_.ends_with("_scales"); }
  std::string data() const {
    std::string data;
    for (uint64_t i = 0; i < size_; ++i) {
      const int b = byte(i);
      if (is_bytes()) {
        data.push_back(static_cast<char>(name_.ends_with("_blocks") ? b : 121 + b % 4));
        continue;
      }
      const uint16_t bits = float_to_bf16(static_cast<float>(value(b)));
      data.push_back(static_cast<char>(bits & 255));
      data.push_back(static_cast<char>(bits >> 8));
    }
    return data;
  }

 private:
  static double scale_of(const std::vector<uint64_t>& shape) {
    const double fan_in = static_cast<double>(shape.back());
    return std::exp2(std::nearbyint(std::log2(std::sqrt(4.5 / fan_in))));
  }
  int byte(uint64_t i) const {
    uint64_t z = seed_ + (i + 1) * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return static_cast<int>((z ^ z >> 31) >> 56);
  }
  double value(int b) const {
    if (name_.ends_with("norm.weight")) return norm_offset_ + (b >> 1) / 128.0;
    if (name_.ends_with("bias") || name_.ends_with("sinks")) return (2 * b - 255) / 512.0;
    if (name_.find("embed") != std::string::npos) return (2 * b - 255) / 256.0;
    return (2 * b - 255) / 256.0 * scale_;
  }

  std::string name_;
  double norm_offset_, scale_;
  uint64_t size_ = 1, seed_ = 0xcbf29ce484222325;
};

// One token a printable character, as many as fit.
inline nlohmann::json character_tokenizer(size_t vocab_size) {
  nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (size_t id = 3; id < std::min<size_t>(vocab_size, 90); ++id)
    vocab[std::string(1, static_cast<char>('!' + id - 3))] = id;
  nlohmann::json added = nlohmann::json::array();
  for (const char* const text : {"<unk>", "<s>", "</s>"})
    added.push_back({{"id", added.size()},
                     {"content", text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder", {{"type", "Fuse"}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"byte_fallback", false},
            {"vocab", vocab},
            {"merges", nlohmann::json::array()}}}};
}

// Writes the case's checkpoint into `dir`, with one of its configs.
inline void write_family_checkpoint(const FamilyCase& c, const nlohmann::json& config,
                                    const std::string& dir) {
  std::filesystem::create_directories(dir);
  nlohmann::json header;
  std::string data;
  for (const auto& [name, shape] : c.tensors.items()) {
    const FamilyTensor tensor(name, shape.get<std::vector<uint64_t>>(), c.norm_offset);
    const size_t begin = data.size();
    data += tensor.data();
    header[name] = {{"dtype", tensor.is_bytes() ? "U8" : "BF16"},
                    {"shape", shape},
                    {"data_offsets", {begin, data.size()}}};
  }
  const std::string json = header.dump();
  std::ofstream file(dir + "/model.safetensors", std::ios::binary);
  for (int i = 0; i < 8; ++i) file.put(static_cast<char>(json.size() >> 8 * i & 255));
  file << json << data;
  std::ofstream(dir + "/config.json") << config.dump(1);
  std::ofstream(dir + "/tokenizer.json") << character_tokenizer(c.vocab_size()).dump();
}

}  // namespace pith::test
