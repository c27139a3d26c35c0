// Arguments, and the methods and functions of the template language.
#include "runtime/chat_template_functions.h"

#include <algorithm>

#include "runtime/chat_template_strings.h"

namespace pith {
namespace {

using Value = TemplateValue;
using Text = TemplateText;
using Args = TemplateArgs;

// ---- Methods -----------------------------------------------------------------------------------------------------

Value strip_method(TemplateHeap& heap, const Text& text, Args& args, bool left, bool right) {
  const Value chars = args.get(0);
  return Value::of(strip(heap, text, chars.is_string() ? &chars.bytes() : nullptr, left, right));
}

Value split_method(TemplateHeap& heap, const Text& text, Args& args, bool from_right) {
  const Value separator = args.get(0, "sep");
  const int64_t count = args.integer_or(1, "maxsplit", -1);
  std::vector<Value> out;
  const Text* const at = separator.is_string() ? separator.text.get() : nullptr;
  for (Text& part : split(heap, text, at, count, from_right)) out.push_back(Value::of(std::move(part)));
  return heap.list(std::move(out));
}

// startswith, endswith: of one text or of any in a tuple.
Value affix_method(TemplateHeap& heap, const Text& text, Args& args, bool at_start) {
  const Value affix = args.need(0);
  const auto matches = [&](const Value& one) {
    const std::string& bytes = string_of(one, "startswith and endswith").bytes();
    heap.charge_search(bytes.size(), 0);
    return at_start ? text.bytes().starts_with(bytes) : text.bytes().ends_with(bytes);
  };
  if (affix.kind != Value::kList) return Value::of(matches(affix));
  return Value::of(std::any_of(affix.list->items.begin(), affix.list->items.end(), matches));
}

using StringMethod = Value (*)(TemplateHeap&, const Text&, Args&);
struct StringMethodRow {
  const char* name;
  StringMethod method;
};
template <Case to>
Value case_method(TemplateHeap& heap, const Text& text, Args&) {
  return Value::of(change_case(heap, text, to));
}
const StringMethodRow kStringMethods[] = {
    {"strip",
     [](TemplateHeap& heap, const Text& t, Args& args) { return strip_method(heap, t, args, true, true); }},
    {"lstrip",
     [](TemplateHeap& heap, const Text& t, Args& args) { return strip_method(heap, t, args, true, false); }},
    {"rstrip",
     [](TemplateHeap& heap, const Text& t, Args& args) { return strip_method(heap, t, args, false, true); }},
    {"split",
     [](TemplateHeap& heap, const Text& t, Args& args) { return split_method(heap, t, args, false); }},
    {"rsplit",
     [](TemplateHeap& heap, const Text& t, Args& args) { return split_method(heap, t, args, true); }},
    {"splitlines",
     [](TemplateHeap& heap, const Text& t, Args&) {
       std::vector<Value> out;
       for (Text& line : split_lines(heap, t)) out.push_back(Value::of(std::move(line)));
       return heap.list(std::move(out));
     }},
    {"startswith",
     [](TemplateHeap& heap, const Text& t, Args& args) { return affix_method(heap, t, args, true); }},
    {"endswith",
     [](TemplateHeap& heap, const Text& t, Args& args) { return affix_method(heap, t, args, false); }},
    {"upper", case_method<Case::kUpper>},
    {"lower", case_method<Case::kLower>},
    {"title", case_method<Case::kTitle>},
    {"capitalize", case_method<Case::kCapitalized>},
    {"replace", [](TemplateHeap& heap, const Text& t, Args& args) { return replace_in(heap, t, args); }},
};
const char* const kMapMethods[] = {"get", "items", "keys", "values"};

Value map_method(TemplateHeap& heap, const std::string& name, const Value& of, Args& args) {
  if (name == "items") return map_items(heap, of);
  if (name == "get") {
    const Value* const found = of.map->find(heap, args.need(0));
    const Value fallback = args.get(1);
    return found != nullptr ? *found : fallback.kind == Value::kUndefined ? Value::none() : fallback;
  }
  std::vector<Value> out;
  for (const auto& [key, value] : of.map->items) out.push_back(name == "keys" ? key : value);
  return heap.list(std::move(out));
}

// ---- Functions ---------------------------------------------------------------------------------------------------

Value function_range(TemplateHeap& heap, Args& args) {
  const bool one = args.n_positional() < 2;
  const int64_t begin = one ? 0 : args.integer_or(0, "", 0);
  const int64_t end = args.integer_or(one ? 0 : 1, "", 0);
  const int64_t step = args.integer_or(2, "", 1);
  if (args.n_positional() == 0 || step == 0) fault("range needs bounds and a step other than 0");
  std::vector<Value> out;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    heap.charge(1);
    out.push_back(Value::of(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return heap.list(std::move(out));
}

Value function_namespace(TemplateHeap& heap, Args& args, bool is_namespace) {
  TemplateMap map;
  for (const NamedTemplateValue& arg : args.all()) {
    if (arg.name.empty()) {
      if (arg.value.kind != Value::kMap) fault("namespace and dict take names and maps");
      for (const auto& [key, value] : arg.value.map->items) map.set(heap, key, value);
    } else {
      map.set(heap, Value::of(Text(arg.name, false)), arg.value);
    }
  }
  return heap.map(std::move(map), is_namespace);
}

Value function_strftime(Args& args, TemplateClock clock) {
  const Value argument = args.need(0);
  const std::string& format = string_of(argument, "strftime_now").bytes();
  args.done();
  if (format.size() > 256 || format.find('\0') != std::string::npos) fault("strftime_now: format too long");
  std::tm date{};
  const auto to_date = clock.is_utc ? gmtime_r : localtime_r;
  if (format.empty() || to_date(&clock.now, &date) == nullptr) return Value::of("");
  char text[2048];
  const size_t n = std::strftime(text, sizeof(text), format.c_str(), &date);
  const auto& runs =
      argument.text->runs();  // of a format that a message has part in, all counts as the message's
  const bool from_message = std::any_of(runs.begin(), runs.end(), [](auto& run) { return run.from_message; });
  return Value::of(Text(std::string(text, n), from_message));
}

const char* const kFunctions[] = {"raise_exception", "strftime_now", "namespace", "range", "dict"};

}  // namespace

const Text& string_of(const Value& value, const char* what) {
  if (!value.is_string()) fault("{} needs a string, found a {}", what, value.type_name());
  return *value.text;
}

Value replace_in(TemplateHeap& heap, const Text& text, Args& args) {
  const Value from = args.need(0, "old");
  const Value to = args.need(1, "new");
  const int64_t count = args.integer_or(2, "count", -1);
  return Value::of(replace(heap, text, string_of(from, "replace"), string_of(to, "replace"), count));
}

Value map_items(TemplateHeap& heap, const Value& v) {
  if (v.kind == Value::kUndefined) return heap.list({});
  if (v.kind != Value::kMap) fault("items of a {} are not possible", v.type_name());
  std::vector<Value> out;
  for (const auto& [key, value] : v.map->items) out.push_back(heap.list({key, value}, true));
  return heap.list(std::move(out));
}

size_t TemplateArgs::n_positional() const {
  return static_cast<size_t>(
      std::count_if(args_.begin(), args_.end(), [](auto& arg) { return arg.name.empty(); }));
}

size_t TemplateArgs::find(size_t place, const char* name) const {
  size_t i = 0;
  while (i < args_.size() && (args_[i].name.empty() ? i != place : args_[i].name != name)) ++i;
  return i;
}

bool TemplateArgs::has(size_t place, const char* name) const {
  return find(place, name) < args_.size();
}

Value TemplateArgs::get(size_t place, const char* name) {
  const size_t i = find(place, name);
  if (i == args_.size()) return {};
  read_[i] = true;
  return args_[i].value;
}

Value TemplateArgs::need(size_t place, const char* name) {
  const Value value = get(place, name);
  if (value.kind == Value::kUndefined) fault("argument {} is missing or undefined", place + 1);
  return value;
}

int64_t TemplateArgs::integer_or(size_t place, const char* name, int64_t fallback) {
  const Value value = get(place, name);
  if (value.kind == Value::kUndefined || value.kind == Value::kNone) return fallback;
  if (value.kind == Value::kBool) return value.boolean;
  if (value.kind != Value::kInteger)
    fault("argument {} is a {}, expected an integer", place + 1, value.type_name());
  return value.integer;
}

bool TemplateArgs::flag_or(size_t place, const char* name, bool fallback) {
  const Value value = get(place, name);
  return value.kind == Value::kUndefined ? fallback : truth(value);
}

void TemplateArgs::done() const {
  for (size_t i = 0; i < args_.size(); ++i)
    if (!read_[i])
      fault("argument {} is not supported",
            args_[i].name.empty() ? fmt::format("{}", i + 1) : "'" + args_[i].name + "'");
}

bool is_template_method(const std::string& name) {
  return find_row(kStringMethods, name) != nullptr ||
         std::find(std::begin(kMapMethods), std::end(kMapMethods), name) != std::end(kMapMethods);
}
bool is_template_function(const std::string& name) {
  return std::find(std::begin(kFunctions), std::end(kFunctions), name) != std::end(kFunctions);
}

Value call_template_method(TemplateHeap& heap, const std::string& name, const Value& of, Args& args) {
  heap.charge(1);
  const bool for_maps =
      std::find(std::begin(kMapMethods), std::end(kMapMethods), name) != std::end(kMapMethods);
  const StringMethodRow* const row = find_row(kStringMethods, name);
  Value result;
  if (of.is_string() && row != nullptr) {
    result = row->method(heap, *of.text, args);
  } else if (of.kind == Value::kMap && for_maps) {
    result = map_method(heap, name, of, args);
  } else if (of.kind == Value::kUndefined) {
    fault("'{}' is undefined", of.text ? of.bytes() : "the value");
  } else {
    fault("a {} has no method '{}'", of.type_name(), name);
  }
  args.done();
  return result;
}

Value call_template_function(TemplateHeap& heap, const std::string& name, Args& args, TemplateClock clock) {
  heap.charge(1);
  if (name == "raise_exception") throw TemplateRaise{print(heap, args.need(0)).bytes()};
  if (name == "strftime_now") return function_strftime(args, clock);
  if (name == "range") return function_range(heap, args);
  return function_namespace(heap, args, name == "namespace");
}

}  // namespace pith
