// Reading a .pith file. FORMAT.md beside this file is the normative description of the bytes.
//
// Opening is validating: a Container exists only if header, metadata and directory passed every check, so
// nothing that uses one has to check sizes, offsets or dimensions again. Tensor *data* checksums are verified
// by verify_tensor(), not on opening (a mapped model starts without reading what it does not need).
// Immutable after construction; any thread may read it. Throws Error(kIo), Error(kFormat), and
// Error(kUnsupported) for a file of a later major version or one that requires a feature this reader lacks.
#pragma once
#include <cstdint>
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
  q24::Shape q24;               // kQ24 only
  const uint8_t* data;          // 128-byte aligned, inside the mapping
  uint64_t offset, size_bytes;  // in the file; size is a multiple of 128 (zero padded)
  uint64_t checksum;            // XXH3-64 of the data, seeded with name and offset (see FORMAT.md)

  // The permutation of a kQ24 tensor, else empty: a copy made and checked on opening, because kernels index
  // with it and a mapping can change under them. Views point here.
  std::vector<uint16_t> perm;

  q24::View q24_view()
      const;  // precondition: kind == kQ24; the view lives as long as this Tensor and its Container
};

class Container {
 public:
  enum class Access {
    kMap,        // mapped; may move into the process's own huge pages
    kMapShared,  // mapped, and left in the system's file cache
    kRead        // read into memory
  };
  static Container open(const std::string& path, Access access = Access::kMap, Io& io = Io::system());
  // From bytes in memory (tests, fuzzing), 128-byte aligned. `name` appears in messages. The bytes must
  // outlive the Container.
  static Container from_bytes(std::span<const uint8_t> bytes, const std::string& name);

  const std::string& path() const { return path_; }
  uint64_t file_size() const { return bytes_.size(); }
  const Metadata& metadata() const { return metadata_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  // in file order
  const Tensor* find(std::string_view name) const;                 // nullptr when absent
  const Tensor& get(std::string_view name) const;                  // throws kFormat when absent

  // Asks the system to fetch a tensor's pages while something else is computed (see MappedFile::read_ahead).
  void read_ahead(const Tensor& tensor) const { file_.read_ahead(tensor.data, tensor.size_bytes); }
  bool can_move() const { return can_move_; }  // whether move_to_huge_pages() does anything
  // Of the file's bytes those that are this process's own memory: all of a kRead file, of a mapping what was moved.
  uint64_t own_bytes() const { return file_.own_bytes(); }
  // One of n_parts parts of a tensor; returns how many bytes moved (see MappedFile). Any thread.
  uint64_t move_to_huge_pages(const Tensor& tensor, uint32_t part, uint32_t n_parts) const;

  // Recomputes the tensor's checksum and checks its content. Throws kFormat naming the tensor.
  void verify_tensor(const Tensor& tensor) const;
  // A hash of header, metadata and directory (hence of every tensor checksum): identifies the model.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  Container(MappedFile file, std::span<const uint8_t> bytes, const std::string& name);
  void parse();  // bytes_ and path_ to everything below
  void parse_directory(std::span<const uint8_t> directory, uint32_t n_tensors, uint64_t tensors_end);
  void index_names();
  void copy_permutations();  // and where each tensor's data is

  MappedFile file_;
  bool can_move_ = false;
  std::string path_;
  std::span<const uint8_t> bytes_;
  Metadata metadata_;
  std::vector<Tensor> tensors_;
  std::vector<uint32_t> by_name_;  // indices of tensors_, sorted by name
  uint64_t fingerprint_ = 0;
};

}  // namespace pith
