// Typed key/value metadata of a container. Keys are unique, sorted on disk, ASCII `[a-z0-9_.]+`.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace pith {

using Bytes = std::vector<uint8_t>;
// Alternatives are numbered 1.. in this order on disk: append only.
using MetadataValue = std::variant<bool, uint64_t, int64_t, double, std::string /* UTF-8 */, Bytes,
                                   std::vector<uint32_t>, std::vector<float>, std::vector<std::string>>;

class Metadata {
 public:
  void set(std::string_view key, MetadataValue value);
  bool has(std::string_view key) const;
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
  std::map<std::string, MetadataValue, std::less<>> entries_;
};

}  // namespace pith
