// The alphabet as a table of 256 code points, and its inverse.
#include "runtime/tokenizer_bytes.h"

#include <array>

#include "runtime/utf8.h"

namespace pith {
namespace {

constexpr size_t kAlphabetEnd = 0x144;

bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Alphabet {
  std::array<char32_t, 256> of_byte{};
  std::array<int, kAlphabetEnd> byte_of{};  // -1: not in the alphabet
  Alphabet() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      of_byte[byte] = stands_for_itself(byte) ? byte : next++;
      byte_of[of_byte[byte]] = static_cast<int>(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet table;
  return table;
}

}  // namespace

std::string to_byte_alphabet(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) append_utf8(text, alphabet().of_byte[static_cast<uint8_t>(c)]);
  return text;
}

bool from_byte_alphabet(std::string_view text, std::string& bytes) {
  bytes.clear();
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    if (!point.valid || point.value >= kAlphabetEnd || alphabet().byte_of[point.value] < 0) return false;
    bytes.push_back(static_cast<char>(alphabet().byte_of[point.value]));
    at += point.n_bytes;
  }
  return true;
}

std::string with_blanks(std::string_view text, std::string_view space) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const bool is_space = text.substr(at).starts_with(space);
    out.push_back(is_space ? ' ' : text[at]);
    at += is_space ? space.size() : 1;
  }
  return out;
}

}  // namespace pith
