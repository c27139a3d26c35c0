// The operating system calls that format/ makes, as an object, so that tests can make the Nth of them fail.
//
// Same contracts as the POSIX functions of the same name: -1 (or nullptr) and errno. Io::system() is the real
// one and the default everywhere; nothing else implements it outside tests.
#pragma once
#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace pith {

class Io {
 public:
  virtual ~Io() = default;
  static Io& system();

  virtual int open(const char* path, int flags, mode_t mode);
  virtual int close(int fd);
  virtual int stat(const char* path, struct stat* st);
  virtual int fstat(int fd, struct stat* st);
  virtual int fchmod(int fd, mode_t mode);
  virtual int flock(int fd, int operation);
  virtual ssize_t pread(int fd, void* data, size_t size, uint64_t offset);
  virtual ssize_t pwrite(int fd, const void* data, size_t size, uint64_t offset);
  virtual int ftruncate(int fd, uint64_t size);
  virtual int fsync(int fd);
  virtual int rename(const char* from, const char* to);
  virtual int unlink(const char* path);
  virtual void* map(int fd, size_t size);  // read-only, private; nullptr on failure
  virtual int unmap(void* data, size_t size);
  virtual void* map_memory(size_t size);  // anonymous, writable; nullptr on failure
  // In place of what is mapped at `to`, read-only there.
  virtual int move_pages(void* from, void* to, size_t size);
};

// An open file: closes itself, retries what EINTR or a short transfer cut off, and throws Error(kIo) with
// path and cause.
class File {
 public:
  File() = default;
  File(Io& io, const std::string& path, int flags, mode_t mode = 0666);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  uint64_t size_bytes() const;  // throws kIo too when this is no regular file
  size_t read_at(uint64_t offset, void* data,
                 size_t size) const;  // fewer than size only at the end of the file
  void write_at(uint64_t offset, const void* data, size_t size) const;
  void truncate(uint64_t size) const;
  void sync() const;

 private:
  Io* io_ = nullptr;
  std::string path_;
  int fd_ = -1;
};

// "PATH: cannot WHAT: strerror(errno)" as an Error(kIo).
[[noreturn]] void throw_io(const std::string& path, const char* what, int error);

}  // namespace pith
