// Metadata: checks, serialization, parsing. FORMAT.md describes the bytes.
//
//   u32 n_entries, 12 zero bytes; then an entry each, in key order:
//   u16 key_bytes, u8 type, 5 zero bytes, u64 payload_bytes | key, padded to 16 | payload, padded to 16
//
// The unit of 16 bytes (an entry takes at least 32) is what keeps the parsed form below 4x the bytes: a map
// node with its key and value is 104 bytes.
#include "format/metadata.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "format/checked.h"
#include "format/utf8.h"

namespace pith {
namespace {

constexpr uint64_t kUnit = 16;       // of the blob's head, entry heads, keys and payloads
constexpr uint64_t kStringUnit = 8;  // of the elements of a string array
constexpr uint64_t kMinEntryBytes = 32;

constexpr const char* kTypeNames[] = {"bool",  "u64",   "i64",   "f64",     "string",
                                      "bytes", "u32[]", "f32[]", "string[]"};
static_assert(std::size(kTypeNames) == std::variant_size_v<MetadataValue>);

// Why a value may not be stored, or nullptr.
struct ValueFault {
  const char* operator()(double value) const {
    return std::isfinite(value) ? nullptr : "not a finite number";
  }
  const char* operator()(const std::string& text) const {
    return is_valid_utf8(text) ? nullptr : "a string that is not UTF-8";
  }
  const char* operator()(const std::vector<float>& values) const {
    for (const float value : values)
      if (!std::isfinite(value)) return "not all finite numbers";
    return nullptr;
  }
  const char* operator()(const std::vector<std::string>& texts) const {
    for (const std::string& text : texts)
      if (!is_valid_utf8(text)) return "a string that is not UTF-8";
    return nullptr;
  }
  template <typename T>
  const char* operator()(const T&) const {
    return nullptr;
  }
};

class BlobWriter {
 public:
  template <typename T>
  void put(T value) {
    put_bytes(&value, sizeof value);
  }
  void put_bytes(const void* data, size_t size) {
    const size_t at = out_.size();
    out_.resize(at + size);
    if (size != 0) std::memcpy(out_.data() + at, data, size);
  }
  void pad(uint64_t unit) { out_.resize(checked_round_up(out_.size(), unit)); }
  void put_payload(const MetadataValue& value) {
    std::visit([this](const auto& v) { payload(v); }, value);
  }
  Bytes take() { return std::move(out_); }
  uint64_t size() const { return out_.size(); }
  void patch(uint64_t at, uint64_t value) { std::memcpy(out_.data() + at, &value, sizeof value); }

 private:
  void payload(bool value) { put<uint8_t>(value ? 1 : 0); }
  void payload(uint64_t value) { put(value); }
  void payload(int64_t value) { put(value); }
  void payload(double value) { put(value); }
  void payload(const std::string& text) { put_bytes(text.data(), text.size()); }
  void payload(const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      if (text.size() > UINT32_MAX)
        throw_error(ErrorCode::kInvalidArgument, "metadata: a string of 4 GiB or more");
      put(static_cast<uint32_t>(text.size()));
      payload(text);
      pad(kStringUnit);
    }
  }
  template <typename T>
  void payload(const std::vector<T>& values) {
    put_bytes(values.data(), values.size() * sizeof(T));
  }

  Bytes out_;
};

class BlobReader {
 public:
  explicit BlobReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  [[noreturn]] void refuse(const char* cause) const {
    throw_error(ErrorCode::kFormat, "metadata at byte {}: {}", at_, cause);
  }
  uint64_t remaining() const { return bytes_.size() - at_; }
  std::span<const uint8_t> take(uint64_t size) {
    if (size > remaining()) refuse("a length beyond the end");
    const auto taken = bytes_.subspan(at_, size);
    at_ += size;
    return taken;
  }
  template <typename T>
  T take() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  void take_zeros(uint64_t n) {
    for (uint64_t i = 0; i < n; ++i)
      if (take<uint8_t>() != 0) refuse("a reserved or padding byte is not zero");
  }
  void take_padding(uint64_t size, uint64_t unit) { take_zeros(checked_round_up(size, unit) - size); }

 private:
  std::span<const uint8_t> bytes_;
  uint64_t at_ = 0;
};

std::string_view as_text(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <typename T>
T parse_scalar(BlobReader& payload) {
  if (payload.remaining() != sizeof(T)) payload.refuse("a scalar of the wrong size");
  return payload.take<T>();
}

template <typename T>
std::vector<T> parse_array(BlobReader& payload) {
  if (payload.remaining() % sizeof(T) != 0) payload.refuse("an array that ends inside an element");
  const auto bytes = payload.take(payload.remaining());
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<std::string> parse_strings(BlobReader& payload) {
  BlobReader counter = payload;  // count first: growing a vector would need up to twice the memory
  size_t n = 0;
  for (; counter.remaining() != 0; ++n) {
    const uint32_t size = counter.take<uint32_t>();
    counter.take(size);
    counter.take_padding(sizeof(uint32_t) + uint64_t{size}, kStringUnit);
  }
  std::vector<std::string> texts;
  texts.reserve(n);
  while (payload.remaining() != 0) {
    const uint32_t size = payload.take<uint32_t>();
    texts.emplace_back(as_text(payload.take(size)));
    payload.take_padding(sizeof(uint32_t) + uint64_t{size}, kStringUnit);
  }
  return texts;
}

MetadataValue parse_value(uint8_t type, BlobReader payload) {
  switch (type) {
    case 1: {
      const uint8_t value = parse_scalar<uint8_t>(payload);
      if (value > 1) payload.refuse("a bool that is neither 0 nor 1");
      return value == 1;
    }
    case 2:
      return parse_scalar<uint64_t>(payload);
    case 3:
      return parse_scalar<int64_t>(payload);
    case 4:
      return parse_scalar<double>(payload);
    case 5:
      return std::string(as_text(payload.take(payload.remaining())));
    case 6:
      return parse_array<uint8_t>(payload);
    case 7:
      return parse_array<uint32_t>(payload);
    case 8:
      return parse_array<float>(payload);
    case 9:
      return parse_strings(payload);
    default:
      payload.refuse("an unknown value type");
  }
}

}  // namespace

const char* metadata_type_name(size_t index) {
  return index < std::size(kTypeNames) ? kTypeNames[index] : "unknown type";
}

bool is_valid_name(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
  };
  return !name.empty() && name.size() <= 255 && std::all_of(name.begin(), name.end(), allowed);
}

void Metadata::set(std::string_view key, MetadataValue value) {
  if (!is_valid_name(key))
    throw_error(ErrorCode::kInvalidArgument, "metadata key '{}': expected [a-z0-9_.]+", key);
  if (const char* const fault = std::visit(ValueFault{}, value))
    throw_error(ErrorCode::kInvalidArgument, "metadata '{}': {}", key, fault);
  entries_.insert_or_assign(std::string(key), std::move(value));
}

Bytes Metadata::serialize() const {
  BlobWriter out;
  out.put(static_cast<uint32_t>(entries_.size()));
  out.pad(kUnit);
  for (const auto& [key, value] : entries_) {
    out.put(static_cast<uint16_t>(key.size()));
    out.put(static_cast<uint8_t>(value.index() + 1));
    out.put_bytes("\0\0\0\0", 5);
    const uint64_t size_at = out.size();
    out.put(uint64_t{0});
    out.put_bytes(key.data(), key.size());
    out.pad(kUnit);
    const uint64_t payload_at = out.size();
    out.put_payload(value);
    out.patch(size_at, out.size() - payload_at);
    out.pad(kUnit);
  }
  return out.take();
}

Metadata Metadata::parse(std::span<const uint8_t> bytes) {
  BlobReader in(bytes);
  Metadata metadata;
  const uint32_t n_entries = in.take<uint32_t>();
  in.take_padding(sizeof n_entries, kUnit);
  if (n_entries > in.remaining() / kMinEntryBytes) in.refuse("more entries than fit");
  for (uint32_t i = 0; i < n_entries; ++i) {
    const uint16_t key_size = in.take<uint16_t>();
    const uint8_t type = in.take<uint8_t>();
    in.take_zeros(5);
    const uint64_t payload_size = in.take<uint64_t>();
    const std::string_view key = as_text(in.take(key_size));
    if (!is_valid_name(key)) in.refuse("a key that is not [a-z0-9_.]+ of 1 to 255 bytes");
    if (i > 0 && key <= metadata.entries_.rbegin()->first) in.refuse("keys that are not sorted and unique");
    in.take_padding(key_size, kUnit);
    MetadataValue value = parse_value(type, BlobReader(in.take(payload_size)));
    if (const char* const fault = std::visit(ValueFault{}, value))
      throw_error(ErrorCode::kFormat, "metadata '{}': {}", key, fault);
    in.take_padding(payload_size, kUnit);
    metadata.entries_.emplace_hint(metadata.entries_.end(), key, std::move(value));
  }
  if (in.remaining() != 0) in.refuse("bytes after the last entry");
  return metadata;
}

}  // namespace pith
