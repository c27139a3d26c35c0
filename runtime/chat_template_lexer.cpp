// Text and tags by turns: what white space control takes away is gone before the parser looks.
#include "runtime/chat_template_lexer.h"

#include <charconv>

#include "format/error.h"
#include "runtime/unicode.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

using Token = TemplateToken;

constexpr size_t kMaxNameBytes = 128;  // names are copied as they are looked up, at one step each

std::string normalize_newlines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) data();
    push(Token::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw_error(ErrorCode::kFormat, "chat template, line {}: {}", line_, what);
  }
  bool looking_at(std::string_view text) const {
    return std::string_view(source_).substr(at_).starts_with(text);
  }
  void push(Token::Kind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text), 0, 0}); }
  void advance(size_t n) {
    for (size_t i = 0; i < n; ++i) line_ += source_[at_ + i] == '\n';
    at_ += n;
  }
  void skip_blanks() {
    while (at_ < source_.size()) {
      const CodePoint point = code_point_at(source_, at_);
      if (!is_blank(point.value)) break;
      advance(point.n_bytes);
    }
  }
  // After a tag's closing mark: "-" strips all blanks, otherwise a block or comment takes one newline with it.
  void after_tag(char mark, bool takes_newline) {
    if (mark == '-') {
      skip_blanks();
    } else if (mark != '+' && takes_newline && looking_at("\n")) {
      advance(1);
    }
    line_starts_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  void data();
  void comment(size_t n_open);
  void raw_block();
  void expression(std::string_view close, Token::Kind end_kind);
  void string_literal();
  void escape(std::string& value);
  void number();

  std::string source_;
  size_t at_ = 0;
  uint32_t line_ = 1;
  bool line_starts_ = true;  // whether the position is where a line starts, for lstrip_blocks
  std::vector<Token> tokens_;
};

std::string without_blanks_at_end(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const CodePoint point = code_point_before(text, end);
    if (!is_blank(point.value)) break;
    end -= point.n_bytes;
  }
  return std::string(text.substr(0, end));
}

// Where the next "{{", "{%" or "{#" is, or the end.
size_t find_tag(std::string_view source, size_t from) {
  for (size_t at = source.find('{', from); at != std::string_view::npos; at = source.find('{', at + 1)) {
    const char next = at + 1 < source.size() ? source[at + 1] : '\0';
    if (next == '{' || next == '%' || next == '#') return at;
  }
  return source.size();
}

// Text up to the next tag, and the tag.
void Lexer::data() {
  const size_t tag = find_tag(source_, at_);
  std::string text = source_.substr(at_, tag - at_);
  const bool at_end = tag == source_.size();
  const char kind = at_end ? '\0' : source_[tag + 1];
  const char mark = !at_end && tag + 2 < source_.size() ? source_[tag + 2] : '\0';
  if (mark == '-') {
    text = without_blanks_at_end(text);
  } else if (!at_end && mark != '+' && kind != '{') {  // lstrip_blocks
    const size_t newline = text.rfind('\n');
    const size_t line_begin = newline == std::string::npos ? 0 : newline + 1;
    if ((line_begin > 0 || line_starts_) &&
        without_blanks_at_end(std::string_view(text).substr(line_begin)).empty())
      text.resize(line_begin);
  }
  if (!text.empty()) push(Token::kData, std::move(text));
  advance(tag - at_);
  if (at_end) return;
  const size_t n_open = mark == '-' || mark == '+' ? 3 : 2;
  if (kind == '#') {
    comment(n_open);
  } else if (kind == '{') {
    advance(mark == '-' ? 3 : 2);
    push(Token::kVariableBegin, "");
    expression("}}", Token::kVariableEnd);
  } else {
    const size_t begin = at_;
    advance(n_open);
    skip_blanks();
    if (looking_at("raw") && at_ + 3 < source_.size() && !is_name_start(source_[at_ + 3]) &&
        !is_digit(source_[at_ + 3])) {
      raw_block();
      return;
    }
    at_ = begin;
    advance(n_open);
    push(Token::kBlockBegin, "");
    expression("%}", Token::kBlockEnd);
  }
}

void Lexer::comment(size_t n_open) {
  const size_t close = source_.find("#}", at_ + n_open);
  if (close == std::string::npos) fail("comment is not closed");
  const char last = close > at_ + n_open ? source_[close - 1] : '\0';
  const char mark = last == '-' || last == '+' ? last : '\0';
  advance(close + 2 - at_);
  after_tag(mark, true);
}

// After "{% raw": everything up to "{% endraw %}" is text.
void Lexer::raw_block() {
  advance(3);
  skip_blanks();
  char mark = looking_at("-") || looking_at("+") ? source_[at_] : '\0';
  if (mark != '\0') advance(1);
  if (!looking_at("%}")) fail("'raw' takes no arguments");
  advance(2);
  after_tag(mark, false);
  for (size_t tag = source_.find("{%", at_); tag != std::string::npos; tag = source_.find("{%", tag + 2)) {
    size_t at = tag + 2;
    const char open_mark = at < source_.size() ? source_[at] : '\0';
    if (open_mark == '-' || open_mark == '+') ++at;
    while (at < source_.size() && (source_[at] == ' ' || source_[at] == '\n' || source_[at] == '\t')) ++at;
    if (source_.compare(at, 6, "endraw") != 0) continue;
    at += 6;
    while (at < source_.size() && (source_[at] == ' ' || source_[at] == '\n' || source_[at] == '\t')) ++at;
    mark = at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at] : '\0';
    if (mark != '\0') ++at;
    if (source_.compare(at, 2, "%}") != 0) continue;
    std::string text = source_.substr(at_, tag - at_);
    if (open_mark == '-') {
      text = without_blanks_at_end(text);
    } else if (open_mark != '+') {
      const size_t newline = text.rfind('\n');
      if (newline != std::string::npos &&
          without_blanks_at_end(std::string_view(text).substr(newline + 1)).empty())
        text.resize(newline + 1);
    }
    if (!text.empty()) push(Token::kData, std::move(text));
    advance(at + 2 - at_);
    after_tag(mark, true);
    return;
  }
  fail("'raw' is not closed by 'endraw'");
}

// The tokens inside a tag, up to its closing mark. A closing mark inside brackets is operators.
void Lexer::expression(std::string_view close, Token::Kind end_kind) {
  std::string brackets;
  while (true) {
    skip_blanks();
    if (at_ >= source_.size()) fail("tag is not closed");
    const char c = source_[at_];
    if (brackets.empty()) {
      const size_t n_mark = c == '-' || (c == '+' && end_kind == Token::kBlockEnd) ? 1 : 0;
      if (std::string_view(source_).substr(at_ + n_mark).starts_with(close)) {
        push(end_kind, "");
        advance(n_mark + 2);
        after_tag(n_mark > 0 ? c : '\0', end_kind == Token::kBlockEnd);
        return;
      }
    }
    if (is_name_start(c)) {
      size_t end = at_;
      while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) ++end;
      if (end - at_ > kMaxNameBytes)
        fail(fmt::format("a name of {} bytes, at most {}", end - at_, kMaxNameBytes));
      push(Token::kName, source_.substr(at_, end - at_));
      advance(end - at_);
    } else if (is_digit(c)) {
      number();
    } else if (c == '\'' || c == '"') {
      string_literal();
    } else {
      static constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                        "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                        ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
      std::string_view found;
      for (const std::string_view op : kOperators)
        if (looking_at(op)) {
          found = op;
          break;
        }
      if (found.empty()) fail(fmt::format("unexpected character '{}'", printable(std::string_view(&c, 1))));
      if (c == '(' || c == '[' || c == '{') brackets.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
      if (c == ')' || c == ']' || c == '}') {
        if (brackets.empty() || brackets.back() != c) fail(fmt::format("unexpected '{}'", c));
        brackets.pop_back();
      }
      push(Token::kOperator, std::string(found));
      advance(found.size());
    }
  }
}

void Lexer::number() {
  const bool after_dot = !tokens_.empty() && tokens_.back().is_operator(".");  // "a.0" is an index
  size_t end = at_;
  const auto digits = [&] {
    while (end < source_.size() && is_digit(source_[end])) ++end;
  };
  const auto digit_at = [&](size_t i) { return i < source_.size() && is_digit(source_[i]); };
  digits();
  bool is_float = false;
  if (!after_dot && end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
    is_float = true;
    ++end;
    digits();
  }
  if (!after_dot && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
    const size_t sign =
        end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
    if (digit_at(end + 1 + sign)) {
      is_float = true;
      end += 1 + sign;
      digits();
    }
  }
  push(is_float ? Token::kFloat : Token::kInteger, source_.substr(at_, end - at_));
  Token& token = tokens_.back();
  const char* const begin = token.text.data();
  const auto result = is_float ? std::from_chars(begin, begin + token.text.size(), token.number)
                               : std::from_chars(begin, begin + token.text.size(), token.integer);
  if (result.ec != std::errc() || result.ptr != begin + token.text.size())
    fail(fmt::format("number '{}' is out of range", token.text));
  advance(end - at_);
}

// A backslash escape as in Python; an unknown one stays as it is.
void Lexer::escape(std::string& value) {
  const char c = source_[at_];
  static constexpr std::string_view kFrom = "ntrabfv\\'\"", kTo = "\n\t\r\a\b\f\v\\'\"";
  if (const size_t known = kFrom.find(c); known != std::string_view::npos) {
    value.push_back(kTo[known]);
    advance(1);
    return;
  }
  const size_t n_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
  if (n_digits > 0) {
    uint32_t point = 0;
    const char* const begin = source_.data() + at_ + 1;
    const bool fits = at_ + 1 + n_digits <= source_.size();
    const auto result = fits ? std::from_chars(begin, begin + n_digits, point, 16) : std::from_chars_result{};
    if (!fits || result.ptr != begin + n_digits || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
      fail("bad escape in a string");
    append_utf8(value, point);
    advance(1 + n_digits);
    return;
  }
  if (c >= '0' && c <= '7') {
    char32_t point = 0;
    for (int i = 0; i < 3 && at_ < source_.size() && source_[at_] >= '0' && source_[at_] <= '7';
         ++i, advance(1))
      point = point * 8 + static_cast<char32_t>(source_[at_] - '0');
    append_utf8(value, point);
    return;
  }
  if (c == '\n') {  // a continued line
    advance(1);
    return;
  }
  value.push_back('\\');
}

void Lexer::string_literal() {
  const char quote = source_[at_];
  const uint32_t line = line_;
  std::string value;
  advance(1);
  while (at_ < source_.size() && source_[at_] != quote) {
    if (source_[at_] == '\\' && at_ + 1 < source_.size()) {
      advance(1);
      escape(value);
    } else {
      value.push_back(source_[at_]);
      advance(1);
    }
  }
  if (at_ >= source_.size())
    throw_error(ErrorCode::kFormat, "chat template, line {}: string is not closed", line);
  advance(1);
  push(Token::kString, std::move(value));
  tokens_.back().line = line;
}

}  // namespace

std::vector<TemplateToken> lex_template(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace pith
