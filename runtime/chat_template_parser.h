// Tokens to tree. What the renderer does not do is refused here: Error(kUnsupported) naming line and construct.
#pragma once
#include <vector>

#include "runtime/chat_template_ast.h"
#include "runtime/chat_template_lexer.h"

namespace pith {

TemplateAst parse_template(const std::vector<TemplateToken>& tokens);

}  // namespace pith
