// What the tests and fuzz targets of format/ share: sample tensors and files, aligned bytes, repair of checksums,
// and an independent re-check of what the reader accepted.
#pragma once
#include <cstring>
#include <fstream>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "format/checksum.h"
#include "format/container.h"
#include "format/records.h"
#include "format/writer.h"
#include "random_q24.h"
#include "temp_folder.h"

namespace pith::test {

// 128-byte aligned bytes of exactly the given size, so that AddressSanitizer sees a read past the end.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::span<const uint8_t> bytes)
      : data_(static_cast<uint8_t*>(::operator new (bytes.size(), std::align_val_t{128}))),
        size_(bytes.size()) {
    if (size_ != 0) std::memcpy(data_, bytes.data(), size_);
  }
  ~AlignedBytes() { ::operator delete (data_, std::align_val_t{128}); }
  AlignedBytes(const AlignedBytes&) = delete;
  operator std::span<const uint8_t>() const { return {data_, size_}; }

 private:
  uint8_t* data_;
  size_t size_;
};

inline Bytes read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

inline void write_file(const std::string& path, std::span<const uint8_t> bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

inline std::span<const uint8_t> raw(const std::vector<float>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)};
}

// A small file's content, in steps, so that tests can interrupt it: step i adds tensor i.
struct SampleFile {
  static constexpr size_t kTensors = 4;
  static constexpr const char* kNames[kTensors] = {"norm", "layer.q", "layer.k", "half"};

  static void add(Writer& writer, size_t i) {
    if (i == 0) writer.add(kNames[0], TensorKind::kF32, 1, 5, raw({1.0f, -2.0f, 0.5f, 0.25f, 3.0f}));
    if (i == 1 || i == 2)  // equal sizes, different content
      writer.add(kNames[i], random_q24({33, 65, 16, 80, 2}, static_cast<uint32_t>(i)));
    if (i == 3) writer.add(kNames[3], TensorKind::kBF16, 3, 2, Bytes(12, 0x3f));
  }
  static Metadata metadata() {
    Metadata m;
    m.set("a.bool", true);
    m.set("a.bytes", Bytes{0, 255, 3});
    m.set("a.f64", 0.5);
    m.set("a.floats", std::vector<float>{1.5f, -2.0f});
    m.set("a.i64", int64_t{-5});
    m.set("a.ids", std::vector<uint32_t>{1, 2, 3});
    m.set("a.text", std::string("gr\xc3\xbc\xc3\x9f"));
    m.set("a.texts", std::vector<std::string>{"", "one", "a longer string than sixteen"});
    m.set("a.u64", uint64_t{1} << 40);
    return m;
  }
  static void write(const std::string& path) {
    Writer writer(path, 7);
    for (size_t i = 0; i < kTensors; ++i) add(writer, i);
    writer.finish(metadata());
  }
};

inline Bytes sample_bytes() {
  const TempFolder folder;
  SampleFile::write(folder / "sample.pith");
  return read_file(folder / "sample.pith");
}

// Access to the records of a file's bytes. Offsets are taken from the bytes and clamped: they may be hostile.
inline HeaderRecord header_of(const Bytes& file) {
  HeaderRecord h;
  std::memcpy(&h, file.data(), sizeof h);
  return h;
}

inline size_t record_at(const Bytes& file, size_t i) {
  return header_of(file).directory_offset + i * sizeof(TensorRecord);
}

inline TensorRecord record_of(const Bytes& file, size_t i) {
  TensorRecord record;
  std::memcpy(&record, file.data() + record_at(file, i), sizeof record);
  return record;
}

template <typename F>
void edit_header(Bytes& file, F&& edit) {
  HeaderRecord h = header_of(file);
  edit(h);
  std::memcpy(file.data(), &h, sizeof h);
}

template <typename F>
void edit_record(Bytes& file, size_t i, F&& edit) {
  TensorRecord record = record_of(file, i);
  edit(record);
  std::memcpy(file.data() + record_at(file, i), &record, sizeof record);
}

// Makes every checksum that can be found right again, so that the rule behind it is what gets tested.
inline void repair_checksums(Bytes& file) {
  if (file.size() < sizeof(HeaderRecord)) return;
  HeaderRecord h = header_of(file);
  const auto fits = [&](uint64_t offset, uint64_t size) {
    return offset <= file.size() && size <= file.size() - offset;
  };
  const std::span<const uint8_t> bytes(file);
  if (fits(h.directory_offset, h.directory_size)) {
    const uint64_t n = std::min<uint64_t>(h.n_tensors, h.directory_size / sizeof(TensorRecord));
    const uint64_t names_at = h.directory_offset + h.n_tensors * uint64_t{sizeof(TensorRecord)};
    for (uint64_t i = 0; i < n; ++i)
      edit_record(file, i, [&](TensorRecord& r) {
        if (!fits(names_at + r.name_offset, r.name_size) || !fits(r.offset, r.size)) return;
        const std::string name(reinterpret_cast<const char*>(file.data()) + names_at + r.name_offset,
                               r.name_size);
        r.checksum = checksum64(bytes.subspan(r.offset, r.size), tensor_seed(name, r.offset));
      });
    h.directory_checksum = checksum64(bytes.subspan(h.directory_offset, h.directory_size));
  }
  if (fits(h.metadata_offset, h.metadata_size))
    h.metadata_checksum = checksum64(bytes.subspan(h.metadata_offset, h.metadata_size));
  h.header_checksum = header_checksum(h);
  std::memcpy(file.data(), &h, sizeof h);
}

// Opens and verifies everything. "" when the file is good, otherwise the first error's message; anything but an
// Error passes through.
inline std::string fault_of(std::span<const uint8_t> bytes) {
  const AlignedBytes aligned(bytes);
  try {
    const Container container = Container::from_bytes(aligned, "file");
    for (const Tensor& tensor : container.tensors()) container.verify_tensor(tensor);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace pith::test
