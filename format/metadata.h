// Typed key/value metadata of a container.
//
// Keys are unique, sorted on disk, ASCII `[a-z0-9_.]+` of at most 255 bytes. Values obey the rules of FORMAT.md
// in memory already: strings are UTF-8, floats are finite. A byte string that need not be UTF-8 (a token, a
// file's content) is Bytes. Mind the type when setting: `uint64_t{n}`, not `n`.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "format/error.h"

namespace pith {

using Bytes = std::vector<uint8_t>;
// Alternatives are numbered 1.. in this order on disk: append only.
using MetadataValue = std::variant<bool, uint64_t, int64_t, double, std::string /* UTF-8 */, Bytes,
                                   std::vector<uint32_t>, std::vector<float>, std::vector<std::string>>;

// "u64", "string", ... for messages and `pith inspect`. index = MetadataValue::index().
const char* metadata_type_name(size_t index);

// Keys and tensor names: `[a-z0-9_.]+`, 1 to 255 bytes.
bool is_valid_name(std::string_view name);

class Metadata {
 public:
  // Replaces. Throws Error(kInvalidArgument) on a bad key, a non-finite float or a string that is not UTF-8.
  void set(std::string_view key, MetadataValue value);
  bool has(std::string_view key) const { return entries_.find(key) != entries_.end(); }
  // Typed access: throws Error(kFormat) naming key, expected and found type; get also when absent.
  template <typename T>
  const T& get(std::string_view key) const;
  template <typename T>
  T get_or(std::string_view key, T fallback) const;
  const std::map<std::string, MetadataValue, std::less<>>& entries() const { return entries_; }

  Bytes serialize() const;
  // Bounds-checked; allocates at most 4x bytes.size(). Throws Error(kFormat) with offset and cause.
  static Metadata parse(std::span<const uint8_t> bytes);

 private:
  template <typename T>
  const T* find(std::string_view key) const;  // nullptr when absent; throws on another type

  std::map<std::string, MetadataValue, std::less<>> entries_;
};

template <typename T>
const T* Metadata::find(std::string_view key) const {
  const auto entry = entries_.find(key);
  if (entry == entries_.end()) return nullptr;
  const T* const value = std::get_if<T>(&entry->second);
  if (value == nullptr)
    throw_error(ErrorCode::kFormat, "metadata '{}': type {}, expected {}", key,
                metadata_type_name(entry->second.index()),
                metadata_type_name(MetadataValue(std::in_place_type<T>).index()));
  return value;
}

template <typename T>
const T& Metadata::get(std::string_view key) const {
  const T* const value = find<T>(key);
  if (value == nullptr)
    throw_error(ErrorCode::kFormat, "metadata '{}' is missing, expected a {}", key,
                metadata_type_name(MetadataValue(std::in_place_type<T>).index()));
  return *value;
}

template <typename T>
T Metadata::get_or(std::string_view key, T fallback) const {
  const T* const value = find<T>(key);
  return value != nullptr ? *value : fallback;
}

}  // namespace pith
