// What Unicode says about text: normal forms, case, classes. (utf8proc; Unicode 15.)
#pragma once
#include <string>
#include <string_view>

namespace pith {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// text must be valid UTF-8. n log n whatever the text: runs of combining marks are sorted, not bubbled.
std::string to_normal_form(std::string_view text, NormalForm form);
std::string to_lower(std::string_view text);
std::string to_upper(std::string_view text);
std::string without_accents(std::string_view text);  // drops marks (M*)

// Where the grapheme cluster that begins at byte `at` of a valid text ends.
size_t grapheme_end(std::string_view text, size_t at);

bool is_white_space(char32_t c);  // the White_Space property
bool is_blank(char32_t c);        // as Python's str.isspace(): that and the separators 0x1c .. 0x1f
bool is_number(char32_t c);       // Nd, Nl, No
bool is_punctuation(char32_t c);  // ASCII punctuation or P*
bool is_word(char32_t c);         // Alphabetic, M, Nd, Pc, Join_Control, as Rust's \w
bool is_upper(char32_t c);
bool is_lower(char32_t c);

}  // namespace pith
