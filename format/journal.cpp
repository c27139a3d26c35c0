// Bytes of the journal. See journal.h.
#include "format/journal.h"

#include <cstring>

#include "format/checksum.h"

namespace pith {
namespace {

struct Head {
  std::array<uint8_t, 8> magic = {'P', 'I', 'T', 'H', 'J', 'N', 'L', '1'};
  uint64_t job;
};
constexpr size_t kRecordHead = 8, kSum = 8;

void append(Bytes& out, const void* data, size_t size) {
  const auto* const bytes = static_cast<const uint8_t*>(data);
  out.insert(out.end(), bytes, bytes + size);
}

template <typename T>
void append(Bytes& out, const T& value) {
  append(out, &value, sizeof value);
}

std::string as_string(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

JournalBytes JournalBytes::head(uint64_t job) {
  const Head head{.job = job};
  JournalBytes journal{{}, checksum64(bytes_of(head))};
  append(journal.bytes, head);
  append(journal.bytes, journal.chain);
  return journal;
}

void JournalBytes::add(uint32_t type, std::span<const uint8_t> payload) {
  const size_t at = bytes.size();
  append(bytes, type);
  append(bytes, static_cast<uint32_t>(payload.size()));
  append(bytes, payload.data(), payload.size());
  chain = checksum64(std::span(bytes).subspan(at), chain);
  append(bytes, chain);
}

void JournalBytes::add_note(const std::string& name, const std::string& text) {
  Bytes payload;
  append(payload, static_cast<uint32_t>(name.size()));
  append(payload, name.data(), name.size());
  append(payload, text.data(), text.size());
  add(static_cast<uint32_t>(JournalReader::Type::kNote), payload);
}

void JournalBytes::add_tensor(const TensorRecord& record, const std::string& name) {
  Bytes payload;
  append(payload, record);
  append(payload, name.data(), name.size());
  add(static_cast<uint32_t>(JournalReader::Type::kTensor), payload);
}

template <typename T>
T JournalReader::load(uint64_t at) const {
  T value;
  std::memcpy(&value, bytes_.data() + at, sizeof value);
  return value;
}

std::optional<uint64_t> JournalReader::head() {
  if (bytes_.size() < sizeof(Head) + kSum) return std::nullopt;
  const auto job = load<Head>(0).job;
  const JournalBytes expected = JournalBytes::head(job);
  if (std::memcmp(bytes_.data(), expected.bytes.data(), expected.bytes.size()) != 0) return std::nullopt;
  at_ = expected.bytes.size();
  chain_ = expected.chain;
  return job;
}

bool JournalReader::next() {
  if (bytes_.size() - at_ < kRecordHead + kSum) return false;
  const auto type = load<Type>(at_);
  const uint32_t size = load<uint32_t>(at_ + 4);
  if (bytes_.size() - at_ - kRecordHead - kSum < size) return false;
  const uint64_t sum = checksum64(bytes_.subspan(at_, kRecordHead + size), chain_);
  if (load<uint64_t>(at_ + kRecordHead + size) != sum) return false;

  const auto payload = bytes_.subspan(at_ + kRecordHead, size);
  if (type == Type::kTensor && size > sizeof tensor_) {
    std::memcpy(&tensor_, payload.data(), sizeof tensor_);
    name_ = as_string(payload.subspan(sizeof tensor_));
  } else if (type == Type::kNote && size >= 4 && load<uint32_t>(at_ + kRecordHead) <= size - 4) {
    const uint32_t name_size = load<uint32_t>(at_ + kRecordHead);
    name_ = as_string(payload.subspan(4, name_size));
    text_ = as_string(payload.subspan(4 + size_t{name_size}));
  } else {
    return false;
  }
  type_ = type;
  chain_ = sum;
  at_ += kRecordHead + size + kSum;
  return true;
}

}  // namespace pith
