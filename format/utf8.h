// Whether bytes are well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pith {

inline bool is_valid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = [&](size_t k) { return static_cast<uint8_t>(text[k]); };
    const uint8_t lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t n = lead >= 0xc2 && lead <= 0xdf   ? 2
                     : (lead & 0xf0) == 0xe0        ? 3
                     : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                    : 0;
    if (n == 0 || text.size() - i < n) return false;
    for (size_t k = 1; k < n; ++k)
      if ((byte(i + k) & 0xc0) != 0x80) return false;
    const uint8_t second = byte(i + 1);
    if (lead == 0xe0 && second < 0xa0) return false;  // overlong
    if (lead == 0xed && second > 0x9f) return false;  // surrogates
    if (lead == 0xf0 && second < 0x90) return false;  // overlong
    if (lead == 0xf4 && second > 0x8f) return false;  // above U+10FFFF
    i += n;
  }
  return true;
}

}  // namespace pith
