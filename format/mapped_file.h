// A read-only file in memory: mapped, or read whole where mapping is not wanted. Move-only RAII.
//
// The start is 128-byte aligned either way. A mapping shows the file as it is now, but for what was moved: whoever
// truncates a file in use kills the process with SIGBUS, which is what `read` is for.
//
// A mapping's pages are those of the system's file cache, shared by all processes, and 4 KB each: on a machine that has
// run for hours they lie scattered, and weights stream from them a quarter slower than from huge pages.
// move_to_huge_pages() copies them, a part at a time, into memory of this process and puts that in their place.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
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
  uint64_t own_bytes() const;  // in the process's own memory: all of a heap copy, of a mapping what was moved

  // Asks the system to read these bytes of a mapping from the disk while the caller does something else. Advice: it
  // cannot fail, and does nothing to a heap copy.
  void read_ahead(const uint8_t* data, size_t size_bytes) const;
  // Between true and false, pages of a mapping come one by one: without it the system reads megabytes around each that
  // is touched. Advice, too.
  void expect_scattered_reads(bool scattered) const;

  // Moves a mapping's bytes into huge pages of the process's own: all of those of kHugePage bytes that begin among
  // these bytes and end within the file, each once whoever asks. Addresses and content stay, so others may read the
  // same bytes meanwhile. What cannot be moved stays as it is. Does nothing to a heap copy. Returns how many bytes it
  // moved. Any thread.
  uint64_t move_to_huge_pages(const uint8_t* data, size_t size_bytes) const;
  static constexpr size_t kHugePage = 2 << 20;

 private:
  bool replace(uint8_t* data, size_t size_bytes) const;

  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
  bool mapped_ = false;
  Io* io_ = nullptr;
  std::unique_ptr<std::atomic<bool>[]> is_moved_;  // of each huge page: moved, or being moved
};

}  // namespace pith
