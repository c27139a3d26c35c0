// The container: what it reads, and everything it must refuse. Metadata, Q24 and the writer have files of their own.
#include <fcntl.h>
#include <sys/mman.h>

#include <catch2/catch.hpp>

#include "count_allocations.h"
#include "format_samples.h"
#include "skip.h"

using namespace pith;
using namespace pith::test;

namespace {

// The error that a changed sample gives, checksums made right again.
template <typename F>
std::string fault_after(F&& edit) {
  Bytes file = sample_bytes();
  edit(file);
  repair_checksums(file);
  return fault_of(file);
}

template <typename F>
std::string fault_after_header_edit(F&& edit) {
  return fault_after([&](Bytes& file) { edit_header(file, edit); });
}

template <typename F>
std::string fault_after_record_edit(size_t i, F&& edit) {
  return fault_after([&](Bytes& file) { edit_record(file, i, edit); });
}

// A file of one plain tensor whose directory entry was edited.
template <typename F>
std::string fault_of_plain(F&& edit) {
  const TempFolder folder;
  {
    Writer writer(folder / "f", 1);
    writer.add("t", TensorKind::kF32, 1, 32, Bytes(128));
    writer.finish({});
  }
  Bytes file = read_file(folder / "f");
  edit_record(file, 0, edit);
  repair_checksums(file);
  return fault_of(file);
}

// Inserts 128 zero bytes at `at` and moves what the header and directory say about everything from there on.
void insert_hole(Bytes& file, uint64_t at) {
  const HeaderRecord h = header_of(file);
  for (size_t i = 0; i < h.n_tensors; ++i)
    edit_record(file, i, [&](TensorRecord& r) { r.offset += r.offset >= at ? 128 : 0; });
  edit_header(file, [&](HeaderRecord& header) {
    header.file_size += 128;
    header.metadata_offset += header.metadata_offset >= at ? 128 : 0;
    header.directory_offset += header.directory_offset >= at ? 128 : 0;
  });
  const Bytes zeros(128);
  file.insert(file.begin() + static_cast<ptrdiff_t>(at), zeros.begin(), zeros.end());
}

ErrorCode code_of(const Bytes& file) {
  const AlignedBytes aligned(file);
  try {
    Container::from_bytes(aligned, "file");
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kInternal;
}

// Bytes of a file that are in memory.
size_t cached_bytes(const std::string& path) {
  const Bytes::size_type size = std::filesystem::file_size(path);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  REQUIRE(data != MAP_FAILED);
  std::vector<unsigned char> pages((size + 4095) / 4096);
  REQUIRE(::mincore(data, size, pages.data()) == 0);
  ::munmap(data, size);
  ::close(fd);
  return static_cast<size_t>(std::count_if(pages.begin(), pages.end(), [](auto p) { return p & 1; })) * 4096;
}

}  // namespace

using Catch::Matchers::Contains;

TEST_CASE("a file reads back as written, mapped and in memory") {
  const TempFolder folder;
  const std::string path = folder / "sample.pith";
  SampleFile::write(path);
  for (const auto access : {Container::Access::kMap, Container::Access::kRead}) {
    const Container file = Container::open(path, access);
    CHECK(file.path() == path);
    CHECK(file.file_size() == std::filesystem::file_size(path));
    CHECK(file.metadata().entries() == SampleFile::metadata().entries());
    REQUIRE(file.tensors().size() == SampleFile::kTensors);
    for (size_t i = 0; i < SampleFile::kTensors; ++i) {
      CHECK(file.tensors()[i].name == SampleFile::kNames[i]);
      CHECK(file.find(SampleFile::kNames[i]) == &file.tensors()[i]);
      CHECK(reinterpret_cast<uintptr_t>(file.tensors()[i].data) % 128 == 0);
      CHECK_NOTHROW(file.verify_tensor(file.tensors()[i]));
    }
    const Tensor& norm = file.get("norm");
    CHECK((norm.kind == TensorKind::kF32 && norm.n_rows == 1 && norm.n_cols == 5 && norm.size_bytes == 128));
    const float expected[] = {1.0f, -2.0f, 0.5f, 0.25f, 3.0f};
    CHECK(std::memcmp(norm.data, expected, sizeof expected) == 0);
    const Tensor& q = file.get("layer.q");
    const q24::Unpacked content = random_q24(q.q24, 1);
    const q24::Unpacked found = q24::unpack(q.q24_view());
    CHECK(found.codes == content.codes);
    CHECK(found.perm == content.perm);
    CHECK(file.find("nor") == nullptr);
    CHECK(file.find("norms") == nullptr);
    CHECK_THROWS_WITH(file.get("absent"), path + ": tensor 'absent' is missing");
  }
}

TEST_CASE("opening a cold file brings little of it into memory") {
  const TempFolder folder;
  const std::string path = folder / "big.pith";
  const q24::Unpacked small = random_q24({33, 65, 16, 80, 2}, 1);
  {
    Writer writer(path, 7);
    writer.add("a", TensorKind::kBF16, 4096, 1024, Bytes(8 << 20));
    writer.add("b", small);
    writer.add("c", TensorKind::kBF16, 4096, 1024, Bytes(8 << 20));
    writer.finish(SampleFile::metadata());
  }
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
  if (cached_bytes(path) > 0) return skip("this file system keeps files in memory");
  const Container file = Container::open(path);
  CHECK(file.get("b").perm == small.perm);
  CHECK(cached_bytes(path) < 256 << 10);
  file.read_ahead(file.get("c"));
  CHECK_NOTHROW(file.verify_tensor(file.get("c")));
}

TEST_CASE("a file with no tensors and no metadata opens") {
  const TempFolder folder;
  Writer(folder / "empty.pith", 1).finish({});
  const Container file = Container::open(folder / "empty.pith");
  CHECK(file.tensors().empty());
  CHECK(file.metadata().entries().empty());
}

TEST_CASE("the fingerprint follows the content of any tensor") {
  Bytes file = sample_bytes();
  const AlignedBytes before(file);
  file[header_of(file).metadata_offset - 128] ^= 1;
  repair_checksums(file);
  const AlignedBytes after(file);
  CHECK(Container::from_bytes(before, "f").fingerprint() == Container::from_bytes(before, "f").fingerprint());
  CHECK(Container::from_bytes(before, "f").fingerprint() != Container::from_bytes(after, "f").fingerprint());
}

TEST_CASE("no single changed byte is accepted") {
  Bytes file = sample_bytes();
  REQUIRE(fault_of(file) == "");
  AlignedBytes aligned(file);
  uint8_t* const bytes = const_cast<uint8_t*>(std::span<const uint8_t>(aligned).data());
  size_t accepted = 0;
  for (size_t i = 0; i < file.size(); ++i) {
    for (const int pattern : {0x01, 0x80, 0xff}) {
      bytes[i] = static_cast<uint8_t>(file[i] ^ pattern);
      try {
        const Container container = Container::from_bytes(aligned, "file");
        for (const Tensor& tensor : container.tensors()) container.verify_tensor(tensor);
        UNSCOPED_INFO("byte " << i << " ^ " << pattern);
        ++accepted;
      } catch (const Error&) {
      }
    }
    bytes[i] = file[i];
  }
  CHECK(accepted == 0);
}

TEST_CASE("no truncated and no extended file is accepted") {
  const Bytes file = sample_bytes();
  size_t accepted = 0;
  for (size_t size = 0; size < file.size(); ++size) accepted += fault_of(std::span(file).first(size)).empty();
  Bytes longer = file;
  for (size_t more = 1; more <= 256; ++more) {
    longer.push_back(0);
    accepted += fault_of(longer).empty();
  }
  CHECK(accepted == 0);
  CHECK_THAT(fault_of(std::span(file).first(file.size() - 128)), Contains("truncated"));
  CHECK_THAT(fault_of(std::span(file).first(127)), Contains("127 bytes, expected at least a header of 128"));
  CHECK_THAT(fault_of(longer), Contains("something was appended"));
}

TEST_CASE("tensors of equal size that changed places do not verify") {
  Bytes file = sample_bytes();
  const TensorRecord q = record_of(file, 1), k = record_of(file, 2);
  REQUIRE(q.size == k.size);
  const auto at = [&](const TensorRecord& r) { return file.begin() + static_cast<ptrdiff_t>(r.offset); };
  std::swap_ranges(at(q), at(q) + static_cast<ptrdiff_t>(q.size), at(k));
  CHECK_THAT(fault_of(file), Contains("tensor 'layer.q': checksum"));
  // Even where the two checksums in the directory were exchanged too.
  edit_record(file, 1, [&](TensorRecord& r) { r.checksum = k.checksum; });
  edit_record(file, 2, [&](TensorRecord& r) { r.checksum = q.checksum; });
  HeaderRecord h = header_of(file);
  h.directory_checksum = checksum64(std::span(file).subspan(h.directory_offset, h.directory_size));
  h.header_checksum = header_checksum(h);
  std::memcpy(file.data(), &h, sizeof h);
  CHECK_THAT(fault_of(file), Contains("tensor 'layer.q': checksum"));
}

TEST_CASE("a tensor's checksum depends on its name and its place") {
  CHECK(tensor_seed("a", 128) != tensor_seed("b", 128));
  CHECK(tensor_seed("a", 128) != tensor_seed("a", 256));
}

TEST_CASE("reader refuses each broken rule of the header") {
  CHECK_THAT(fault_of(Bytes(4096)), Contains("unfinished"));
  CHECK_THAT(fault_after([](Bytes& f) { f[3] = 'X'; }), Contains("not a pith file"));
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.major = 2; }), Contains("format version 2.0"));
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.header_size = 256; }), Contains("header_size"));
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.file_size += 128; }), Contains("truncated"));
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.reserved0 = 1; }), Contains("reserved"));
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.reserved1[2] = 1; }), Contains("reserved"));
  Bytes file = sample_bytes();
  edit_header(file, [](HeaderRecord& h) { ++h.minor; });
  CHECK_THAT(fault_of(file), Contains("header checksum"));
}

TEST_CASE(
    "unknown required features and major versions are unsupported, unknown optional ones are no fault") {
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.required_features = uint64_t{1} << 63; }),
             Contains("unknown features 0x8000000000000000"));
  CHECK(fault_after_header_edit([](HeaderRecord& h) { h.optional_features = ~uint64_t{0}; }) == "");
  CHECK(fault_after_header_edit([](HeaderRecord& h) { h.minor = 9; }) == "");
  Bytes file = sample_bytes();
  edit_header(file, [](HeaderRecord& h) { h.required_features = 1; });
  repair_checksums(file);
  CHECK(code_of(file) == ErrorCode::kUnsupported);
  edit_header(file, [](HeaderRecord& h) { h.major = 0; });
  CHECK(code_of(file) == ErrorCode::kUnsupported);
}

TEST_CASE("reader refuses metadata or a directory out of place") {
  const uint64_t huge = ~uint64_t{0} - 127;
  for (const uint64_t n : {huge, uint64_t{1} << 40, ~uint64_t{0}}) {
    CHECK(fault_after_header_edit([&](HeaderRecord& h) { h.metadata_size = n; }) != "");
    CHECK(fault_after_header_edit([&](HeaderRecord& h) { h.metadata_offset = n; }) != "");
    CHECK(fault_after_header_edit([&](HeaderRecord& h) { h.directory_size = n; }) != "");
    CHECK(fault_after_header_edit([&](HeaderRecord& h) { h.directory_offset = n; }) != "");
  }
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) {
               h.metadata_offset = huge;  // offset + size is small again: only a checked sum notices
               h.metadata_size = 128 + h.directory_offset - 128;
             }),
             Contains("beyond the end"));
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.directory_offset -= 128; }),
             Contains("directory_offset"));
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.directory_size += 128; }),
             Contains("end of the directory"));
}

TEST_CASE("reader refuses a changed byte in metadata, directory and the padding behind them") {
  const Bytes file = sample_bytes();
  const HeaderRecord h = header_of(file);
  REQUIRE((h.metadata_offset + h.metadata_size) % 128 != 0);
  REQUIRE((h.directory_offset + h.directory_size) % 128 != 0);
  const auto fault_at = [&](uint64_t at) {
    Bytes changed = file;
    changed[at] ^= 1;
    return fault_of(changed);
  };
  CHECK_THAT(fault_at(h.metadata_offset), Contains("metadata: the checksum"));
  CHECK_THAT(fault_at(h.directory_offset), Contains("directory: the checksum"));
  CHECK_THAT(fault_at(h.metadata_offset + h.metadata_size), Contains("metadata: a byte is not zero"));
  CHECK_THAT(fault_at(h.directory_offset + h.directory_size), Contains("directory: a byte is not zero"));
}

TEST_CASE("reader rejects holes and overlapping tensors") {
  const HeaderRecord h = header_of(sample_bytes());
  const uint64_t second = record_of(sample_bytes(), 1).offset;
  CHECK_THAT(fault_after([](Bytes& f) { insert_hole(f, 128); }), Contains("tensor 'norm': offset is 256"));
  CHECK_THAT(fault_after([&](Bytes& f) { insert_hole(f, second); }), Contains("tensor 'layer.q': offset"));
  CHECK_THAT(fault_after([&](Bytes& f) { insert_hole(f, h.metadata_offset); }), Contains("metadata_offset"));
  CHECK_THAT(fault_after([&](Bytes& f) { insert_hole(f, h.directory_offset); }),
             Contains("directory_offset"));
  CHECK_THAT(fault_after([&](Bytes& f) { insert_hole(f, h.file_size); }), Contains("end of the directory"));
  CHECK_THAT(fault_after_record_edit(2, [&](TensorRecord& r) { r.offset = second; }),
             Contains("tensor 'layer.k': offset"));
  CHECK_THAT(fault_after_record_edit(0, [](TensorRecord& r) { r.offset = 0; }),
             Contains("tensor 'norm': offset"));
}

TEST_CASE("reader refuses each broken rule of the directory") {
  CHECK_THAT(fault_after_header_edit([](HeaderRecord& h) { h.n_tensors = 0xffffffff; }),
             Contains("4294967295 tensors do not fit"));
  CHECK(fault_after_header_edit([](HeaderRecord& h) { --h.n_tensors; }) != "");
  CHECK_THAT(fault_after_record_edit(1, [](TensorRecord& r) { r.name_offset += 1; }),
             Contains("name_offset"));
  CHECK_THAT(fault_after_record_edit(3, [](TensorRecord& r) { r.name_size = 300; }),
             Contains("its name lies beyond"));
  CHECK_THAT(fault_after_record_edit(3, [](TensorRecord& r) { r.name_size = 3; }),
             Contains("size of the directory's names"));
  CHECK_THAT(fault_after_record_edit(0, [](TensorRecord& r) { r.name_size = 0; }),
             Contains("is not [a-z0-9_.]+"));
  CHECK_THAT(fault_after_record_edit(0, [](TensorRecord& r) { r.size += 128; }), Contains("size is 256"));
  CHECK_THAT(fault_after_record_edit(0, [](TensorRecord& r) { r.n_cols = 33; }), Contains("size is 128"));
  CHECK_THAT(fault_after_record_edit(0, [](TensorRecord& r) { r.reserved[0] = 1; }), Contains("reserved"));
  CHECK_THAT(fault_after_record_edit(0, [](TensorRecord& r) { r.reserved[1] = 1; }), Contains("reserved"));
  CHECK_THAT(fault_after_record_edit(0, [](TensorRecord& r) { r.kind = 4; }),
             Contains("unknown tensor kind 4"));
  CHECK_THAT(fault_after([](Bytes& f) {
               const size_t names = record_at(f, SampleFile::kTensors);
               std::memcpy(f.data() + names + 4, "layer.k", 7);
             }),
             Contains("two tensors are named 'layer.k'"));
  CHECK_THAT(fault_after([](Bytes& f) { f[record_at(f, SampleFile::kTensors)] = 'N'; }),
             Contains("is not [a-z0-9_.]+"));
}

TEST_CASE("reader refuses each bad shape of a plain tensor") {
  CHECK(fault_of_plain([](TensorRecord&) {}) == "");
  CHECK_THAT(fault_of_plain([](TensorRecord& r) { r.group = 16; }), Contains("group is 16"));
  CHECK_THAT(fault_of_plain([](TensorRecord& r) { r.n_fine = 1; }), Contains("n_fine is 1"));
  CHECK_THAT(fault_of_plain([](TensorRecord& r) { r.n_slots = 1; }), Contains("n_slots is 1"));
  CHECK_THAT(fault_of_plain([](TensorRecord& r) { r.n_rows = 0, r.size = 0; }), Contains("n_rows is 0"));
  CHECK_THAT(fault_of_plain([](TensorRecord& r) { r.n_cols = 0, r.size = 0; }), Contains("n_cols is 0"));
  CHECK_THAT(fault_of_plain([](TensorRecord& r) { r.n_cols = 0x80000001; }),
             Contains("n_cols is 2147483649"));
  CHECK_THAT(fault_of_plain([](TensorRecord& r) { r.n_rows = 0xffffffff, r.n_cols = 0x80000000; }),
             Contains("size overflow"));
}

TEST_CASE("tensor sizes that wrap around to the end of the tensors are refused") {
  // Three tensors of 2^63 bytes each, less what the true end needs: the sum wraps to a small number.
  const TempFolder folder;
  {
    Writer writer(folder / "f", 1);
    for (const char* const name : {"a", "b", "c"}) writer.add(name, TensorKind::kF16, 1, 64, Bytes(128));
    writer.finish({});
  }
  Bytes file = read_file(folder / "f");
  uint64_t offset = 128;
  for (size_t i = 0; i < 3; ++i)
    edit_record(file, i, [&](TensorRecord& r) {
      if (i < 2) r.n_rows = 0x80000000, r.n_cols = 0x80000000, r.size = uint64_t{1} << 63;
      r.offset = offset;
      offset += r.size;
    });
  edit_header(file, [](HeaderRecord& h) { h.metadata_offset = 256; });
  repair_checksums(file);
  CHECK_THAT(fault_of(file), Contains("overflow") || Contains("directory_offset"));
}

TEST_CASE("opening refuses a permutation that kernels could not index with") {
  Bytes file = sample_bytes();
  const uint64_t at = record_of(file, 1).offset;
  const uint16_t bad[] = {65, 0xffff};
  for (const uint16_t value : bad) {
    Bytes changed = file;
    std::memcpy(changed.data() + at, &value, 2);
    CHECK(code_of(changed) == ErrorCode::kFormat);  // on opening, without verify_tensor
  }
}

TEST_CASE("views point to the checked copy of the permutation, not into the file") {
  const AlignedBytes file(sample_bytes());
  const Container container = Container::from_bytes(file, "f");
  const Tensor& q = container.get("layer.q");
  CHECK(q.q24_view().perm == q.perm.data());
  CHECK(reinterpret_cast<const uint8_t*>(q.q24_view().perm) != q.data);
  CHECK(reinterpret_cast<const uint8_t*>(q.q24_view().col_scale) == q.data + q.q24_view().layout.col_scale);
}

TEST_CASE("verification notices non-zero padding of a plain tensor whose checksum is right") {
  CHECK_THAT(fault_after([](Bytes& f) { f[128 + 20] = 1; }), Contains("tensor 'norm': padding"));
}

TEST_CASE("verification notices bad Q24 content whose checksum is right") {
  CHECK_THAT(fault_after([](Bytes& f) {
               const TensorRecord r = record_of(f, 1);
               f[r.offset + r.size - 1] = 0x7c;  // an outlier slot of a row that does not exist
             }),
             Contains("tensor 'layer.q': outliers of row"));
}

TEST_CASE("huge counts and sizes do not allocate") {
  const Bytes file = sample_bytes();
  const auto peak_of = [](const Bytes& changed) {
    allocations = {};
    CHECK(fault_of(changed) != "");
    return allocations.largest_bytes;
  };
  for (size_t i = 72; i < 76; ++i) {  // n_tensors
    Bytes changed = file;
    changed[i] = 0xff;
    repair_checksums(changed);
    CHECK(peak_of(changed) < 100'000);
  }
  Bytes changed = file;
  edit_record(changed, 1, [](TensorRecord& r) { r.n_rows = 0xffffffff; });
  repair_checksums(changed);
  CHECK(peak_of(changed) < 100'000);
  changed = file;
  changed[header_of(file).metadata_offset + 3] = 0xff;  // number of entries
  repair_checksums(changed);
  CHECK(peak_of(changed) < 100'000);
}

TEST_CASE("bytes in memory must be aligned as a file's are") {
  const Bytes file = sample_bytes();
  const AlignedBytes aligned(file);
  CHECK_THROWS_WITH(Container::from_bytes(std::span<const uint8_t>(aligned).subspan(64), "f"),
                    Contains("128-byte aligned"));
}

TEST_CASE("of a file with a bad header no more than the header is read into memory") {
  class CountingIo : public Io {
   public:
    size_t n_read = 0;

   private:
    ssize_t pread(int fd, void* data, size_t size, uint64_t offset) override {
      n_read += size;
      return Io::pread(fd, data, size, offset);
    }
  } io;
  const TempFolder folder;
  write_file(folder / "zeros", Bytes(1 << 20));
  CHECK_THROWS_WITH(Container::open(folder / "zeros", Container::Access::kRead, io), Contains("unfinished"));
  CHECK(io.n_read == 128);
}

TEST_CASE("what is no readable regular file is an I/O error that names the path") {
  const TempFolder folder;
  write_file(folder / "empty", {});
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);
  for (const auto access : {Container::Access::kMap, Container::Access::kRead}) {
    CHECK_THROWS_WITH(Container::open(folder / "absent", access),
                      (folder / "absent") + ": cannot open: No such file or directory");
    CHECK_THROWS_WITH(Container::open(folder.path(), access), folder.path() + ": a folder, expected a file");
    CHECK_THROWS_WITH(Container::open(folder / "empty", access),
                      (folder / "empty") + ": 0 bytes, expected at least a header of 128");
    CHECK_THROWS_WITH(Container::open(folder / "pipe", access), (folder / "pipe") + ": not a regular file");
  }
}
