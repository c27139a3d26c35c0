// Fuzzes opening and verifying a container. Oracle: a file that is accepted is, byte by byte, what one would write who
// has only the accepted content; and whatever opens can be decoded without touching memory outside the file.
//
// The mutator edits header, directory, metadata or data, and nearly always makes the checksums right again: a fuzzer does
// not guess XXH3, and behind the checksums is where the rules are.
#include <cstdio>
#include <cstdlib>

#include "format_samples.h"

using namespace pith;
using namespace pith::test;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "accepted, but: %s\n", what);
  std::abort();
}

void pad(Bytes& out) {
  out.resize((out.size() + 127) / 128 * 128);
}

// The one file with this content, written without the library's writer.
Bytes canonical_file(const Container& container, const Bytes& input) {
  Bytes out(128), directory, names;
  for (const Tensor& t : container.tensors()) {
    require(t.offset == out.size(), "a tensor is not where the one before it ends");
    require(t.offset + t.size_bytes <= input.size(), "a tensor ends beyond the file");
    TensorRecord r{};
    r.name_offset = static_cast<uint32_t>(names.size());
    r.name_size = static_cast<uint16_t>(t.name.size());
    r.kind = static_cast<uint8_t>(t.kind);
    r.group = t.kind == TensorKind::kQ24 ? static_cast<uint8_t>(t.q24.group) : uint8_t{0};
    r.n_rows = t.n_rows;
    r.n_cols = t.n_cols;
    r.n_fine = t.q24.n_fine;
    r.n_slots = t.q24.n_slots;
    r.offset = t.offset;
    if (t.kind == TensorKind::kQ24) {
      const q24::Unpacked content = q24::unpack(t.q24_view());
      Bytes packed(t.size_bytes, 0xee);
      q24::pack(content, packed);
      out.insert(out.end(), packed.begin(), packed.end());
    } else {
      const uint64_t used = uint64_t{t.n_rows} * t.n_cols * (t.kind == TensorKind::kF32 ? 4 : 2);
      require(used <= t.size_bytes, "a plain tensor is smaller than its shape");
      out.insert(out.end(), t.data, t.data + used);
      pad(out);
    }
    r.size = out.size() - r.offset;
    r.checksum = checksum64(std::span(out).subspan(r.offset), tensor_seed(t.name, r.offset));
    const auto record = bytes_of(r);
    directory.insert(directory.end(), record.begin(), record.end());
    names.insert(names.end(), t.name.begin(), t.name.end());
  }
  directory.insert(directory.end(), names.begin(), names.end());
  const Bytes metadata = container.metadata().serialize();

  HeaderRecord h = header_of(input);  // minor and optional features are free
  h.metadata_offset = out.size();
  h.metadata_size = metadata.size();
  out.insert(out.end(), metadata.begin(), metadata.end());
  pad(out);
  h.directory_offset = out.size();
  h.directory_size = directory.size();
  out.insert(out.end(), directory.begin(), directory.end());
  pad(out);
  h.magic = kMagic;
  h.major = 1;
  h.header_size = 128;
  h.file_size = out.size();
  h.required_features = 0;
  h.n_tensors = static_cast<uint32_t>(container.tensors().size());
  h.reserved0 = 0;
  h.reserved1 = {};
  h.metadata_checksum = checksum64(metadata);
  h.directory_checksum = checksum64(directory);
  h.header_checksum = header_checksum(h);
  std::memcpy(out.data(), &h, sizeof h);
  return out;
}

void decode_everything(const Container& container) {
  for (const Tensor& t : container.tensors()) {
    if (t.kind != TensorKind::kQ24) continue;
    const q24::View view = t.q24_view();
    std::vector<float> row(t.n_cols);
    for (uint32_t r = 0; r < t.n_rows; r += 31) q24::dequantize_row(view, r, row.data());
    q24::dequantize_row(view, t.n_rows - 1, row.data());
  }
}

const Bytes& seed_file() {
  static const Bytes file = sample_bytes();
  return file;
}

struct Range {
  size_t at, size;
};

// The part of the file to change, at random; all of it when its header is useless.
Range pick_range(const Bytes& file, std::mt19937& rng) {
  const HeaderRecord h = header_of(file);
  const auto clamped = [&](uint64_t at, uint64_t size) {
    if (at >= file.size()) return Range{0, file.size()};
    return Range{at, std::max<uint64_t>(1, std::min<uint64_t>(size, file.size() - at))};
  };
  switch (rng() % 8) {
    case 0:
      return {0, sizeof h};
    case 1:
    case 2:
      return clamped(h.directory_offset, h.directory_size);
    case 3: {  // one record
      const uint64_t i = rng() % std::max(1u, std::min(h.n_tensors, 100u));
      return clamped(h.directory_offset + i * sizeof(TensorRecord), sizeof(TensorRecord));
    }
    case 4:
    case 5:
      return clamped(h.metadata_offset, h.metadata_size);
    case 6:
      return clamped(128, h.metadata_offset);
    default:
      return {0, file.size()};
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Bytes input(data, data + size);
  const AlignedBytes aligned(input);
  try {
    const Container container = Container::from_bytes(aligned, "fuzz");
    decode_everything(container);  // before verification: the content may be anything
    for (const Tensor& tensor : container.tensors()) container.verify_tensor(tensor);
    require(canonical_file(container, input) == input, "its bytes are not those of its content");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kFormat && error.code() != ErrorCode::kUnsupported) throw;
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  std::mt19937 rng(seed);
  Bytes file(data, data + size);
  if (file.size() < sizeof(HeaderRecord) || rng() % 64 == 0) file = seed_file();
  const Range range = pick_range(file, rng);
  switch (rng() % 8) {
    case 0: {  // any change, of any size, in the range
      const Bytes before(file.begin() + static_cast<ptrdiff_t>(range.at),
                         file.begin() + static_cast<ptrdiff_t>(range.at + range.size));
      Bytes part = before;
      part.resize(range.size + 256);
      part.resize(LLVMFuzzerMutate(part.data(), range.size, part.size()));
      file.erase(file.begin() + static_cast<ptrdiff_t>(range.at),
                 file.begin() + static_cast<ptrdiff_t>(range.at + range.size));
      file.insert(file.begin() + static_cast<ptrdiff_t>(range.at), part.begin(), part.end());
      break;
    }
    case 1: {  // an interesting number at an aligned place
      static constexpr uint64_t kNumbers[] = {
          0,     1,           2,    3,      16,      32,         64,         127,        128,
          129,   255,         256,  0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff, uint64_t{1} << 63,
          ~0ull, ~0ull - 127, 65472};
      const uint64_t number = kNumbers[rng() % std::size(kNumbers)];
      const size_t width = size_t{1} << rng() % 4;
      const size_t at = range.at + rng() % range.size / width * width;
      if (at + width <= file.size()) std::memcpy(file.data() + at, &number, width);
      break;
    }
    case 2: {  // a small step up or down
      const size_t at = range.at + rng() % range.size;
      file[at] = static_cast<uint8_t>(file[at] + static_cast<int>(rng() % 9) - 4);
      break;
    }
    case 3: {  // one place copied over another
      const size_t n = std::min<size_t>(range.size, size_t{1} << rng() % 8);
      const size_t from = range.at + rng() % (range.size - n + 1),
                   to = range.at + rng() % (range.size - n + 1);
      std::memmove(file.data() + to, file.data() + from, n);
      break;
    }
    default: {  // same size
      const size_t n = LLVMFuzzerMutate(file.data() + range.at, range.size, range.size);
      if (n < range.size) std::memset(file.data() + range.at + n, 0, range.size - n);
      break;
    }
  }
  if (file.size() >= sizeof(HeaderRecord) && rng() % 2 == 0)
    edit_header(file, [&](HeaderRecord& h) { h.file_size = file.size(); });
  if (rng() % 16 != 0) repair_checksums(file);
  file.resize(std::min(file.size(), max_size));
  std::memcpy(data, file.data(), file.size());
  return file.size();
}
