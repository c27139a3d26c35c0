// pith eval: perplexity of a text, alone or beside a reference model (the protocol is in runtime/evaluate.h), and tasks.
#include "runtime/cli/eval.h"

#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/cli/task_data.h"
#include "runtime/cli/terminal.h"
#include "runtime/cli/text_input.h"
#include "runtime/evaluate.h"

namespace pith::cli {
namespace {

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
  out["window_kl"] = r.window_kl;
  out["window_nll_gap"] = r.window_nll_gap;
  return out.dump(2) + "\n";
}

std::string to_lines(const CompareResult& r) {
  return fmt::format(
      "tokens          {}\n"
      "nll             {:.4f}\n"
      "ppl             {:.3f}\n"
      "reference ppl   {:.3f}\n"
      "ppl ratio       {:.4f}{}\n"
      "KL mean         {:.5f}{}\n"
      "KL median       {:.5f}\n"
      "KL 99 %         {:.5f}\n"
      "KL max          {:.5f}\n"
      "top-1 agreement {:.2f} %\n",
      r.model.n_tokens, r.model.nll, r.model.ppl(), r.reference.ppl(), r.ppl_ratio,
      plus_minus(r.ppl_ratio_se, 4), r.kl_mean, plus_minus(r.kl_mean_se, 5), r.kl_median, r.kl_p99, r.kl_max,
      100 * r.top1_agreement);
}

std::string show(const EvalResult& r, bool json) {
  if (!json) return fmt::format("tokens {}\nnll    {:.4f}\nppl    {:.3f}\n", r.n_tokens, r.nll, r.ppl());
  nlohmann::ordered_json out;
  out["tokens"] = r.n_tokens;
  out["nll"] = r.nll;
  out["ppl"] = r.ppl();
  return out.dump(2) + "\n";
}

std::string evaluate_text(const EvalCommand& command) {
  const auto model = Model::open(command.file, command.flags.access());
  const std::string text = read_text(command.text);
  Progress progress("tokens");
  EvalOptions options;
  options.session = command.flags.session_options();
  options.max_tokens = command.max_tokens;
  options.progress = [&](uint64_t done, uint64_t total, double) { progress.update("eval", done, total); };
  if (command.against.empty()) {
    const EvalResult result = evaluate(model, text, options);
    progress.clear();
    return show(result, command.json);
  }
  const CompareResult result =
      compare(model, Model::open(command.against, command.flags.access()), text, options);
  progress.clear();
  return command.json ? to_json(result) : to_lines(result);
}

int run(const EvalCommand& command) {
  if (command.text.empty() == command.task.empty())
    throw_error(ErrorCode::kInvalidArgument, "expected either --text FILE or --task NAME --data PATH");
  if (command.task.empty() != command.data.empty())
    throw_error(ErrorCode::kInvalidArgument, "--task and --data go together");
  write_output(command.task.empty() ? evaluate_text(command) : evaluate_task_file(command));
  return kOk;
}

}  // namespace

void add_eval(CLI::App& root, Action& action) {
  const auto command = std::make_shared<EvalCommand>();
  CLI::App* const app =
      root.add_subcommand("eval", "Perplexity of a text, zero-shot tasks; divergence from a reference model");
  app->add_option("FILE", command->file, "A .pith file")->required()->type_name("");
  app->add_option("--against", command->against, "A reference: KL divergence, agreement, perplexity ratio")
      ->type_name("FILE");
  CLI::Option* const json = app->add_flag("--json", command->json, "Print JSON");
  CLI::Option* const text =
      app->add_option("--text", command->text, "The text, - is standard input")->type_name("FILE");
  app->add_option("--max-tokens", command->max_tokens, "Only the text's first N tokens")
      ->type_name("N")
      ->needs(text);
  CLI::Option* const task =
      app->add_option("--task", command->task, fmt::format("{}", fmt::join(task_names(), ", ")))
          ->type_name("NAME");
  app->add_option("--data", command->data, "The task's file; blimp: also a folder of them")
      ->type_name("PATH");
  app->add_option("--limit", command->limit, "Only the first N items of a file")->type_name("N")->needs(task);
  app->add_flag("--items", command->items, "With --json: the log-likelihoods of every item")
      ->needs(task)
      ->needs(json);
  command->flags.add_session(*app);
  command->flags.add_access(*app);
  app->get_option("--ctx")->description(
      "Tokens in a window (default: 512, or the model's maximum; for a task, what its longest item takes)");
  app->footer(
      "A text is tokenized as a whole and cut into windows of BOS and CTX - 1 tokens that do not overlap;\n"
      "a partial last window is dropped. Figures are means over all predicted tokens, natural logarithms.\n"
      "\n"
      "A task is scored as lm-evaluation-harness does: acc takes the likeliest answer, acc_norm the "
      "likeliest\n"
      "per character; winogrande scores what follows the option; lambada asks whether greedy decoding gives "
      "the\n"
      "last word; blimp asks for the likelier sentence. Its data, extracted (bunzip2, unzip):\n"
      "  hellaswag      text, six lines an item: context, number of the right ending, four endings\n"
      "  arc-easy, arc-challenge, winogrande   JSON lines: centerpiece, options, correct_options_idx\n"
      "  piqa           JSON lines: goal, sol1, sol2; labels beside X.jsonl in X-labels.lst\n"
      "  lambada        JSON lines: text\n"
      "  blimp          JSON lines: sentence_good, sentence_bad, UID\n"
      "Example: pith eval m.pith --task hellaswag --data hellaswag_val_full.txt --limit 400 --against "
      "m16.pith");
  app->callback([command, &action] {
    action = [command] { return command->flags.in_flags_of([&] { return run(*command); }); };
  });
}

}  // namespace pith::cli
