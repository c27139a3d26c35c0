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

// kMxfp4: blocks of 32 columns, each column a 4-bit float (the low half of a byte first), with one scale 2^(s - 127). As raw
// bytes: the blocks of all rows, 16 bytes each, then their scales.
enum class SourceType : uint8_t { kF32, kF16, kBF16, kMxfp4 };
constexpr uint32_t kMxfp4Cols = 32;

// A tensor of the checkpoint that pith can read: a matrix, or a vector (n_rows == 1).
struct SourceTensor {
  std::string name;
  SourceType type;
  uint32_t n_rows, n_cols;
  uint32_t file_idx;
  uint64_t offset;               // bytes, in its file
  uint32_t scales_file_idx = 0;  // kMxfp4
  uint64_t scales_offset = 0;

  uint64_t row_bytes() const;
};

class Checkpoint {
 public:
  static Checkpoint open(const std::string& dir);

  const std::string& dir() const { return dir_; }
  const nlohmann::json& config() const { return config_; }
  bool has(const std::string& name) const;  // aliases of tied tensors included
  // Throws kFormat: missing, not F32/F16/BF16, or not a vector or matrix.
  SourceTensor get(const std::string& name) const;
  // Matrix (or vector) `idx` of a stack: NAME of one dimension more, or NAME_blocks and NAME_scales as kMxfp4.
  SourceTensor get_of_stack(const std::string& name, uint32_t idx) const;
  // What is stored for get_of_stack and get: aliases resolved, two names for kMxfp4.
  std::vector<std::string> stored_names(const std::string& name) const;
  std::vector<std::string> names() const;
  // The tensor that `name` stands for: itself, or what __metadata__ says it shares its data with.
  const std::string& resolve(const std::string& name) const;

  // Rows as they are in the file: n_rows * row_bytes() bytes.
  void read_raw(const SourceTensor& tensor, uint32_t row_begin, uint32_t n_rows,
                std::span<uint8_t> out) const;
  // Changes when a file changes: sizes, times and headers, not the data.
  uint64_t identity() const;

 private:
  struct Place {
    uint32_t file_idx;
    const SafetensorsEntry* entry;
  };
  Place find(const std::string& name) const;  // throws when it is missing
  SourceTensor matrix(const std::string& name, const Place& place, std::span<const uint64_t> shape) const;
  std::string dir_;
  nlohmann::json config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Place> places_;
  std::map<std::string, std::string> aliases_;
};

// n elements of `type` as float. NaN and Inf pass. kMxfp4: n is a multiple of 32.
void to_float(SourceType type, const uint8_t* in, size_t n, float* out);

}  // namespace pith
