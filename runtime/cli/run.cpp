// pith run: text goes on where the prompt ends. The model's text alone on standard output, byte for byte.
#include <unistd.h>

#include <memory>

#include "runtime/cli/cli.h"
#include "runtime/cli/handles.h"
#include "runtime/cli/terminal.h"
#include "runtime/cli/text_input.h"

namespace pith::cli {
namespace {

struct RunOptions {
  std::string file, prompt, prompt_file = "-", system;
  bool has_prompt = false, has_file = false, chat = false, stats = false;
  SessionFlags flags;
};

std::string take_prompt(const RunOptions& options) {
  if (options.has_prompt) return options.prompt;
  if (!options.has_file && is_terminal(STDIN_FILENO))
    throw_error(ErrorCode::kInvalidArgument, "no prompt: give -p TEXT, -f FILE or text on standard input");
  std::string text = read_text(options.prompt_file);
  if (text.ends_with('\n')) text.pop_back();  // the newline that ends a text file is not part of the prompt
  return text;
}

int run(const RunOptions& options) {
  const ModelHandle model = open_model(options.file, options.flags.access());
  // After the file: what is wrong with that is said before anybody types.
  const std::string prompt = take_prompt(options);
  if (prompt.empty()) throw_error(ErrorCode::kInvalidArgument, "the prompt is empty");
  const SessionHandle session = open_session(model, options.flags);
  ReplyWriter writer;
  pith_reply reply{};
  reply.size = sizeof reply;
  std::vector<pith_message> messages;
  if (options.chat) {
    refuse_nul(prompt, "the prompt");
    if (!options.system.empty()) messages.push_back({"system", options.system.c_str()});
    messages.push_back({"user", prompt.c_str()});
  }
  const std::vector<int32_t> ids =
      options.chat ? render(model.get(), messages) : tokenize(model.get(), prompt, PITH_ADD_BOS);
  if (const std::string n_ctx = get(session.get(), "ctx"); ids.size() > std::stoul(n_ctx))
    throw_error(ErrorCode::kContextFull, "the prompt has {} tokens, the context {}: {}", ids.size(), n_ctx,
                context_hint(model.get(), ids.size()));
  if (options.chat) {
    check(pith_chat(session.get(), messages.data(), messages.size(), ReplyWriter::callback, &writer, &reply));
  } else {
    check(pith_sync(session.get(), ids.data(), ids.size()));
    check(pith_generate(session.get(), ReplyWriter::callback, &writer, &reply));
  }
  writer.finish();
  writer.put(get(session.get(), "held_text"));  // nothing goes on from here
  const bool ends_in_line = !writer.text().empty() && !writer.text().ends_with('\n');
  if (is_terminal(STDOUT_FILENO) && ends_in_line)
    write_output("\n");
  else if (options.stats && ends_in_line)
    std::fputc('\n', stderr);  // both may go to the same place; standard output is the model's alone
  if (reply.stop == PITH_STOP_CONTEXT)
    print_note(fmt::format("pith run: stopped, the context of {} tokens is full", get(session.get(), "ctx")));
  if (options.stats)
    print_message(fmt::format("{} tokens, {:.1f} tokens/s, seed {}", reply.n_generated,
                              reply.n_generated / std::max(reply.generation_seconds, 1e-9),
                              get(session.get(), "seed")));
  return kOk;
}

}  // namespace

void add_run(CLI::App& root, Action& action) {
  const auto options = std::make_shared<RunOptions>();
  CLI::App* const app = root.add_subcommand("run", "Continue a prompt; the model's text on standard output");
  app->add_option("FILE", options->file, "A .pith file")->required()->type_name("");
  CLI::Option* const prompt =
      app->add_option("-p,--prompt", options->prompt, "The prompt")->type_name("TEXT");
  CLI::Option* const file =
      app->add_option("-f,--file", options->prompt_file, "Read the prompt from a file, - is standard input")
          ->type_name("FILE")
          ->excludes(prompt);
  options->flags
      .add(*app, "-n,--tokens", "max_tokens", "At most N tokens (default and 0: until the model ends)")
      ->type_name("N");
  CLI::Option* const chat =
      app->add_flag("--chat", options->chat, "The prompt is a user's message: use the model's chat template");
  app->add_option("--system", options->system, "System message, with --chat")->type_name("TEXT")->needs(chat);
  options->flags.add_stop(*app);
  options->flags.add_sampling(*app);
  options->flags.add_session(*app);
  options->flags.add_access(*app);
  app->add_flag("--stats", options->stats, "Speed and seed on standard error");
  app->footer(
      "Without -p and -f the prompt is standard input; one newline at its end is dropped.\n"
      "Example: pith run model.pith -p 'Once upon a time' -n 64 --temp 0");
  app->callback([options, prompt, file, &action] {
    options->has_prompt = prompt->count() > 0;
    options->has_file = file->count() > 0;
    action = [options] { return run(*options); };
  });
}

}  // namespace pith::cli
