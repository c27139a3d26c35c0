// The walk of the double-array trie, within its bounds whatever its offsets say, and the choice of what is
// replaced.
#include "runtime/charsmap.h"

#include <cstring>

#include "format/error.h"
#include "format/utf8.h"
#include "runtime/unicode.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

constexpr size_t kMaxGraphemeBytes = 5;  // of a grapheme that is looked up whole

}  // namespace

CharsMap::CharsMap(std::string_view bytes) {
  uint32_t trie_bytes = 0;
  if (bytes.size() >= sizeof trie_bytes) std::memcpy(&trie_bytes, bytes.data(), sizeof trie_bytes);
  bytes.remove_prefix(std::min(bytes.size(), sizeof trie_bytes));
  if (trie_bytes == 0 || trie_bytes % sizeof(uint32_t) != 0 || trie_bytes > bytes.size())
    throw_error(ErrorCode::kFormat, "precompiled_charsmap: a trie of {} bytes in {}, expected whole units",
                trie_bytes, bytes.size());
  units_.resize(trie_bytes / sizeof(uint32_t));
  std::memcpy(units_.data(), bytes.data(), trie_bytes);
  texts_ = bytes.substr(trie_bytes);
  if (!texts_.empty() && texts_.back() != '\0')
    throw_error(ErrorCode::kFormat, "precompiled_charsmap: the last text does not end");
  if (!is_valid_utf8(texts_)) throw_error(ErrorCode::kFormat, "precompiled_charsmap: a text is not UTF-8");
}

// The text of the shortest key that begins `key`. Positions outside the trie find nothing.
std::optional<std::string_view> CharsMap::find(std::string_view key) const {
  const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  uint32_t at = offset(units_[0]);
  for (const char c : key) {
    const uint32_t byte = static_cast<uint8_t>(c);
    at ^= byte;
    if (byte == 0 || at >= units_.size()) return std::nullopt;
    const uint32_t unit = units_[at];
    if ((unit & (1u << 31 | 0xff)) != byte) return std::nullopt;
    at ^= offset(unit);
    if (at >= units_.size()) return std::nullopt;
    if ((unit >> 8 & 1) == 0) continue;
    const uint32_t begin = units_[at] & ~(1u << 31);
    // A text that begins inside a code point would not be UTF-8.
    if (begin >= texts_.size() || (static_cast<uint8_t>(texts_[begin]) & 0xc0) == 0x80) return std::nullopt;
    return std::string_view(texts_.data() + begin);
  }
  return std::nullopt;
}

std::string CharsMap::apply(std::string_view text, EncodeBudget& budget) const {
  std::string out;
  out.reserve(text.size());
  const auto put = [&](std::string_view part) {
    budget.add(part.size());
    out += part;
  };
  for (size_t at = 0; at < text.size();) {
    const size_t end = grapheme_end(text, at);
    const auto whole = end - at <= kMaxGraphemeBytes ? find(text.substr(at, end - at)) : std::nullopt;
    if (whole) put(*whole);
    while (at < end) {
      const size_t n_bytes = code_point_at(text, at).n_bytes;
      const std::string_view point = text.substr(at, n_bytes);
      if (!whole) put(find(point).value_or(point));
      at += n_bytes;
    }
  }
  return out;
}

}  // namespace pith
