// Files that are there as a whole or not at all: locks, the order of what reaches the disk, what a .part left behind may do.
#include <sys/file.h>

#include <catch2/catch.hpp>
#include <cerrno>

#include "format/atomic_file.h"
#include "format_samples.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

const Bytes kOld = {'o', 'l', 'd'};

ptrdiff_t n_files(const TempFolder& folder) {
  return std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator());
}

}  // namespace

TEST_CASE("an atomic file is what it was until commit, and a second writer is refused") {
  const TempFolder folder;
  write_file(folder / "f", kOld);
  write_file(folder / "f.part", Bytes(100, 'x'));  // left behind
  {
    const AtomicFile given_up(folder / "f");
    given_up.file().write_at(0, "new", 3);
    CHECK_THROWS_WITH(AtomicFile(folder / "f"), Contains("another process is writing it"));
    CHECK(read_file(folder / "f") == kOld);
  }
  CHECK(n_files(folder) == 1);
  CHECK(read_file(folder / "f") == kOld);
  write_file(folder / "f.part", Bytes(100, 'x'));  // with a mode that others may read
  AtomicFile file(folder / "f", 0600);
  file.file().write_at(0, "new", 3);
  file.commit();
  CHECK(read_file(folder / "f") == Bytes{'n', 'e', 'w'});
  CHECK((fs::status(folder / "f").permissions() & fs::perms::all) ==
        (fs::perms::owner_read | fs::perms::owner_write));
  CHECK(n_files(folder) == 1);
}

TEST_CASE("a .part that another writer replaces between open and lock is left alone") {
  class ReplacingIo : public Io {
   public:
    explicit ReplacingIo(std::string path) : path_(std::move(path)) {}
    int flock(int fd, int operation) override {
      if (n_calls++ == 0) {
        fs::rename(path_, path_ + ".old");
        write_file(path_, Bytes{'n', 'e', 'w'});
      }
      return Io::flock(fd, operation);
    }
    int n_calls = 0;

   private:
    std::string path_;
  };
  const TempFolder folder;
  write_file(folder / "f", Bytes{'o', 'l', 'd'});
  ReplacingIo io(folder / "f");
  const File file = open_locked(io, folder / "f");
  CHECK(io.n_calls == 2);
  Bytes bytes(3);
  CHECK(file.read_at(0, bytes.data(), 3) == 3);
  CHECK(bytes == Bytes{'n', 'e', 'w'});
}

TEST_CASE("an atomic file is on disk before it is in place, and its folder after") {
  class RecordingIo : public Io {
   public:
    int fsync(int fd) override {
      calls += "sync ";
      return Io::fsync(fd);
    }
    int rename(const char* from, const char* to) override {
      calls += "rename ";
      return Io::rename(from, to);
    }
    std::string calls;
  };
  const TempFolder folder;
  RecordingIo io;
  AtomicFile out(folder / "f", 0666, io);
  out.file().write_at(0, "abc", 3);
  out.commit();
  CHECK(io.calls == "sync rename sync ");
}

TEST_CASE("an atomic file takes nothing of a .part that was left behind, and leaves the next one alone") {
  const TempFolder folder;
  write_file(folder / "f.part", Bytes(100, 'x'));
  {
    AtomicFile out(folder / "f");
    out.file().write_at(0, "abc", 3);
    out.commit();
    CHECK(read_file(folder / "f") == Bytes{'a', 'b', 'c'});
    write_file(folder / "f.part", Bytes{'n', 'e', 'x', 't'});  // another writer's
  }
  CHECK(fs::exists(folder / "f.part"));
}

TEST_CASE("a file system without modes is written to") {
  class NoModeIo : public Io {
   public:
    int fchmod(int, mode_t) override {
      errno = EPERM;
      return -1;
    }
  };
  const TempFolder folder;
  write_file(folder / "f.part", Bytes(100, 'x'));
  NoModeIo io;
  CHECK_NOTHROW(AtomicFile(folder / "f", 0600, io).commit());
  CHECK(fs::file_size(folder / "f") == 0);
}

TEST_CASE("a file system without locks is written to") {
  class NoLockIo : public Io {
   public:
    int flock(int, int) override {
      errno = ENOLCK;
      return -1;
    }
  };
  const TempFolder folder;
  NoLockIo io;
  CHECK_NOTHROW(AtomicFile(folder / "f", 0666, io).commit());
  CHECK(fs::exists(folder / "f"));
}
