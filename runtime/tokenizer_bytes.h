// Texts of tokens and the bytes that they stand for.
//
// The alphabet in which byte-level vocabularies write bytes: printable Latin-1 stands for itself, every other byte for a
// code point from U+0100 on, in order (a space is "Ġ").
#pragma once
#include <string>
#include <string_view>

namespace pith {

std::string to_byte_alphabet(std::string_view bytes);
// False when text has a code point outside the alphabet; bytes is then unspecified.
bool from_byte_alphabet(std::string_view text, std::string& bytes);

// text with every `space` (as "▁", not empty) replaced by a blank.
std::string with_blanks(std::string_view text, std::string_view space);

}  // namespace pith
