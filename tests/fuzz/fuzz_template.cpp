// Fuzzes chat templates: reading any source, and rendering it over messages.
//
// Oracle: message text is made of one private-use character that the source cannot make, so that wherever the character
// comes out, it must be marked as the message's; and rendering twice gives the same.
//
// The mutator splices pieces of the language, since random bytes hardly ever close a tag.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "format/error.h"
#include "runtime/chat_template.h"

using namespace pith;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

constexpr const char* kMark = "\xee\x80\x80";  // U+E000

const char* const kPieces[] = {"{{ messages[0].content }}",
                               "{% for m in messages %}",
                               "{% endfor %}",
                               "{% if loop.last %}",
                               "{% elif x %}",
                               "{% else %}",
                               "{% endif %}",
                               "{% set x = m.content %}",
                               "{% set ns = namespace(a=1) %}",
                               "{% set ns.a = ns.a + 1 %}",
                               "{% set y %}",
                               "{% endset %}",
                               "{% macro f(a, b=2) %}",
                               "{% endmacro %}",
                               "{{ f(x) }}",
                               "{%- ",
                               " -%}",
                               "{{- ",
                               " -}}",
                               "{# c #}",
                               "{% raw %}",
                               "{% endraw %}",
                               "{% break %}",
                               "{% continue %}",
                               "{% generation %}",
                               "{% endgeneration %}",
                               "{{ ",
                               " }}",
                               " | trim",
                               " | join(', ')",
                               " | tojson(indent=2)",
                               " | upper",
                               " | title",
                               " | replace('a', x)",
                               " | default('d', true)",
                               " | length",
                               " | list",
                               " | reverse",
                               " | sort",
                               " | map(attribute='role')",
                               " | selectattr('role', 'equalto', 'user')",
                               " | indent(2)",
                               " | int",
                               " | items",
                               " | unique",
                               " | first",
                               ".strip()",
                               ".split()",
                               ".split('a', 1)",
                               ".rsplit('a')",
                               ".lstrip('x')",
                               ".startswith('a')",
                               ".title()",
                               ".splitlines()",
                               ".items()",
                               ".get('role')",
                               ".replace('', x)",
                               "[1:]",
                               "[::-1]",
                               "[-1]",
                               "[:3]",
                               "[::-2]",
                               " is defined",
                               " is not none",
                               " is string",
                               " in x",
                               " not in messages",
                               " ~ ",
                               " + ",
                               " - ",
                               " * ",
                               " / ",
                               " // ",
                               " % ",
                               " == ",
                               " < ",
                               " and ",
                               " or ",
                               " not ",
                               " if x else ",
                               "(",
                               ")",
                               "[",
                               "]",
                               "{'a': ",
                               "}",
                               ", ",
                               "range(9)",
                               "'a'",
                               "\"b\"",
                               "12",
                               "-1",
                               "2.5",
                               "none",
                               "true",
                               "messages",
                               "loop.index",
                               "x",
                               "ns",
                               "\n",
                               "  ",
                               "raise_exception('r')",
                               "strftime_now('%Y')",
                               "bos_token",
                               "loop.previtem"};

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  if (random() % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::string text(reinterpret_cast<const char*>(data), size);
  for (unsigned n = 1 + random() % 4; n > 0; --n) {
    const char* const piece = kPieces[random() % std::size(kPieces)];
    const size_t at = text.empty() ? 0 : random() % (text.size() + 1);
    text.replace(at, random() % 3 == 0 ? random() % 8 : 0, piece);
  }
  if (text.size() > max_size) text.resize(max_size);
  std::memcpy(data, text.data(), text.size());
  return text.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string source(reinterpret_cast<const char*>(data), size);
  const std::string mark = kMark;
  const std::vector<ChatMessage> messages = {{"system", mark + " " + mark + "\n"},
                                             {"user", mark + mark + "\t" + mark},
                                             {"assistant", ""},
                                             {"user", mark}};
  try {
    const ChatTemplate chat(source, "<s>", "</s>");
    std::string text, again;
    const auto segments = chat.render(messages, size % 2 == 0, {1});
    for (const ChatSegment& segment : segments) {
      text += segment.text;
      if (segment.text.empty()) broken("an empty segment");
    }
    for (const ChatSegment& segment : chat.render(messages, size % 2 == 0, {1})) again += segment.text;
    if (text != again) broken("two renderings differ");
    // The source could spell the character itself, whole, in bytes or as an escape.
    if (source.find('\\') != std::string::npos || source.find('\xee') != std::string::npos) return 0;
    for (const ChatSegment& segment : segments)
      if (segment.from_template && segment.text.find(mark) != std::string::npos)
        broken("message text marked as the template's");
  } catch (const Error&) {
  }
  return 0;
}
