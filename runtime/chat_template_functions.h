// The filters, tests, methods and functions of the template language, each a row of a table in the source.
#pragma once
#include <string>
#include <vector>

#include "runtime/chat_template.h"
#include "runtime/chat_template_value.h"

namespace pith {

struct NamedTemplateValue {
  std::string name;  // empty: positional
  TemplateValue value;
};

// Arguments of a call, read by place or name. done() faults on what was not read.
class TemplateArgs {
 public:
  explicit TemplateArgs(std::vector<NamedTemplateValue> args) : args_(std::move(args)), read_(args_.size()) {}
  size_t n_positional() const;
  // The argument at `place`, or called `name`; undefined when not given.
  TemplateValue get(size_t place, const char* name = "");
  bool has(size_t place, const char* name) const;
  TemplateValue need(size_t place, const char* name = "");
  int64_t integer_or(size_t place, const char* name, int64_t fallback);
  bool flag_or(size_t place, const char* name, bool fallback);
  void done() const;
  const std::vector<NamedTemplateValue>& all() const { return args_; }

 private:
  size_t find(size_t place, const char* name) const;  // args_.size() when not given
  std::vector<NamedTemplateValue> args_;
  std::vector<bool> read_;
};

bool is_template_filter(const std::string& name);
bool is_template_test(const std::string& name);
bool is_template_method(const std::string& name);
bool is_template_function(const std::string& name);

// name is a known one. Fault on wrong arguments or types.
TemplateValue call_template_filter(TemplateHeap& heap, const std::string& name, const TemplateValue& of,
                                   TemplateArgs& args);
bool call_template_test(TemplateHeap& heap, const std::string& name, const TemplateValue& of,
                        TemplateArgs& args);
TemplateValue call_template_method(TemplateHeap& heap, const std::string& name, const TemplateValue& of,
                                   TemplateArgs& args);
// raise_exception throws TemplateRaise. clock: for strftime_now.
TemplateValue call_template_function(TemplateHeap& heap, const std::string& name, TemplateArgs& args,
                                     TemplateClock clock);

struct TemplateRaise {
  std::string message;
};

// ---- Shared by chat_template_filters.cpp and chat_template_functions.cpp ----

// The row of that name, nullptr when there is none.
template <typename Row, size_t N>
const Row* find_row(const Row (&table)[N], const std::string& name) {
  for (const Row& row : table)
    if (name == row.name) return &row;
  return nullptr;
}

// The text of a string; `what` needs one otherwise.
const TemplateText& string_of(const TemplateValue& value, const char* what);

// replace() and items() are both filters and methods.
TemplateValue replace_in(TemplateHeap& heap, const TemplateText& text, TemplateArgs& args);
TemplateValue map_items(TemplateHeap& heap, const TemplateValue& map);

}  // namespace pith
