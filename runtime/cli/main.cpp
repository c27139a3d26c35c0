// pith: the command line. One subcommand a file; this one parses, runs and turns failures into one line and a code.
#include <clocale>
#include <csignal>
#include <cstdio>
#include <new>

#include "format/error.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/did_you_mean.h"
#include "runtime/cli/terminal.h"
#include "runtime/pith.h"

namespace pith::cli {
namespace {

std::vector<std::string> command_names(const CLI::App& root) {
  std::vector<std::string> names;
  for (const CLI::App* command : root.get_subcommands(nullptr)) names.push_back(command->get_name());
  return names;
}

// Every spelling of every option, "-n" and "--max-tokens".
std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

const CLI::App* find_command(const CLI::App& root, const std::string& name) {
  for (const CLI::App* command : root.get_subcommands(nullptr))
    if (command->get_name() == name) return command;
  return nullptr;
}

// The subcommand that the words name, or the root.
const CLI::App& addressed(const CLI::App& root, const std::vector<std::string>& words) {
  for (const std::string& word : words)
    if (!word.starts_with("-"))
      if (const CLI::App* command = find_command(root, word)) return *command;
  return root;
}

std::string suggestion(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string near = did_you_mean(word, candidates);
  return near.empty() ? "" : fmt::format("; did you mean '{}'?", near);
}

// CLI11's own messages name the consequence ("FILE is required") where a slip is the cause: look for the slip first.
std::string explain(const CLI::App& root, const std::vector<std::string>& words,
                    const CLI::ParseError& error) {
  const CLI::App& app = addressed(root, words);
  const std::string who = &app == &root ? "pith" : "pith " + app.get_name();
  if (&app == &root && !words.empty() && !words[0].starts_with("-"))
    return fmt::format("pith: '{}' is not a command{} (pith help lists them)", words[0],
                       suggestion(words[0], command_names(root)));
  const std::vector<std::string> known = option_names(app);
  for (const std::string& word : words) {
    if (word.size() < 2 || word[0] != '-' || word == "--" || word.find(' ') != word.npos ||
        std::isdigit(static_cast<unsigned char>(word[1])))
      continue;  // what has a space in it is a prompt
    const std::string name = word.substr(0, word.find('='));
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    if (const std::string ours = our_name(name, known); !ours.empty())  // -ngl too, which is no -n gl
      return fmt::format("{}: unknown option '{}'; pith {}", who, name, ours);
    const bool exists = std::any_of(known.begin(), known.end(), [&](const std::string& option) {
      return option.size() == 2 && name.starts_with(option);
    });
    if (!exists) return fmt::format("{}: unknown option '{}'{}", who, name, suggestion(name, known));
  }
  std::string message = error.what();
  std::replace(message.begin(), message.end(), '\n', ' ');
  return fmt::format("{}: {} (pith help {})", who, message, app.get_name());
}

int run_action(const Action& action, const std::string& who) {
  try {
    const int code = action();
    write_output("");  // a full disk may show only now
    return code;
  } catch (const BrokenPipe&) {
    return kFailure;
  } catch (const Error& error) {
    print_message(fmt::format("{}: {}", who, error.what()));
    return error.code() == ErrorCode::kInvalidArgument ? kUsage : kFailure;
  } catch (const std::bad_alloc&) {
    print_message(fmt::format("{}: out of memory", who));
  } catch (const std::exception& error) {
    print_message(fmt::format("{}: {}", who, error.what()));
  }
  return kFailure;
}

void print_log(int, const char* message, void*) {
  print_message(message);
}
void print_warning(int level, const char* message, void*) {
  if (level > 0) print_note(message);
}

int run(int argc, char** argv) {
  CLI::App root("pith: a runtime for language models in one file of about 2.85 bits per weight.", "pith");
  Action action;
  root.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  root.set_help_flag("-h,--help", "Print this help and exit");
  root.set_version_flag("--version", [] { return fmt::format("pith {}", pith_version()); });
  root.add_flag_function(
      "-q,--quiet", [](int64_t) { set_quiet(true); }, "No notes and no progress");
  root.add_flag_function(
      "-v,--verbose", [](int64_t) { pith_log_set(print_log, nullptr); },
      "The library's notes on standard error");
  pith_log_set(print_warning, nullptr);
  root.fallthrough();  // -q and -v after the command too
  root.require_subcommand(0, 1);
  add_chat(root, action);
  add_run(root, action);
  add_convert(root, action);
  add_eval(root, action);
  add_inspect(root, action);
  add_verify(root, action);
  add_plan(root, action);
  add_tokenize(root, action);
  add_bench(root, action);
  add_synth(root, action);
  add_doctor(root, action);
  std::string topic;
  CLI::App* const help = root.add_subcommand("help", "Help on a command");
  help->add_option("COMMAND", topic, "The command")->type_name("");
  help->callback([&] {
    action = [&] {
      if (topic.empty())  // help() of the root is that of the command that was parsed, which is this one
        return write_output(root.get_formatter()->make_help(&root, "pith", CLI::AppFormatMode::Normal)), kOk;
      const CLI::App* const command = find_command(root, topic);
      if (command == nullptr)
        throw_error(ErrorCode::kInvalidArgument, "'{}' is not a command{}", topic,
                    suggestion(topic, command_names(root)));
      write_output(command->help("pith"));
      return kOk;
    };
  });

  std::vector<std::string> words(argv + 1, argv + argc);
  try {
    root.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const CLI::App& app = addressed(root, words);
    return run_action([&] { return write_output(app.help(&app == &root ? "" : "pith")), kOk; }, "pith");
  } catch (const CLI::CallForVersion& version) {
    return run_action([&] { return write_output(fmt::format("{}\n", version.what())), kOk; }, "pith");
  } catch (const CLI::ParseError& error) {
    print_message(explain(root, words, error));
    return kUsage;
  }
  if (!action) {
    std::fputs(root.help().c_str(), stderr);
    return kUsage;
  }
  return run_action(action, "pith " + addressed(root, words).get_name());
}

}  // namespace
}  // namespace pith::cli

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error code of write, handled where text is written
  std::setlocale(LC_CTYPE, "");   // the line editor's character set; numbers stay in the C locale
  return pith::cli::run(argc, argv);
}
