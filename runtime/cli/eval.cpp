// pith eval: perplexity of a text, alone or beside a reference model. The protocol is in runtime/evaluate.h.
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/cli/cli.h"
#include "runtime/cli/terminal.h"
#include "runtime/evaluate.h"

namespace pith::cli {
namespace {

struct EvalCommand {
  std::string file, text, against;
  uint64_t max_tokens = 0;
  bool json = false;
  SessionFlags flags;
};

// NaN (a standard error from one window) is null in JSON.
nlohmann::json finite(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

std::string to_json(const CompareResult& r) {
  nlohmann::ordered_json out;
  out["tokens"] = r.model.n_tokens;
  out["nll"] = r.model.nll;
  out["ppl"] = r.model.ppl();
  out["ref_nll"] = r.reference.nll;
  out["ref_ppl"] = r.reference.ppl();
  out["ppl_ratio"] = r.ppl_ratio;
  out["ppl_ratio_se"] = finite(r.ppl_ratio_se);
  out["kl_mean"] = r.kl_mean;
  out["kl_mean_se"] = finite(r.kl_mean_se);
  out["kl_median"] = r.kl_median;
  out["kl_p99"] = r.kl_p99;
  out["kl_max"] = r.kl_max;
  out["top1_agreement"] = r.top1_agreement;
  return out.dump(2) + "\n";
}

std::string to_lines(const CompareResult& r) {
  return fmt::format(
      "tokens          {}\n"
      "nll             {:.4f}\n"
      "ppl             {:.3f}\n"
      "reference ppl   {:.3f}\n"
      "ppl ratio       {:.4f} +- {:.4f}\n"
      "KL mean         {:.5f} +- {:.5f}\n"
      "KL median       {:.5f}\n"
      "KL 99 %         {:.5f}\n"
      "KL max          {:.5f}\n"
      "top-1 agreement {:.2f} %\n",
      r.model.n_tokens, r.model.nll, r.model.ppl(), r.reference.ppl(), r.ppl_ratio, r.ppl_ratio_se, r.kl_mean,
      r.kl_mean_se, r.kl_median, r.kl_p99, r.kl_max, 100 * r.top1_agreement);
}

std::string show(const EvalResult& r, bool json) {
  if (!json) return fmt::format("tokens {}\nnll    {:.4f}\nppl    {:.3f}\n", r.n_tokens, r.nll, r.ppl());
  nlohmann::ordered_json out;
  out["tokens"] = r.n_tokens;
  out["nll"] = r.nll;
  out["ppl"] = r.ppl();
  return out.dump(2) + "\n";
}

int run(const EvalCommand& command) {
  const std::string text = read_text(command.text);
  Progress progress("tokens");
  EvalOptions options;
  options.session = command.flags.session_options();
  options.max_tokens = command.max_tokens;
  options.progress = [&](uint64_t done, uint64_t total, double) { progress.update("eval", done, total); };
  const auto model = Model::open(command.file);
  std::string out;
  if (command.against.empty()) {
    out = show(evaluate(model, text, options), command.json);
  } else {
    const CompareResult result = compare(model, Model::open(command.against), text, options);
    out = command.json ? to_json(result) : to_lines(result);
  }
  progress.clear();
  write_output(out);
  return kOk;
}

}  // namespace

void add_eval(CLI::App& root, Action& action) {
  const auto command = std::make_shared<EvalCommand>();
  CLI::App* const app =
      root.add_subcommand("eval", "Perplexity of a text; divergence from a reference model");
  app->add_option("FILE", command->file, "A .pith file")->required()->type_name("");
  app->add_option("--text", command->text, "The text, - is standard input")->required()->type_name("FILE");
  app->add_option("--against", command->against, "A reference: KL divergence, agreement, perplexity ratio")
      ->type_name("FILE");
  app->add_option("--max-tokens", command->max_tokens, "Only the text's first N tokens")->type_name("N");
  app->add_flag("--json", command->json, "Print JSON");
  command->flags.add_session(*app);
  app->get_option("--ctx")->description("Tokens in a window (default: 512, or the model's maximum)");
  app->footer(
      "The text is tokenized as a whole and cut into windows of BOS and CTX - 1 tokens that do not overlap;\n"
      "a partial last window is dropped. Figures are means over all predicted tokens, natural logarithms.");
  app->callback([command, &action] { action = [command] { return run(*command); }; });
}

}  // namespace pith::cli
