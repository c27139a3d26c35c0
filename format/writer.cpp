// Writer: streams tensors to PATH.part, journals them, and puts the file in place at the end.
#include "format/writer.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "format/atomic_file.h"
#include "format/checked.h"
#include "format/checksum.h"
#include "format/journal.h"
#include "format/records.h"

namespace pith {
namespace {

constexpr uint64_t kDataStart = sizeof(HeaderRecord);

void append(Bytes& out, const void* data, size_t size) {
  const auto* const bytes = static_cast<const uint8_t*>(data);
  out.insert(out.end(), bytes, bytes + size);
}

// Whether the finished file may take the place of this one: of a pith file or an empty one, not of a weight or a text that a
// mistyped name stands for.
bool may_replace(Io& io, const std::string& path) {
  std::array<uint8_t, kMagic.size()> head;
  const size_t n_read = File(io, path, O_RDONLY).read_at(0, head.data(), head.size());
  return n_read == 0 || (n_read == head.size() && head == kMagic);
}

}  // namespace

struct Writer::Impl {
  Io& io;
  const std::string path, part_path, journal_path;
  File part, journal;
  std::vector<TensorRecord> records;
  std::vector<std::string> names;
  std::map<std::string, size_t, std::less<>> index;  // of records and names
  std::map<std::string, std::string> notes;          // also of tensors not yet added
  uint64_t end = kDataStart;                         // of the last whole tensor in the .part
  uint64_t journal_end = 0, chain = 0;
  size_t n_resumed = 0;
  bool done = false;  // finished or discarded

  Impl(const std::string& target, Io& system)
      : io(system), path(target), part_path(target + ".part"), journal_path(target + ".part.journal") {}

  void start(uint64_t job, Unfinished unfinished);
  void resume(uint64_t job);
  void refuse_other_job(JournalReader& reader, uint64_t part_size) const;
  bool data_is_whole(const TensorRecord& record, const std::string& name, uint64_t part_size) const;
  void commit(const TensorRecord& record, const std::string& name);
  void append_journal(const JournalBytes& more);

  uint64_t begin_tensor(const std::string& name) const;
  void end_tensor(TensorRecord record, const std::string& name);
  HeaderRecord write_tail(const Metadata& metadata);
};

void Writer::Impl::start(uint64_t job, Unfinished unfinished) {
  if (path.empty()) throw_error(ErrorCode::kInvalidArgument, "the output has no name, expected a file");
  struct stat target;
  if (io.stat(path.c_str(), &target) == 0) {
    if (!S_ISREG(target.st_mode)) throw_error(ErrorCode::kIo, "{}: exists and is not a regular file", path);
    if (!may_replace(io, path))
      throw_error(ErrorCode::kInvalidArgument,
                  "{}: exists and is not a pith file, expected a new name or a pith file to replace", path);
  }
  part = open_locked(io, part_path);
  const bool is_new = part.size_bytes() == 0;
  try {
    journal = File(io, journal_path, O_RDWR | O_CREAT);
    journal.size_bytes();  // refuses what is no file, before anything in the .part is lost
    if (unfinished != Unfinished::kReplace) resume(job);
    const std::array<uint8_t, kDataStart> no_header{};
    part.write_at(0, no_header.data(), no_header.size());
    part.truncate(end);
    if (journal_end == 0) append_journal(JournalBytes::head(job));
    journal.truncate(journal_end);
  } catch (...) {
    if (is_new) {
      io.unlink(part_path.c_str());
      io.unlink(journal_path.c_str());
    }
    throw;
  }
}

void Writer::Impl::resume(uint64_t job) {
  Bytes bytes(journal.size_bytes());
  bytes.resize(journal.read_at(0, bytes.data(), bytes.size()));
  const uint64_t part_size = part.size_bytes();
  JournalReader reader(bytes);
  const std::optional<uint64_t> found = reader.head();
  if (!found) return;
  if (*found != job) return refuse_other_job(reader, part_size);
  const auto keep = [&] {
    journal_end = reader.position();
    chain = reader.chain();
  };
  keep();
  std::map<std::string, std::string> early_notes;  // their tensor comes later, or never
  while (reader.next()) {
    const std::string& name = reader.name();
    if (reader.type() == JournalReader::Type::kTensor) {
      if (!data_is_whole(reader.tensor(), name, part_size)) break;
      commit(reader.tensor(), name);
      if (auto note = early_notes.extract(name)) notes.insert(std::move(note));
      keep();
    } else if (index.find(name) == index.end()) {
      early_notes[name] = reader.text();
    } else {
      notes[name] = reader.text();
      keep();
    }
  }
  n_resumed = records.size();
}

// Throws where its first tensor is there: otherwise nothing is lost with it.
void Writer::Impl::refuse_other_job(JournalReader& reader, uint64_t part_size) const {
  while (reader.next()) {
    if (reader.type() != JournalReader::Type::kTensor) continue;
    if (!data_is_whole(reader.tensor(), reader.name(), part_size)) return;
    throw_error(ErrorCode::kInvalidArgument,
                "{}: of an interrupted run with other options, other input or another version of pith; "
                "--restart drops it",
                part_path);
  }
}

bool Writer::Impl::data_is_whole(const TensorRecord& record, const std::string& name,
                                 uint64_t part_size) const {
  if (record.offset != end || !range_fits(record.offset, record.size, part_size)) return false;
  Checksum64 checksum(tensor_seed(name, record.offset));
  Bytes chunk(std::min<uint64_t>(record.size, 1 << 20));
  for (uint64_t at = 0; at < record.size;) {
    const size_t want = std::min<uint64_t>(record.size - at, chunk.size());
    if (part.read_at(record.offset + at, chunk.data(), want) != want) return false;
    checksum.update({chunk.data(), want});
    at += want;
  }
  return checksum.value() == record.checksum;
}

void Writer::Impl::commit(const TensorRecord& record, const std::string& name) {
  index.emplace(name, records.size());
  names.push_back(name);
  records.push_back(record);
  end = record.offset + record.size;
}

void Writer::Impl::append_journal(const JournalBytes& more) {
  journal.write_at(journal_end, more.bytes.data(), more.bytes.size());
  journal_end += more.bytes.size();
  chain = more.chain;
}

uint64_t Writer::Impl::begin_tensor(const std::string& name) const {
  if (done) throw_error(ErrorCode::kInternal, "{}: a tensor after the end", path);
  if (!is_valid_name(name))
    throw_error(ErrorCode::kInvalidArgument, "{}: tensor name '{}': expected [a-z0-9_.]+", path, name);
  if (index.find(name) != index.end())
    throw_error(ErrorCode::kInvalidArgument, "{}: tensor '{}' is added twice", path, name);
  return end;
}

void Writer::Impl::end_tensor(TensorRecord record, const std::string& name) {
  JournalBytes more{{}, chain};
  if (const auto note = notes.find(name); note != notes.end()) more.add_note(name, note->second);
  more.add_tensor(record, name);
  append_journal(more);
  commit(record, name);
}

Writer::Writer(const std::string& path, uint64_t job, Unfinished unfinished, Io& io)
    : impl_(std::make_unique<Impl>(path, io)) {
  impl_->start(job, unfinished);
}

Writer::~Writer() = default;
Writer::Writer(Writer&&) noexcept = default;

size_t Writer::n_resumed() const {
  return impl_->n_resumed;
}
bool Writer::has(std::string_view name) const {
  return impl_->index.find(name) != impl_->index.end();
}

void Writer::add(const std::string& name, TensorKind kind, uint32_t n_rows, uint32_t n_cols,
                 std::span<const uint8_t> data) {
  Impl& w = *impl_;
  const uint64_t offset = w.begin_tensor(name);
  if (kind == TensorKind::kQ24)
    throw_error(ErrorCode::kInternal, "tensor '{}': q24 needs its Unpacked", name);
  const uint64_t size = tensor_size(kind, {n_rows, n_cols, 0, 0, 0});
  const uint64_t used = uint64_t{n_rows} * n_cols * element_size(kind);
  if (data.size() != used)
    throw_error(ErrorCode::kInvalidArgument, "tensor '{}' [{}, {}] {}: {} bytes, expected {}", name, n_rows,
                n_cols, to_string(kind), data.size(), used);
  const std::array<uint8_t, kFileAlign> zeros{};
  Checksum64 checksum(tensor_seed(name, offset));
  checksum.update(data);
  checksum.update(std::span(zeros).first(size - used));
  w.part.write_at(offset, data.data(), used);
  w.part.write_at(offset + used, zeros.data(), size - used);
  w.end_tensor({.name_offset = 0,
                .name_size = static_cast<uint16_t>(name.size()),
                .kind = static_cast<uint8_t>(kind),
                .group = 0,
                .n_rows = n_rows,
                .n_cols = n_cols,
                .n_fine = 0,
                .n_slots = 0,
                .offset = offset,
                .size = size,
                .checksum = checksum.value(),
                .reserved = {}},
               name);
}

void Writer::add(const std::string& name, const q24::Unpacked& tensor) {
  Impl& w = *impl_;
  const uint64_t offset = w.begin_tensor(name);
  const q24::Shape& shape = tensor.shape;
  Bytes data(q24::make_layout(shape).size_bytes);
  q24::pack(tensor, data);
  q24::check(q24::make_view(shape, data.data()), name.c_str());
  w.part.write_at(offset, data.data(), data.size());
  w.end_tensor({.name_offset = 0,
                .name_size = static_cast<uint16_t>(name.size()),
                .kind = static_cast<uint8_t>(TensorKind::kQ24),
                .group = static_cast<uint8_t>(shape.group),
                .n_rows = shape.n_rows,
                .n_cols = shape.n_cols,
                .n_fine = shape.n_fine,
                .n_slots = shape.n_slots,
                .offset = offset,
                .size = data.size(),
                .checksum = checksum64(data, tensor_seed(name, offset)),
                .reserved = {}},
               name);
}

void Writer::read(std::string_view name, std::span<uint8_t> out) const {
  const auto found = impl_->index.find(name);
  if (found == impl_->index.end())
    throw_error(ErrorCode::kInternal, "tensor '{}' is not there to be read", name);
  const TensorRecord& record = impl_->records[found->second];
  if (out.size() != record.size)
    throw_error(ErrorCode::kInternal, "tensor '{}': {} bytes wanted of {}", name, out.size(), record.size);
  if (impl_->part.read_at(record.offset, out.data(), out.size()) != out.size())
    throw_error(ErrorCode::kIo, "{}: tensor '{}' cannot be read back", impl_->part_path, name);
}

void Writer::note(const std::string& name, const std::string& text) {
  Impl& w = *impl_;
  if (has(name)) {
    JournalBytes more{{}, w.chain};
    more.add_note(name, text);
    w.append_journal(more);
  }
  w.notes[name] = text;
}

std::string Writer::noted(const std::string& name) const {
  const auto note = impl_->notes.find(name);
  return note == impl_->notes.end() ? std::string() : note->second;
}

HeaderRecord Writer::Impl::write_tail(const Metadata& metadata) {
  if (done) throw_error(ErrorCode::kInternal, "{}: finished twice", path);
  const Bytes metadata_bytes = metadata.serialize();
  Bytes directory;
  uint32_t name_offset = 0;
  for (TensorRecord record : records) {
    record.name_offset = name_offset;
    name_offset += record.name_size;
    append(directory, &record, sizeof record);
  }
  for (const std::string& name : names) append(directory, name.data(), name.size());

  HeaderRecord h{};
  h.magic = kMagic;
  h.major = kMajor;
  h.minor = kMinor;
  h.header_size = sizeof h;
  h.metadata_offset = end;
  h.metadata_size = metadata_bytes.size();
  h.directory_offset = checked_round_up(h.metadata_offset + h.metadata_size, kFileAlign);
  h.directory_size = directory.size();
  h.file_size = checked_round_up(h.directory_offset + h.directory_size, kFileAlign);
  h.n_tensors = static_cast<uint32_t>(records.size());
  h.metadata_checksum = checksum64(metadata_bytes);
  h.directory_checksum = checksum64(directory);
  h.header_checksum = header_checksum(h);

  Bytes tail(h.file_size - end);
  std::ranges::copy(metadata_bytes, tail.begin());
  std::ranges::copy(directory, tail.begin() + static_cast<ptrdiff_t>(h.directory_offset - end));
  part.write_at(end, tail.data(), tail.size());
  part.truncate(h.file_size);
  return h;
}

void Writer::preview(const Metadata& metadata, const std::function<void(const std::string& part_path)>& use) {
  Impl& w = *impl_;
  const HeaderRecord h = w.write_tail(metadata);
  w.part.write_at(0, &h, sizeof h);
  const auto close = [&] {
    const std::array<uint8_t, kDataStart> no_header{};
    w.part.write_at(0, no_header.data(), no_header.size());
  };
  try {
    use(w.part_path);
  } catch (...) {
    close();
    throw;
  }
  close();
}

void Writer::finish(const Metadata& metadata) {
  Impl& w = *impl_;
  const HeaderRecord h = w.write_tail(metadata);
  w.part.sync();
  w.part.write_at(0, &h, sizeof h);
  w.part.sync();
  if (w.io.rename(w.part_path.c_str(), w.path.c_str()) != 0)
    throw_io(w.path, "put the finished file in place", errno);
  w.done = true;
  sync_folder_of(w.io, w.path);
  w.io.unlink(w.journal_path.c_str());  // one left behind is replaced by the next Writer
}

void Writer::discard() {
  Impl& w = *impl_;
  w.done = true;
  for (const std::string& path : {w.part_path, w.journal_path})
    if (w.io.unlink(path.c_str()) != 0 && errno != ENOENT) throw_io(path, "remove", errno);
}

}  // namespace pith
