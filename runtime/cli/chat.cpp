// pith chat: a conversation at a terminal, a scripted one from a pipe, or one question.
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <iostream>
#include <memory>

#include "runtime/cli/cli.h"
#include "runtime/cli/conversation.h"
#include "runtime/cli/did_you_mean.h"
#include "runtime/cli/human_bytes.h"
#include "runtime/cli/line_editor.h"
#include "runtime/cli/text_input.h"
#include "runtime/sampler.h"
#include "runtime/utf8.h"

namespace pith::cli {
namespace {

struct ChatOptions {
  std::string file, system, once;
  bool has_once = false;
  SessionFlags flags;
};

// A signal handler can reach nothing but globals.
std::atomic<pith_session*> replying = nullptr;
int interrupts = -1;  // an eventfd: counts SIGINTs, so that a line and a signal can be waited for together

extern "C" void on_interrupt(int) {
  const int saved_errno = errno;
  eventfd_write(interrupts, 1);
  errno = saved_errno;
  if (pith_session* const session = replying) pith_interrupt(session);
}

bool take_interrupt() {
  eventfd_t n;
  return eventfd_read(interrupts, &n) == 0;
}

void install_interrupt_handler() {
  interrupts = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (interrupts < 0) throw_error(ErrorCode::kIo, "cannot wait for Ctrl-C: {}", std::strerror(errno));
  struct sigaction act {};
  act.sa_handler = on_interrupt;
  act.sa_flags = SA_RESTART;
  sigaction(SIGINT, &act, nullptr);
}

std::string count_turns(size_t n) {
  return fmt::format("{} turn{}", n, n == 1 ? "" : "s");
}

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1));
}

std::string expand_home(const std::string& path) {
  const char* const home = std::getenv("HOME");
  return path.starts_with("~/") && home != nullptr ? home + path.substr(1) : path;
}

// What /set takes.
std::vector<std::string> set_keys() {
  std::vector<std::string> keys;
  for (const SamplerOption& option : sampler_options()) keys.emplace_back(option.key);
  keys.emplace_back("max_tokens");
  keys.emplace_back("stop");
  return keys;
}

constexpr const char* kHelpBeforeSet =
    "/help                this list\n"
    "/system [TEXT|off]   show or set the system message\n";
constexpr const char* kHelpAfterSet =
    "/set stop TEXT       end replies before TEXT, too; /set stop= forgets all such texts\n"
    "/stats               context, speed, seed, memory\n"
    "/undo                take the last question and its reply back\n"
    "/retry               another reply to the last question\n"
    "/forget [N|all]      drop the N oldest turns (1)\n"
    "/save FILE           save the conversation\n"
    "/load FILE           go on with a saved one\n"
    "/quit                leave (so does Ctrl-D)\n"
    "A line that ends in \\ goes on; \"\"\" begins and ends a block of lines; // begins a text with /.\n"
    "Ctrl-C stops a reply.";

std::string help() {
  constexpr size_t kColumns = 88;
  std::string text = kHelpBeforeSet, line = "/set [KEY VALUE]     show or set:";
  for (const std::string& key : set_keys()) {
    if (line.size() + 1 + key.size() > kColumns) {
      text += line + "\n";
      line = std::string(20, ' ');  // under what the commands do
    }
    line += " " + key;
  }
  return text + line + "\n" + kHelpAfterSet;
}

class Chat {
 public:
  // stops: the session's stop texts.
  // takes_commands: more input may follow a reply.
  Chat(const ModelHandle& model, const SessionHandle& session, const std::vector<std::string>& stops,
       bool takes_commands)
      : model_(model.get()),
        session_(session.get()),
        conversation_(model.get(), session.get()),
        takes_commands_(takes_commands) {
    for (const std::string& stop : stops) add_stop(stop);
    conversation_.set_interrupted(take_interrupt);
  }

  Conversation& conversation() { return conversation_; }
  bool wants_to_quit() const { return quit_; }

  // A question or a command. Throws Error; the conversation is then as it was.
  void handle(const std::string& input) {
    if (input.starts_with("//"))
      ask(input.substr(1));
    else if (input.starts_with("/"))
      command(input);
    else if (!trimmed(input).empty())
      ask(input);
  }

  void ask(const std::string& question) {
    reply_to([&] { return conversation_.ask(question); });
  }

  // ask_model: a turn of the conversation. An interrupt since the line was read is one of the reply, and none of the next line.
  template <typename AskModel>
  void reply_to(AskModel&& ask_model) {
    replying = session_;
    try {
      reply_ = ask_model();
    } catch (...) {
      replying = nullptr;
      take_interrupt();
      throw;
    }
    replying = nullptr;
    take_interrupt();
    write_output("\n");
    after_reply();
  }

 private:
  void after_reply() {
    if (reply_.stop == PITH_STOP_INTERRUPT) print_note("[stopped]");
    if (reply_.stop == PITH_STOP_LENGTH) print_note("[stopped at max_tokens]");
    const size_t used = reply_.n_prompt + reply_.n_generated;
    if (reply_.stop == PITH_STOP_CONTEXT)
      print_note(fmt::format("[the context of {} tokens is full: the reply is cut{}]", conversation_.n_ctx(),
                             takes_commands_ ? "; /forget makes room" : ""));
    else if (takes_commands_ && used * 5 >= size_t{conversation_.n_ctx()} * 4)
      print_note(fmt::format("[{} of {} tokens of context used; /forget drops the oldest turn]", used,
                             conversation_.n_ctx()));
  }

  void command(const std::string& input) {
    refuse_nul(input, "the command");
    const size_t space = input.find_first_of(" \t\n");
    const std::string name = input.substr(1, space == std::string::npos ? space : space - 1);
    const std::string rest = space == std::string::npos ? "" : trimmed(input.substr(space));
    if (name == "help" || name == "?")
      print_lines(help());
    else if (name == "quit" || name == "exit")
      quit_ = true;
    else if (name == "system")
      system(rest);
    else if (name == "set")
      set(rest);
    else if (name == "stats")
      stats();
    else if (name == "undo")
      undo();
    else if (name == "retry")
      retry();
    else if (name == "forget")
      forget(rest);
    else if (name == "save")
      save(rest);
    else if (name == "load")
      load(rest);
    else
      unknown(name);
  }

  static void unknown(const std::string& name) {
    const std::string near = did_you_mean(
        name, {"help", "system", "set", "stats", "undo", "retry", "forget", "save", "load", "quit"});
    if (!near.empty())
      throw_error(ErrorCode::kInvalidArgument, "/{} is not a command; did you mean /{}?", name, near);
    throw_error(ErrorCode::kInvalidArgument,
                "/{} is not a command (/help); a text that begins with / is typed //", name);
  }

  static void print_lines(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

  void system(const std::string& text) {
    if (!conversation_.has_template())
      throw_error(ErrorCode::kInvalidArgument,
                  "/system: the model has no chat template, so no system message");
    if (!text.empty()) conversation_.set_system(text == "off" ? "" : text);
    const std::string& now = conversation_.system();
    print_note(now.empty() ? "[no system message]" : fmt::format("[system: {}]", now));
  }

  void set(const std::string& text) {
    const size_t space = text.find_first_of(" \t=");
    if (text.empty()) {
      for (const std::string& key : set_keys()) print_lines(fmt::format("{:<18} {}", key, setting(key)));
    } else if (space == std::string::npos) {
      print_lines(fmt::format("{:<18} {}", text, setting(text)));
    } else {
      const std::string key = text.substr(0, space), value = trimmed(text.substr(space + 1));
      check(pith_set(session_, key.c_str(), value.c_str()));
      if (key == "stop") add_stop(value);
      print_note(fmt::format("[{} = {}]", key, setting(key)));
    }
  }

  // As the session does.
  void add_stop(const std::string& text) {
    if (text.empty())
      stops_.clear();
    else
      stops_.push_back(text);
  }

  std::string setting(const std::string& key) const {
    if (key != "stop") return get(session_, key.c_str());
    std::string text;
    for (const std::string& stop : stops_)
      text += fmt::format("{}\"{}\"", text.empty() ? "" : ", ", printable(stop));
    return text.empty() ? "none" : text;
  }

  void stats() {
    const auto rate = [](uint32_t n, double seconds) { return seconds > 0 ? n / seconds : 0; };
    print_lines(fmt::format("context    {} of {} tokens, {}", get(session_, "n_tokens"),
                            conversation_.n_ctx(), count_turns(conversation_.n_turns())));
    if (reply_.n_prompt > 0)
      print_lines(fmt::format(
          "last reply {} prompt tokens ({} reused, {:.1f} tokens/s), {} generated, {:.1f} tokens/s",
          reply_.n_prompt, reply_.n_reused, rate(reply_.n_prompt - reply_.n_reused, reply_.prompt_seconds),
          reply_.n_generated, rate(reply_.n_generated, reply_.generation_seconds)));
    print_lines(fmt::format("sampling   temp {}, seed {}", get(session_, "temp"), get(session_, "seed")));
    print_lines(fmt::format("runs on    {}, {} kernels, {} threads", get(session_, "device"),
                            get(session_, "kernels"), get(session_, "threads")));
    print_lines(fmt::format("memory     file {}, kv cache {}, scratch {}", bytes(get(model_, "file_bytes")),
                            bytes(get(session_, "kv_bytes")), bytes(get(session_, "scratch_bytes"))));
  }

  static std::string bytes(const std::string& count) { return human_bytes(std::stoull(count)); }

  void undo() {
    if (conversation_.n_turns() == 0)
      throw_error(ErrorCode::kInvalidArgument, "/undo: there is no turn to take back");
    print_note(fmt::format("[taken back: {}]", conversation_.undo()));
  }

  void retry() {
    if (conversation_.n_turns() == 0)
      throw_error(ErrorCode::kInvalidArgument, "/retry: there is no question yet");
    if (get(session_, "temp") == "0")
      print_note("[temp is 0: the same reply again; /set temp 0.7 for another]");
    reply_to([&] { return conversation_.ask_again(); });
  }

  void forget(const std::string& text) {
    size_t n = 1;
    if (text == "all") {
      n = conversation_.n_turns();
    } else if (!text.empty()) {
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
      if (error != std::errc() || end != text.data() + text.size())
        throw_error(ErrorCode::kInvalidArgument, "/forget: '{}' is not a number of turns", text);
    }
    n = conversation_.forget(n);
    print_note(fmt::format("[{} dropped, {} left]", count_turns(n), conversation_.n_turns()));
  }

  void save(const std::string& path) {
    if (path.empty()) throw_error(ErrorCode::kInvalidArgument, "/save needs a file name");
    conversation_.save(expand_home(path));
    print_note(fmt::format("[{} saved to {}]", count_turns(conversation_.n_turns()), path));
  }

  void load(const std::string& path) {
    if (path.empty()) throw_error(ErrorCode::kInvalidArgument, "/load needs a file name");
    const bool same_model = conversation_.load(expand_home(path));
    print_note(fmt::format("[{}{}]", count_turns(conversation_.n_turns()),
                           same_model ? "" : ", saved with another model"));
  }

  const pith_model* model_;
  pith_session* session_;
  Conversation conversation_;
  const bool takes_commands_;
  std::vector<std::string> stops_;
  pith_reply reply_{};
  bool quit_ = false;
};

// Joins lines into one input: a trailing backslash goes on, """ opens and closes a block.
class InputJoiner {
 public:
  bool is_open() const { return block_ || continued_; }
  void reset() { *this = {}; }

  // True when `input` is complete.
  bool add(const std::string& line, std::string& input) {
    if (!is_open() && line.starts_with("\"\"\"")) {
      block_ = true;
      return add_block(line.substr(3), input);
    }
    if (block_) return add_block(line, input);
    continued_ = line.ends_with('\\');
    text_ += continued_ ? line.substr(0, line.size() - 1) + "\n" : line;
    return continued_ ? false : take(input);
  }
  bool take(std::string& input) {
    input = std::move(text_);
    reset();
    return true;
  }

 private:
  bool add_block(const std::string& line, std::string& input) {
    if (line.ends_with("\"\"\"")) {
      text_ += line.substr(0, line.size() - 3);
      return take(input);
    }
    if (!text_.empty() || !line.empty()) text_ += line + "\n";
    return false;
  }

  std::string text_;
  bool block_ = false, continued_ = false;
};

void at_terminal(Chat& chat, const ChatOptions& options) {
  install_interrupt_handler();
  LineEditor editor(history_path());
  print_note(
      fmt::format("{}: {} tokens of context. /help lists commands, Ctrl-C stops a reply, Ctrl-D leaves.",
                  options.file, chat.conversation().n_ctx()));
  InputJoiner joiner;
  std::string line, input;
  bool armed = false;  // Ctrl-C was pressed at an empty prompt
  while (!chat.wants_to_quit()) {
    const LineEditor::Event event = editor.read(joiner.is_open() ? "... " : "> ", line, interrupts);
    if (event == LineEditor::Event::kEnd) {
      std::fputc('\n', stderr);
      return;
    }
    if (event == LineEditor::Event::kInterrupt) {
      take_interrupt();
      std::fputs("^C\n", stderr);
      if (armed) return;
      armed = true;
      joiner.reset();
      print_note("[Ctrl-C again or Ctrl-D leaves]");
      continue;
    }
    armed = false;
    editor.remember(line);
    if (!joiner.add(line, input)) continue;
    try {
      chat.handle(input);
    } catch (const Error& error) {
      const bool stopped = error.code() == ErrorCode::kInterrupted;
      if (stopped) std::fputc('\n', stderr);
      print_message(stopped ? "[stopped before the reply; the question is taken back]" : error.what());
    }
  }
}

// Lines of standard input as a scripted conversation; the first failure ends it.
void from_pipe(Chat& chat) {
  InputJoiner joiner;
  std::string line, input;
  while (!chat.wants_to_quit() && std::getline(std::cin, line)) {
    if (line.ends_with('\r')) line.pop_back();
    if (joiner.add(line, input)) chat.handle(input);
  }
  if (joiner.is_open() && joiner.take(input)) chat.handle(input);
}

int run(const ChatOptions& options) {
  if (options.has_once && trimmed(options.once).empty())
    throw_error(ErrorCode::kInvalidArgument, "--once: the question is empty");
  const ModelHandle model = open_model(options.file, options.flags.access());
  const SessionHandle session = open_session(model, options.flags);
  Chat chat(model, session, options.flags.values("stop"), !options.has_once);
  if (!chat.conversation().has_template()) {
    if (!options.system.empty())
      throw_error(ErrorCode::kInvalidArgument, "--system: {} has no chat template, so no system message",
                  options.file);
    print_note(
        fmt::format("{}: no chat template: completion, not conversation; the model continues what you write",
                    options.file));
  }
  chat.conversation().set_system(options.system);
  if (options.has_once)
    chat.ask(options.once);
  else if (is_terminal(STDIN_FILENO))
    at_terminal(chat, options);
  else
    from_pipe(chat);
  return kOk;
}

}  // namespace

void add_chat(CLI::App& root, Action& action) {
  const auto options = std::make_shared<ChatOptions>();
  CLI::App* const app = root.add_subcommand("chat", "Talk with a model");
  app->add_option("FILE", options->file, "A .pith file")->required()->type_name("");
  app->add_option("--system", options->system, "System message")->type_name("TEXT");
  CLI::Option* const once =
      app->add_option("--once", options->once, "Answer one question and exit")->type_name("TEXT");
  options->flags
      .add(*app, "-n,--tokens", "max_tokens",
           "At most N tokens a reply (default and 0: until the model ends)")
      ->type_name("N");
  options->flags.add_stop(*app);
  options->flags.add_sampling(*app);
  options->flags.add_session(*app);
  options->flags.add_access(*app);
  app->footer(
      "With standard input not a terminal its lines are the user's turns. Replies go to standard output,\n"
      "everything else to standard error. At the prompt, /help lists the commands.");
  app->callback([options, once, &action] {
    options->has_once = once->count() > 0;
    action = [options] { return run(*options); };
  });
}

}  // namespace pith::cli
