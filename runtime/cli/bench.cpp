// pith bench: prompt and generation speed of a model here, and the share of the memory bandwidth that it reaches.
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/cli/cli.h"
#include "runtime/cli/terminal.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/measure.h"
#include "runtime/model.h"
#include "runtime/session.h"

namespace pith::cli {
namespace {

struct BenchCommand {
  std::string file;
  uint32_t n_prompt = 512, n_tokens = 64, n_repeats = 3;
  bool json = false;
  SessionFlags flags;
};

// What one generated token reads: every weight once, but of an untied embedding only a row.
uint64_t weight_bytes_per_token(const Model& model) {
  uint64_t n_bytes = 0;
  for (const Tensor& tensor : model.container().tensors())
    if (tensor.name != "embed" || model.spec().tied_embeddings) n_bytes += tensor.size_bytes;
  return n_bytes;
}

// Multiply-adds of one token in matrices; the head counts once, as in a prompt only the last token needs it.
double macs_of_prompt(const Model& model, uint32_t n_tokens) {
  double body = 0, head = 0;
  for (const Tensor& tensor : model.container().tensors()) {
    const double n = static_cast<double>(tensor.n_rows) * tensor.n_cols;
    if (tensor.name == "embed" || tensor.name == "head")
      head = n;
    else if (tensor.n_rows > 1)
      body += n;
  }
  return body * n_tokens + head;
}

template <typename F>
double seconds(F&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int run(const BenchCommand& command) {
  if (command.n_prompt == 0 || command.n_tokens == 0 || command.n_repeats == 0)
    throw_error(ErrorCode::kInvalidArgument, "--prompt-tokens, --tokens and --repeat must be at least 1");
  const auto model = Model::open(command.file);
  const uint32_t n_vocab = model->spec().vocab_size;
  SessionOptions options = command.flags.session_options();
  const uint32_t n_prompt = std::min(command.n_prompt, model->spec().max_context / 2);
  const uint32_t n_tokens = std::min(command.n_tokens, model->spec().max_context - n_prompt);
  if (options.n_ctx == 0) options.n_ctx = n_prompt + n_tokens;
  Session session(model, options);
  std::vector<int32_t> ids(n_prompt + n_tokens);
  uint32_t state = 1;
  for (int32_t& id : ids) id = static_cast<int32_t>((state = state * 1664525u + 1013904223u) % n_vocab);

  Progress progress("runs");
  std::vector<double> prompt_seconds, token_seconds;
  for (uint32_t i = 0; i < command.n_repeats; ++i) {
    progress.update("bench", i, command.n_repeats);
    session.rewind(0);
    prompt_seconds.push_back(seconds([&] { session.sync(std::span(ids).first(n_prompt)); }));
    token_seconds.push_back(seconds([&] {
      for (uint32_t t = 0; t < n_tokens; ++t) session.append(ids[n_prompt + t]);
    }));
  }
  const SessionOptions& resolved = session.options();
  const bool on_cpu =
      resolved.device == "cpu";  // what follows measures this CPU, so says nothing about a GPU
  const double bandwidth =
      on_cpu ? cpu::measure_read_bandwidth(resolved.n_threads, resolved.kernels) / 1e9 : 0;
  const double mac_peak = on_cpu ? cpu::measure_mac_peak(resolved.n_threads, resolved.kernels) : 0;
  progress.clear();
  const std::string kernels = on_cpu ? cpu::select_kernels(resolved.kernels).name : "";
  const double prompt_tps = n_prompt / median(prompt_seconds), tps = n_tokens / median(token_seconds);
  const uint64_t n_bytes = weight_bytes_per_token(*model);
  const double macs_per_s = macs_of_prompt(*model, n_prompt) / median(prompt_seconds);
  const double gb_per_s = static_cast<double>(n_bytes) * tps / 1e9;

  if (command.json) {
    nlohmann::ordered_json out;
    out["file"] = command.file;
    out["device"] = resolved.device;
    if (on_cpu) {
      out["kernels"] = kernels;
      out["threads"] = resolved.n_threads;
    }
    out["prompt_tokens"] = n_prompt;
    out["generated_tokens"] = n_tokens;
    out["prompt_tps"] = prompt_tps;
    out["generation_tps"] = tps;
    out["weight_bytes_per_token"] = n_bytes;
    out["gb_per_s"] = gb_per_s;
    out["prompt_macs_per_s"] = macs_per_s;
    if (on_cpu) {
      out["bandwidth_gb_per_s"] = bandwidth;
      out["bandwidth_share"] = gb_per_s / bandwidth;
      out["int8_peak_macs_per_s"] = mac_peak;
      out["int8_peak_share"] = macs_per_s / mac_peak;
    }
    write_output(out.dump(2) + "\n");
    return kOk;
  }
  std::string on = "device " + resolved.device, peak_share, bandwidth_share;
  if (on_cpu) {
    on = fmt::format("{} kernels, {} threads, device cpu", kernels, resolved.n_threads);
    peak_share = fmt::format(", {:.0f} % of the int8 peak here", 100 * macs_per_s / mac_peak);
    bandwidth_share = fmt::format("      {:.0f} % of the {:.2f} GB/s that reading memory reaches here",
                                  100 * gb_per_s / bandwidth, bandwidth);
  }
  write_output(
      fmt::format("{}: {}\n"
                  "prompt      {:>10.1f} tokens/s  {} tokens, {:.1f} G multiply-adds/s{}\n"
                  "generation  {:>10.1f} tokens/s  {} tokens, {} of weights each\n"
                  "            {:>10.2f} GB/s{}\n",
                  command.file, on, prompt_tps, n_prompt, macs_per_s / 1e9, peak_share, tps, n_tokens,
                  human_bytes(n_bytes), gb_per_s, bandwidth_share));
  return kOk;
}

}  // namespace

void add_bench(CLI::App& root, Action& action) {
  const auto command = std::make_shared<BenchCommand>();
  CLI::App* const app =
      root.add_subcommand("bench", "Prompt and generation speed, share of the memory bandwidth");
  app->add_option("FILE", command->file, "A .pith file")->required()->type_name("");
  app->add_option("-p,--prompt-tokens", command->n_prompt, "Tokens of the prompt (512)")->type_name("N");
  app->add_option("-n,--tokens", command->n_tokens, "Tokens generated one by one (64)")->type_name("N");
  app->add_option("--repeat", command->n_repeats, "Runs, of which the median counts (3)")->type_name("N");
  app->add_flag("--json", command->json, "Print JSON");
  command->flags.add_session(*app);
  app->callback([command, &action] { action = [command] { return run(*command); }; });
}

}  // namespace pith::cli
