// Runs a parsed template over messages.
#include "runtime/chat_template.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "format/error.h"
#include "runtime/chat_template_functions.h"
#include "runtime/chat_template_parser.h"

namespace pith {
namespace {

using Value = TemplateValue;
using Text = TemplateText;
using Expr = TemplateExpr;
using Statement = TemplateStatement;

constexpr int kMaxRunDepth = 400;  // of nested evaluation, macro calls included

enum class Flow { kNext, kBreak, kContinue };

class Renderer {
 public:
  Renderer(const TemplateAst& ast, TemplateClock clock) : ast_(ast), clock_(clock) { scopes_.emplace_back(); }

  Text run(const std::vector<ChatMessage>& messages, bool add_generation_prompt, const std::string& bos,
           const std::string& eos) {
    try {
      define_variables(messages, add_generation_prompt, bos, eos);
      block(ast_.root);
    } catch (const TemplateFault& found) {
      throw_error(ErrorCode::kInvalidArgument, "chat template, line {}: {}", line_, printable(found.message));
    } catch (const TemplateRaise& raised) {
      throw_error(ErrorCode::kInvalidArgument, "chat template: {}", printable(raised.message));
    }
    return std::move(out_);
  }

 private:
  using Scope = std::map<std::string, Value>;
  // Counts depth while it lives, and remembers the line for messages.
  struct Entered {
    Entered(Renderer& renderer, uint32_t line) : renderer_(renderer) {
      renderer.line_ = line;
      renderer.heap_.charge(1);
      if (++renderer.depth_ > kMaxRunDepth) fault("nested deeper than {}", kMaxRunDepth);
    }
    ~Entered() { --renderer_.depth_; }
    Renderer& renderer_;
  };

  void define(const std::string& name, Value value) { scopes_.back()[name] = std::move(value); }
  void define_variables(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                        const std::string& bos, const std::string& eos);
  Flow block(BlockId id);
  Flow statement(const Statement& s);
  Flow for_loop(const Statement& s);
  void set(const Statement& s);
  void assign(const std::vector<std::string>& names, const Value& value);
  void write(const Text& text);
  Text render_aside(BlockId id);

  Value eval(ExprId id);
  Value eval_or_undefined(ExprId id) { return id == kNoNode ? Value() : eval(id); }
  Value lookup(const std::string& name) const;
  Value attribute(const Value& of, const std::string& name);
  Value loop_attribute(const TemplateLoop& loop, const std::string& name);
  Value binary(const std::string& op, const Value& a, const Value& b);
  Value arithmetic(char op, const Value& a, const Value& b);
  Value repeat(const Value& value, int64_t count);
  bool comparison(const Expr& expr);
  TemplateArgs arguments(const Expr& expr);
  Value call(const Expr& expr);
  Value call_macro(const Statement& macro, TemplateArgs args);

  const TemplateAst& ast_;
  TemplateClock clock_;
  TemplateHeap heap_;
  std::vector<Scope> scopes_;
  Text out_;
  int depth_ = 0;
  uint32_t line_ = 1;
};

bool is_usual_role(const std::string& role) {
  static const char* const kRoles[] = {"system",    "user",     "assistant", "tool",
                                       "developer", "function", "ipython",   "model"};
  return std::find(std::begin(kRoles), std::end(kRoles), role) != std::end(kRoles);
}

void Renderer::define_variables(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                                const std::string& bos, const std::string& eos) {
  std::vector<Value> list;
  for (const ChatMessage& message : messages) {
    TemplateMap map;
    map.items.emplace_back(Value::of("role"), Value::of(Text(message.role, !is_usual_role(message.role))));
    map.items.emplace_back(Value::of("content"), Value::of(Text(message.content, true)));
    list.push_back(heap_.map(std::move(map)));
  }
  define("messages", heap_.list(std::move(list)));
  define("add_generation_prompt", Value::of(add_generation_prompt));
  define("tools", Value::none());
  define("documents", Value::none());
  if (!bos.empty()) define("bos_token", Value::of(Text(bos, false)));
  if (!eos.empty()) define("eos_token", Value::of(Text(eos, false)));
}

void Renderer::write(const Text& text) {
  out_.append(text);
  if (out_.size() > TemplateHeap::kMaxTextBytes)
    fault("output longer than {} bytes", TemplateHeap::kMaxTextBytes);
}

// What a block writes, apart from the output.
Text Renderer::render_aside(BlockId id) {
  Text outer = std::exchange(out_, Text());
  block(id);
  return std::exchange(out_, std::move(outer));
}

Flow Renderer::block(BlockId id) {
  for (const Statement& s : ast_.blocks[id])
    if (const Flow flow = statement(s); flow != Flow::kNext) return flow;
  return Flow::kNext;
}

Flow Renderer::statement(const Statement& s) {
  const Entered entered(*this, s.line);
  switch (s.kind) {
    case Statement::kText:
      heap_.charge_text(s.text.size());
      write(Text(s.text, false));
      break;
    case Statement::kPrint:
      write(print(heap_, eval(s.exprs[0])));
      break;
    case Statement::kIf:
      for (size_t i = 0; i < s.exprs.size(); ++i)
        if (truth(eval(s.exprs[i]))) return block(s.blocks[i]);
      if (s.blocks.size() > s.exprs.size()) return block(s.blocks.back());
      break;
    case Statement::kFor:
      return for_loop(s);
    case Statement::kSet:
    case Statement::kSetField:
    case Statement::kSetBlock:
      set(s);
      break;
    case Statement::kMacro: {
      Value macro;
      macro.kind = Value::kMacro, macro.macro = &s;
      define(s.text, macro);
      break;
    }
    case Statement::kBreak:
      return Flow::kBreak;
    case Statement::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

// A loop's body has a scope of its own, a new one each time round.
Flow Renderer::for_loop(const Statement& s) {
  std::vector<Value> items = iterate(heap_, eval(s.exprs[0]));
  if (s.exprs[1] != kNoNode) {
    std::vector<Value> kept;
    for (const Value& value : items) {
      scopes_.emplace_back();
      assign(s.names, value);
      if (truth(eval(s.exprs[1]))) kept.push_back(value);
      scopes_.pop_back();
    }
    items = std::move(kept);
  }
  TemplateLoop* const loop = heap_.loop({&heap_.keep(items)->items, 0});
  for (size_t i = 0; i < items.size(); ++i) {
    heap_.charge(1);
    loop->index0 = i;
    scopes_.emplace_back();
    assign(s.names, items[i]);
    Value loop_value;
    loop_value.kind = Value::kLoop, loop_value.loop = loop;
    define("loop", loop_value);
    const Flow flow = block(s.blocks[0]);
    scopes_.pop_back();
    if (flow == Flow::kBreak) break;
  }
  if (items.empty() && s.blocks[1] != kNoNode) return block(s.blocks[1]);
  return Flow::kNext;
}

void Renderer::assign(const std::vector<std::string>& names, const Value& value) {
  if (names.size() == 1) {
    define(names[0], value);
    return;
  }
  const std::vector<Value> parts = iterate(heap_, value);
  if (parts.size() != names.size()) fault("{} values for {} names", parts.size(), names.size());
  for (size_t i = 0; i < names.size(); ++i) define(names[i], parts[i]);
}

void Renderer::set(const Statement& s) {
  if (s.kind == Statement::kSet) {
    assign(s.names, eval(s.exprs[0]));
  } else if (s.kind == Statement::kSetBlock) {
    define(s.names[0], Value::of(render_aside(s.blocks[0])));
  } else {
    const Value value = eval(s.exprs[0]);
    const Value target = lookup(s.names[0]);
    if (target.kind != Value::kNamespace) fault("'{}' is not a namespace", s.names[0]);
    target.map->set(heap_, Value::of(Text(s.text, false)), value);
  }
}

Value Renderer::lookup(const std::string& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (const auto found = scope->find(name); found != scope->end()) return found->second;
  if (is_template_function(name)) {
    Value function = Value::undefined(name);
    function.kind = Value::kFunction;
    return function;
  }
  return Value::undefined(name);
}

Value Renderer::loop_attribute(const TemplateLoop& loop, const std::string& name) {
  const auto i = static_cast<int64_t>(loop.index0), n = static_cast<int64_t>(loop.items->size());
  if (name == "index") return Value::of(i + 1);
  if (name == "index0") return Value::of(i);
  if (name == "revindex") return Value::of(n - i);
  if (name == "revindex0") return Value::of(n - i - 1);
  if (name == "first") return Value::of(i == 0);
  if (name == "last") return Value::of(i == n - 1);
  if (name == "length") return Value::of(n);
  if (name == "previtem") return i > 0 ? (*loop.items)[loop.index0 - 1] : Value();
  if (name == "nextitem") return i + 1 < n ? (*loop.items)[loop.index0 + 1] : Value();
  fault("'loop.{}' is not supported", name);
}

Value Renderer::attribute(const Value& of, const std::string& name) {
  if (of.kind == Value::kLoop) return loop_attribute(*of.loop, name);
  if (of.kind == Value::kUndefined) fault("'{}' is undefined", of.text ? of.bytes() : "the value");
  if (of.kind != Value::kMap && of.kind != Value::kNamespace) return Value::undefined(name);
  const Value* const found = of.map->find(heap_, name);
  return found != nullptr ? *found : Value::undefined(name);
}

Value Renderer::repeat(const Value& value, int64_t count) {
  const uint64_t n = static_cast<uint64_t>(std::max<int64_t>(count, 0));
  if (value.is_string()) {
    const bool one_mark = value.text->runs().size() <= 1;  // then the copies have it together
    const uint64_t each = one_mark ? value.text->size() : value.text->memory_bytes();
    uint64_t n_bytes;
    if (__builtin_mul_overflow(n, each, &n_bytes)) n_bytes = UINT64_MAX;
    heap_.charge_text(n_bytes);
    Text out;
    for (uint64_t i = 0; i < n && !value.text->empty(); ++i) out.append(*value.text);
    return Value::of(std::move(out));
  }
  std::vector<Value> items;
  for (uint64_t i = 0; i < n && !value.list->items.empty(); ++i) {
    heap_.charge(value.list->items.size());
    items.insert(items.end(), value.list->items.begin(), value.list->items.end());
  }
  return heap_.list(std::move(items), value.list->is_tuple);
}

// Integers as Python has them, short of overflow; anything with a float is a float.
Value Renderer::arithmetic(char op, const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number())
    fault("'{}' of a {} and a {} is not possible", op, a.type_name(), b.type_name());
  const bool is_division = op == '/' || op == 'q' || op == '%';
  if (is_division && b.as_number() == 0) fault("division by zero");
  if (a.kind == Value::kFloat || b.kind == Value::kFloat || op == '/') {
    const double x = a.as_number(), y = b.as_number();
    switch (op) {
      case '+':
        return Value::of(x + y);
      case '-':
        return Value::of(x - y);
      case '*':
        return Value::of(x * y);
      case '/':
        return Value::of(x / y);
      case 'q':
        return Value::of(std::floor(x / y));
      default:
        return Value::of(x - y * std::floor(x / y));
    }
  }
  const int64_t x = a.kind == Value::kBool ? a.boolean : a.integer,
                y = b.kind == Value::kBool ? b.boolean : b.integer;
  int64_t result = 0;
  bool overflow = false;
  if (op == '+') overflow = __builtin_add_overflow(x, y, &result);
  if (op == '-') overflow = __builtin_sub_overflow(x, y, &result);
  if (op == '*') overflow = __builtin_mul_overflow(x, y, &result);
  if (is_division && y == -1) {
    overflow = op == 'q' && __builtin_sub_overflow(int64_t{0}, x, &result);
  } else if (is_division) {
    const int64_t remainder = x % y, quotient = x / y;
    const bool down = remainder != 0 && (remainder < 0) != (y < 0);
    result = op == 'q' ? quotient - (down ? 1 : 0) : remainder + (down ? y : 0);
  }
  if (overflow) fault("integer out of range");
  return Value::of(result);
}

Value Renderer::binary(const std::string& op, const Value& a, const Value& b) {
  if (op == "~") {
    Text out = print(heap_, a);
    const Text right = print(heap_, b);
    heap_.charge_text(out.memory_bytes() + right.memory_bytes());
    out.append(right);
    return Value::of(std::move(out));
  }
  for (const Value* const side : {&a, &b})
    if (side->kind == Value::kUndefined) fault("'{}' is undefined", side->text ? side->bytes() : "the value");
  if (op == "+" && a.is_string() && b.is_string()) {
    heap_.charge_text(a.text->memory_bytes() + b.text->memory_bytes());
    Text out = *a.text;
    out.append(*b.text);
    return Value::of(std::move(out));
  }
  if (op == "+" && a.kind == Value::kList && b.kind == Value::kList) {
    heap_.charge(a.list->items.size() + b.list->items.size());
    std::vector<Value> items = a.list->items;
    items.insert(items.end(), b.list->items.begin(), b.list->items.end());
    return heap_.list(std::move(items), a.list->is_tuple);
  }
  if (op == "*" && (a.is_string() || a.kind == Value::kList) && b.kind == Value::kInteger)
    return repeat(a, b.integer);
  if (op == "*" && (b.is_string() || b.kind == Value::kList) && a.kind == Value::kInteger)
    return repeat(b, a.integer);
  if (op == "%" && a.is_string()) fault("formatting with '%' is not supported");
  return arithmetic(op == "//" ? 'q' : op[0], a, b);
}

bool Renderer::comparison(const Expr& expr) {
  Value left = eval(expr.kids[0]);
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    const Value right = eval(expr.kids[i + 1]);
    const std::string& op = expr.ops[i];
    bool holds;
    if (op == "==" || op == "!=") {
      holds = equals(heap_, left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(heap_, right, left) == (op == "in");
    } else {
      const int order = compare(heap_, left, right);
      holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
    }
    if (!holds) return false;
    left = right;
  }
  return true;
}

TemplateArgs Renderer::arguments(const Expr& expr) {
  std::vector<NamedTemplateValue> args;
  for (const TemplateArg& arg : expr.args) args.push_back({arg.name, eval(arg.value)});
  return TemplateArgs(std::move(args));
}

Value Renderer::call_macro(const Statement& macro, TemplateArgs args) {
  const std::vector<std::string>& names = macro.names;
  if (args.n_positional() > names.size()) fault("macro '{}' takes {} arguments", macro.text, names.size());
  // A macro sees the outermost scope and its own.
  std::vector<Scope> outer = std::exchange(scopes_, {});
  scopes_.push_back(std::move(outer[0]));
  scopes_.emplace_back();
  const size_t n_required = names.size() - macro.exprs.size();
  for (size_t i = 0; i < names.size(); ++i) {
    Value value = args.get(i, names[i].c_str());
    if (value.kind == Value::kUndefined && i >= n_required) value = eval(macro.exprs[i - n_required]);
    define(names[i], value);
  }
  args.done();
  const uint32_t line = line_;
  const Value result = Value::of(render_aside(macro.blocks[0]));
  line_ = line;
  outer[0] = std::move(scopes_[0]);
  scopes_ = std::move(outer);
  return result;
}

Value Renderer::call(const Expr& expr) {
  const Value target = lookup(expr.text);
  TemplateArgs args = arguments(expr);
  if (target.kind == Value::kMacro) return call_macro(*target.macro, std::move(args));
  if (target.kind != Value::kFunction) fault("'{}' cannot be called", expr.text);
  return call_template_function(heap_, target.bytes(), args, clock_);
}

Value Renderer::eval(ExprId id) {
  const Expr& expr = ast_.exprs[id];
  const Entered entered(*this, expr.line);
  switch (expr.kind) {
    case Expr::kNone:
      return Value::none();
    case Expr::kTrue:
      return Value::of(true);
    case Expr::kFalse:
      return Value::of(false);
    case Expr::kInteger:
      return Value::of(expr.integer);
    case Expr::kFloat:
      return Value::of(expr.number);
    case Expr::kString:
      heap_.charge_text(expr.text.size());
      return Value::of(Text(expr.text, false));
    case Expr::kName:
      return lookup(expr.text);
    case Expr::kList:
    case Expr::kTuple: {
      std::vector<Value> items;
      for (const ExprId kid : expr.kids) items.push_back(eval(kid));
      return heap_.list(std::move(items), expr.kind == Expr::kTuple);
    }
    case Expr::kMap: {
      TemplateMap map;
      for (size_t i = 0; i < expr.kids.size(); i += 2) {
        const Value key = eval(expr.kids[i]);
        Value value = eval(expr.kids[i + 1]);
        map.set(heap_, key, std::move(value));
      }
      return heap_.map(std::move(map));
    }
    case Expr::kAttribute:
      return attribute(eval(expr.kids[0]), expr.text);
    case Expr::kIndex: {
      const Value of = eval(expr.kids[0]);
      const Value index = eval(expr.kids[1]);
      return of.kind == Value::kLoop && index.is_string() ? loop_attribute(*of.loop, index.bytes())
                                                          : item(heap_, of, index);
    }
    case Expr::kSlice: {
      const Value of = eval(expr.kids[0]);
      const Value begin = eval_or_undefined(expr.kids[1]), end = eval_or_undefined(expr.kids[2]);
      return slice(heap_, of, begin, end, eval_or_undefined(expr.kids[3]));
    }
    case Expr::kCall:
      return call(expr);
    case Expr::kMethod: {
      const Value of = eval(expr.kids[0]);
      TemplateArgs args = arguments(expr);
      return call_template_method(heap_, expr.text, of, args);
    }
    case Expr::kFilter: {
      const Value of = eval(expr.kids[0]);
      TemplateArgs args = arguments(expr);
      return call_template_filter(heap_, expr.text, of, args);
    }
    case Expr::kTest: {
      const Value of = eval(expr.kids[0]);
      TemplateArgs args = arguments(expr);
      return Value::of(call_template_test(heap_, expr.text, of, args));
    }
    case Expr::kNot:
      return Value::of(!truth(eval(expr.kids[0])));
    case Expr::kNegate:
      return binary("-", Value::of(int64_t{0}), eval(expr.kids[0]));
    case Expr::kPlus:
      return binary("+", Value::of(int64_t{0}), eval(expr.kids[0]));
    case Expr::kAnd: {
      const Value left = eval(expr.kids[0]);
      return truth(left) ? eval(expr.kids[1]) : left;
    }
    case Expr::kOr: {
      const Value left = eval(expr.kids[0]);
      return truth(left) ? left : eval(expr.kids[1]);
    }
    case Expr::kBinary: {
      const Value left = eval(expr.kids[0]);
      return binary(expr.text, left, eval(expr.kids[1]));
    }
    case Expr::kCompare:
      return Value::of(comparison(expr));
    case Expr::kConditional:
      return truth(eval(expr.kids[1])) ? eval(expr.kids[0]) : eval_or_undefined(expr.kids[2]);
  }
  return {};
}

}  // namespace

struct ChatTemplate::Program {
  TemplateAst ast;
  std::string bos, eos;
};

ChatTemplate::ChatTemplate(std::string_view source, std::string bos, std::string eos)
    : program_(std::make_unique<Program>()) {
  if (source.size() > (1u << 20))
    throw_error(ErrorCode::kUnsupported, "chat template of {} bytes, at most {}", source.size(), 1u << 20);
  *program_ = {parse_template(lex_template(source)), std::move(bos), std::move(eos)};
}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;

std::vector<ChatSegment> ChatTemplate::render(const std::vector<ChatMessage>& messages,
                                              bool add_generation_prompt, TemplateClock clock) const {
  if (clock.now == 0) clock.now = std::time(nullptr);
  Renderer renderer(program_->ast, clock);
  const Text text = renderer.run(messages, add_generation_prompt, program_->bos, program_->eos);
  std::vector<ChatSegment> segments;
  size_t begin = 0;
  for (const Text::Run& run : text.runs()) {
    segments.push_back({text.bytes().substr(begin, run.end - begin), !run.from_message});
    begin = run.end;
  }
  return segments;
}

}  // namespace pith
