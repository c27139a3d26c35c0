// pith convert: a Hugging Face checkpoint folder becomes one .pith file.
#include <csignal>
#include <memory>

#include "convert/bits.h"
#include "convert/converter.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/human_bytes.h"
#include "runtime/cli/terminal.h"

namespace pith::cli {
namespace {

struct ConvertCommand {
  std::string dir, bits = "2.85", preset = "best", effort = "normal", ablate;
  ConvertOptions options;
  bool restart = false, tensors = false;
  SessionFlags flags;
};

volatile std::sig_atomic_t interrupted = 0;

// The first Ctrl-C ends the run where it can be resumed, the second at once.
void stop_on_interrupt() {
  struct sigaction act {};
  act.sa_handler = [](int) { interrupted = 1; };
  act.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigaction(SIGINT, &act, nullptr);
}

template <typename T>
T find_word(const char* option, const std::string& word,
            const std::vector<std::pair<const char*, T>>& words) {
  std::string expected;
  for (const auto& [name, value] : words) {
    if (word == name) return value;
    expected += fmt::format("{}{}", expected.empty() ? "" : ", ", name);
  }
  throw_error(ErrorCode::kInvalidArgument, "{} {}: expected one of {}", option, word, expected);
}

// "time: measure 1.2 s, ...; 75.0 s of processor time, 7.4 times a float32 forward pass over the 65536 calibration tokens (10.1 s)"
// Where a GPU multiplies, by the clock: it has no processor time.
std::string show_stages(const ConvertReport& report) {
  std::string text = "time:";
  Duration sum;
  for (const StageTime& stage : report.stages) {
    text += fmt::format("{} {} {:.1f} s", sum.seconds > 0 ? "," : "", stage.stage, stage.duration.seconds);
    sum += stage.duration;
  }
  const bool by_clock = !report.products_on.empty();
  const double all = by_clock ? sum.seconds : sum.cpu_seconds,
               forward = by_clock ? report.forward.seconds : report.forward.cpu_seconds;
  if (forward > 0)
    text += fmt::format(
        "; {:.1f} s{}, {:.1f} times a float32 forward pass over the {} calibration tokens ({:.1f} s)", all,
        by_clock ? "" : " of processor time", all / forward, report.calibration_tokens, forward);
  if (!report.products_on.empty()) text += "; products on " + report.products_on;
  return text + "\n";
}

void refuse_calibration_without_use(const ConvertOptions& options) {
  const bool has_texts = !options.calibration_files.empty();
  if (options.bits < 16 || (!has_texts && !options.calibration_tokens)) return;
  throw_error(ErrorCode::kInvalidArgument, "{} requires --bits below 16: a file of {} bits is not calibrated",
              has_texts ? "--calib" : "--calib-tokens", options.bits);
}

int run(const ConvertCommand& command) {
  ConvertOptions options = command.options;
  options.bits = parse_bits(command.bits);
  if (command.flags.has("device")) options.device = command.flags.values("device").back();
  refuse_calibration_without_use(options);
  options.resume = !command.restart;
  options.effort =
      find_word<Effort>("--effort", command.effort, {{"fast", Effort::kFast}, {"normal", Effort::kNormal}});
  options.levers = find_word<Levers>("--preset", command.preset, {{"best", {}}, {"paper", Levers::paper()}});
  apply_levers(command.ablate, options.levers);
  Progress progress("weights");
  options.progress = [&](const ConvertProgress& at) {
    if (interrupted) throw_error(ErrorCode::kInterrupted, "interrupted; the same command goes on from here");
    progress.update(at.stage, at.done, at.total);
  };
  stop_on_interrupt();
  const ConvertReport report = convert(command.dir, options);
  progress.clear();
  for (const std::string& note : report.notes) print_note(note);
  if (report.n_resumed > 0)
    print_note(fmt::format("{} tensors taken over from an interrupted run", report.n_resumed));
  std::string out;
  if (command.tensors)
    for (const TensorQuality& tensor : report.tensors)
      out += fmt::format("{:<28} {:6.3f} bits/weight  relative error {:.5f}\n", tensor.name, tensor.bits,
                         tensor.relative_error);
  out += fmt::format(
      "{}: {}, {} weights, {:.3f} bits per weight of the linear layers, {:.3f} of the whole file\n",
      options.output, human_bytes(report.file_bytes), report.n_weights, report.linear_bits, report.file_bits);
  if (!report.stages.empty()) out += show_stages(report);
  if (report.ppl_ratio > 0)
    out += fmt::format("held-out text: perplexity {:.4f} times the original's, KL divergence {:.4f}\n",
                       report.ppl_ratio, report.kl);
  write_output(out);
  return kOk;
}

}  // namespace

void add_convert(CLI::App& root, Action& action) {
  const auto command = std::make_shared<ConvertCommand>();
  CLI::App* const app = root.add_subcommand("convert", "Make a .pith file from a checkpoint folder");
  app->add_option("DIR", command->dir, "config.json, *.safetensors, tokenizer")->required()->type_name("");
  app->add_option("-o,--output", command->options.output,
                  "The file to write: a new one, or a pith file to replace")
      ->required()
      ->type_name("FILE");
  app->add_option("-b,--bits", command->bits,
                  "Bits per weight of the linear layers: 2.3 to 4.5, 16, 32 (2.85)")
      ->type_name("B");
  app->add_option("--preset", command->preset, "best, or paper: the published method as it stands")
      ->type_name("NAME");
  app->add_option("--effort", command->effort, "How long to search: fast, normal (normal)")
      ->type_name("NAME");
  app->add_option("--ablate", command->ablate,
                  "Expert: switch levers of the quantizer, LEVER=VALUE,... (convert/levers.h lists them)")
      ->type_name("LEVERS");
  app->add_option("--embed-bits", command->options.embed_bits,
                  "Embedding and head below 16 bits: 4 or 16 (4)")
      ->type_name("B")
      ->check(CLI::IsMember({4, 16}));
  CLI::Option* const texts = app->add_option("--calib", command->options.calibration_files,
                                             "Texts to calibrate on below 16 bits: files, builtin, self "
                                             "(what the model writes itself). Default: "
                                             "builtin, with self below 1.6 billion weights")
                                 ->type_name("FILE")
                                 ->expected(1, -1)
                                 ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  CLI::Option* const tokens = app->add_option("--calib-tokens", command->options.calibration_tokens,
                                              "At most N tokens of them (default: by effort and width)")
                                  ->type_name("N");
  app->add_flag_callback(
         "--no-calib", [command] { command->options.calibrate = false; }, "Quantize without calibration")
      ->excludes(texts)
      ->excludes(tokens);
  command->flags
      .add(*app, "--device", "device",
           "Where calibration multiplies: auto (a GPU where there is one), cpu, cuda or cuda:N")
      ->type_name("NAME");
  app->add_option("-t,--threads", command->options.n_threads, "Threads (default: all cores)")->type_name("N");
  app->add_flag("--force", command->options.force,
                "Note unknown config keys and unused tensors, do not refuse them");
  app->add_flag("--allow-nonfinite", command->options.allow_nonfinite,
                "Let NaN and Inf weights pass (16, 32 bits)");
  app->add_flag("--restart", command->restart, "Drop what an interrupted run left, do not resume it");
  app->add_flag("--tensors", command->tensors, "Print bits and error of every tensor");
  app->footer(
      "The file appears when it is complete. An interrupted run is resumed by the same command;\n"
      "one with other options or other input wants --restart.\n"
      "Example: pith convert ./TinyLlama-1.1B-Chat -o tinyllama.pith --bits 2.85");
  app->callback([command, &action] {
    action = [command] { return command->flags.in_flags_of([&] { return run(*command); }); };
  });
}

}  // namespace pith::cli
