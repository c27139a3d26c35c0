// Truth, order, printing and indexing as Python has them, with the depth and size of what they walk limited.
#include "runtime/chat_template_value.h"

#include <algorithm>
#include <cmath>

namespace pith {
namespace {

using Value = TemplateValue;
using Text = TemplateText;

constexpr int kMaxValueDepth = 64;

// Python's repr of a float.
std::string float_text(double number) {
  std::string text = fmt::format("{}", number);
  if (std::isfinite(number) && text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

// A string as a literal: Python's in lists, JSON's otherwise.
void append_quoted(Text& out, const Text& text, bool json) {
  const bool double_quotes =
      json || (text.bytes().find('\'') != std::string::npos && text.bytes().find('"') == std::string::npos);
  const char quote = double_quotes ? '"' : '\'';
  out.append(std::string_view(&quote, 1), false);
  text.for_each([&](char32_t c, std::string_view bytes, bool from_message) {
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.append("\\", from_message);
      out.append(bytes, from_message);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out.append(c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t", from_message);
    } else if (json && (c == '\b' || c == '\f')) {
      out.append(c == '\b' ? "\\b" : "\\f", from_message);
    } else if (c < 0x20 || (!json && c == 0x7f)) {
      out.append(json ? fmt::format("\\u{:04x}", uint32_t{c}) : fmt::format("\\x{:02x}", uint32_t{c}),
                 from_message);
    } else {
      out.append(bytes, from_message);
    }
  });
  out.append(std::string_view(&quote, 1), false);
}

class Writer {
 public:
  Writer(TemplateHeap& heap, const JsonStyle* json) : heap_(heap), json_(json) {}

  void value(const Value& v, int depth) {
    if (depth > kMaxValueDepth) fault("value nested deeper than {}", kMaxValueDepth);
    heap_.charge(1);
    switch (v.kind) {
      case Value::kUndefined:
        if (json_ != nullptr) fault("undefined is not JSON");
        plain("Undefined");
        break;
      case Value::kNone:
        plain(json_ != nullptr ? "null" : "None");
        break;
      case Value::kBool:
        plain(json_ != nullptr ? (v.boolean ? "true" : "false") : (v.boolean ? "True" : "False"));
        break;
      case Value::kInteger:
        plain(fmt::format("{}", v.integer));
        break;
      case Value::kFloat:
        plain(float_text(v.number));
        break;
      case Value::kString:
        heap_.charge_look(v.text->size());
        append_quoted(out_, *v.text, json_ != nullptr);
        break;
      case Value::kList:
        list(*v.list, depth);
        break;
      case Value::kMap:
        map(*v.map, depth);
        break;
      default:
        fault("a {} cannot be written out", v.type_name());
    }
    if (out_.size() > TemplateHeap::kMaxTextBytes)
      fault("text longer than {} bytes", TemplateHeap::kMaxTextBytes);
  }
  Text take() {
    heap_.charge_text(out_.memory_bytes());
    return std::move(out_);
  }

 private:
  void plain(const std::string& text) { out_.append(text, false); }
  void new_line(int depth) {
    if (json_ == nullptr || json_->indent < 0) return;
    plain("\n");
    plain(std::string(static_cast<size_t>(json_->indent) * static_cast<size_t>(depth), ' '));
  }
  void separator() {
    if (json_ == nullptr)
      plain(", ");
    else if (json_->indent >= 0 && json_->item_separator.bytes() == ", ")
      plain(",");
    else
      out_.append(json_->item_separator);
  }
  void list(const TemplateList& values, int depth) {
    const bool tuple = values.is_tuple && json_ == nullptr;
    plain(tuple ? "(" : "[");
    for (size_t i = 0; i < values.items.size(); ++i) {
      if (i > 0) separator();
      new_line(depth + 1);
      value(values.items[i], depth + 1);
    }
    if (tuple && values.items.size() == 1) plain(",");
    if (!values.items.empty()) new_line(depth);
    plain(tuple ? ")" : "]");
  }
  void map(const TemplateMap& values, int depth) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& entry : values.items) items.push_back(&entry);
    if (json_ != nullptr && json_->sort_keys)
      std::stable_sort(items.begin(), items.end(),
                       [&](auto a, auto b) { return compare(heap_, a->first, b->first) < 0; });
    plain("{");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) separator();
      new_line(depth + 1);
      if (json_ != nullptr && !items[i]->first.is_string())
        fault("a key of type {} is not JSON", items[i]->first.type_name());
      value(items[i]->first, depth + 1);
      if (json_ != nullptr)
        out_.append(json_->key_separator);
      else
        plain(": ");
      value(items[i]->second, depth + 1);
    }
    if (!items.empty()) new_line(depth);
    plain("}");
  }

  TemplateHeap& heap_;
  const JsonStyle* json_;
  Text out_;
};

// Byte offsets of the code points of text, and its size at the end.
std::vector<size_t> code_point_offsets(const std::string& text) {
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); at += code_point_at(text, at).n_bytes) offsets.push_back(at);
  offsets.push_back(text.size());
  return offsets;
}

}  // namespace

double TemplateValue::as_number() const {
  return kind == kFloat ? number : kind == kBool ? (boolean ? 1 : 0) : static_cast<double>(integer);
}

const char* TemplateValue::type_name() const {
  static const char* const kNames[] = {"undefined", "none", "boolean",   "integer", "float", "string",
                                       "list",      "map",  "namespace", "loop",    "macro", "function"};
  return kNames[kind];
}

const Value* TemplateMap::find(TemplateHeap& heap, const Value& key) const {
  for (const auto& [name, value] : items)
    if (equals(heap, name, key)) return &value;
  return nullptr;
}

const Value* TemplateMap::find(TemplateHeap& heap, const std::string& key) const {
  heap.charge(items.size() * (1 + key.size() / 1024) / 16);
  for (const auto& [name, value] : items)
    if (name.is_string() && name.bytes() == key) return &value;
  return nullptr;
}

void TemplateMap::set(TemplateHeap& heap, const Value& key, Value value) {
  for (auto& [name, old] : items)
    if (equals(heap, name, key)) {
      old = std::move(value);
      return;
    }
  items.emplace_back(key, std::move(value));
}

void TemplateHeap::charge(uint64_t n_steps) {
  n_steps_ += std::min(n_steps, kMaxSteps + 1);
  if (n_steps_ > kMaxSteps) fault("stopped after {} steps", kMaxSteps);
}

void TemplateHeap::charge_text(uint64_t n_bytes) {
  if (n_bytes > kMaxTextBytes) fault("text longer than {} bytes", kMaxTextBytes);
  charge(1 + n_bytes / 1024);
  n_text_bytes_ += n_bytes;
  if (n_text_bytes_ > kMaxAllTextBytes) fault("texts of more than {} bytes in all", kMaxAllTextBytes);
}

Value TemplateHeap::list(std::vector<Value> items, bool is_tuple) {
  charge(1 + items.size());
  lists_.push_back({std::move(items), is_tuple});
  Value value;
  value.kind = Value::kList, value.list = &lists_.back();
  return value;
}

const TemplateList* TemplateHeap::keep(std::vector<Value> items) {
  return list(std::move(items)).list;
}

Value TemplateHeap::map(TemplateMap items, bool is_namespace) {
  charge(1 + items.items.size());
  maps_.push_back(std::move(items));
  Value value;
  value.kind = is_namespace ? Value::kNamespace : Value::kMap, value.map = &maps_.back();
  return value;
}

TemplateLoop* TemplateHeap::loop(const TemplateLoop& made) {
  charge(1);
  loops_.push_back(made);
  return &loops_.back();
}

bool truth(const Value& value) {
  switch (value.kind) {
    case Value::kUndefined:
    case Value::kNone:
      return false;
    case Value::kBool:
      return value.boolean;
    case Value::kInteger:
      return value.integer != 0;
    case Value::kFloat:
      return value.number != 0;
    case Value::kString:
      return !value.text->empty();
    case Value::kList:
      return !value.list->items.empty();
    case Value::kMap:
      return !value.map->items.empty();
    default:
      return true;
  }
}

bool equals(TemplateHeap& heap, const Value& a, const Value& b, int depth) {
  heap.charge(1);
  if (depth > kMaxValueDepth) fault("value nested deeper than {}", kMaxValueDepth);
  if (a.is_number() && b.is_number()) {
    if (a.kind == Value::kInteger && b.kind == Value::kInteger) return a.integer == b.integer;
    return a.as_number() == b.as_number();
  }
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Value::kUndefined:
    case Value::kNone:
      return true;
    case Value::kString:
      heap.charge(std::min(a.text->size(), b.text->size()) / 1024);
      return a.bytes() == b.bytes();
    case Value::kList: {
      const auto &x = a.list->items, &y = b.list->items;
      if (x.size() != y.size() || a.list->is_tuple != b.list->is_tuple) return false;
      for (size_t i = 0; i < x.size(); ++i)
        if (!equals(heap, x[i], y[i], depth + 1)) return false;
      return true;
    }
    case Value::kMap: {
      if (a.map->items.size() != b.map->items.size()) return false;
      for (const auto& [key, value] : a.map->items) {
        const Value* const other = b.map->find(heap, key);
        if (other == nullptr || !equals(heap, value, *other, depth + 1)) return false;
      }
      return true;
    }
    case Value::kFunction:
      return a.bytes() == b.bytes();
    default:
      return a.map == b.map;  // the same object
  }
}

int compare(TemplateHeap& heap, const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.kind == Value::kInteger && b.kind == Value::kInteger)
      return a.integer < b.integer ? -1 : a.integer > b.integer;
    return a.as_number() < b.as_number() ? -1 : a.as_number() > b.as_number();
  }
  if (!a.is_string() || !b.is_string()) fault("a {} and a {} have no order", a.type_name(), b.type_name());
  heap.charge(1 + std::min(a.text->size(), b.text->size()) / 1024);
  const int order = a.bytes().compare(b.bytes());
  return order < 0 ? -1 : order > 0;
}

bool contains(TemplateHeap& heap, const Value& in, const Value& item) {
  if (in.is_string()) {
    if (!item.is_string()) fault("'in' a string needs a string, found a {}", item.type_name());
    heap.charge_search(in.text->size(), item.text->size());
    return in.bytes().find(item.bytes()) != std::string::npos;
  }
  if (in.kind == Value::kList)
    return std::any_of(in.list->items.begin(), in.list->items.end(),
                       [&](const Value& v) { return equals(heap, v, item); });
  if (in.kind == Value::kMap) return in.map->find(heap, item) != nullptr;
  if (in.kind == Value::kUndefined) return false;
  fault("'in' a {} is not possible", in.type_name());
}

Text print(TemplateHeap& heap, const Value& value) {
  if (value.is_string()) {
    heap.charge_text(value.text->memory_bytes());
    return *value.text;
  }
  if (value.kind == Value::kUndefined) return {};
  Writer writer(heap, nullptr);
  writer.value(value, 0);
  return writer.take();
}

Text to_json(TemplateHeap& heap, const Value& value, const JsonStyle& style) {
  Writer writer(heap, &style);
  writer.value(value, 0);
  return writer.take();
}

std::vector<Value> iterate(TemplateHeap& heap, const Value& value) {
  std::vector<Value> out;
  if (value.kind == Value::kList) {
    heap.charge(value.list->items.size());
    out = value.list->items;
  } else if (value.kind == Value::kMap) {
    heap.charge(value.map->items.size());
    for (const auto& entry : value.map->items) out.push_back(entry.first);
  } else if (value.is_string()) {
    value.text->for_each([&](char32_t, std::string_view bytes, bool from_message) {
      heap.charge(1);
      out.push_back(Value::of(Text(std::string(bytes), from_message)));
    });
  } else if (value.kind != Value::kUndefined) {
    fault("a {} cannot be iterated over", value.type_name());
  }
  return out;
}

int64_t length(const Value& value) {
  switch (value.kind) {
    case Value::kString:
      return static_cast<int64_t>(code_point_offsets(value.bytes()).size() - 1);
    case Value::kList:
      return static_cast<int64_t>(value.list->items.size());
    case Value::kMap:
      return static_cast<int64_t>(value.map->items.size());
    case Value::kUndefined:
      return 0;
    default:
      fault("a {} has no length", value.type_name());
  }
}

Value item(TemplateHeap& heap, const Value& value, const Value& index) {
  if (value.kind == Value::kMap || value.kind == Value::kNamespace) {
    const Value* const found = value.map->find(heap, index);
    return found != nullptr ? *found : Value();
  }
  if (value.kind == Value::kUndefined) fault("'{}' is undefined", value.text ? value.bytes() : "the value");
  if (index.kind != Value::kInteger || (value.kind != Value::kList && !value.is_string())) return {};
  if (value.is_string()) heap.charge_look(value.text->size());
  const std::vector<size_t> offsets =
      value.is_string() ? code_point_offsets(value.bytes()) : std::vector<size_t>();
  const int64_t n = value.is_string() ? static_cast<int64_t>(offsets.size() - 1) : length(value);
  if (index.integer < -n || index.integer >= n) return {};
  const size_t at = static_cast<size_t>(index.integer < 0 ? index.integer + n : index.integer);
  return value.is_string() ? Value::of(value.text->slice(offsets[at], offsets[at + 1]))
                           : value.list->items[at];
}

Value slice(TemplateHeap& heap, const Value& value, const Value& begin, const Value& end, const Value& step) {
  if (value.kind == Value::kUndefined) fault("'{}' is undefined", value.text ? value.bytes() : "the value");
  if (value.kind != Value::kList && !value.is_string()) fault("a {} cannot be sliced", value.type_name());
  const auto bound = [](const Value& v, int64_t fallback) {
    if (v.kind == Value::kUndefined || v.kind == Value::kNone) return fallback;
    if (v.kind != Value::kInteger) fault("a slice needs integers, found a {}", v.type_name());
    return v.integer;
  };
  heap.charge_look(value.is_string() ? value.text->size() : 0);
  heap.charge_text(value.is_string() ? value.text->memory_bytes() : 0);
  const std::vector<size_t> offsets =
      value.is_string() ? code_point_offsets(value.bytes()) : std::vector<size_t>();
  const int64_t n = value.is_string() ? static_cast<int64_t>(offsets.size() - 1) : length(value);
  const int64_t by = std::clamp<int64_t>(bound(step, 1), -n - 1, n + 1);  // a longer step takes one item too
  if (bound(step, 1) == 0) fault("a slice's step is 0");
  const auto place = [&](const Value& v, int64_t fallback) {
    int64_t at = bound(v, fallback);
    if (v.kind != Value::kInteger) return at;
    if (at < 0) at = at < -n ? -1 : at + n;
    return by > 0 ? std::clamp<int64_t>(at, 0, n) : std::clamp<int64_t>(at, -1, n - 1);
  };
  const int64_t first = place(begin, by > 0 ? 0 : n - 1);
  const int64_t last = place(end, by > 0 ? n : -1);
  Text text;
  std::vector<Value> items;
  for (int64_t i = first; by > 0 ? i < last : i > last; i += by) {
    const size_t at = static_cast<size_t>(i);
    if (value.is_string()) {
      text.append(*value.text, offsets[at], offsets[at + 1]);
    } else {
      items.push_back(value.list->items[at]);
    }
  }
  return value.is_string() ? Value::of(std::move(text)) : heap.list(std::move(items), value.list->is_tuple);
}

}  // namespace pith
