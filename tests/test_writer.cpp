// The writer: atomic replacement, resume after an interruption at any call, and I/O failures at any call.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <functional>

#include "format/atomic_file.h"
#include "format_samples.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

// The real system calls, of which the Nth that can fail does. kOnce: one call fails with `error`. kForEver: all from
// there on. kCrash: half of that write happens, then nothing any more, as if the process had been killed.
class FaultyIo : public Io {
 public:
  enum class Mode { kNone, kOnce, kForEver, kCrash };
  struct Crash {};

  FaultyIo() = default;
  FaultyIo(Mode mode, size_t nth, int error = EIO) : mode_(mode), nth_(nth), error_(error) {}
  size_t n_calls() const { return n_calls_; }
  bool fired() const { return mode_ != Mode::kNone && n_calls_ > nth_; }

  int open(const char* path, int flags, mode_t mode) override {
    return fails() ? -1 : Io::open(path, flags, mode);
  }
  int fstat(int fd, struct stat* st) override { return fails() ? -1 : Io::fstat(fd, st); }
  ssize_t pread(int fd, void* data, size_t size, uint64_t offset) override {
    return fails() ? -1 : Io::pread(fd, data, size, offset);
  }
  ssize_t pwrite(int fd, const void* data, size_t size, uint64_t offset) override {
    if (mode_ == Mode::kCrash && n_calls_ == nth_) Io::pwrite(fd, data, size / 2, offset);
    return fails() ? -1 : Io::pwrite(fd, data, size, offset);
  }
  int ftruncate(int fd, uint64_t size) override { return fails() ? -1 : Io::ftruncate(fd, size); }
  int fsync(int fd) override { return fails() ? -1 : Io::fsync(fd); }
  int rename(const char* from, const char* to) override { return fails() ? -1 : Io::rename(from, to); }
  int unlink(const char* path) override { return fails() ? -1 : Io::unlink(path); }
  void* map(int fd, size_t size) override { return fails() ? nullptr : Io::map(fd, size); }

 private:
  bool fails() {
    const size_t call = n_calls_++;
    if (mode_ == Mode::kNone || call < nth_ || (mode_ == Mode::kOnce && call > nth_)) return false;
    errno = error_;
    if (mode_ == Mode::kCrash && call == nth_) throw Crash{};
    return true;
  }

  Mode mode_ = Mode::kNone;
  size_t nth_ = 0, n_calls_ = 0;
  int error_ = EIO;
};

// Small transfers, each interrupted once.
class TrickleIo : public Io {
 public:
  int open(const char* path, int flags, mode_t mode) override {
    return interrupted() ? -1 : Io::open(path, flags, mode);
  }
  ssize_t pread(int fd, void* data, size_t size, uint64_t offset) override {
    return interrupted() ? -1 : Io::pread(fd, data, std::min<size_t>(size, 100), offset);
  }
  ssize_t pwrite(int fd, const void* data, size_t size, uint64_t offset) override {
    return interrupted() ? -1 : Io::pwrite(fd, data, std::min<size_t>(size, 100), offset);
  }
  int ftruncate(int fd, uint64_t size) override { return interrupted() ? -1 : Io::ftruncate(fd, size); }

 private:
  bool interrupted() {
    errno = EINTR;
    return toggle_ = !toggle_;
  }
  bool toggle_ = false;
};

const Bytes kOld(kMagic.begin(), kMagic.end());  // enough of a pith file to be replaced by one
constexpr uint64_t kJob = 7;

std::string note_text(size_t i) {
  return fmt::format("quality of tensor {}", i);
}

// A run that continues what an earlier one left, noting each tensor before it is added.
void run(const std::string& path, Io& io, size_t* n_resumed = nullptr) {
  Writer writer(path, kJob, io);
  if (n_resumed != nullptr) *n_resumed = writer.n_resumed();
  for (size_t i = 0; i < SampleFile::kTensors; ++i) {
    if (writer.has(SampleFile::kNames[i])) continue;
    writer.note(SampleFile::kNames[i], note_text(i));
    SampleFile::add(writer, i);
  }
  for (size_t i = 0; i < SampleFile::kTensors; ++i)
    CHECK(writer.noted(SampleFile::kNames[i]) == note_text(i));
  writer.finish(SampleFile::metadata());
}

size_t calls_of_a_run() {
  const TempFolder folder;
  FaultyIo io;
  run(folder / "f", io);
  return io.n_calls();
}

std::string error_of(const std::function<void()>& f, ErrorCode code = ErrorCode::kIo) {
  try {
    f();
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == code);
    return error.what();
  }
}

size_t n_open_files() {
  return static_cast<size_t>(
      std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator()));
}

size_t n_files(const TempFolder& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("the same calls give the same bytes, and nothing is left beside them") {
  const TempFolder folder;
  run(folder / "f", Io::system());
  CHECK(n_files(folder) == 1);
  CHECK(read_file(folder / "f") == sample_bytes());
}

TEST_CASE("a finished file replaces the old one, an unfinished one does not") {
  const TempFolder folder;
  write_file(folder / "f", kOld);
  {
    Writer writer(folder / "f", kJob);
    writer.note(SampleFile::kNames[0], note_text(0));
    SampleFile::add(writer, 0);
  }
  CHECK(read_file(folder / "f") == kOld);
  CHECK_THROWS_WITH(Container::open(folder / "f.part"), Contains("unfinished"));
  run(folder / "f", Io::system());
  CHECK(read_file(folder / "f") == sample_bytes());
}

TEST_CASE("a run that was killed at any call is resumed to the same bytes") {
  const Bytes expected = sample_bytes();
  const size_t n_calls = calls_of_a_run();
  REQUIRE(n_calls > 20);
  size_t most_resumed = 0;
  for (size_t nth = 0; nth < n_calls; ++nth) {
    CAPTURE(nth);
    const TempFolder folder;
    write_file(folder / "f", kOld);
    FaultyIo io(FaultyIo::Mode::kCrash, nth);
    CHECK_THROWS_AS(run(folder / "f", io), FaultyIo::Crash);
    const Bytes left = read_file(folder / "f");
    CHECK((left == kOld || left == expected));
    size_t n_resumed = 0;
    run(folder / "f", Io::system(), &n_resumed);
    most_resumed = std::max(most_resumed, n_resumed);
    CHECK(read_file(folder / "f") == expected);
    CHECK(n_files(folder) == 1);
  }
  CHECK(most_resumed == SampleFile::kTensors);
}

TEST_CASE("a call that fails for ever is a clean error and leaves the old file") {
  const size_t n_calls = calls_of_a_run();
  const size_t n_open = n_open_files();
  for (size_t nth = 0; nth < n_calls; ++nth) {
    CAPTURE(nth);
    const TempFolder folder;
    write_file(folder / "f", kOld);
    FaultyIo io(FaultyIo::Mode::kForEver, nth, ENOSPC);
    const std::string error = error_of([&] { run(folder / "f", io); });
    if (error.empty()) {
      CHECK(nth + 1 == n_calls);  // only the removal of the journal may fail without a word
    } else {
      CHECK_THAT(error, Contains(folder.path()) && Contains("No space left on device"));
    }
    const Bytes left = read_file(folder / "f");
    CHECK((left == kOld || left == sample_bytes()));
  }
  CHECK(n_open_files() == n_open);
}

TEST_CASE("a call that fails once is a clean error, and the next run completes the file") {
  const size_t n_calls = calls_of_a_run();
  for (size_t nth = 0; nth + 1 < n_calls; ++nth) {
    CAPTURE(nth);
    const TempFolder folder;
    FaultyIo io(FaultyIo::Mode::kOnce, nth);
    CHECK(error_of([&] { run(folder / "f", io); }) != "");
    run(folder / "f", Io::system());
    CHECK(read_file(folder / "f") == sample_bytes());
  }
}

TEST_CASE("a failed call leaves the writer as before it: the call may be repeated") {
  const TempFolder folder;
  const size_t n_calls = calls_of_a_run();
  for (size_t nth = 0; nth + 3 < n_calls;
       ++nth) {  // not the folder's fsync, after which the file is in place
    CAPTURE(nth);
    FaultyIo io(FaultyIo::Mode::kOnce, nth, ENOSPC);
    const auto insist = [&io](const auto& f) {
      if (error_of(f) != "") {
        CHECK(io.fired());
        f();
      }
    };
    std::unique_ptr<Writer> writer;
    insist([&] { writer = std::make_unique<Writer>(folder / "f", kJob, io); });
    for (size_t i = 0; i < SampleFile::kTensors; ++i) {
      insist([&] { SampleFile::add(*writer, i); });
      insist([&] { writer->note(SampleFile::kNames[i], note_text(i)); });
    }
    insist([&] { writer->finish(SampleFile::metadata()); });
    CHECK(read_file(folder / "f") == sample_bytes());
    fs::remove(folder / "f");
  }
}

TEST_CASE("a constructor that fails on a new file leaves nothing behind") {
  for (size_t nth = 1;; ++nth) {
    CAPTURE(nth);
    const TempFolder folder;
    FaultyIo io(FaultyIo::Mode::kOnce, nth);
    const std::string error = error_of([&] { Writer writer(folder / "f", kJob, io); });
    if (error.empty()) break;
    if (nth > 2) CHECK(n_files(folder) == 0);  // before that, whether the .part is new is not known yet
  }
}

TEST_CASE("short and interrupted transfers are continued") {
  const TempFolder folder;
  TrickleIo io;
  {
    Writer writer(folder / "f", kJob, io);
    SampleFile::add(writer, 0);
    SampleFile::add(writer, 1);
  }
  {
    Writer writer(folder / "f", kJob, io);
    CHECK(writer.n_resumed() == 2);
    SampleFile::add(writer, 2);
    SampleFile::add(writer, 3);
    writer.finish(SampleFile::metadata());
  }
  CHECK(read_file(folder / "f") == sample_bytes());
  const Container read = Container::open(folder / "f", Container::Access::kRead, io);
  for (const Tensor& tensor : read.tensors()) CHECK_NOTHROW(read.verify_tensor(tensor));
}

TEST_CASE("reading fails cleanly at any call") {
  const TempFolder folder;
  SampleFile::write(folder / "f");
  const size_t n_open = n_open_files();
  for (const auto access : {Container::Access::kMap, Container::Access::kRead})
    for (size_t nth = 0; nth < 3; ++nth) {
      FaultyIo io(FaultyIo::Mode::kOnce, nth, EACCES);
      CHECK_THAT(error_of([&] { Container::open(folder / "f", access, io); }),
                 Contains(folder / "f") && Contains("Permission denied"));
    }
  CHECK(n_open_files() == n_open);
}

TEST_CASE("a file that shrinks while it is read is an error") {
  class ShrinkingIo : public Io {
    ssize_t pread(int fd, void* data, size_t size, uint64_t offset) override {
      return offset < 1000 ? Io::pread(fd, data, std::min<size_t>(size, 1000), offset) : 0;
    }
  } io;
  const TempFolder folder;
  SampleFile::write(folder / "f");
  CHECK_THAT(error_of([&] { Container::open(folder / "f", Container::Access::kRead, io); }),
             Contains("1000 bytes read, expected"));
}

TEST_CASE("what another job has finished is refused, and left as it is") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", 1);
    writer.note(SampleFile::kNames[0], "from job 1");
    SampleFile::add(writer, 0);
  }
  const Bytes part = read_file(folder / "f.part"), journal = read_file(folder / "f.part.journal");
  CHECK_THAT(
      error_of([&] { Writer writer(folder / "f", 2); }, ErrorCode::kInvalidArgument),
      Contains((folder / "f.part") + ": of an interrupted run with other options") && Contains("--restart"));
  CHECK(read_file(folder / "f.part") == part);
  CHECK(read_file(folder / "f.part.journal") == journal);
  CHECK(Writer(folder / "f", 1).n_resumed() == 1);
}

TEST_CASE("a journal that is no file is refused before anything in the .part is lost") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", kJob);
    SampleFile::add(writer, 0);
  }
  const Bytes part = read_file(folder / "f.part");
  fs::remove(folder / "f.part.journal");
  REQUIRE(mkfifo((folder / "f.part.journal").c_str(), 0600) == 0);
  for (const auto unfinished : {Writer::Unfinished::kContinue, Writer::Unfinished::kReplace}) {
    CHECK(error_of([&] { Writer writer(folder / "f", kJob, unfinished); }) ==
          (folder / "f.part.journal") + ": not a regular file");
    CHECK(read_file(folder / "f.part") == part);
  }
}

TEST_CASE("another job that has finished no tensor is replaced") {
  const TempFolder folder;
  { Writer writer(folder / "f", 1); }
  { Writer writer(folder / "f", 2); }
  {
    Writer writer(folder / "f", 3);
    SampleFile::add(writer, 0);
  }
  fs::resize_file(folder / "f.part", fs::file_size(folder / "f.part") - 1);
  CHECK(Writer(folder / "f", 4).n_resumed() == 0);
  Writer(folder / "f", 4).finish({});
}

TEST_CASE("on demand the same job starts over, too") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", kJob);
    SampleFile::add(writer, 0);
    SampleFile::add(writer, 1);
  }
  {
    Writer writer(folder / "f", kJob, Writer::Unfinished::kReplace);
    CHECK(writer.n_resumed() == 0);
    writer.note(SampleFile::kNames[0], note_text(0));
    SampleFile::add(writer, 0);
  }
  CHECK(Writer(folder / "f", kJob).n_resumed() == 1);
  run(folder / "f", Io::system());
  CHECK(read_file(folder / "f") == sample_bytes());
}

TEST_CASE("on demand another job starts afresh") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", 1);
    SampleFile::add(writer, 0);
    writer.note("norm", "from job 1");
  }
  Writer writer(folder / "f", 2, Writer::Unfinished::kReplace);
  CHECK(writer.n_resumed() == 0);
  CHECK(!writer.has("norm"));
  CHECK(writer.noted("norm") == "");
  for (size_t i = 0; i < SampleFile::kTensors; ++i) SampleFile::add(writer, i);
  writer.finish(SampleFile::metadata());
  CHECK(read_file(folder / "f") == sample_bytes());
}

TEST_CASE("resume keeps only tensors whose data and journal are whole") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", kJob);
    SampleFile::add(writer, 0);
    SampleFile::add(writer, 1);
  }
  const Bytes part = read_file(folder / "f.part"), journal = read_file(folder / "f.part.journal");
  const auto changed = [](Bytes bytes, size_t at) {
    bytes[at] ^= 0x10;
    return bytes;
  };
  const auto shortened = [](const Bytes& bytes, size_t size) {
    return Bytes(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size));
  };
  const auto n_resumed = [&](const Bytes& damaged_part, const Bytes& damaged_journal) {
    write_file(folder / "f.part", damaged_part);
    write_file(folder / "f.part.journal", damaged_journal);
    return Writer(folder / "f", kJob).n_resumed();
  };
  CHECK(n_resumed(part, journal) == 2);
  CHECK(n_resumed(changed(part, 0), journal) == 2);  // the header is not written yet: nothing is lost
  CHECK(n_resumed(changed(part, 128), journal) == 0);
  CHECK(n_resumed(changed(part, 300), journal) == 1);
  CHECK(n_resumed(shortened(part, part.size() - 1), journal) == 1);
  CHECK(n_resumed(part, {}) == 0);
  const size_t first = 24 + 8 + 64 + 4 + 8;  // head, then the record of "norm"
  for (size_t at = 0; at < journal.size(); ++at) {
    CHECK(n_resumed(part, changed(journal, at)) == (at < first ? 0 : 1));
    CHECK(n_resumed(part, shortened(journal, at)) == (at < first ? 0 : 1));
  }
}

TEST_CASE("notes survive an interruption with their tensor, not without it") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", kJob);
    writer.note("norm", "early");
    SampleFile::add(writer, 0);
    SampleFile::add(writer, 1);
    writer.note("layer.q", "late");
    writer.note("layer.q", "later");
    writer.note("layer.k", "its tensor was never added");
    CHECK(writer.noted("layer.k") != "");
  }
  const Writer writer(folder / "f", kJob);
  CHECK(writer.noted("norm") == "early");
  CHECK(writer.noted("layer.q") == "later");
  CHECK(writer.noted("layer.k") == "");
  CHECK(writer.noted("absent") == "");
}

TEST_CASE("the writer refuses what the reader would") {
  const TempFolder folder;
  Writer writer(folder / "f", kJob);
  const auto add = [&](const std::string& name, uint32_t rows, uint32_t cols, size_t bytes) {
    return error_of([&] { writer.add(name, TensorKind::kF16, rows, cols, Bytes(bytes)); },
                    ErrorCode::kInvalidArgument);
  };
  CHECK_THAT(add("Upper", 1, 1, 2), Contains("tensor name 'Upper'"));
  CHECK_THAT(add(std::string(256, 'a'), 1, 1, 2), Contains("tensor name"));
  CHECK_THAT(add("a", 1, 3, 4), Contains("4 bytes, expected 6"));
  CHECK(add("a", 1, 2, 4) == "");
  CHECK_THAT(add("a", 1, 2, 4), Contains("'a' is added twice"));
  CHECK_THROWS_AS(writer.add("b", TensorKind::kF16, 0, 1, {}), Error);
  CHECK_THROWS_AS(writer.add("b", TensorKind::kQ24, 1, 1, {}), Error);
  q24::Unpacked bad = random_q24({1, 64, 16, 0, 0}, 1);
  bad.d[0] = 0x7c00;
  CHECK_THROWS_WITH(writer.add("b", bad), Contains("tensor 'b': row_scale of row 0: expected finite"));
  writer.finish({});
  CHECK(Container::open(folder / "f").tensors().size() == 1);
  CHECK_THROWS_AS(writer.finish({}), Error);
  CHECK_THROWS_AS(SampleFile::add(writer, 0), Error);
}

TEST_CASE("two writers of one path do not meet") {
  const TempFolder folder;
  {
    Writer first(folder / "f", kJob);
    CHECK_THAT(error_of([&] { Writer second(folder / "f", kJob); }),
               Contains("another process is writing it"));
    SampleFile::add(first, 0);
  }
  CHECK(Writer(folder / "f", kJob).n_resumed() == 1);
}

TEST_CASE("a .part that another writer finishes between open and lock is left alone") {
  class LateLockIo : public Io {
   public:
    explicit LateLockIo(std::string file) : file_(std::move(file)) {}
    int flock(int fd, int operation) override {
      if (!done_) done_ = Io::rename((file_ + ".part").c_str(), file_.c_str()) == 0;
      return Io::flock(fd, operation);
    }

   private:
    std::string file_;
    bool done_ = false;
  };
  const TempFolder folder;
  write_file(folder / "f.part", kOld);
  LateLockIo io(folder / "f");
  Writer writer(folder / "f", kJob, io);
  CHECK(read_file(folder / "f") == kOld);
  CHECK(fs::file_size(folder / "f.part") == 128);
}

TEST_CASE("discard removes every trace") {
  const TempFolder folder;
  Writer writer(folder / "f", kJob);
  SampleFile::add(writer, 0);
  CHECK(n_files(folder) == 2);
  writer.discard();
  CHECK(n_files(folder) == 0);
  CHECK_NOTHROW(writer.discard());
}

TEST_CASE("the header is written after the rest is on disk, and is on disk before the file is put in place") {
  class RecordingIo : public Io {
   public:
    std::string calls;
    ssize_t pwrite(int fd, const void* data, size_t size, uint64_t offset) override {
      calls += offset == 0 ? "header " : "write ";
      return Io::pwrite(fd, data, size, offset);
    }
    int ftruncate(int fd, uint64_t size) override {
      calls += "truncate ";
      return Io::ftruncate(fd, size);
    }
    int fsync(int fd) override {
      struct stat st;
      CHECK(Io::fstat(fd, &st) == 0);
      calls += S_ISDIR(st.st_mode) ? "sync-folder " : "sync ";
      return Io::fsync(fd);
    }
    int rename(const char* from, const char* to) override {
      calls += "rename ";
      return Io::rename(from, to);
    }
    int unlink(const char* path) override {
      calls += "unlink ";
      return Io::unlink(path);
    }
  } io;
  const TempFolder folder;
  Writer writer(folder / "f", kJob, io);
  io.calls.clear();
  writer.finish({});
  CHECK(io.calls == "write truncate sync header sync rename sync-folder unlink ");
}

TEST_CASE("a folder on a file system that cannot sync folders is no error") {
  class NoFolderSyncIo : public Io {
    int fsync(int fd) override {
      struct stat st;
      Io::fstat(fd, &st);
      errno = EINVAL;
      return S_ISDIR(st.st_mode) ? -1 : Io::fsync(fd);
    }
  } io;
  const TempFolder folder;
  Writer(folder / "f", kJob, io).finish({});
  CHECK(fs::exists(folder / "f"));
  AtomicFile(folder / "g", 0666, io).commit();
  CHECK(fs::exists(folder / "g"));
}

TEST_CASE("a preview opens while it is used and not after, and the file is the same as without") {
  const TempFolder folder;
  const auto write = [&](const std::string& name, bool with_preview, bool fails) {
    Writer writer(folder / name, kJob);
    const std::vector<uint8_t> data(64 * 4, 3);
    writer.add("t", TensorKind::kF32, 8, 8, data);
    if (with_preview) {
      const auto use = [&](const std::string& part) {
        CHECK(Container::open(part).tensors().size() == 1);
        if (fails) throw_error(ErrorCode::kInternal, "no use");
      };
      Metadata draft;
      draft.set("a.longer.key", std::string(1000, 'x'));
      if (fails)
        CHECK_THROWS_WITH(writer.preview(draft, use), "no use");
      else
        writer.preview(draft, use);
      CHECK_THROWS_AS(Container::open(folder / (name + ".part")), Error);
    }
    writer.finish({});
  };
  write("plain", false, false);
  write("previewed", true, false);
  write("failed", true, true);
  CHECK(read_file(folder / "previewed") == read_file(folder / "plain"));
  CHECK(read_file(folder / "failed") == read_file(folder / "plain"));
}

TEST_CASE("what an interrupted finish left behind the tensors is cut off") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", kJob);
    SampleFile::add(writer, 0);
  }
  fs::resize_file(folder / "f.part", 100'000);
  { Writer writer(folder / "f", kJob); }
  CHECK(fs::file_size(folder / "f.part") == 256);
}

TEST_CASE("a path that cannot become the file is refused at the start") {
  const TempFolder folder;
  fs::create_directory(folder / "dir");
  CHECK_THAT(error_of([&] { Writer writer(folder / "dir", kJob); }), Contains("not a regular file"));
  CHECK_THAT(error_of([&] { Writer writer("/dev/null", kJob); }),
             Contains("/dev/null: exists and is not a regular"));
  CHECK_THAT(error_of([&] { Writer writer(folder / "absent/f", kJob); }),
             Contains("No such file or directory"));
  write_file(folder / "file", kOld);
  CHECK_THAT(error_of([&] { Writer writer(folder / "file/f", kJob); }), Contains("Not a directory"));
  CHECK(n_files(folder) == 2);
}

TEST_CASE("a file that the system will not let grow is a clean error") {
  const TempFolder folder;
  struct rlimit before;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {4096, before.rlim_max};
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string error = error_of([&] { run(folder / "f", Io::system()); });
  REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
  signal(SIGXFSZ, old_handler);
  CHECK_THAT(error, Contains(folder / "f.part") && Contains("cannot write: File too large"));
  CHECK(!fs::exists(folder / "f"));
  run(folder / "f", Io::system());
  CHECK(read_file(folder / "f") == sample_bytes());
}

TEST_CASE("a file name without a folder is written to the current one") {
  const TempFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  run("f", Io::system());
  fs::current_path(before);
  CHECK(read_file(folder / "f") == sample_bytes());
}

TEST_CASE("a writer that has finished or given up takes nothing more") {
  const TempFolder folder;
  Writer writer(folder / "f", kJob);
  SampleFile::add(writer, 0);
  writer.finish({});
  const Bytes file = read_file(folder / "f");
  CHECK_THROWS_WITH(writer.finish(SampleFile::metadata()), Contains("finished twice"));
  CHECK(read_file(folder / "f") == file);

  Writer given_up(folder / "g", kJob);
  given_up.discard();
  CHECK_THROWS_WITH(SampleFile::add(given_up, 0), Contains("after the end"));
  CHECK_THROWS_WITH(given_up.finish({}), Contains("finished twice"));
}

TEST_CASE("discard says what it could not remove") {
  class KeepingIo : public Io {
   public:
    int unlink(const char* path) override {
      if (!keeps) return Io::unlink(path);
      errno = EACCES;
      return -1;
    }
    bool keeps = false;
  };
  const TempFolder folder;
  KeepingIo io;
  Writer writer(folder / "f", kJob, io);
  io.keeps = true;
  CHECK_THROWS_WITH(writer.discard(), Contains("f.part: cannot remove"));
}

TEST_CASE("reading a tensor back wants its size, and says when the .part has lost it") {
  const TempFolder folder;
  Writer writer(folder / "f", kJob);
  const Bytes data(256, 1);
  writer.add("a", TensorKind::kF32, 1, 64, data);
  Bytes out(256);
  writer.read("a", out);
  CHECK(out == data);
  Bytes small(128);
  CHECK_THROWS_WITH(writer.read("a", small), Contains("128 bytes wanted of 256"));
  CHECK_THROWS_WITH(writer.read("b", out), Contains("'b' is not there"));
  fs::resize_file(folder / "f.part", 300);
  CHECK_THROWS_WITH(writer.read("a", out), Contains("'a' cannot be read back"));
}

TEST_CASE("plain data is no content of a q24 tensor") {
  const TempFolder folder;
  Writer writer(folder / "f", kJob);
  CHECK_THROWS_WITH(writer.add("a", TensorKind::kQ24, 1, 64, Bytes(256)), Contains("needs its Unpacked"));
}
