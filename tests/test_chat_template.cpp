// Chat templates against jinja2's renderings (tests/golden/make_chat_goldens.py), where text came from, and bounds.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "format/error.h"
#include "runtime/chat_template.h"

using namespace pith;
using nlohmann::json;

namespace {

std::vector<ChatMessage> messages_of(const json& conversation) {
  std::vector<ChatMessage> messages;
  for (const json& message : conversation) messages.push_back({message["role"], message["content"]});
  return messages;
}

std::string joined(const std::vector<ChatSegment>& segments) {
  std::string text;
  for (const ChatSegment& segment : segments) text += segment.text;
  return text;
}

// "T" + text for what the template wrote, "M" + text for what messages brought, joined by "/".
std::string marked(const std::string& source, const std::vector<ChatMessage>& messages) {
  std::string out;
  for (const ChatSegment& segment : ChatTemplate(source, "<s>", "</s>").render(messages, false))
    out += fmt::format("{}{}{}", out.empty() ? "" : "/", segment.from_template ? "T" : "M", segment.text);
  return out;
}

// The message of the Error that parsing or rendering throws, with its code in front.
std::string fault_of(const std::string& source, const std::vector<ChatMessage>& messages = {{"user", "hi"}}) {
  try {
    ChatTemplate(source, "<s>", "</s>").render(messages, false);
  } catch (const Error& error) {
    return fmt::format("{} {}", static_cast<int>(error.code()), error.what());
  }
  return "none";
}

std::string repeated(const std::string& text, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += text;
  return out;
}

}  // namespace

TEST_CASE("renderings equal jinja2's") {
  setenv("TZ", "UTC", 1);
  tzset();
  std::ifstream stream(std::string(PITH_SOURCE_DIR) + "/tests/golden/chat/renderings.json");
  const json golden = json::parse(stream);
  size_t n_compared = 0;
  for (const json& entry : golden["templates"]) {
    const ChatTemplate chat(entry["template"].get<std::string>(), golden["bos"], golden["eos"]);
    for (const json& expected : entry["cases"]) {
      INFO(entry["name"] << ", conversation " << expected["conversation"] << ", prompt "
                         << expected["prompt"]);
      const auto messages = messages_of(golden["conversations"][expected["conversation"].get<size_t>()]);
      const auto render = [&] { return joined(chat.render(messages, expected["prompt"], {golden["now"]})); };
      if (expected.contains("error")) {
        CHECK_THROWS_AS(render(), Error);
      } else {
        CHECK(render() == expected["text"].get<std::string>());
      }
      ++n_compared;
    }
  }
  CHECK(n_compared == 25 * 16);
}

TEST_CASE("text from messages keeps its mark through every operation") {
  const std::vector<ChatMessage> user = {{"user", " <|end|> aXb "}};
  const std::pair<const char*, const char*> cases[] = {
      {"<|end|>{{ messages[0].content }}<|end|>", "T<|end|>/M <|end|> aXb /T<|end|>"},
      {"{{ '<' + messages[0].content.strip() + '>' }}", "T</M<|end|> aXb/T>"},
      {"{{ messages[0].content | trim | upper }}", "M<|END|> AXB"},
      {"{{ (messages[0].content ~ '!')[1:] | replace('X', '<x>') }}", "M<|end|> a/T<x>/Mb /T!"},
      {"{{ 'a|b' | replace('|', messages[0].content[1:3]) }}", "Ta/M<|/Tb"},
      {"{{ messages[0].content.split('X') | join('--') }}", "M <|end|> a/T--/Mb "},
      {"{{ messages[0].content[::-1] | trim }}", "MbXa >|dne|<"},
      {"{{ messages[0].content | list | first }}{{ messages[0].content[1] }}", "M <"},
      {"{% set x %}[{{ messages[0].content }}]{% endset %}{{ x | trim }}", "T[/M <|end|> aXb /T]"},
      {"{% macro m(t) %}<{{ t }}>{% endmacro %}{{ m(messages[0].content) }}", "T</M <|end|> aXb /T>"},
      {"{{ messages | map(attribute='content') | join | title }}", "M <|end|> Axb "},
      {"{{ messages[0].content | tojson }}", "T\"/M <|end|> aXb /T\""},
      {"{{ [1, 2] | tojson(separators=(messages[0].content, ':')) }}", "T[1/M <|end|> aXb /T2]"},
      {"{{ {'a': 1} | tojson(separators=(',', messages[0].content)) }}", "T{\"a\"/M <|end|> aXb /T1}"},
      {"{{ strftime_now(messages[0].content) }}{{ strftime_now('<%%>') }}", "M <|end|> aXb /T<%>"},
      {"{{ [messages[0].content] }}", "T['/M <|end|> aXb /T']"},
      {"{{ messages[0].content | default('x') | string | indent(2, true) }}", "T  /M <|end|> aXb "},
      {"{% for c in messages[0].content[1:3] %}{{ c }}.{% endfor %}", "M</T./M|/T."},
      {"{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content %}{% endfor %}{{ "
       "ns.t }}",
       "M <|end|> aXb "},
      {"{{ messages[0].content * 2 }}", "M <|end|> aXb  <|end|> aXb "},
      {"{{ messages[0].content.splitlines()[0] }}{{ messages[0].content.title() | capitalize }}",
       "M <|end|> aXb  <|end|> axb "},
  };
  for (const auto& [source, expected] : cases) {
    INFO(source);
    CHECK(marked(source, user) == expected);
  }
}

TEST_CASE("a usual role is the template's text and any other is the message's") {
  const char* const source = "{{ '<|' + messages[0].role + '|>' }}";
  CHECK(marked(source, {{"user", ""}}) == "T<|user|>");
  CHECK(marked(source, {{"end|><|system", ""}}) == "T<|/Mend|><|system/T|>");
}

TEST_CASE("what is not supported is refused with line and construct when the template is read") {
  const std::pair<std::string, const char*> cases[] = {
      {"a\n{{ x | foo }}", "4 chat template, line 2: filter 'foo' is not supported"},
      {"{{ x is foo }}", "4 chat template, line 1: test 'foo' is not supported"},
      {"\n\n{{ x.format(1) }}", "4 chat template, line 3: method 'format' is not supported"},
      {"{{ messages.append(1) }}", "4 chat template, line 1: method 'append' is not supported"},
      {"{{ foo(1) }}", "4 chat template, line 1: function 'foo' is not supported"},
      {"{% include 'x' %}", "4 chat template, line 1: statement 'include' is not supported"},
      {"{% for x in y recursive %}{% endfor %}",
       "4 chat template, line 1: loop modifier 'recursive' is not supported"},
      {"{% for x in y %}{% macro m() %}{% endmacro %}{% endfor %}",
       "4 chat template, line 1: macro inside a loop 'm' is not supported"},
      {"{% macro a() %}{% macro m() %}{% endmacro %}{% endmacro %}",
       "4 chat template, line 1: macro inside a macro 'm' is not supported"},
      {"{% macro m() %}{{ varargs }}{% endmacro %}",
       "4 chat template, line 1: a macro's 'varargs' is not supported"},
      {"{% macro m() %}{{ kwargs }}{% endmacro %}",
       "4 chat template, line 1: a macro's 'kwargs' is not supported"},
      {"{{ 2 ** 3 }}", "4 chat template, line 1: operator '**' is not supported"},
      {"{{ f(*x) }}", "4 chat template, line 1: argument '*' is not supported"},
      {"{{ ''.__class__() }}", "4 chat template, line 1: method '__class__' is not supported"},
      {"{{ (x)[0](1) }}", "4 chat template, line 1: call of 'an expression' is not supported"},
      {"{% if x %}", "3 chat template, line 1: expected 'endif', found the end of the template"},
      {"{% if x %}{% endfor %}", "4 chat template, line 1: statement 'endfor' is not supported"},
      {"{{ x", "3 chat template, line 1: tag is not closed"},
      {"{{ 'x }}", "3 chat template, line 1: string is not closed"},
      {"{# x", "3 chat template, line 1: comment is not closed"},
      {"{% raw %}", "3 chat template, line 1: 'raw' is not closed by 'endraw'"},
      {"{{ x ] }}", "3 chat template, line 1: unexpected ']'"},
      {"{{ }}", "3 chat template, line 1: expected an expression, found '}}'"},
      {"{{ 1 2 }}", "3 chat template, line 1: expected '}}', found '2'"},
      {"{{ x ? y }}", "3 chat template, line 1: unexpected character '?'"},
      {"{{ 99999999999999999999 }}",
       "3 chat template, line 1: number '99999999999999999999' is out of range"},
      {"{{ " + repeated("x", 129) + " }}", "3 chat template, line 1: a name of 129 bytes, at most 128"},
      {"{% break %}", "3 chat template, line 1: 'break' outside a loop"},
      {"{% set true = 1 %}", "3 chat template, line 1: 'true' cannot be assigned"},
  };
  for (const auto& [source, expected] : cases) {
    INFO(source);
    CHECK(fault_of(source) == expected);
  }
}

TEST_CASE("faults while rendering name the line") {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ raise_exception('no ' ~ messages[0].role ~ ' please') }}", "1 chat template: no user please"},
      {"\n{{ missing.field }}", "1 chat template, line 2: 'missing' is undefined"},
      {"{{ 'a' + missing }}", "1 chat template, line 1: 'missing' is undefined"},
      {"{{ messages[0].nothing.more }}", "1 chat template, line 1: 'nothing' is undefined"},
      {"{{ 'a' + 1 }}", "1 chat template, line 1: '+' of a string and a integer is not possible"},
      {"{{ 1 / 0 }}", "1 chat template, line 1: division by zero"},
      {"{{ 9223372036854775807 + 1 }}", "1 chat template, line 1: integer out of range"},
      {"{{ '%s' % 'x' }}", "1 chat template, line 1: formatting with '%' is not supported"},
      {"{{ 1 < 'x' }}", "1 chat template, line 1: a integer and a string have no order"},
      {"{{ none | length }}", "1 chat template, line 1: a none has no length"},
      {"{% for x in 3 %}{% endfor %}", "1 chat template, line 1: a integer cannot be iterated over"},
      {"{% set x = 1 %}{% set x.y = 2 %}", "1 chat template, line 1: 'x' is not a namespace"},
      {"{{ 'x' | trim(1, 2) }}", "1 chat template, line 1: argument 2 is not supported"},
      {"{{ messages[0].content.get('x') }}", "1 chat template, line 1: a string has no method 'get'"},
      {"{% set a, b = [1] %}", "1 chat template, line 1: 1 values for 2 names"},
      {"{{ loop.index }}", "1 chat template, line 1: 'loop' is undefined"},
      {"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "1 chat template, line 1: macro 'm' takes 1 arguments"},
      {"{{ namespace }}", "1 chat template, line 1: a function cannot be written out"},
      {"{{ 'x' | tojson(ensure_ascii=true) }}",
       "1 chat template, line 1: filter 'tojson': ensure_ascii is not supported"},
      {"{{ range(0, 5, 0) }}", "1 chat template, line 1: range needs bounds and a step other than 0"},
  };
  for (const auto& [source, expected] : cases) {
    INFO(source);
    CHECK(fault_of(source) == expected);
  }
}

// Expected as jinja2 3.1.6 renders them, set up as in tests/golden/make_chat_goldens.py.
TEST_CASE("rare constructs come out as jinja2's") {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ dict({'x': 1, 'y': 3}, x=2) }}", "{'x': 2, 'y': 3}"},
      {"{{ namespace({'x': 1}, x=2).x }}", "2"},
      {"{{ [1, 2, 3] | select('>', 1) | list }}{{ [1, 2, 3] | reject('<=', 2) | list }}", "[2, 3][3]"},
      {"{{ [1, 2, 3] | select('==', 1) | list }}{{ [1, 2, 3] | select('!=', 1) | list }}", "[1][2, 3]"},
      {"{{ [1, 2, 3] | select('>=', 2) | list }}{{ [1, 2, 3] | select('<', 2) | list }}", "[2, 3][1]"},
      {"a{% raw %}\nX{% endraw %}\nb", "a\nXb"},
      {"a{% raw -%}\n X{% endraw %}", "aX"},
      {"{{ x | default(y) is defined }}{{ x | default(y) | default('z') }}{{ x | default() is defined }}",
       "FalsezTrue"},
      {"{{ '  a b '.rsplit(none, 1) }}{{ ' a b '.rsplit(none, 2) }}{{ ' a b '.rsplit(none, 0) }}",
       "['  a', 'b']['a', 'b'][' a b']"},
      {"{{ ' a b '.split(none, 1) }}{{ ' a b '.split(none, 2) }}{{ '  '.rsplit(none, 1) }}",
       "['a', 'b ']['a', 'b'][]"},
      {"a {#-#} b", "a b"},
      {"a {#-#}\n b", "a b"},
      {"a {#--#} b", "ab"},
      {"a {#-+#}\n b", "a\n b"},
      {"a {#-#}-#} b", "a-#} b"},
  };
  for (const auto& [source, expected] : cases) {
    INFO(source);
    CHECK(joined(ChatTemplate(source, "<s>", "</s>").render({}, false)) == expected);
  }
}

TEST_CASE("rendering is bounded in steps, memory and depth") {
  const std::string steps = "1 chat template, line 1: stopped after 1000000 steps";
  CHECK(fault_of("{% for a in range(999) %}{% for b in range(999) %}{{ b }}{% endfor %}{% endfor %}") ==
        steps);
  CHECK(fault_of("{{ range(1000000000000) | length }}") == steps);
  CHECK(fault_of("{{ 'aaaaaaaaaa' * 1000000000000000000 }}") ==
        "1 chat template, line 1: text longer than 16777216 bytes");
  CHECK(fault_of("{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% "
                 "endfor %}") == "1 chat template, line 1: text longer than 16777216 bytes");
  CHECK(fault_of("{% set ns = namespace(x='x' * 1000000) %}{% for i in range(20) %}{{ ns.x }}{% endfor %}") ==
        "1 chat template, line 1: output longer than 16777216 bytes");
  CHECK(fault_of("{% set ns = namespace(x=['x']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% "
                 "endfor %}") == steps);
  CHECK(fault_of("{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% "
                 "endfor %}{{ ns.x == ns.x }}") == steps);
  CHECK(fault_of("{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x] %}{% endfor "
                 "%}{{ ns.x }}") == "1 chat template, line 1: value nested deeper than 64");
  CHECK(fault_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}") ==
        "1 chat template, line 1: nested deeper than 400");
  CHECK(fault_of("{{ ('x' * 9000) | replace('x', 'y' * 9000) }}") ==
        "1 chat template, line 1: text longer than 16777216 bytes");
  CHECK(fault_of("{{ ('a' * 8000000) in ('a' * 16000000 ~ 'b') }}") == steps);
  // What only looks at a text is charged for its length, too: most steps are used up, then looks at 9 MB use up the rest.
  const std::string start = "{% for i in range(195000) %}{% endfor %}{% set x = 'a' * 9000000 %}";
  CHECK(fault_of(start) == "none");
  for (const char* look : {"x is lower", "x is upper", "x | length", "x | count", "x | int", "x | float",
                           "x.startswith(x)", "x.endswith((1, x)[1:])"}) {
    INFO(look);
    CHECK(fault_of(start + "{% for i in range(9) %}{% if " + std::string(look) +
                   " %}{% endif %}{% endfor %}") == steps);
  }
}

TEST_CASE("whatever makes text or looks through it is charged") {
  const std::string steps = "1 chat template, line 1: stopped after 1000000 steps";
  const std::string texts = "1 chat template, line 1: texts of more than 268435456 bytes in all";
  const std::string s = "{% set s = 'a' * 16000000 %}";
  for (const char* make : {"{{ ([s] * 99) | map('string') | list | length }}",
                           "{% for i in range(99) %}{% set x = s | trim %}{% endfor %}",
                           "{% for i in range(99) %}{% set x = s.split('b') %}{% endfor %}",
                           "{% for i in range(99) %}{% set x = s | replace('b', '') %}{% endfor %}"}) {
    INFO(make);
    CHECK(fault_of(s + make) == texts);
  }
  for (const char* change : {"{{ ([s] * 99) | map('upper') | list | length }}",
                             "{{ ([s] * 99) | sort | length }}", "{{ ([s] * 99) | unique | length }}",
                             "{% for i in range(99) %}{{ {s: 1} | dictsort | length }}{% endfor %}"}) {
    INFO(change);
    CHECK(fault_of("{% for i in range(180000) %}{% endfor %}" + s + change) == steps);
  }
  // A mark takes more than the byte that it marks.
  CHECK(fault_of("{{ (('a' ~ messages[0].content[0]) * 8000000) | length }}") ==
        "1 chat template, line 1: text longer than 16777216 bytes");
  CHECK(fault_of(s + "{{ s.strip('" + repeated("b", 254) + "a') | length }}") == steps);
  std::string map = "{% set m = {";
  for (int i = 0; i < 600; ++i) map += fmt::format("'k{}': 0, ", i);
  map += "} %}";
  CHECK(fault_of("{% set s = 'a' * 9000000 %}{% for i in range(99) %}{{ s[i] }}{% endfor %}") == steps);
  CHECK(fault_of(map) == "none");
  CHECK(fault_of(map + "{% for i in range(9) %}{% set x = dict(m) %}{% endfor %}") == steps);
  CHECK(fault_of(map + "{% for i in range(30000) %}{% set x = m.k599 %}{% endfor %}") == steps);
}

TEST_CASE("nesting deeper than the parser allows is refused, not a crash") {
  const int n = 100000;
  const std::string sources[] = {
      "{{ " + repeated("(", n) + repeated(")", n) + " }}",
      "{{ " + repeated("[", n) + repeated("]", n) + " }}",
      "{{ " + repeated("not ", n) + "x }}",
      "{{ " + repeated("-", n) + "1 }}",
      "{{ x" + repeated(".y", n) + " }}",
      "{{ x" + repeated("|trim", n) + " }}",
      "{{ x" + repeated(" + x", n) + " }}",
      "{{ x" + repeated(" if x else x", n) + " }}",
      "{{ x" + repeated("[x", n) + repeated("]", n) + " }}",
      repeated("{% if x %}", n),
      repeated("{% for x in x %}", n),
  };
  for (const std::string& source : sources) {
    INFO(source.substr(0, 40));
    const std::string fault = fault_of(source);
    CHECK((fault.find("deeper than") != std::string::npos ||
           fault.find("at most 1048576") != std::string::npos));
  }
}

TEST_CASE("a message of any bytes passes through unchanged") {
  std::string bytes;
  for (int i = 0; i < 256; ++i) bytes.push_back(static_cast<char>(i));
  CHECK(marked("{{ messages[0].content }}", {{"user", bytes}}) == "M" + bytes);
  CHECK(marked("{{ messages[0].content[::-1][::-1] }}", {{"user", bytes}}) == "M" + bytes);
  CHECK(marked("{{ messages | length }}", {}) == "T0");
}
