// Opening and verifying a container. FORMAT.md numbers the rules; the order here is theirs.
//
// The layout leaves no choice where anything lies (tensors back to back from byte 128, then metadata, then
// directory), so validation is a walk that compares each stored offset and size with the only possible one.
// Metadata and directory are copied to the heap before they are checked: a mapping may change between check
// and use.
#include "format/container.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "format/checked.h"
#include "format/checksum.h"
#include "format/records.h"

namespace pith {
namespace {

[[noreturn]] void refuse(const char* field, uint64_t found, uint64_t expected) {
  throw_error(ErrorCode::kFormat, "{} is {}, expected {}", field, found, expected);
}

void expect(const char* field, uint64_t found, uint64_t expected) {
  if (found != expected) refuse(field, found, expected);
}

void expect_zeros(const char* what, std::span<const uint8_t> bytes) {
  if (std::any_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b != 0; }))
    throw_error(ErrorCode::kFormat, "{}: a byte is not zero", what);
}

// Runs f; an Error leaves with `context` in front of its message.
template <typename F>
void in_context(const std::string& context, F&& f) {
  try {
    f();
  } catch (const Error& error) {
    throw Error(error.code(), context + ": " + error.what());
  }
}

// head: the first bytes of a file of file_size.
HeaderRecord parse_header(std::span<const uint8_t> head, uint64_t file_size) {
  if (head.size() < sizeof(HeaderRecord))
    throw_error(ErrorCode::kFormat, "{} bytes, expected at least a header of {}", head.size(),
                sizeof(HeaderRecord));
  HeaderRecord h;
  head = head.first(sizeof h);
  std::memcpy(&h, head.data(), sizeof h);
  if (h.magic != kMagic) {
    if (std::all_of(head.begin(), head.end(), [](uint8_t b) { return b == 0; }))
      throw_error(ErrorCode::kFormat, "an unfinished file: its header was never written");
    if (std::memcmp(head.data(), "GGUF", 4) == 0)
      throw_error(ErrorCode::kFormat,
                  "a GGUF file, expected a pith file: `pith convert` makes one of a checkpoint");
    throw_error(ErrorCode::kFormat, "not a pith file: it begins with {:02x}, expected {:02x}",
                fmt::join(head.first(h.magic.size()), " "), fmt::join(kMagic, " "));
  }
  if (h.major != kMajor)
    throw_error(ErrorCode::kUnsupported, "format version {}.{}, this reader knows {}.x", h.major, h.minor,
                kMajor);
  expect("header checksum", h.header_checksum, header_checksum(h));
  expect("header_size", h.header_size, sizeof h);
  if (h.file_size != file_size)
    throw_error(ErrorCode::kFormat, "{} bytes, expected {} by its header ({})", file_size, h.file_size,
                file_size < h.file_size ? "truncated" : "something was appended");
  if (const uint64_t unknown = h.required_features & ~kKnownFeatures)
    throw_error(ErrorCode::kUnsupported, "requires unknown features {:#x}: a later version of pith wrote it",
                unknown);
  expect_zeros("reserved part of the header", bytes_of(h.reserved0));
  expect_zeros("reserved part of the header", bytes_of(h.reserved1));

  // Where metadata and directory lie follows from their sizes; with the walk over the tensors this fixes
  // every byte.
  if (!range_fits(h.metadata_offset, h.metadata_size, h.file_size))
    throw_error(ErrorCode::kFormat, "metadata at {} of {} bytes lies beyond the end", h.metadata_offset,
                h.metadata_size);
  expect("directory_offset", h.directory_offset,
         checked_round_up(checked_add(h.metadata_offset, h.metadata_size), kFileAlign));
  expect("end of the directory",
         checked_round_up(checked_add(h.directory_offset, h.directory_size), kFileAlign), h.file_size);
  return h;
}

// Before gigabytes are read into memory that are no pith file.
void check_header_of(const std::string& path, Io& io) {
  const File file(io, path, O_RDONLY);
  const uint64_t file_size = file.size_bytes();
  std::array<uint8_t, sizeof(HeaderRecord)> head;
  const size_t n_read = file.read_at(0, head.data(), head.size());
  in_context(path, [&] { parse_header(std::span(head).first(n_read), file_size); });
}

// A heap copy of [offset, offset + size), verified; the bytes up to the next multiple of 128 must be zero.
Bytes copy_section(const char* what, std::span<const uint8_t> file, uint64_t offset, uint64_t size,
                   uint64_t checksum) {
  const auto section = file.subspan(offset, size);
  Bytes copy(section.begin(), section.end());
  if (checksum64(copy) != checksum) throw_error(ErrorCode::kFormat, "{}: the checksum differs", what);
  const uint64_t end = offset + size;
  expect_zeros(what, file.subspan(end, checked_round_up(end, kFileAlign) - end));
  return copy;
}

}  // namespace

const char* to_string(TensorKind kind) {
  switch (kind) {
    case TensorKind::kF32:
      return "f32";
    case TensorKind::kF16:
      return "f16";
    case TensorKind::kBF16:
      return "bf16";
    case TensorKind::kQ24:
      return "q24";
  }
  return "unknown kind";
}

uint64_t tensor_seed(std::string_view name, uint64_t offset) {
  Checksum64 seed;
  seed.update({reinterpret_cast<const uint8_t*>(name.data()), name.size()});
  seed.update(bytes_of(offset));
  return seed.value();
}

uint64_t header_checksum(const HeaderRecord& header) {
  return checksum64(bytes_of(header).first(offsetof(HeaderRecord, header_checksum)));
}

uint32_t element_size(TensorKind kind) {
  return kind == TensorKind::kF32 ? 4 : 2;
}

uint64_t tensor_size(TensorKind kind, const q24::Shape& s) {
  switch (kind) {
    case TensorKind::kQ24:
      return q24::make_layout(s).size_bytes;
    case TensorKind::kF32:
    case TensorKind::kF16:
    case TensorKind::kBF16:
      break;
    default:
      throw_error(ErrorCode::kFormat, "unknown tensor kind {}", static_cast<unsigned>(kind));
  }
  constexpr uint32_t kMaxPlainCols = 1u << 31;
  if (s.n_rows < 1) refuse("n_rows", s.n_rows, 1);
  if (s.n_cols < 1 || s.n_cols > kMaxPlainCols)
    throw_error(ErrorCode::kFormat, "n_cols is {}, expected 1 to {}", s.n_cols, kMaxPlainCols);
  expect("group", s.group, 0);
  expect("n_fine", s.n_fine, 0);
  expect("n_slots", s.n_slots, 0);
  return checked_round_up(checked_mul(checked_mul(s.n_rows, s.n_cols), element_size(kind)), kFileAlign);
}

q24::View Tensor::q24_view() const {
  q24::View view = q24::make_view(q24, data);
  view.perm = perm.data();
  return view;
}

Container Container::open(const std::string& path, Access access, Io& io) {
  if (access == Access::kRead) check_header_of(path, io);
  MappedFile file = access == Access::kRead ? MappedFile::read(path, io) : MappedFile::map(path, io);
  const std::span<const uint8_t> bytes = file.bytes();
  Container container(std::move(file), bytes, path);
  container.can_move_ = access == Access::kMap;
  return container;
}

uint64_t Container::move_to_huge_pages(const Tensor& tensor, uint32_t part, uint32_t n_parts) const {
  if (!can_move_) return 0;
  const auto cut = [&](uint32_t i) { return tensor.size_bytes / n_parts * i; };
  const uint64_t end = part + 1 == n_parts ? tensor.size_bytes : cut(part + 1);
  return file_.move_to_huge_pages(tensor.data + cut(part), end - cut(part));
}

Container Container::from_bytes(std::span<const uint8_t> bytes, const std::string& name) {
  return Container({}, bytes, name);
}

Container::Container(MappedFile file, std::span<const uint8_t> bytes, const std::string& name)
    : file_(std::move(file)), path_(name), bytes_(bytes) {
  if (reinterpret_cast<uintptr_t>(bytes.data()) % kFileAlign != 0)
    throw_error(ErrorCode::kInvalidArgument, "{}: bytes in memory must be {}-byte aligned", name, kFileAlign);
  in_context(name, [&] { parse(); });
}

void Container::parse() {
  file_.expect_scattered_reads(true);
  const HeaderRecord h = parse_header(bytes_, bytes_.size());
  file_.read_ahead(bytes_.data() + h.metadata_offset, h.file_size - h.metadata_offset);
  const Bytes metadata =
      copy_section("metadata", bytes_, h.metadata_offset, h.metadata_size, h.metadata_checksum);
  const Bytes directory =
      copy_section("directory", bytes_, h.directory_offset, h.directory_size, h.directory_checksum);
  parse_directory(directory, h.n_tensors, h.metadata_offset);
  index_names();
  copy_permutations();  // only now is it known that every data region lies inside the file
  metadata_ = Metadata::parse(metadata);
  fingerprint_ = h.header_checksum;
  file_.expect_scattered_reads(false);
}

void Container::parse_directory(std::span<const uint8_t> directory, uint32_t n_tensors,
                                uint64_t tensors_end) {
  if (n_tensors > directory.size() / sizeof(TensorRecord))
    throw_error(ErrorCode::kFormat, "{} tensors do not fit a directory of {} bytes", n_tensors,
                directory.size());
  const auto names = directory.subspan(n_tensors * sizeof(TensorRecord));
  tensors_.reserve(n_tensors);
  uint64_t next_name = 0;
  uint64_t next_offset = sizeof(HeaderRecord);
  for (uint32_t i = 0; i < n_tensors; ++i) {
    TensorRecord record;
    std::memcpy(&record, directory.data() + i * sizeof record, sizeof record);
    in_context(fmt::format("directory entry {}", i), [&] {
      expect("name_offset", record.name_offset, next_name);
      if (!range_fits(record.name_offset, record.name_size, names.size()))
        throw_error(ErrorCode::kFormat, "its name lies beyond the directory");
      const std::string name(reinterpret_cast<const char*>(names.data()) + record.name_offset,
                             record.name_size);
      if (!is_valid_name(name))
        throw_error(ErrorCode::kFormat, "its name is not [a-z0-9_.]+ of 1 to 255 bytes");
      in_context(fmt::format("tensor '{}'", name), [&] {
        const auto kind = static_cast<TensorKind>(record.kind);
        const q24::Shape shape{record.n_rows, record.n_cols, record.group, record.n_fine, record.n_slots};
        expect("size", record.size, tensor_size(kind, shape));
        expect("offset", record.offset, next_offset);
        expect_zeros("reserved part of its directory entry", bytes_of(record.reserved));
        next_name = record.name_offset + uint64_t{record.name_size};
        next_offset = checked_add(record.offset, record.size);
        tensors_.push_back(Tensor{.name = name,
                                  .kind = kind,
                                  .n_rows = record.n_rows,
                                  .n_cols = record.n_cols,
                                  .q24 = kind == TensorKind::kQ24 ? shape : q24::Shape{},
                                  .data = nullptr,
                                  .offset = record.offset,
                                  .size_bytes = record.size,
                                  .checksum = record.checksum,
                                  .perm = {}});
      });
    });
  }
  expect("metadata_offset (the end of the last tensor)", tensors_end, next_offset);
  expect("size of the directory's names", names.size(), next_name);
}

void Container::index_names() {
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  const auto name_of = [this](uint32_t i) -> const std::string& { return tensors_[i].name; };
  std::sort(by_name_.begin(), by_name_.end(),
            [&](uint32_t a, uint32_t b) { return name_of(a) < name_of(b); });
  for (size_t i = 1; i < by_name_.size(); ++i)
    if (name_of(by_name_[i - 1]) == name_of(by_name_[i]))
      throw_error(ErrorCode::kFormat, "two tensors are named '{}'", name_of(by_name_[i]));
}

// Of a cold file just the planes that are copied, here and by the runtime, come from the disk, all asked for before the first is
// waited for.
void Container::copy_permutations() {
  for (Tensor& tensor : tensors_) {
    tensor.data = bytes_.data() + tensor.offset;
    if (tensor.kind != TensorKind::kQ24) continue;
    const q24::View view = q24::make_view(tensor.q24, tensor.data);
    file_.read_ahead(reinterpret_cast<const uint8_t*>(view.perm),
                     view.layout.padded_cols * sizeof *view.perm);
    file_.read_ahead(reinterpret_cast<const uint8_t*>(view.col_scale),
                     view.layout.n_lines * sizeof *view.col_scale);
  }
  for (Tensor& tensor : tensors_) {
    if (tensor.kind != TensorKind::kQ24) continue;
    const q24::View view = q24::make_view(tensor.q24, tensor.data);
    tensor.perm.assign(view.perm, view.perm + view.layout.padded_cols);
    q24::check_perm(tensor.q24_view(), tensor.name.c_str());
  }
}

const Tensor* Container::find(std::string_view name) const {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [this](uint32_t i, std::string_view n) { return tensors_[i].name < n; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

const Tensor& Container::get(std::string_view name) const {
  const Tensor* const tensor = find(name);
  if (tensor == nullptr) throw_error(ErrorCode::kFormat, "{}: tensor '{}' is missing", path_, name);
  return *tensor;
}

void Container::verify_tensor(const Tensor& tensor) const {
  in_context(path_, [&] {
    const std::span<const uint8_t> data(tensor.data, tensor.size_bytes);
    const uint64_t found = checksum64(data, tensor_seed(tensor.name, tensor.offset));
    if (found != tensor.checksum)
      throw_error(ErrorCode::kFormat, "tensor '{}': checksum {:016x}, expected {:016x}", tensor.name, found,
                  tensor.checksum);
    if (tensor.kind == TensorKind::kQ24) {
      q24::check(tensor.q24_view(), tensor.name.c_str());
    } else {
      const uint64_t used = uint64_t{tensor.n_rows} * tensor.n_cols * element_size(tensor.kind);
      in_context(fmt::format("tensor '{}'", tensor.name),
                 [&] { expect_zeros("padding", data.subspan(used)); });
    }
  });
}

}  // namespace pith
