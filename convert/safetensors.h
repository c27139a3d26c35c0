// Reading one .safetensors file: 8 bytes of header length (little-endian), a JSON header, the tensors' bytes.
//
// Opening is validating. The header is at most 100 MB, a JSON object without duplicate keys; each entry has a known
// dtype, and its shape times the dtype's size is the length of its range; the ranges cover the data exactly, without hole
// or overlap; `__metadata__` maps strings to strings. Throws Error(kIo) and Error(kFormat).
// Data is read with pread, so the memory used is what the caller asks for. Any thread may read.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "format/io.h"

namespace pith {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;            // as in the file: "F32", "BF16", ...
  std::vector<uint64_t> shape;  // empty for a scalar
  uint64_t begin, end;          // bytes, from the start of the file
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t size_bytes;  // 8 + JSON: where the data starts
};

constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// Bytes of one element, or 0 for a dtype that the format does not know.
uint64_t safetensors_dtype_bytes(const std::string& dtype);

// Parses the JSON of a header. The file holds `file_size` bytes in all; `where` names it in messages.
SafetensorsHeader parse_safetensors_header(std::span<const char> json, uint64_t file_size,
                                           const std::string& where);

class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path);

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  // A hash of the header, the file's size and its modification time: has the file changed since?
  uint64_t identity() const { return identity_; }
  // Fills `out` from `offset` bytes after the start of the file.
  void read(uint64_t offset, std::span<uint8_t> out) const;

 private:
  SafetensorsFile() = default;
  std::string path_;
  File file_;
  SafetensorsHeader header_;
  uint64_t identity_ = 0;
};

}  // namespace pith
