// Recursive descent, a function for each level of precedence, its depth limited.
#include "runtime/chat_template_parser.h"

#include <algorithm>
#include <set>

#include "format/error.h"
#include "runtime/chat_template_functions.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

using Token = TemplateToken;
using Expr = TemplateExpr;
using Statement = TemplateStatement;

class Parser {
 public:
  explicit Parser(const std::vector<Token>& tokens) : tokens_(tokens) {}

  TemplateAst run() {
    ast_.root = block({});
    if (peek().kind != Token::kEnd) fail("unexpected end of a block");
    for (const auto& [line, name] : called_)
      if (!macros_.contains(name)) refuse(line, "function", name);
    return std::move(ast_);
  }

 private:
  // Counts nesting while it lives.
  struct Nesting {
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser.depth_ > kMaxTemplateDepth)
        parser.fail(fmt::format("nested deeper than {}", kMaxTemplateDepth));
    }
    ~Nesting() { --parser_.depth_; }
    Parser& parser_;
  };

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token& take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  [[noreturn]] void fail(const std::string& what) const {
    throw_error(ErrorCode::kFormat, "chat template, line {}: {}", peek().line, what);
  }
  [[noreturn]] static void refuse(uint32_t line, const char* what, const std::string& name) {
    throw_error(ErrorCode::kUnsupported, "chat template, line {}: {} '{}' is not supported", line, what,
                name);
  }
  std::string found() const {
    const Token& token = peek();
    switch (token.kind) {
      case Token::kEnd:
        return "the end of the template";
      case Token::kBlockEnd:
        return "'%}'";
      case Token::kVariableEnd:
        return "'}}'";
      default:
        return "'" + token.text + "'";
    }
  }
  bool skip_operator(std::string_view op) {
    if (!peek().is_operator(op)) return false;
    take();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!peek().is_name(name)) return false;
    take();
    return true;
  }
  void expect_operator(std::string_view op) {
    if (!skip_operator(op)) fail(fmt::format("expected '{}', found {}", op, found()));
  }
  std::string expect_name() {
    if (peek().kind != Token::kName) fail("expected a name, found " + found());
    return take().text;
  }
  std::string expect_target() {
    static const std::set<std::string> kReserved = {"true", "false", "none", "True", "False", "None", "not",
                                                    "and",  "or",    "in",   "is",   "if",    "else", "loop"};
    const std::string name = expect_name();
    if (kReserved.contains(name)) fail("'" + name + "' cannot be assigned");
    return name;
  }
  void expect_block_end() {
    if (peek().kind != Token::kBlockEnd) fail("expected '%}', found " + found());
    take();
  }

  ExprId add(Expr expr) {
    for (const ExprId kid : expr.kids)
      if (kid != kNoNode) expr.depth = std::max(expr.depth, ast_.exprs[kid].depth + 1);
    for (const TemplateArg& arg : expr.args)
      expr.depth = std::max(expr.depth, ast_.exprs[arg.value].depth + 1);
    if (expr.depth > kMaxExprDepth) fail(fmt::format("expression deeper than {}", kMaxExprDepth));
    ast_.exprs.push_back(std::move(expr));
    return static_cast<ExprId>(ast_.exprs.size() - 1);
  }
  static Expr make(Expr::Kind kind, uint32_t line, std::vector<ExprId> kids = {}, std::string text = {}) {
    Expr expr{};
    expr.kind = kind, expr.line = line, expr.kids = std::move(kids), expr.text = std::move(text);
    return expr;
  }

  // Statements.
  BlockId block(const std::vector<std::string>& ends);
  std::string block_end(const std::string& name);
  void statement(std::vector<Statement>& out);
  Statement if_statement(uint32_t line);
  Statement for_statement(uint32_t line);
  Statement set_statement(uint32_t line);
  Statement macro_statement(uint32_t line);

  // Expressions, by precedence.
  ExprId expression();
  ExprId or_expression();
  ExprId and_expression();
  ExprId not_expression();
  ExprId comparison();
  ExprId sum();
  ExprId concatenation();
  ExprId product();
  ExprId unary(bool with_filters);
  ExprId primary();
  ExprId postfix(ExprId of);
  ExprId subscript(ExprId of);
  ExprId filters_and_tests(ExprId of);
  ExprId test(ExprId of);
  ExprId list_or_map(uint32_t line);
  std::vector<TemplateArg> arguments();
  ExprId call(ExprId of, uint32_t line);

  const std::vector<Token>& tokens_;
  size_t at_ = 0;
  uint32_t depth_ = 0;
  uint32_t loop_depth_ = 0;
  bool in_macro_ = false;
  TemplateAst ast_;
  std::set<std::string> macros_;
  std::vector<std::pair<uint32_t, std::string>> called_;  // names called: macros, or an error
};

// Statements up to a "{% end %}" of one of `ends`, whose name stays unread.
BlockId Parser::block(const std::vector<std::string>& ends) {
  const Nesting nesting(*this);
  std::vector<Statement> statements;
  while (peek().kind != Token::kEnd) {
    if (peek().kind == Token::kBlockBegin && std::find(ends.begin(), ends.end(), peek(1).text) != ends.end())
      break;
    if (peek().kind == Token::kData) {
      const uint32_t line = peek().line;
      statements.push_back({Statement::kText, line, take().text, {}, {}, {}});
    } else if (peek().kind == Token::kVariableBegin) {
      const uint32_t line = take().line;
      statements.push_back({Statement::kPrint, line, {}, {}, {expression()}, {}});
      if (peek().kind != Token::kVariableEnd) fail("expected '}}', found " + found());
      take();
    } else {
      take();  // kBlockBegin
      statement(statements);
    }
  }
  if (!ends.empty() && peek().kind == Token::kEnd)
    fail("expected '" + ends.back() + "', found the end of the template");
  ast_.blocks.push_back(std::move(statements));
  return static_cast<BlockId>(ast_.blocks.size() - 1);
}

// Reads "{% name", which block() stopped at.
std::string Parser::block_end(const std::string& name) {
  take();
  const std::string end = expect_name();
  if (!name.empty() && end != name) fail("expected '" + name + "', found '" + end + "'");
  return end;
}

void Parser::statement(std::vector<Statement>& out) {
  const uint32_t line = peek().line;
  const std::string name = expect_name();
  if (name == "if") {
    out.push_back(if_statement(line));
  } else if (name == "for") {
    out.push_back(for_statement(line));
  } else if (name == "set") {
    out.push_back(set_statement(line));
  } else if (name == "macro") {
    out.push_back(macro_statement(line));
  } else if (name == "break" || name == "continue") {
    if (loop_depth_ == 0) fail("'" + name + "' outside a loop");
    out.push_back({name == "break" ? Statement::kBreak : Statement::kContinue, line, {}, {}, {}, {}});
    expect_block_end();
  } else if (name == "generation") {  // marks what training learns from; the text is the same
    expect_block_end();
    const BlockId inner = block({"endgeneration"});
    block_end("endgeneration");
    expect_block_end();
    for (Statement& inside : ast_.blocks[inner]) out.push_back(std::move(inside));
    ast_.blocks[inner].clear();
  } else {
    refuse(line, "statement", name);
  }
}

Statement Parser::if_statement(uint32_t line) {
  Statement out{Statement::kIf, line, {}, {}, {}, {}};
  while (true) {
    out.exprs.push_back(expression());
    expect_block_end();
    out.blocks.push_back(block({"elif", "else", "endif"}));
    const std::string end = block_end({});
    if (end == "elif") continue;
    if (end == "else") {
      expect_block_end();
      out.blocks.push_back(block({"endif"}));
      block_end("endif");
    }
    expect_block_end();
    return out;
  }
}

Statement Parser::for_statement(uint32_t line) {
  Statement out{Statement::kFor, line, {}, {}, {}, {}};
  const bool parenthesis = skip_operator("(");
  do out.names.push_back(expect_target());
  while (skip_operator(","));
  if (parenthesis) expect_operator(")");
  if (!skip_name("in")) fail("expected 'in', found " + found());
  out.exprs.push_back(or_expression());  // without "a if b else c", whose "if" is the loop's
  if (peek().is_operator(",")) refuse(line, "loop over", "a, b");
  out.exprs.push_back(skip_name("if") ? expression() : kNoNode);
  if (peek().is_name("recursive")) refuse(line, "loop modifier", "recursive");
  expect_block_end();
  ++loop_depth_;
  out.blocks.push_back(block({"else", "endfor"}));
  --loop_depth_;
  if (block_end({}) == "else") {
    expect_block_end();
    out.blocks.push_back(block({"endfor"}));
    block_end("endfor");
  } else {
    out.blocks.push_back(kNoNode);
  }
  expect_block_end();
  return out;
}

Statement Parser::set_statement(uint32_t line) {
  Statement out{Statement::kSet, line, {}, {}, {}, {}};
  out.names.push_back(expect_target());
  if (skip_operator(".")) {
    out.kind = Statement::kSetField;
    out.text = expect_name();
  } else {
    while (skip_operator(",")) out.names.push_back(expect_target());
  }
  if (skip_operator("=")) {
    const uint32_t value_line = peek().line;
    std::vector<ExprId> values = {expression()};
    while (skip_operator(",")) values.push_back(expression());
    out.exprs.push_back(values.size() == 1 ? values[0] : add(make(Expr::kTuple, value_line, values)));
    expect_block_end();
    return out;
  }
  if (out.kind == Statement::kSetField || out.names.size() != 1) fail("expected '=', found " + found());
  if (peek().is_operator("|")) refuse(line, "filter on", "set block");
  expect_block_end();
  out.kind = Statement::kSetBlock;
  out.blocks.push_back(block({"endset"}));
  block_end("endset");
  expect_block_end();
  return out;
}

Statement Parser::macro_statement(uint32_t line) {
  Statement out{Statement::kMacro, line, {}, {}, {}, {}};
  out.text = expect_target();
  // It would see the variables around it; here macros see the outermost ones.
  if (loop_depth_ > 0 || in_macro_)
    refuse(line, in_macro_ ? "macro inside a macro" : "macro inside a loop", out.text);
  in_macro_ = true;
  macros_.insert(out.text);
  expect_operator("(");
  while (!peek().is_operator(")")) {
    out.names.push_back(expect_target());
    if (skip_operator("=")) {
      out.exprs.push_back(expression());
    } else if (!out.exprs.empty()) {
      fail("parameter '" + out.names.back() + "' needs a default, as those before it");
    }
    if (!skip_operator(",")) break;
  }
  expect_operator(")");
  expect_block_end();
  out.blocks.push_back(block({"endmacro"}));
  in_macro_ = false;
  block_end("endmacro");
  skip_name(out.text);
  expect_block_end();
  return out;
}

ExprId Parser::expression() {
  const Nesting nesting(*this);
  ExprId value = or_expression();
  while (peek().is_name("if")) {
    const uint32_t line = take().line;
    const ExprId condition = or_expression();
    const ExprId otherwise = skip_name("else") ? expression() : kNoNode;
    value = add(make(Expr::kConditional, line, {value, condition, otherwise}));
  }
  return value;
}

ExprId Parser::or_expression() {
  ExprId left = and_expression();
  while (peek().is_name("or")) {
    const uint32_t line = take().line;
    left = add(make(Expr::kOr, line, {left, and_expression()}));
  }
  return left;
}

ExprId Parser::and_expression() {
  ExprId left = not_expression();
  while (peek().is_name("and")) {
    const uint32_t line = take().line;
    left = add(make(Expr::kAnd, line, {left, not_expression()}));
  }
  return left;
}

ExprId Parser::not_expression() {
  if (!peek().is_name("not")) return comparison();
  const Nesting nesting(*this);
  const uint32_t line = take().line;
  return add(make(Expr::kNot, line, {not_expression()}));
}

ExprId Parser::comparison() {
  const uint32_t line = peek().line;
  const ExprId first = sum();
  Expr compare = make(Expr::kCompare, line, {first});
  while (true) {
    const Token& token = peek();
    if (token.kind == Token::kOperator && (token.text == "==" || token.text == "!=" || token.text == "<" ||
                                           token.text == "<=" || token.text == ">" || token.text == ">=")) {
      compare.ops.push_back(take().text);
    } else if (token.is_name("in")) {
      take();
      compare.ops.push_back("in");
    } else if (token.is_name("not") && peek(1).is_name("in")) {
      take(), take();
      compare.ops.push_back("not in");
    } else {
      break;
    }
    compare.kids.push_back(sum());
  }
  return compare.ops.empty() ? first : add(std::move(compare));
}

ExprId Parser::sum() {
  ExprId left = concatenation();
  while (peek().is_operator("+") || peek().is_operator("-")) {
    const Token& op = take();
    left = add(make(Expr::kBinary, op.line, {left, concatenation()}, op.text));
  }
  return left;
}

ExprId Parser::concatenation() {
  ExprId left = product();
  while (peek().is_operator("~")) {
    const Token& op = take();
    left = add(make(Expr::kBinary, op.line, {left, product()}, op.text));
  }
  return left;
}

ExprId Parser::product() {
  ExprId left = unary(true);
  while (peek().is_operator("*") || peek().is_operator("/") || peek().is_operator("//") ||
         peek().is_operator("%")) {
    const Token& op = take();
    left = add(make(Expr::kBinary, op.line, {left, unary(true)}, op.text));
  }
  return left;
}

ExprId Parser::unary(bool with_filters) {
  const Nesting nesting(*this);
  ExprId value;
  if (peek().is_operator("-") || peek().is_operator("+")) {
    const Token& op = take();
    value = add(make(op.text == "-" ? Expr::kNegate : Expr::kPlus, op.line, {unary(false)}));
  } else {
    value = primary();
  }
  value = postfix(value);
  if (peek().is_operator("**")) refuse(peek().line, "operator", "**");
  return with_filters ? filters_and_tests(value) : value;
}

ExprId Parser::primary() {
  const Token& token = peek();
  const uint32_t line = token.line;
  if (token.kind == Token::kName) {
    take();
    if (token.text == "true" || token.text == "True") return add(make(Expr::kTrue, line));
    if (token.text == "false" || token.text == "False") return add(make(Expr::kFalse, line));
    if (token.text == "none" || token.text == "None") return add(make(Expr::kNone, line));
    if (in_macro_ && (token.text == "varargs" || token.text == "kwargs"))
      refuse(line, "a macro's", token.text);
    return add(make(Expr::kName, line, {}, token.text));
  }
  if (token.kind == Token::kString) {
    std::string text;
    while (peek().kind == Token::kString) text += take().text;
    return add(make(Expr::kString, line, {}, std::move(text)));
  }
  if (token.kind == Token::kInteger || token.kind == Token::kFloat) {
    take();
    Expr expr = make(token.kind == Token::kInteger ? Expr::kInteger : Expr::kFloat, line);
    expr.integer = token.integer, expr.number = token.number;
    return add(std::move(expr));
  }
  if (skip_operator("(")) {
    std::vector<ExprId> values;
    bool tuple = peek().is_operator(")");
    while (!peek().is_operator(")")) {
      values.push_back(expression());
      if (!skip_operator(",")) break;
      tuple = true;
    }
    expect_operator(")");
    return tuple ? add(make(Expr::kTuple, line, std::move(values))) : values[0];
  }
  if (token.is_operator("[") || token.is_operator("{")) return list_or_map(line);
  fail("expected an expression, found " + found());
}

ExprId Parser::list_or_map(uint32_t line) {
  const bool is_list = take().text == "[";
  const std::string_view close = is_list ? "]" : "}";
  std::vector<ExprId> values;
  while (!peek().is_operator(close)) {
    values.push_back(expression());
    if (!is_list) {
      expect_operator(":");
      values.push_back(expression());
    }
    if (!skip_operator(",")) break;
  }
  expect_operator(close);
  return add(make(is_list ? Expr::kList : Expr::kMap, line, std::move(values)));
}

ExprId Parser::postfix(ExprId of) {
  while (true) {
    const uint32_t line = peek().line;
    if (skip_operator(".")) {
      if (peek().kind == Token::kInteger) {
        Expr index = make(Expr::kInteger, line);
        index.integer = take().integer;
        const ExprId index_id = add(std::move(index));
        of = add(make(Expr::kIndex, line, {of, index_id}));
        continue;
      }
      const std::string name = expect_name();
      if (!peek().is_operator("(")) {
        of = add(make(Expr::kAttribute, line, {of}, name));
        continue;
      }
      if (!is_template_method(name)) refuse(line, "method", name);
      Expr method = make(Expr::kMethod, line, {of}, name);
      method.args = arguments();
      of = add(std::move(method));
    } else if (peek().is_operator("[")) {
      of = subscript(of);
    } else if (peek().is_operator("(")) {
      of = call(of, line);
    } else {
      return of;
    }
  }
}

ExprId Parser::call(ExprId of, uint32_t line) {
  if (ast_.exprs[of].kind != Expr::kName) refuse(line, "call of", "an expression");
  const std::string name = ast_.exprs[of].text;
  if (!is_template_function(name)) called_.emplace_back(line, name);
  Expr out = make(Expr::kCall, line, {of}, name);
  out.args = arguments();
  return add(std::move(out));
}

ExprId Parser::subscript(ExprId of) {
  const uint32_t line = take().line;  // "["
  ExprId bounds[3] = {kNoNode, kNoNode, kNoNode};
  int n_colons = 0;
  while (!peek().is_operator("]")) {
    if (skip_operator(":")) {
      if (++n_colons > 2) fail("a slice has at most two ':'");
    } else {
      if (bounds[n_colons] != kNoNode) fail("expected ']', found " + found());
      bounds[n_colons] = expression();
    }
  }
  expect_operator("]");
  if (n_colons == 0 && bounds[0] == kNoNode) fail("expected an index, found ']'");
  if (n_colons == 0) return add(make(Expr::kIndex, line, {of, bounds[0]}));
  return add(make(Expr::kSlice, line, {of, bounds[0], bounds[1], bounds[2]}));
}

std::vector<TemplateArg> Parser::arguments() {
  std::vector<TemplateArg> args;
  expect_operator("(");
  while (!peek().is_operator(")")) {
    if (peek().is_operator("*") || peek().is_operator("**")) refuse(peek().line, "argument", peek().text);
    TemplateArg arg{{}, kNoNode};
    if (peek().kind == Token::kName && peek(1).is_operator("=")) {
      arg.name = take().text;
      take();
    } else if (!args.empty() && !args.back().name.empty()) {
      fail("positional argument after a named one");
    }
    arg.value = expression();
    args.push_back(std::move(arg));
    if (!skip_operator(",")) break;
  }
  expect_operator(")");
  return args;
}

ExprId Parser::filters_and_tests(ExprId of) {
  while (true) {
    const uint32_t line = peek().line;
    if (skip_operator("|")) {
      const std::string name = expect_name();
      if (!is_template_filter(name)) refuse(line, "filter", name);
      Expr filter = make(Expr::kFilter, line, {of}, name);
      if (peek().is_operator("(")) filter.args = arguments();
      of = add(std::move(filter));
    } else if (skip_name("is")) {
      of = test(of);
    } else if (peek().is_operator("(")) {
      refuse(line, "call of", "an expression");
    } else {
      return of;
    }
  }
}

ExprId Parser::test(ExprId of) {
  const uint32_t line = peek().line;
  const bool negated = skip_name("not");
  const std::string name = expect_name();
  if (!is_template_test(name)) refuse(line, "test", name);
  Expr out = make(Expr::kTest, line, {of}, name);
  const Token& next = peek();
  const bool has_bare_argument =
      next.kind == Token::kString || next.kind == Token::kInteger || next.kind == Token::kFloat ||
      next.is_operator("[") || next.is_operator("{") ||
      (next.kind == Token::kName && next.text != "else" && next.text != "or" && next.text != "and" &&
       next.text != "if" && next.text != "is" && next.text != "in" && next.text != "not");
  if (next.is_operator("(")) {
    out.args = arguments();
  } else if (has_bare_argument) {
    out.args.push_back({{}, postfix(primary())});
  }
  const ExprId id = add(std::move(out));
  return negated ? add(make(Expr::kNot, line, {id})) : id;
}

}  // namespace

TemplateAst parse_template(const std::vector<TemplateToken>& tokens) {
  return Parser(tokens).run();
}

}  // namespace pith
