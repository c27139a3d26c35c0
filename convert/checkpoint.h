// A checkpoint folder: config.json and one or many safetensors files, as tensors by name.
//
// Opening reads and checks every header and, for a sharded checkpoint, that the index and the shards agree; no data.
// Throws Error(kIo | kFormat | kUnsupported). Immutable; any thread may read.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "convert/safetensors.h"

namespace pith {

enum class SourceType : uint8_t { kF32, kF16, kBF16 };

// A tensor of the checkpoint that pith can read: a matrix, or a vector (n_rows == 1).
struct SourceTensor {
  std::string name;
  SourceType type;
  uint32_t n_rows, n_cols;
  uint32_t file_idx;
  uint64_t offset;  // bytes, in its file

  uint64_t element_bytes() const { return type == SourceType::kF32 ? 4 : 2; }
};

class Checkpoint {
 public:
  static Checkpoint open(const std::string& dir);

  const std::string& dir() const { return dir_; }
  const nlohmann::json& config() const { return config_; }
  bool has(const std::string& name) const;  // aliases of tied tensors included
  // Throws kFormat: missing, not F32/F16/BF16, or not a vector or matrix.
  SourceTensor get(const std::string& name) const;
  std::vector<std::string> names() const;
  // The tensor that `name` stands for: itself, or what __metadata__ says it shares its data with.
  const std::string& resolve(const std::string& name) const;

  // Rows as they are in the file: n_rows * n_cols elements.
  void read_raw(const SourceTensor& tensor, uint32_t row_begin, uint32_t n_rows,
                std::span<uint8_t> out) const;
  // Changes when a file changes: sizes, times and headers, not the data.
  uint64_t identity() const;

 private:
  struct Place {
    uint32_t file_idx;
    const SafetensorsEntry* entry;
  };
  std::string dir_;
  nlohmann::json config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Place> places_;
  std::map<std::string, std::string> aliases_;
};

// n elements of `type` as float. NaN and Inf pass.
void to_float(SourceType type, const uint8_t* in, size_t n, float* out);

}  // namespace pith
