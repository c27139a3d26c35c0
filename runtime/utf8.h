// UTF-8 by code point, tolerant of invalid bytes, and the holder that keeps half a code point back from a terminal.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pith {

struct TextRange {
  size_t begin, end;  // bytes
};

struct CodePoint {
  char32_t value;
  uint32_t n_bytes;  // 1..4; always 1 when !valid
  bool valid;
};

// The code point that begins at text[at], at < text.size(). Overlong forms, surrogates, values above U+10FFFF and cut
// sequences are invalid: one byte, value U+FFFD.
inline CodePoint code_point_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t k) { return static_cast<uint8_t>(text[at + k]); };
  const CodePoint bad{0xfffd, 1, false};
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, true};
  const uint32_t n = lead >= 0xc2 && lead <= 0xdf   ? 2
                     : (lead & 0xf0) == 0xe0        ? 3
                     : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                    : 0;
  if (n == 0 || text.size() - at < n) return bad;
  char32_t value = lead & (0xff >> (n + 1));
  for (uint32_t k = 1; k < n; ++k) {
    if ((byte(k) & 0xc0) != 0x80) return bad;
    value = (value << 6) | (byte(k) & 0x3f);
  }
  const char32_t least = n == 2 ? 0x80 : n == 3 ? 0x800 : 0x10000;
  if (value < least || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return bad;
  return {value, n, true};
}

// The code point that ends at `end`, end > 0; where none does, the last byte as an invalid one.
inline CodePoint code_point_before(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && end - begin < 4 && (static_cast<uint8_t>(text[begin]) & 0xc0) == 0x80) --begin;
  const CodePoint point = code_point_at(text, begin);
  return begin + point.n_bytes == end ? point : CodePoint{0xfffd, 1, false};
}

// value is a code point, not a surrogate.
inline void append_utf8(std::string& out, char32_t value) {
  const auto put = [&](char32_t v) { out.push_back(static_cast<char>(v)); };
  if (value < 0x80) {
    put(value);
  } else if (value < 0x800) {
    put(0xc0 | (value >> 6)), put(0x80 | (value & 0x3f));
  } else if (value < 0x10000) {
    put(0xe0 | (value >> 12)), put(0x80 | ((value >> 6) & 0x3f)), put(0x80 | (value & 0x3f));
  } else {
    put(0xf0 | (value >> 18)), put(0x80 | ((value >> 12) & 0x3f)), put(0x80 | ((value >> 6) & 0x3f));
    put(0x80 | (value & 0x3f));
  }
}

// text as an error message shows it: one line, control characters and invalid bytes escaped, at most ~200 bytes.
inline std::string printable(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (out.size() > 200) return out + "...";
    const CodePoint point = code_point_at(text, at);
    if (!point.valid || point.value < 0x20 || point.value == 0x7f) {
      constexpr char kDigits[] = "0123456789abcdef";
      const auto byte = static_cast<uint8_t>(text[at]);
      out += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    } else {
      out.append(text, at, point.n_bytes);
    }
    at += point.n_bytes;
  }
  return out;
}

// A stream of bytes cut anywhere, out again at code point boundaries. Bytes that can no longer become a code point
// come out as U+FFFD, so what comes out is always UTF-8.
class Utf8Holder {
 public:
  // Takes more bytes, returns what is complete. At most 3 bytes stay behind.
  std::string push(std::string_view bytes) {
    held_.append(bytes);
    std::string out;
    size_t at = 0;
    while (at < held_.size()) {
      const CodePoint point = code_point_at(held_, at);
      if (!point.valid && may_continue(std::string_view(held_).substr(at))) break;
      append_utf8(out, point.value);
      at += point.n_bytes;
    }
    held_.erase(0, at);
    return out;
  }
  // The stream ends: a cut code point is U+FFFD.
  std::string flush() {
    std::string out;
    if (!held_.empty()) append_utf8(out, 0xfffd);
    held_.clear();
    return out;
  }
  void clear() { held_.clear(); }

 private:
  // Whether `tail` is a proper prefix of some code point's bytes: some completion of it is valid.
  static bool may_continue(std::string_view tail) {
    if (tail.size() > 3) return false;
    for (const char second : {'\x80', '\x90', '\xa0'}) {  // every lead accepts one of these as second byte
      std::string full(tail);
      if (full.size() == 1) full.push_back(second);
      while (full.size() < 4) full.push_back('\x80');
      const CodePoint point = code_point_at(full, 0);
      if (point.valid && point.n_bytes > tail.size()) return true;
    }
    return false;
  }
  std::string held_;
};

}  // namespace pith
