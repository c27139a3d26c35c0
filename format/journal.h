// The journal beside an unfinished .part: what has been written so far. Internal to the writer, no file format that
// others may rely on; another version of it has another magic and is not continued.
//
//   magic[8], u64 job, u64 checksum; then records
//   u32 type, u32 payload size | payload | u64 checksum of both, seeded with the previous checksum
//
// Type 1, a tensor: TensorRecord, name.  Type 2, a note: u32 name size, name, text.
// The chain of checksums ends at the first record that a crash cut short or that a failed write left behind.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "format/records.h"

namespace pith {

// Records to be appended, and the checksum that the next record continues.
struct JournalBytes {
  Bytes bytes;
  uint64_t chain = 0;

  static JournalBytes head(uint64_t job);  // of a new journal
  void add_note(const std::string& name, const std::string& text);
  void add_tensor(const TensorRecord& record, const std::string& name);

 private:
  void add(uint32_t type, std::span<const uint8_t> payload);
};

// Reads a journal that may be damaged anywhere: next() is false from the first record that is not whole.
class JournalReader {
 public:
  enum class Type : uint32_t { kTensor = 1, kNote = 2 };

  explicit JournalReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  std::optional<uint64_t> head();  // call first: the job; none: no whole head
  bool next();

  // The current record.
  Type type() const { return type_; }
  const std::string& name() const { return name_; }
  const TensorRecord& tensor() const { return tensor_; }  // kTensor
  const std::string& text() const { return text_; }       // kNote

  uint64_t position() const { return at_; }  // the end of head or current record
  uint64_t chain() const { return chain_; }

 private:
  template <typename T>
  T load(uint64_t at) const;

  std::span<const uint8_t> bytes_;
  uint64_t at_ = 0, chain_ = 0;
  Type type_ = Type::kNote;
  std::string name_, text_;
  TensorRecord tensor_{};
};

}  // namespace pith
