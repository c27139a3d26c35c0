// pith tokenize: text to ids, or with --text ids to text.
#include <charconv>
#include <memory>

#include "runtime/cli/cli.h"
#include "runtime/cli/handles.h"
#include "runtime/cli/terminal.h"
#include "runtime/cli/text_input.h"

namespace pith::cli {
namespace {

struct TokenizeOptions {
  std::string file, prompt, prompt_file = "-";
  bool has_prompt = false, to_text = false, bos = false, special = false, pieces = false;
};

std::vector<int32_t> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    while (at != end && (std::isspace(static_cast<unsigned char>(*at)) || *at == ',')) ++at;
    if (at == end) return ids;
    int32_t id;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc())
      throw_error(
          ErrorCode::kInvalidArgument, "'{}' is not a token id",
          std::string(at, std::find_if(at, end, [](char c) { return c == ' ' || c == '\n' || c == ','; })));
    ids.push_back(id);
    at = next;
  }
}

std::string detokenize(const pith_model* model, const std::vector<int32_t>& ids, unsigned flags) {
  const auto text = filled<char>([&](char* buffer, size_t capacity, size_t* n) {
    return pith_detokenize(model, ids.data(), ids.size(), flags, buffer, capacity, n);
  });
  return {text.begin(), text.end()};
}

int run(const TokenizeOptions& options) {
  const ModelHandle model = open_model(options.file);
  const std::string input = options.has_prompt ? options.prompt : read_text(options.prompt_file);
  if (options.to_text) {
    write_output(detokenize(model.get(), parse_ids(input), options.special * unsigned{PITH_SHOW_SPECIAL}));
    if (is_terminal(STDOUT_FILENO)) write_output("\n");
    return kOk;
  }
  const unsigned flags =
      options.bos * unsigned{PITH_ADD_BOS} | options.special * unsigned{PITH_PARSE_SPECIAL};
  const std::vector<int32_t> ids = tokenize(model.get(), input, flags);
  std::string out;
  if (options.pieces) {
    for (const int32_t id : ids)
      out += fmt::format("{}\t{:?}\n", id, detokenize(model.get(), {id}, PITH_SHOW_SPECIAL));
  } else {
    for (const int32_t id : ids) out += fmt::format("{}{}", out.empty() ? "" : " ", id);
    out += '\n';
  }
  write_output(out);
  return kOk;
}

}  // namespace

void add_tokenize(CLI::App& root, Action& action) {
  const auto options = std::make_shared<TokenizeOptions>();
  CLI::App* const app = root.add_subcommand("tokenize", "Text to token ids, or ids to text");
  app->add_option("FILE", options->file, "A .pith file")->required()->type_name("");
  CLI::Option* const prompt =
      app->add_option("-p,--prompt", options->prompt, "The input (default: standard input)")
          ->type_name("TEXT");
  app->add_option("-f,--file", options->prompt_file, "Read the input from a file")
      ->type_name("FILE")
      ->excludes(prompt);
  CLI::Option* const to_ids = app->add_flag_callback(
      "--ids", [options] { options->to_text = false; }, "Text in, ids out (default)");
  CLI::Option* const to_text = app->add_flag_callback(
      "--text", [options] { options->to_text = true; }, "Ids in, text out");
  to_text->excludes(to_ids);
  app->add_flag("--bos", options->bos, "Begin with the BOS token if the model wants one")->excludes(to_text);
  app->add_flag("--special", options->special, "Special tokens: recognise their texts, or show them");
  app->add_flag("--pieces", options->pieces, "One token a line, with its text")->excludes(to_text);
  app->callback([options, prompt, &action] {
    options->has_prompt = prompt->count() > 0;
    action = [options] { return run(*options); };
  });
}

}  // namespace pith::cli
