// Resuming a file more than once, and a journal whose records are whole but wrong.
#include <catch2/catch.hpp>
#include <cerrno>

#include "format/journal.h"
#include "format_samples.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

constexpr uint64_t kJob = 7;

// A journal record with a right checksum, whatever is in it.
void add_record(Bytes& journal, uint64_t& chain, uint32_t type, const Bytes& payload) {
  const size_t at = journal.size();
  const auto append = [&](const void* data, size_t size) {
    const auto* const bytes = static_cast<const uint8_t*>(data);
    journal.insert(journal.end(), bytes, bytes + size);
  };
  const uint32_t size = static_cast<uint32_t>(payload.size());
  append(&type, sizeof type);
  append(&size, sizeof size);
  append(payload.data(), payload.size());
  chain = checksum64(std::span(journal).subspan(at), chain);
  append(&chain, sizeof chain);
}

// Whether a journal with this one record has it.
bool is_read(uint32_t type, const Bytes& payload) {
  JournalBytes journal = JournalBytes::head(kJob);
  add_record(journal.bytes, journal.chain, type, payload);
  JournalReader reader(journal.bytes);
  REQUIRE(reader.head() == kJob);
  return reader.next();
}

class FailingIo : public Io {
 public:
  ssize_t pwrite(int fd, const void* data, size_t size, uint64_t offset) override {
    return fail_write ? failed() : Io::pwrite(fd, data, size, offset);
  }
  int rename(const char* from, const char* to) override {
    return fail_rename ? failed() : Io::rename(from, to);
  }
  bool fail_write = false, fail_rename = false;

 private:
  static int failed() {
    errno = EACCES;
    return -1;
  }
};

}  // namespace

TEST_CASE("a file that is interrupted again and again keeps every tensor and note") {
  const TempFolder folder;
  for (size_t i = 0; i < SampleFile::kTensors; ++i) {
    Writer writer(folder / "f", kJob);
    CHECK(writer.n_resumed() == i);
    for (size_t j = 0; j < i; ++j) CHECK(writer.noted(SampleFile::kNames[j]) == fmt::format("note {}", j));
    SampleFile::add(writer, i);
    writer.note(SampleFile::kNames[i], fmt::format("note {}", i));
  }
  Writer writer(folder / "f", kJob);
  CHECK(writer.n_resumed() == SampleFile::kTensors);
  writer.finish(SampleFile::metadata());
  CHECK(read_file(folder / "f") == sample_bytes());
}

TEST_CASE("a tensor of several read buffers is taken over") {
  const TempFolder folder;
  const Bytes data((1 << 20) + 12 * 1024, 0x5a);
  const uint32_t n_cols = static_cast<uint32_t>(data.size() / 4);
  Writer(folder / "f", kJob).add("a", TensorKind::kF32, 1, n_cols, data);
  CHECK(Writer(folder / "f", kJob).n_resumed() == 1);
}

TEST_CASE("a constructor that fails leaves what can be resumed") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", kJob);
    SampleFile::add(writer, 0);
  }
  FailingIo io;
  io.fail_write = true;
  CHECK_THROWS_AS(Writer(folder / "f", kJob, io), Error);
  CHECK(Writer(folder / "f", kJob).n_resumed() == 1);
}

TEST_CASE("an unfinished file has no header, also when its finish got as far as that") {
  const TempFolder folder;
  {
    FailingIo io;
    Writer writer(folder / "f", kJob, io);
    SampleFile::add(writer, 0);
    io.fail_rename = true;
    CHECK_THROWS_AS(writer.finish({}), Error);
  }
  REQUIRE_NOTHROW(Container::open(folder / "f.part"));
  const Writer writer(folder / "f", kJob);
  CHECK(writer.n_resumed() == 1);
  const Bytes part = read_file(folder / "f.part");
  CHECK(Bytes(part.begin(), part.begin() + 128) == Bytes(128));
}

TEST_CASE("the journal ends where what was taken over ends") {
  const TempFolder folder;
  uint64_t one = 0;
  {
    Writer writer(folder / "f", kJob);
    SampleFile::add(writer, 0);
    one = fs::file_size(folder / "f.part.journal");
    SampleFile::add(writer, 1);
  }
  fs::resize_file(folder / "f.part", fs::file_size(folder / "f.part") - 1);
  CHECK(Writer(folder / "f", kJob).n_resumed() == 1);
  CHECK(fs::file_size(folder / "f.part.journal") == one);
}

TEST_CASE("a tensor that a journal puts in another place is not taken over") {
  const TempFolder folder;
  {
    Writer writer(folder / "f", kJob);
    SampleFile::add(writer, 0);
  }
  const Bytes whole = read_file(folder / "f.part.journal");
  JournalReader reader(whole);
  REQUIRE(reader.head() == kJob);
  REQUIRE(reader.next());
  JournalBytes twice = JournalBytes::head(kJob);  // the same bytes under the same name, again
  twice.add_tensor(reader.tensor(), reader.name());
  REQUIRE(twice.bytes == whole);
  twice.add_tensor(reader.tensor(), reader.name());
  write_file(folder / "f.part.journal", twice.bytes);
  CHECK(Writer(folder / "f", kJob).n_resumed() == 1);
}

TEST_CASE("a journal's record that does not hold what its type says is not read") {
  constexpr uint32_t kTensor = 1, kNote = 2;
  constexpr size_t kRecord = sizeof(TensorRecord);
  CHECK(is_read(kTensor, Bytes(kRecord + 1, 'a')));
  CHECK_FALSE(is_read(kTensor, Bytes(kRecord, 'a')));  // without a name
  CHECK_FALSE(is_read(kTensor, Bytes(kRecord - 1, 'a')));
  CHECK_FALSE(is_read(kTensor, {}));
  CHECK(is_read(kNote, {1, 0, 0, 0, 'a', 'b'}));
  CHECK(is_read(kNote, {2, 0, 0, 0, 'a', 'b'}));
  CHECK_FALSE(is_read(kNote, {3, 0, 0, 0, 'a', 'b'}));  // a name longer than the record
  CHECK_FALSE(is_read(kNote, {0xff, 0xff, 0xff, 0xff, 'a', 'b'}));
  CHECK_FALSE(is_read(kNote, {0, 0, 0}));
  CHECK_FALSE(is_read(kNote, {}));
  CHECK_FALSE(is_read(0, {0, 0, 0, 0}));
  CHECK_FALSE(is_read(3, Bytes(kRecord + 1, 'a')));
}
