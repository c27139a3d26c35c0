// The index against the shards' headers, names that families of checkpoints spell in two ways, MXFP4 pairs
// and stacks of experts.
#include "convert/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "convert/json_file.h"
#include "format/checked.h"
#include "format/checksum.h"
#include "format/error.h"
#include "format/float16.h"

namespace pith {

namespace {

constexpr size_t kMaxShards = 10'000;
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// "model-00001-of-00002.safetensors", never a path: an index must not lead out of its folder.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos;
}

// tensor name -> shard
std::map<std::string, std::string> read_index(const std::string& path) {
  const nlohmann::json index = read_json_file(path);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    throw_error(ErrorCode::kFormat, "{}: no object 'weight_map'", path);
  std::map<std::string, std::string> shard_of;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string() || !is_plain_file_name(shard.get<std::string>()))
      throw_error(ErrorCode::kFormat, "{}: tensor '{}': the shard is not a plain file name: {}", path, name,
                  shard.dump());
    shard_of[name] = shard;
  }
  return shard_of;
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& dir) {
  Checkpoint checkpoint;
  checkpoint.dir_ = dir;
  const std::string base = dir + "/";
  std::error_code ignored;
  if (!std::filesystem::is_directory(dir, ignored))
    throw_error(
        ErrorCode::kIo,
        "{}: {}, expected the folder of a Hugging Face checkpoint (config.json, *.safetensors, tokenizer)",
        dir, file_exists(dir) ? "not a folder" : "does not exist");
  checkpoint.config_ = read_json_file(base + "config.json");
  if (!checkpoint.config_.is_object()) throw_error(ErrorCode::kFormat, "{}config.json: not an object", base);

  std::map<std::string, std::string> shard_of;
  std::set<std::string> shards;
  const bool is_indexed = file_exists(base + kIndexFile);
  if (is_indexed) {
    shard_of = read_index(base + kIndexFile);
    for (const auto& [name, shard] : shard_of) shards.insert(shard);
    if (shards.empty() || shards.size() > kMaxShards)
      throw_error(ErrorCode::kFormat, "{}{}: {} shards, expected 1 to {}", base, kIndexFile, shards.size(),
                  kMaxShards);
  } else if (file_exists(base + kSingleFile)) {
    shards.insert(kSingleFile);
  } else {
    throw_error(ErrorCode::kIo, "{}: neither {} nor {} (other weight formats are not read)", dir, kSingleFile,
                kIndexFile);
  }

  checkpoint.files_.reserve(shards.size());
  for (const std::string& shard : shards) {
    const uint32_t file_idx = static_cast<uint32_t>(checkpoint.files_.size());
    checkpoint.files_.push_back(SafetensorsFile::open(base + shard));
    const SafetensorsHeader& header = checkpoint.files_.back().header();
    for (const SafetensorsEntry& entry : header.entries) {
      if (is_indexed) {
        const auto indexed = shard_of.find(entry.name);
        if (indexed == shard_of.end() || indexed->second != shard)
          throw_error(ErrorCode::kFormat, "{}{}: tensor '{}' is not in the index under this shard", base,
                      shard, entry.name);
        shard_of.erase(indexed);
      }
      checkpoint.places_[entry.name] = {file_idx, &entry};
    }
    for (const auto& [key, value] : header.metadata) checkpoint.aliases_[key] = value;
  }
  if (!shard_of.empty())
    throw_error(ErrorCode::kFormat, "{}{}: tensor '{}' is in the index, but not in {}", base, kIndexFile,
                shard_of.begin()->first, shard_of.begin()->second);
  // Free-form metadata also lives there ("format": "pt"): only keys that stand for a tensor are aliases.
  std::erase_if(checkpoint.aliases_, [&](const auto& alias) {
    return checkpoint.places_.contains(alias.first) || !checkpoint.places_.contains(alias.second);
  });
  return checkpoint;
}

const std::string& Checkpoint::resolve(const std::string& name) const {
  const auto alias = aliases_.find(name);
  return alias == aliases_.end() ? name : alias->second;
}

bool Checkpoint::has(const std::string& name) const {
  return places_.contains(resolve(name));
}

Checkpoint::Place Checkpoint::find(const std::string& name) const {
  const auto found = places_.find(resolve(name));
  if (found == places_.end()) throw_error(ErrorCode::kFormat, "{}: tensor '{}' is missing", dir_, name);
  return found->second;
}

// The tensor at `place` as [all dimensions of `shape` but the last, the last].
SourceTensor Checkpoint::matrix(const std::string& name, const Place& place,
                                std::span<const uint64_t> shape) const {
  const std::string& path = files_[place.file_idx].path();
  SourceTensor tensor{name, SourceType::kF32, 1, 1, place.file_idx, place.entry->begin};
  const std::string& dtype = place.entry->dtype;
  if (dtype == "F16") {
    tensor.type = SourceType::kF16;
  } else if (dtype == "BF16") {
    tensor.type = SourceType::kBF16;
  } else if (dtype != "F32") {
    throw_error(ErrorCode::kUnsupported, "{}: tensor '{}': dtype {}, expected F32, F16 or BF16", path, name,
                dtype);
  }
  if (shape.empty() || shape.size() > 2)
    throw_error(ErrorCode::kFormat, "{}: tensor '{}': {} dimensions, expected 1 or 2", path, name,
                shape.size());
  for (uint64_t n : shape)
    if (n == 0 || n > INT32_MAX)
      throw_error(ErrorCode::kFormat, "{}: tensor '{}': shape [{}], expected 1 to {} each", path, name,
                  fmt::join(shape, ", "), INT32_MAX);
  tensor.n_rows = shape.size() == 2 ? static_cast<uint32_t>(shape[0]) : 1;
  tensor.n_cols = static_cast<uint32_t>(shape.back());
  return tensor;
}

SourceTensor Checkpoint::get(const std::string& name) const {
  const Place place = find(name);
  return matrix(name, place, place.entry->shape);
}

SourceTensor Checkpoint::get_of_stack(const std::string& name, uint32_t idx) const {
  if (has(name) || !has(name + "_blocks")) {
    const Place place = find(name);
    const std::vector<uint64_t>& shape = place.entry->shape;
    if (shape.size() < 2 || shape.size() > 3 || idx >= shape[0])
      throw_error(ErrorCode::kFormat,
                  "{}: tensor '{}': shape [{}], expected 2 or 3 dimensions, the first over {}",
                  files_[place.file_idx].path(), name, fmt::join(shape, ", "), idx);
    SourceTensor tensor = matrix(name, place, std::span(shape).subspan(1));
    // The header has been checked: shape and size agree, so this lies within the tensor.
    tensor.offset =
        checked_add(tensor.offset, checked_mul(checked_mul(tensor.n_rows, tensor.row_bytes()), idx));
    return tensor;
  }
  const Place blocks = find(name + "_blocks"), scales = find(name + "_scales");
  const std::vector<uint64_t>&shape = blocks.entry->shape, &scales_shape = scales.entry->shape;
  const bool agree = shape.size() == 4 && shape[3] == kMxfp4Cols / 2 && scales_shape.size() == 3 &&
                     std::equal(scales_shape.begin(), scales_shape.end(), shape.begin());
  if (!agree || idx >= shape[0] || shape[1] > INT32_MAX || shape[2] > INT32_MAX / kMxfp4Cols ||
      shape[1] == 0 || shape[2] == 0 || blocks.entry->dtype != "U8" || scales.entry->dtype != "U8")
    throw_error(
        ErrorCode::kFormat,
        "{}: tensor '{}': blocks {} [{}], scales {} [{}], expected U8 [n, rows, blocks, 16] and [n, rows, "
        "blocks] with n over {}",
        dir_, name, blocks.entry->dtype, fmt::join(shape, ", "), scales.entry->dtype,
        fmt::join(scales_shape, ", "), idx);
  const uint64_t n_blocks = checked_mul(shape[1], shape[2]);
  SourceTensor tensor{
      name,
      SourceType::kMxfp4,
      static_cast<uint32_t>(shape[1]),
      static_cast<uint32_t>(shape[2]) * kMxfp4Cols,
      blocks.file_idx,
      checked_add(blocks.entry->begin, checked_mul(checked_mul(n_blocks, kMxfp4Cols / 2), idx))};
  tensor.scales_file_idx = scales.file_idx;
  tensor.scales_offset = checked_add(scales.entry->begin, checked_mul(n_blocks, idx));
  return tensor;
}

std::vector<std::string> Checkpoint::stored_names(const std::string& name) const {
  if (has(name) || !has(name + "_blocks")) return {resolve(name)};
  return {resolve(name + "_blocks"), resolve(name + "_scales")};
}

uint64_t SourceTensor::row_bytes() const {
  if (type == SourceType::kMxfp4) return uint64_t{n_cols} / kMxfp4Cols * (kMxfp4Cols / 2 + 1);
  return checked_mul(n_cols, type == SourceType::kF32 ? 4 : 2);
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

void Checkpoint::read_raw(const SourceTensor& tensor, uint32_t row_begin, uint32_t n_rows,
                          std::span<uint8_t> out) const {
  const uint64_t row_bytes = tensor.row_bytes();
  if (row_begin > tensor.n_rows || n_rows > tensor.n_rows - row_begin || out.size() != row_bytes * n_rows)
    throw_error(ErrorCode::kInternal, "tensor '{}': rows {}+{} of {} do not fit {} bytes", tensor.name,
                row_begin, n_rows, tensor.n_rows, out.size());
  if (tensor.type == SourceType::kMxfp4) {
    const uint64_t n_blocks = tensor.n_cols / kMxfp4Cols, block_bytes = n_blocks * (kMxfp4Cols / 2);
    const auto blocks = out.first(block_bytes * n_rows);
    files_[tensor.file_idx].read(tensor.offset + row_begin * block_bytes, blocks);
    files_[tensor.scales_file_idx].read(tensor.scales_offset + row_begin * n_blocks,
                                        out.subspan(blocks.size()));
    return;
  }
  files_[tensor.file_idx].read(tensor.offset + row_begin * row_bytes, out);
}

uint64_t Checkpoint::identity() const {
  const std::string config = config_.dump();
  uint64_t hash = checksum64({reinterpret_cast<const uint8_t*>(config.data()), config.size()}, 0);
  for (const SafetensorsFile& file : files_) {
    const uint64_t identity = file.identity();
    hash = checksum64({reinterpret_cast<const uint8_t*>(&identity), sizeof identity}, hash);
  }
  return hash;
}

void to_float(SourceType type, const uint8_t* in, size_t n, float* out) {
  if (type == SourceType::kF32) {
    std::memcpy(out, in, n * sizeof(float));
    return;
  }
  if (type == SourceType::kMxfp4) {
    constexpr float kValues[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    const uint8_t* const scales = in + n / 2;
    for (size_t i = 0; i < n; i += kMxfp4Cols) {
      const float scale = std::ldexp(1.0f, int{scales[i / kMxfp4Cols]} - 127);
      for (size_t j = 0; j < kMxfp4Cols; ++j)
        out[i + j] = scale * kValues[in[(i + j) / 2] >> (j % 2 * 4) & 15];
    }
    return;
  }
  const bool is_f16 = type == SourceType::kF16;
  for (size_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, in + 2 * i, sizeof bits);
    out[i] = is_f16 ? f16_to_float(bits) : bf16_to_float(bits);
  }
}

}  // namespace pith
