// Chat templates: a bounded subset of Jinja, executed over a list of messages.
//
// Parsed once (at conversion to refuse what is not understood, naming line and construct; at load to run it).
// Rendering yields segments: text that the template wrote (where special tokens are parsed) and text that came from
// messages (where they never are), so a user cannot forge a control token. A role counts as the template's text when
// it is one of the usual ones, since templates make tokens of it: '<|' + message.role + '|>'.
// Bounds: nesting 64, 1e6 steps, 16 MiB output, 256 MiB of text on the way there. Immutable; any thread may render.
#pragma once
#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pith {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

struct ChatSegment {
  std::string text;
  bool from_template;  // special tokens may be parsed
};

// What strftime_now shows.
struct TemplateClock {
  std::time_t now = 0;  // 0 = the current time
  bool is_utc = false;  // else local time
};

class ChatTemplate {
 public:
  // bos/eos: the texts of those tokens, which templates may print. Throws Error(kUnsupported) or kFormat:
  // "chat template, line 3: filter 'foo' is not supported".
  ChatTemplate(std::string_view source, std::string bos, std::string eos);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;

  // Throws Error(kInvalidArgument): the text of a template's own raise_exception(...), or a fault with its line.
  std::vector<ChatSegment> render(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                                  TemplateClock clock = {}) const;

 private:
  struct Program;
  std::unique_ptr<Program> program_;
};

}  // namespace pith
