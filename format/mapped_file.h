// A read-only file in memory: mapped, or read whole where mapping is not wanted. Move-only RAII.
#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace pith {

class MappedFile {
 public:
  MappedFile() = default;
  static MappedFile map(const std::string& path);   // throws Error(kIo)
  static MappedFile read(const std::string& path);  // 128-byte aligned heap copy
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  bool is_mapped() const { return mapped_; }

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
  bool mapped_ = false;
};

}  // namespace pith
