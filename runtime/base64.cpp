// Four characters to three bytes; everything that an encoder would not have written is refused.
#include "runtime/base64.h"

#include <cstdint>

#include "format/error.h"
#include "runtime/utf8.h"

namespace pith {

std::string decode_base64(std::string_view text, const std::string& where) {
  std::string out;
  uint32_t bits = 0;
  int n_bits = 0;
  size_t n = text.size();
  while (n > 0 && text[n - 1] == '=' && text.size() - n < 2) --n;
  for (const char c : text.substr(0, n)) {
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0)
      throw_error(ErrorCode::kFormat, "{}: '{}' is not base64", where, printable(text.substr(0, 80)));
    bits = (bits << 6) | static_cast<uint32_t>(value);
    n_bits += 6;
    if (n_bits >= 8) {
      n_bits -= 8;
      out.push_back(static_cast<char>(bits >> n_bits));
    }
  }
  if (text.size() % 4 != 0)
    throw_error(ErrorCode::kFormat, "{}: '{}' is not base64", where, printable(text.substr(0, 80)));
  return out;
}

}  // namespace pith
