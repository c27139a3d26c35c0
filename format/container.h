// Reading a .pith file. FORMAT.md beside this file is the normative description of the bytes.
//
// Opening is validating: a Container exists only if header, metadata and directory passed every check, so
// nothing that uses one has to check sizes, offsets or dimensions again. Tensor *data* checksums are verified
// by verify_tensor(), not on opening (a mapped model starts without reading what it does not need).
// Immutable after construction; any thread may read it. Throws Error(kIo) and Error(kFormat).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/mapped_file.h"
#include "format/metadata.h"
#include "format/q24.h"

namespace pith {

// Tensor encodings. Ids are stored in files: never renumber.
enum class TensorKind : uint8_t { kF32 = 1, kF16 = 2, kBF16 = 3, kQ24 = 16 };
const char* to_string(TensorKind kind);

// One tensor: a matrix [n_rows, n_cols] or a vector (n_rows == 1). 16- and 32-bit kinds are row-major.
struct Tensor {
  std::string name;
  TensorKind kind;
  uint32_t n_rows, n_cols;
  q24::Shape q24;           // kQ24 only
  const uint8_t* data;      // 128-byte aligned, inside the mapping
  uint64_t offset, size_bytes;  // in the file; size is a multiple of 128 (zero padded)
  uint64_t checksum;        // XXH3-64 of the data, seeded with name and offset (see FORMAT.md)

  q24::View q24_view() const;  // precondition: kind == kQ24
};

class Container {
 public:
  enum class Access { kMap, kRead /* --no-mmap: into memory */ };
  static Container open(const std::string& path, Access access = Access::kMap);
  // From bytes in memory (tests, fuzzing). `name` appears in messages. The bytes must outlive the Container.
  static Container from_bytes(std::span<const uint8_t> bytes, const std::string& name);

  const std::string& path() const;
  uint64_t file_size() const;
  const Metadata& metadata() const;
  const std::vector<Tensor>& tensors() const;  // in file order
  const Tensor* find(std::string_view name) const;  // nullptr when absent
  const Tensor& get(std::string_view name) const;   // throws kFormat when absent

  // Recomputes the tensor's checksum and checks its content. Throws kFormat naming the tensor.
  void verify_tensor(const Tensor& tensor) const;
  // A hash of header, metadata and directory (hence of every tensor checksum): identifies the model.
  uint64_t fingerprint() const;

 private:
  Container() = default;
  MappedFile file_;
  std::string path_;
  std::span<const uint8_t> bytes_;
  Metadata metadata_;
  std::vector<Tensor> tensors_;  // sorted index by name kept beside it
  std::vector<uint32_t> by_name_;
  uint64_t fingerprint_ = 0;
};

}  // namespace pith
