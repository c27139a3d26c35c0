// String operations of the template language, on text that keeps its marks. White space is Python's.
#pragma once
#include <string>
#include <vector>

#include "runtime/chat_template_value.h"

namespace pith {

// kTitle is Python's str.title, kTitleFilter Jinja's filter of that name: they split words differently.
enum class Case { kUpper, kLower, kCapitalized, kTitle, kTitleFilter };
TemplateText change_case(TemplateHeap& heap, const TemplateText& text, Case to);
// str.isupper and str.islower: some letter has a case, and all those have this one.
bool is_cased(const std::string& text, bool upper);

// Without the leading or trailing characters in `chars` (null: white space).
TemplateText strip(TemplateHeap& heap, const TemplateText& text, const std::string* chars, bool left,
                   bool right);
// At most `count` replacements, all when negative. An empty `from` stands between all characters.
TemplateText replace(TemplateHeap& heap, const TemplateText& text, const TemplateText& from,
                     const TemplateText& to, int64_t count);
// At most `count` cuts, all when negative. separator null: at runs of white space, without empty parts.
std::vector<TemplateText> split(TemplateHeap& heap, const TemplateText& text, const TemplateText* separator,
                                int64_t count, bool from_right);
std::vector<TemplateText> split_lines(TemplateHeap& heap, const TemplateText& text);
TemplateText indent(TemplateHeap& heap, const TemplateText& text, const TemplateText& by, bool first,
                    bool blank);

}  // namespace pith
