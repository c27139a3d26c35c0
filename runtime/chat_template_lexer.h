// The tokens of a template. White space control is done here: "-" and "+" marks, trim_blocks and lstrip_blocks as in
// the reference, a last newline dropped, "\r\n" read as "\n".
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pith {

struct TemplateToken {
  enum Kind {
    kData,
    kBlockBegin,
    kBlockEnd,
    kVariableBegin,
    kVariableEnd,
    kName,
    kInteger,
    kFloat,
    kString,
    kOperator,
    kEnd
  };
  Kind kind;
  uint32_t line;
  std::string text;  // data, name, string's value, operator
  int64_t integer = 0;
  double number = 0;

  bool is_operator(std::string_view op) const { return kind == kOperator && text == op; }
  bool is_name(std::string_view name) const { return kind == kName && text == name; }
};

// The last token is kEnd. Throws Error(kFormat): "chat template, line 3: ...".
std::vector<TemplateToken> lex_template(std::string_view source);

}  // namespace pith
