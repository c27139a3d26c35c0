// A read-only file in memory: mapped, or read whole where mapping is not wanted. Move-only RAII.
//
// The start is 128-byte aligned either way. A mapping shows the file as it is now: whoever truncates a file
// in use kills the process with SIGBUS, which is what `read` is for.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "format/io.h"

namespace pith {

class MappedFile {
 public:
  MappedFile() = default;
  static MappedFile map(const std::string& path, Io& io = Io::system());   // throws Error(kIo)
  static MappedFile read(const std::string& path, Io& io = Io::system());  // heap copy; also kOutOfMemory
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }

  // Asks the system to read these bytes of a mapping from the disk while the caller does something else. Advice: it
  // cannot fail, and does nothing to a heap copy.
  void read_ahead(const uint8_t* data, size_t size_bytes) const;
  // Between true and false, pages of a mapping come one by one: without it the system reads megabytes around each that
  // is touched. Advice, too.
  void expect_scattered_reads(bool scattered) const;

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
  bool mapped_ = false;
  Io* io_ = nullptr;
};

}  // namespace pith
