// Values of the template language, and what is common to operators, filters and tests on them.
//
// Strings are shared and immutable. Lists, maps and namespaces live in the TemplateHeap of one rendering, which also
// counts steps and bytes: every operation charges for what it makes before it does, so time and memory are bounded together.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "format/error.h"
#include "runtime/chat_template_text.h"

namespace pith {

struct TemplateList;
struct TemplateMap;
struct TemplateLoop;
class TemplateHeap;
struct TemplateStatement;

struct TemplateValue {
  enum Kind {
    kUndefined,
    kNone,
    kBool,
    kInteger,
    kFloat,
    kString,
    kList,
    kMap,
    kNamespace,
    kLoop,
    kMacro,
    kFunction
  } kind = kUndefined;
  union {
    bool boolean;
    int64_t integer = 0;
    double number;
    const TemplateList* list;
    TemplateMap* map;  // of kMap (never changed once made) and kNamespace
    const TemplateLoop* loop;
    const TemplateStatement* macro;
  };
  std::shared_ptr<const TemplateText> text;  // of kString, and the name of kFunction and kUndefined

  static TemplateValue none() {
    TemplateValue v;
    v.kind = kNone;
    return v;
  }
  static TemplateValue of(bool b) {
    TemplateValue v;
    v.kind = kBool, v.boolean = b;
    return v;
  }
  static TemplateValue of(int64_t i) {
    TemplateValue v;
    v.kind = kInteger, v.integer = i;
    return v;
  }
  static TemplateValue of(double d) {
    TemplateValue v;
    v.kind = kFloat, v.number = d;
    return v;
  }
  static TemplateValue of(TemplateText t) {
    TemplateValue v;
    v.kind = kString, v.text = std::make_shared<const TemplateText>(std::move(t));
    return v;
  }
  static TemplateValue of(const char* s) { return of(TemplateText(s, false)); }
  static TemplateValue undefined(const std::string& name) {
    TemplateValue v;
    v.text = std::make_shared<const TemplateText>(name, false);
    return v;
  }
  bool is_string() const { return kind == kString; }
  bool is_number() const { return kind == kInteger || kind == kFloat || kind == kBool; }
  const std::string& bytes() const { return text->bytes(); }  // of kString
  double as_number() const;                                   // of is_number()
  const char* type_name() const;
};

struct TemplateList {
  std::vector<TemplateValue> items;
  bool is_tuple = false;
};

struct TemplateMap {
  std::vector<std::pair<TemplateValue, TemplateValue>> items;  // in order of insertion
  const TemplateValue* find(TemplateHeap& heap, const TemplateValue& key) const;
  const TemplateValue* find(TemplateHeap& heap, const std::string& key) const;
  void set(TemplateHeap& heap, const TemplateValue& key,
           TemplateValue value);  // the old entry of that key, or a new one
};

struct TemplateLoop {
  const std::vector<TemplateValue>* items;
  size_t index0 = 0;
};

class TemplateHeap {
 public:
  static constexpr uint64_t kMaxSteps = 1000000;
  static constexpr size_t kMaxTextBytes = 16 << 20;  // of one text, with its marks
  static constexpr size_t kMaxAllTextBytes = 256 << 20;

  // Throws TemplateFault when the steps are used up, as charge_text() does.
  void charge(uint64_t n_steps);
  // For a text of n memory_bytes() about to be made: 1 step a KiB, at most kMaxTextBytes, and kMaxAllTextBytes in one rendering.
  void charge_text(uint64_t n_bytes);
  // For going through n bytes character by character, which takes longer than copying them.
  void charge_look(uint64_t n_bytes) { charge(1 + n_bytes / 128); }
  // For looking for m bytes in n.
  void charge_search(uint64_t n, uint64_t m) { charge((1 + n / 1024) * (1 + m / 256)); }
  TemplateValue list(std::vector<TemplateValue> items, bool is_tuple = false);
  TemplateValue map(TemplateMap items, bool is_namespace = false);
  TemplateLoop* loop(const TemplateLoop& loop);
  const TemplateList* keep(std::vector<TemplateValue> items);

 private:
  uint64_t n_steps_ = 0, n_text_bytes_ = 0;
  std::deque<TemplateList> lists_;
  std::deque<TemplateMap> maps_;
  std::deque<TemplateLoop> loops_;
};

bool truth(const TemplateValue& value);
// depth bounds the comparison of lists in lists.
bool equals(TemplateHeap& heap, const TemplateValue& a, const TemplateValue& b, int depth = 0);
// -1, 0, 1. Throws when the two have no order.
int compare(TemplateHeap& heap, const TemplateValue& a, const TemplateValue& b);
bool contains(TemplateHeap& heap, const TemplateValue& in, const TemplateValue& item);

// As printed: {{ value }}. Undefined is empty.
TemplateText print(TemplateHeap& heap, const TemplateValue& value);
struct JsonStyle {
  int64_t indent = -1;  // spaces a level; -1: one line
  TemplateText item_separator{", ", false}, key_separator{": ", false};
  bool sort_keys = false;
};
TemplateText to_json(TemplateHeap& heap, const TemplateValue& value, const JsonStyle& style);

// The values that a loop over `value` visits: a list's, a map's keys, a string's characters.
std::vector<TemplateValue> iterate(TemplateHeap& heap, const TemplateValue& value);
int64_t length(const TemplateValue& value);
// value[index] and value[begin:end:step]; undefined when there is none.
TemplateValue item(TemplateHeap& heap, const TemplateValue& value, const TemplateValue& index);
TemplateValue slice(TemplateHeap& heap, const TemplateValue& value, const TemplateValue& begin,
                    const TemplateValue& end, const TemplateValue& step);

// A fault while rendering; the renderer adds the line: "chat template, line 3: ...".
struct TemplateFault {
  std::string message;
};
template <typename... Args>
[[noreturn]] void fault(fmt::format_string<Args...> format, Args&&... args) {
  throw TemplateFault{fmt::format(format, std::forward<Args>(args)...)};
}

}  // namespace pith
