// MappedFile. See mapped_file.h.
#include "format/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "format/error.h"

namespace pith {
namespace {

constexpr std::align_val_t kAlignment{MappedFile::kHugePage};

uint8_t* round_up(const uint8_t* data) {
  constexpr uintptr_t kMask = MappedFile::kHugePage - 1;
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(data) + kMask) & ~kMask);
}

}  // namespace

MappedFile MappedFile::map(const std::string& path, Io& io) {
  const File file(io, path, O_RDONLY);
  MappedFile mapped;
  const uint64_t size = file.size_bytes();
  if (size == 0) return mapped;  // mmap refuses a length of 0
  void* const data = io.map(file.fd(), size);
  if (data == nullptr) throw_io(path, "map", errno);
  mapped.data_ = static_cast<uint8_t*>(data);
  mapped.size_ = size;
  mapped.mapped_ = true;
  mapped.io_ = &io;
  mapped.is_moved_ = std::make_unique<std::atomic<bool>[]>(size / kHugePage);
  return mapped;
}

MappedFile MappedFile::read(const std::string& path, Io& io) {
  const File file(io, path, O_RDONLY);
  MappedFile copy;
  const uint64_t size = file.size_bytes();
  if (size == 0) return copy;
  void* const data = ::operator new(size, kAlignment, std::nothrow);
  if (data == nullptr) throw_error(ErrorCode::kOutOfMemory, "{}: no memory for its {} bytes", path, size);
  copy.data_ = static_cast<uint8_t*>(data);
  copy.size_ = size;
  if (size >= static_cast<uint64_t>(kAlignment)) madvise(data, size, MADV_HUGEPAGE);  // advice: may fail
  const size_t found = file.read_at(0, data, size);
  if (found != size) throw_error(ErrorCode::kIo, "{}: {} bytes read, expected {}", path, found, size);
  return copy;
}

void MappedFile::read_ahead(const uint8_t* data, size_t size_bytes) const {
  if (!mapped_) return;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = static_cast<size_t>(data - data_) / page * page;  // the mapping begins on a page
  madvise(data_ + begin, static_cast<size_t>(data - data_) + size_bytes - begin, MADV_WILLNEED);
}

void MappedFile::expect_scattered_reads(bool scattered) const {
  if (mapped_) madvise(data_, size_, scattered ? MADV_RANDOM : MADV_NORMAL);
}

uint64_t MappedFile::move_to_huge_pages(const uint8_t* data, size_t size_bytes) const {
  if (!mapped_) return 0;
  uint8_t* const first = round_up(data_);
  const auto is_moved = [&](const uint8_t* page) -> std::atomic<bool>& {
    return is_moved_[static_cast<size_t>(page - first) / kHugePage];
  };
  const uint8_t* const end = std::min(round_up(data + size_bytes), round_up(data_ + size_ + 1) - kHugePage);
  uint64_t n_moved = 0;
  // Neighbours that nobody has taken yet go together: the system allows a process some 65,000 mappings.
  for (uint8_t* run = round_up(data); run < end; run += kHugePage) {
    uint8_t* run_end = run;
    while (run_end < end && !is_moved(run_end).exchange(true)) run_end += kHugePage;
    if (run_end == run) continue;
    if (!replace(run, static_cast<size_t>(run_end - run))) {
      for (; run < run_end; run += kHugePage) is_moved(run) = false;
      break;
    }
    n_moved += static_cast<uint64_t>(run_end - run);
    run = run_end;  // the page there is the end, or another's
  }
  return n_moved;
}

uint64_t MappedFile::own_bytes() const {
  if (!mapped_) return size_;
  const auto n = std::count(is_moved_.get(), is_moved_.get() + size_ / kHugePage, true);
  return kHugePage * static_cast<uint64_t>(n);
}

// False where the system refuses: then nothing has changed.
bool MappedFile::replace(uint8_t* data, size_t size_bytes) const {
  const size_t taken = size_bytes + kHugePage;  // a whole one more, to begin where one can
  auto* const memory = static_cast<uint8_t*>(io_->map_memory(taken));
  if (memory == nullptr) return false;
  uint8_t* const copy = round_up(memory);
  madvise(copy, size_bytes, MADV_HUGEPAGE);  // advice: may fail
  madvise(copy, size_bytes, MADV_DONTDUMP);  // as a file's pages
  std::memcpy(copy, data, size_bytes);
  const bool moved = io_->move_pages(copy, data, size_bytes) == 0;
  if (!moved) io_->unmap(copy, size_bytes);
  if (copy > memory) io_->unmap(memory, static_cast<size_t>(copy - memory));
  io_->unmap(copy + size_bytes, static_cast<size_t>(memory + taken - (copy + size_bytes)));
  return moved;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  if (mapped_)
    io_->unmap(data_, size_);
  else
    ::operator delete(data_, kAlignment);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, false)),
      io_(other.io_),
      is_moved_(std::move(other.is_moved_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  std::swap(io_, other.io_);
  std::swap(is_moved_, other.is_moved_);
  return *this;
}

}  // namespace pith
