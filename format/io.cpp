// System calls and the File wrapper. See io.h.
#include "format/io.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "format/error.h"

namespace pith {
namespace {

// Linux transfers at most 0x7ffff000 bytes a call; a round number below keeps writes page-aligned.
constexpr size_t kMaxTransfer = size_t{1} << 30;

}  // namespace

Io& Io::system() {
  static Io io;
  return io;
}

int Io::open(const char* path, int flags, mode_t mode) {
  return ::open(path, flags | O_CLOEXEC, mode);
}
int Io::close(int fd) {
  return ::close(fd);
}
int Io::stat(const char* path, struct stat* st) {
  return ::stat(path, st);
}
int Io::fstat(int fd, struct stat* st) {
  return ::fstat(fd, st);
}
int Io::fchmod(int fd, mode_t mode) {
  return ::fchmod(fd, mode);
}
int Io::flock(int fd, int operation) {
  return ::flock(fd, operation);
}
ssize_t Io::pread(int fd, void* data, size_t size, uint64_t offset) {
  return ::pread(fd, data, size, static_cast<off_t>(offset));
}
ssize_t Io::pwrite(int fd, const void* data, size_t size, uint64_t offset) {
  return ::pwrite(fd, data, size, static_cast<off_t>(offset));
}
int Io::ftruncate(int fd, uint64_t size) {
  return ::ftruncate(fd, static_cast<off_t>(size));
}
int Io::fsync(int fd) {
  return ::fsync(fd);
}
int Io::rename(const char* from, const char* to) {
  return ::rename(from, to);
}
int Io::unlink(const char* path) {
  return ::unlink(path);
}
void* Io::map(int fd, size_t size) {
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  return data == MAP_FAILED ? nullptr : data;
}
int Io::unmap(void* data, size_t size) {
  return ::munmap(data, size);
}
void* Io::map_memory(size_t size) {
  void* const data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}
int Io::move_pages(void* from, void* to, size_t size) {
  if (::mprotect(from, size, PROT_READ) != 0) return -1;
  // What may be refused (the number of mappings) is checked before what is at `to` goes.
  return ::mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED ? -1 : 0;
}

void throw_io(const std::string& path, const char* what, int error) {
  throw_error(ErrorCode::kIo, "{}: cannot {}: {}", path, what, std::generic_category().message(error));
}

File::File(Io& io, const std::string& path, int flags, mode_t mode) : io_(&io), path_(path) {
  do {
    // A pipe is refused by size_bytes(); without O_NONBLOCK opening one would wait for a writer first.
    fd_ = io.open(path.c_str(), flags | O_NONBLOCK, mode);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) throw_io(path, "open", errno);
}

File::~File() {
  if (fd_ >= 0) io_->close(fd_);
}

File::File(File&& other) noexcept
    : io_(other.io_), path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(io_, other.io_);
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  return *this;
}

uint64_t File::size_bytes() const {
  struct stat st;
  if (io_->fstat(fd_, &st) != 0) throw_io(path_, "read the size", errno);
  if (S_ISDIR(st.st_mode)) throw_error(ErrorCode::kIo, "{}: a folder, expected a file", path_);
  if (!S_ISREG(st.st_mode)) throw_error(ErrorCode::kIo, "{}: not a regular file", path_);
  return static_cast<uint64_t>(st.st_size);
}

size_t File::read_at(uint64_t offset, void* data, size_t size) const {
  size_t done = 0;
  while (done < size) {
    const size_t want = std::min(size - done, kMaxTransfer);
    const ssize_t n = io_->pread(fd_, static_cast<char*>(data) + done, want, offset + done);
    if (n == 0) break;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_io(path_, "read", errno);
    done += static_cast<size_t>(n);
  }
  return done;
}

void File::write_at(uint64_t offset, const void* data, size_t size) const {
  size_t done = 0;
  while (done < size) {
    const size_t want = std::min(size - done, kMaxTransfer);
    const ssize_t n = io_->pwrite(fd_, static_cast<const char*>(data) + done, want, offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_io(path_, "write", errno);
    if (n == 0) throw_io(path_, "write", ENOSPC);  // a device that takes nothing more and gives no reason
    done += static_cast<size_t>(n);
  }
}

void File::truncate(uint64_t size) const {
  int rc;
  do {
    rc = io_->ftruncate(fd_, size);
  } while (rc != 0 && errno == EINTR);
  if (rc != 0) throw_io(path_, "truncate", errno);
}

void File::sync() const {
  if (io_->fsync(fd_) != 0) throw_io(path_, "flush to disk", errno);
}

}  // namespace pith
