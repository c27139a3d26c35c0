// Lock, write, rename. See atomic_file.h.
#include "format/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "format/error.h"

namespace pith {

namespace {

constexpr mode_t kOthers = S_IRWXG | S_IRWXO;

}  // namespace

File open_locked(Io& io, const std::string& path, mode_t mode) {
  for (;;) {
    File file(io, path, O_RDWR | O_CREAT | O_CLOEXEC, mode);
    if (io.flock(file.fd(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
      throw_error(ErrorCode::kIo, "{}: another process is writing it", path);
    // Another writer may have renamed or removed this very file between open and lock: then leave it alone.
    struct stat opened, named;
    if (io.fstat(file.fd(), &opened) != 0) throw_io(path, "read the size", errno);
    if (io.stat(path.c_str(), &named) != 0 || opened.st_dev != named.st_dev || opened.st_ino != named.st_ino)
      continue;
    // One that was left behind has a mode of its own. Some file systems have none to set, which is no reason to fail on one's own.
    const bool is_too_open = (mode & kOthers) == 0 && (opened.st_mode & kOthers) != 0;
    if (is_too_open && io.fchmod(file.fd(), mode) != 0 && opened.st_uid != geteuid())
      throw_io(path, "keep others from reading it", errno);
    return file;
  }
}

void sync_folder_of(Io& io, const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const std::string folder = parent.empty() ? std::string(".") : parent;
  const File file(io, folder, O_RDONLY | O_DIRECTORY);
  if (io.fsync(file.fd()) != 0 && errno != EINVAL)
    throw_io(folder, "flush to disk", errno);  // EINVAL: not supported
}

AtomicFile::AtomicFile(const std::string& path, mode_t mode, Io& io)
    : io_(io), path_(path), part_path_(path + ".part"), part_(open_locked(io, part_path_, mode)) {
  part_.truncate(0);  // of one that was left behind
}

AtomicFile::~AtomicFile() {
  if (!done_) io_.unlink(part_path_.c_str());
}

void AtomicFile::commit() {
  part_.sync();
  if (io_.rename(part_path_.c_str(), path_.c_str()) != 0)
    throw_io(path_, "put the finished file in place", errno);
  done_ = true;
  sync_folder_of(io_, path_);
}

void write_atomically(const std::string& path, std::string_view content, mode_t mode) {
  AtomicFile out(path, mode);
  out.file().write_at(0, content.data(), content.size());
  out.commit();
}

}  // namespace pith
