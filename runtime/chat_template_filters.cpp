// The tests and filters of the template language, a row of a table each.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "runtime/chat_template_functions.h"
#include "runtime/chat_template_strings.h"

namespace pith {
namespace {

using Value = TemplateValue;
using Text = TemplateText;
using Args = TemplateArgs;

// "a.b.0" of `value`, for map(attribute=...) and the like.
Value attribute_of(TemplateHeap& heap, Value value, const std::string& path) {
  heap.charge_text(path.size());
  for (size_t at = 0; at <= path.size();) {
    const size_t dot = std::min(path.find('.', at), path.size());
    const std::string part = path.substr(at, dot - at);
    int64_t index = 0;
    const auto read = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = !part.empty() && read.ptr == part.data() + part.size();
    value = item(heap, value, is_index ? Value::of(index) : Value::of(Text(part, false)));
    at = dot + 1;
  }
  return value;
}

// ---- Tests -------------------------------------------------------------------------------------------------------

bool integer_test(const Value& v, const char* what, bool (*test)(int64_t)) {
  if (v.kind != Value::kInteger) fault("test '{}' needs an integer, found a {}", what, v.type_name());
  return test(v.integer);
}

bool divisible(const Value& v, int64_t by) {
  if (v.kind != Value::kInteger || by == 0) fault("test 'divisibleby' needs integers, the second not 0");
  return by == -1 || v.integer % by == 0;
}

using TestFunction = bool (*)(TemplateHeap&, const Value&, Args&);
struct TestRow {
  const char* name;
  TestFunction test;
};
#define ORDER_TEST(condition)                          \
  [](TemplateHeap& heap, const Value& v, Args& args) { \
    const int order = compare(heap, v, args.need(0));  \
    return condition;                                  \
  }
bool cased_test(TemplateHeap& heap, const Value& v, const char* what, bool upper) {
  const Text& text = string_of(v, what);
  heap.charge_look(text.size());
  return is_cased(text.bytes(), upper);
}

const TestRow kTests[] = {
    {"defined", [](TemplateHeap&, const Value& v, Args&) { return v.kind != Value::kUndefined; }},
    {"undefined", [](TemplateHeap&, const Value& v, Args&) { return v.kind == Value::kUndefined; }},
    {"none", [](TemplateHeap&, const Value& v, Args&) { return v.kind == Value::kNone; }},
    {"string", [](TemplateHeap&, const Value& v, Args&) { return v.is_string(); }},
    {"mapping", [](TemplateHeap&, const Value& v, Args&) { return v.kind == Value::kMap; }},
    {"sequence",
     [](TemplateHeap&, const Value& v, Args&) {
       return v.kind == Value::kList || v.is_string() || v.kind == Value::kMap || v.kind == Value::kUndefined;
     }},
    {"iterable",
     [](TemplateHeap&, const Value& v, Args&) {
       return v.kind == Value::kList || v.is_string() || v.kind == Value::kMap || v.kind == Value::kUndefined;
     }},
    {"number", [](TemplateHeap&, const Value& v, Args&) { return v.is_number(); }},
    {"integer", [](TemplateHeap&, const Value& v, Args&) { return v.kind == Value::kInteger; }},
    {"float", [](TemplateHeap&, const Value& v, Args&) { return v.kind == Value::kFloat; }},
    {"boolean", [](TemplateHeap&, const Value& v, Args&) { return v.kind == Value::kBool; }},
    {"true", [](TemplateHeap&, const Value& v, Args&) { return v.kind == Value::kBool && v.boolean; }},
    {"false", [](TemplateHeap&, const Value& v, Args&) { return v.kind == Value::kBool && !v.boolean; }},
    {"callable", [](TemplateHeap&, const Value& v,
                    Args&) { return v.kind == Value::kMacro || v.kind == Value::kFunction; }},
    {"odd", [](TemplateHeap&, const Value& v,
               Args&) { return integer_test(v, "odd", [](int64_t i) { return i % 2 != 0; }); }},
    {"even", [](TemplateHeap&, const Value& v,
                Args&) { return integer_test(v, "even", [](int64_t i) { return i % 2 == 0; }); }},
    {"divisibleby",
     [](TemplateHeap&, const Value& v, Args& args) { return divisible(v, args.integer_or(0, "num", 0)); }},
    {"lower",
     [](TemplateHeap& heap, const Value& v, Args&) { return cased_test(heap, v, "test 'lower'", false); }},
    {"upper",
     [](TemplateHeap& heap, const Value& v, Args&) { return cased_test(heap, v, "test 'upper'", true); }},
    {"in", [](TemplateHeap& heap, const Value& v, Args& args) { return contains(heap, args.need(0), v); }},
    {"equalto", [](TemplateHeap& heap, const Value& v, Args& args) { return equals(heap, v, args.need(0)); }},
    {"eq", [](TemplateHeap& heap, const Value& v, Args& args) { return equals(heap, v, args.need(0)); }},
    {"==", [](TemplateHeap& heap, const Value& v, Args& args) { return equals(heap, v, args.need(0)); }},
    {"ne", [](TemplateHeap& heap, const Value& v, Args& args) { return !equals(heap, v, args.need(0)); }},
    {"!=", [](TemplateHeap& heap, const Value& v, Args& args) { return !equals(heap, v, args.need(0)); }},
    {"gt", ORDER_TEST(order > 0)},
    {"greaterthan", ORDER_TEST(order > 0)},
    {">", ORDER_TEST(order > 0)},
    {"ge", ORDER_TEST(order >= 0)},
    {">=", ORDER_TEST(order >= 0)},
    {"lt", ORDER_TEST(order < 0)},
    {"lessthan", ORDER_TEST(order < 0)},
    {"<", ORDER_TEST(order < 0)},
    {"le", ORDER_TEST(order <= 0)},
    {"<=", ORDER_TEST(order <= 0)},
};
#undef ORDER_TEST

// ---- Filters -----------------------------------------------------------------------------------------------------

Value filter_default(TemplateHeap&, const Value& v, Args& args) {
  const bool has_fallback = args.has(0, "default_value");
  const Value fallback = args.get(0, "default_value");
  const bool on_false = args.flag_or(1, "boolean", false);
  if (v.kind != Value::kUndefined && !(on_false && !truth(v))) return v;
  return has_fallback ? fallback : Value::of("");  // a fallback that is undefined itself stays so
}

Value filter_join(TemplateHeap& heap, const Value& v, Args& args) {
  const Value separator = args.get(0, "d");
  const Value attribute = args.get(1, "attribute");
  Text out;
  bool first = true;
  for (Value& part : iterate(heap, v)) {
    if (attribute.is_string()) part = attribute_of(heap, part, attribute.bytes());
    if (!first && separator.is_string()) {
      heap.charge_text(separator.text->memory_bytes());
      out.append(*separator.text);
    }
    first = false;
    out.append(print(heap, part));
    heap.charge(1);
    if (out.size() > TemplateHeap::kMaxTextBytes) heap.charge_text(out.size());  // faults
  }
  return Value::of(std::move(out));
}

Value filter_map(TemplateHeap& heap, const Value& v, Args& args) {
  const Value attribute = args.get(SIZE_MAX, "attribute");
  const Value fallback = args.get(SIZE_MAX, "default");
  std::vector<Value> out;
  if (attribute.is_string()) {
    for (const Value& part : iterate(heap, v)) {
      out.push_back(attribute_of(heap, part, attribute.bytes()));
      if (out.back().kind == Value::kUndefined && fallback.kind != Value::kUndefined) out.back() = fallback;
    }
    return heap.list(std::move(out));
  }
  const std::string name = string_of(args.need(0), "filter 'map'").bytes();
  if (!is_template_filter(name) || name == "map")
    fault("filter 'map' over filter '{}' is not supported", name);
  std::vector<NamedTemplateValue> rest(args.all().begin() + 1, args.all().end());
  for (size_t i = 0; i < args.all().size(); ++i) args.get(i, args.all()[i].name.c_str());
  for (const Value& part : iterate(heap, v)) {
    Args inner(rest);
    out.push_back(call_template_filter(heap, name, part, inner));
  }
  return heap.list(std::move(out));
}

// select, reject (by_attribute: selectattr, rejectattr): the items on which a test is `wanted`.
Value select(TemplateHeap& heap, const Value& v, Args& args, bool wanted, bool by_attribute) {
  const size_t n_own = by_attribute ? 1 : 0;
  const std::string path = by_attribute ? string_of(args.need(0), "attribute").bytes() : std::string();
  const Value test = args.get(n_own);
  const std::string name =
      test.kind == Value::kUndefined ? std::string() : string_of(test, "the test's name").bytes();
  if (!name.empty() && !is_template_test(name)) fault("test '{}' is not supported", name);
  std::vector<NamedTemplateValue> rest;
  for (size_t i = n_own + 1; i < args.all().size(); ++i) rest.push_back({"", args.get(i)});
  std::vector<Value> out;
  for (const Value& part : iterate(heap, v)) {
    const Value tested = by_attribute ? attribute_of(heap, part, path) : part;
    Args inner(rest);
    if ((name.empty() ? truth(tested) : call_template_test(heap, name, tested, inner)) == wanted)
      out.push_back(part);
  }
  return heap.list(std::move(out));
}

Value filter_length(TemplateHeap& heap, const Value& v, Args&) {
  if (v.is_string()) heap.charge_look(v.text->size());  // its characters are counted
  return Value::of(length(v));
}

Value filter_int(TemplateHeap& heap, const Value& v, Args& args) {
  const int64_t fallback = args.integer_or(0, "default", 0);
  if (v.kind == Value::kInteger) return v;
  if (v.kind == Value::kBool) return Value::of(int64_t{v.boolean});
  if (v.kind == Value::kFloat)
    return Value::of(std::abs(v.number) < 9e18 ? static_cast<int64_t>(v.number) : fallback);
  if (!v.is_string()) return Value::of(fallback);
  heap.charge_look(v.text->size());
  const std::string text = strip(heap, *v.text, nullptr, true, true).bytes();
  const char* const begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const char* const end = text.data() + text.size();
  int64_t integer = 0;
  if (const auto read = std::from_chars(begin, end, integer); read.ec == std::errc() && read.ptr == end)
    return Value::of(integer);
  double number = 0;
  if (const auto read = std::from_chars(begin, end, number);
      read.ec == std::errc() && read.ptr == end && std::abs(number) < 9e18)
    return Value::of(static_cast<int64_t>(number));
  return Value::of(fallback);
}

Value filter_float(TemplateHeap& heap, const Value& v, Args&) {
  if (v.is_number()) return Value::of(v.as_number());
  if (!v.is_string()) return Value::of(0.0);
  heap.charge_look(v.text->size());
  const std::string text = strip(heap, *v.text, nullptr, true, true).bytes();
  double number = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), number);
  return Value::of(read.ec == std::errc() && read.ptr == text.data() + text.size() ? number : 0.0);
}

Value filter_abs(TemplateHeap&, const Value& v, Args&) {
  if (v.kind == Value::kFloat) return Value::of(std::abs(v.number));
  if (v.kind != Value::kInteger || v.integer == INT64_MIN) fault("filter 'abs' needs a number");
  return Value::of(v.integer < 0 ? -v.integer : v.integer);
}

// What sort, unique and dictsort compare.
Value without_case(TemplateHeap& heap, const Value& key) {
  return key.is_string() ? Value::of(change_case(heap, *key.text, Case::kLower)) : key;
}

Value filter_sort(TemplateHeap& heap, const Value& v, Args& args) {
  const bool reverse = args.flag_or(0, "reverse", false);
  const bool case_sensitive = args.flag_or(1, "case_sensitive", false);
  const Value attribute = args.get(2, "attribute");
  struct Entry {
    Value key, value;
  };
  std::vector<Entry> entries;
  for (const Value& part : iterate(heap, v)) {
    Value key = attribute.is_string() ? attribute_of(heap, part, attribute.bytes()) : part;
    if (!case_sensitive) key = without_case(heap, key);
    entries.push_back({std::move(key), part});
  }
  std::stable_sort(entries.begin(), entries.end(), [&](const Entry& a, const Entry& b) {
    return reverse ? compare(heap, b.key, a.key) < 0 : compare(heap, a.key, b.key) < 0;
  });
  std::vector<Value> out;
  for (Entry& entry : entries) out.push_back(std::move(entry.value));
  return heap.list(std::move(out));
}

Value filter_unique(TemplateHeap& heap, const Value& v, Args&) {
  std::vector<Value> out, keys;
  for (const Value& part : iterate(heap, v)) {
    const Value key = without_case(heap, part);
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& k) { return equals(heap, k, key); })) continue;
    keys.push_back(key);
    out.push_back(part);
  }
  return heap.list(std::move(out));
}

Value filter_reverse(TemplateHeap& heap, const Value& v, Args&) {
  Value minus = Value::of(int64_t{-1});
  if (v.is_string()) return slice(heap, v, {}, {}, minus);
  std::vector<Value> items = iterate(heap, v);
  std::reverse(items.begin(), items.end());
  return heap.list(std::move(items));
}

Value filter_dictsort(TemplateHeap& heap, const Value& v, Args&) {
  if (v.kind != Value::kMap) fault("filter 'dictsort' needs a map, found a {}", v.type_name());
  std::vector<std::pair<Value, Value>> entries;  // key to sort by, pair
  for (const auto& [key, value] : v.map->items)
    entries.emplace_back(without_case(heap, key), heap.list({key, value}, true));
  std::stable_sort(entries.begin(), entries.end(),
                   [&](auto& a, auto& b) { return compare(heap, a.first, b.first) < 0; });
  std::vector<Value> out;
  for (auto& entry : entries) out.push_back(std::move(entry.second));
  return heap.list(std::move(out));
}

Value filter_tojson(TemplateHeap& heap, const Value& v, Args& args) {
  // As transformers defines it: not escaped for HTML, not sorted.
  JsonStyle style;
  if (args.flag_or(0, "ensure_ascii", false)) fault("filter 'tojson': ensure_ascii is not supported");
  style.indent = args.integer_or(1, "indent", -1);
  if (style.indent > 16) fault("filter 'tojson': indent {}, at most 16", style.indent);
  const Value separators = args.get(2, "separators");
  if (separators.kind == Value::kList && separators.list->items.size() == 2) {
    style.item_separator = string_of(separators.list->items[0], "separators");
    style.key_separator = string_of(separators.list->items[1], "separators");
  }
  style.sort_keys = args.flag_or(3, "sort_keys", false);
  return Value::of(to_json(heap, v, style));
}

Value edge(TemplateHeap& heap, const Value& v, bool first) {
  if (v.kind == Value::kMap) {
    if (v.map->items.empty()) return {};
    return first ? v.map->items.front().first : v.map->items.back().first;
  }
  return v.kind == Value::kUndefined ? v : item(heap, v, Value::of(first ? int64_t{0} : int64_t{-1}));
}

Value text_filter(TemplateHeap& heap, const Value& v, Case to) {
  return Value::of(change_case(heap, print(heap, v), to));
}

Value filter_trim(TemplateHeap& heap, const Value& v, Args& args) {
  const Value chars = args.get(0, "chars");
  const Text text = print(heap, v);
  return Value::of(strip(heap, text, chars.is_string() ? &chars.bytes() : nullptr, true, true));
}

Value filter_indent(TemplateHeap& heap, const Value& v, Args& args) {
  const Value width = args.get(0, "width");
  const bool first = args.flag_or(1, "first", false);
  const bool blank = args.flag_or(2, "blank", false);
  Text by(std::string(4, ' '), false);
  if (width.kind == Value::kInteger) {
    if (width.integer < 0 || width.integer > 256) fault("filter 'indent': width {}", width.integer);
    by = Text(std::string(static_cast<size_t>(width.integer), ' '), false);
  } else if (width.is_string()) {
    by = *width.text;
  }
  return Value::of(indent(heap, print(heap, v), by, first, blank));
}

using FilterFunction = Value (*)(TemplateHeap&, const Value&, Args&);
struct FilterRow {
  const char* name;
  FilterFunction filter;
};
const FilterRow kFilters[] = {
    {"trim", filter_trim},
    {"length", filter_length},
    {"count", filter_length},
    {"join", filter_join},
    {"first", [](TemplateHeap& heap, const Value& v, Args&) { return edge(heap, v, true); }},
    {"last", [](TemplateHeap& heap, const Value& v, Args&) { return edge(heap, v, false); }},
    {"upper", [](TemplateHeap& heap, const Value& v, Args&) { return text_filter(heap, v, Case::kUpper); }},
    {"lower", [](TemplateHeap& heap, const Value& v, Args&) { return text_filter(heap, v, Case::kLower); }},
    {"capitalize",
     [](TemplateHeap& heap, const Value& v, Args&) { return text_filter(heap, v, Case::kCapitalized); }},
    {"title",
     [](TemplateHeap& heap, const Value& v, Args&) { return text_filter(heap, v, Case::kTitleFilter); }},
    {"replace",
     [](TemplateHeap& heap, const Value& v, Args& args) { return replace_in(heap, print(heap, v), args); }},
    {"default", filter_default},
    {"d", filter_default},
    {"tojson", filter_tojson},
    {"list", [](TemplateHeap& heap, const Value& v, Args&) { return heap.list(iterate(heap, v)); }},
    {"string", [](TemplateHeap& heap, const Value& v, Args&) { return Value::of(print(heap, v)); }},
    {"safe", [](TemplateHeap&, const Value& v, Args&) { return v; }},
    {"int", filter_int},
    {"float", filter_float},
    {"abs", filter_abs},
    {"items", [](TemplateHeap& heap, const Value& v, Args&) { return map_items(heap, v); }},
    {"dictsort", filter_dictsort},
    {"sort", filter_sort},
    {"unique", filter_unique},
    {"reverse", filter_reverse},
    {"map", filter_map},
    {"select",
     [](TemplateHeap& heap, const Value& v, Args& args) { return select(heap, v, args, true, false); }},
    {"reject",
     [](TemplateHeap& heap, const Value& v, Args& args) { return select(heap, v, args, false, false); }},
    {"selectattr",
     [](TemplateHeap& heap, const Value& v, Args& args) { return select(heap, v, args, true, true); }},
    {"rejectattr",
     [](TemplateHeap& heap, const Value& v, Args& args) { return select(heap, v, args, false, true); }},
    {"indent", filter_indent},
};

}  // namespace

bool is_template_filter(const std::string& name) {
  return find_row(kFilters, name) != nullptr;
}
bool is_template_test(const std::string& name) {
  return find_row(kTests, name) != nullptr;
}

Value call_template_filter(TemplateHeap& heap, const std::string& name, const Value& of, Args& args) {
  heap.charge(1);
  const Value result = find_row(kFilters, name)->filter(heap, of, args);
  args.done();
  return result;
}

bool call_template_test(TemplateHeap& heap, const std::string& name, const Value& of, Args& args) {
  heap.charge(1);
  const bool result = find_row(kTests, name)->test(heap, of, args);
  args.done();
  return result;
}

}  // namespace pith
