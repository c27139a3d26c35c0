// pith bench: prompt and generation speed of models here, each beside its floor: the memory bandwidth and the int8 peak
// that the same threads reach. A first run is not counted. Floors are measured between the runs and a share is taken run
// by run, because a shared machine's bandwidth and clock change by the second.
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/cli/cli.h"
#include "runtime/cli/human_bytes.h"
#include "runtime/cli/terminal.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/measure.h"
#include "runtime/model.h"
#include "runtime/placement.h"
#include "runtime/session.h"
#include "runtime/thread_pool.h"

namespace pith::cli {
namespace {

struct BenchCommand {
  std::vector<std::string> files;
  uint32_t n_prompt = 512, n_tokens = 64, n_repeats = 3;
  bool json = false, markdown = false;
  SessionFlags flags;
};

// Medians over the repeats. The floors and shares are of a CPU; 0 on other devices. What was left out (n_prompt or n_tokens is 0) is 0.
struct Figures {
  std::string file, device, kernels;
  uint32_t n_threads, n_prompt, n_tokens, n_layers, n_gpu_layers;
  uint64_t weight_bytes;  // read for one token
  double open_ms;         // from the path to a session that is ready
  double prompt_tps, tps, macs_per_s, gb_per_s;
  double bandwidth = 0, bandwidth_share = 0, mac_peak = 0, mac_share = 0;
};

// Which part of a matrix one token uses: of the experts those that it is sent to.
double share_used(const Model& model, const Tensor& tensor) {
  const ModelSpec& spec = model.spec();
  return tensor.name.find(".experts.") == std::string::npos
             ? 1
             : static_cast<double>(spec.n_active_experts) / spec.n_experts;
}

// What one generated token reads: every weight that it uses once, but of an untied embedding only a row.
uint64_t weight_bytes_per_token(const Model& model) {
  double n_bytes = 0;
  for (const Tensor& tensor : model.container().tensors())
    if (tensor.name != "embed" || model.spec().tied_embeddings)
      n_bytes += static_cast<double>(tensor.size_bytes) * share_used(model, tensor);
  return static_cast<uint64_t>(n_bytes);
}

// Multiply-adds of one token in matrices; the head counts once, as in a prompt only the last token needs it.
double macs_of_prompt(const Model& model, uint32_t n_tokens) {
  double body = 0, head = 0;
  for (const Tensor& tensor : model.container().tensors()) {
    const double n = static_cast<double>(tensor.n_rows) * tensor.n_cols;
    if (tensor.name == "embed" || tensor.name == "head")
      head = n;
    else if (tensor.n_rows > 1)
      body += n * share_used(model, tensor);
  }
  return body * n_tokens + head;
}

template <typename F>
double seconds(F&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// 0: a part that was left out.
double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Figures measure(const BenchCommand& command, const std::string& file, SessionOptions options) {
  std::shared_ptr<const Model> model;
  std::unique_ptr<Session> opened;
  Figures f{};
  const double open_seconds = seconds([&] {
    model = Model::open(file, command.flags.access());
    f.n_tokens = std::min(command.n_tokens, std::max(model->spec().max_context / 2, 1u));
    f.n_prompt = std::min(command.n_prompt, model->spec().max_context - f.n_tokens);
    if (options.n_ctx == 0) options.n_ctx = f.n_prompt + f.n_tokens;
    if (options.n_ctx < f.n_prompt + f.n_tokens)
      throw_error(ErrorCode::kInvalidArgument, "--ctx {} has no room for --prompt-tokens {} and --tokens {}",
                  options.n_ctx, f.n_prompt, f.n_tokens);
    opened = std::make_unique<Session>(model, options);
  });
  if (f.n_prompt < command.n_prompt || f.n_tokens < command.n_tokens)
    print_note(fmt::format("{}: a prompt of {} and {} tokens, which is what the model's context of {} holds",
                           file, f.n_prompt, f.n_tokens, model->spec().max_context));
  Session& session = *opened;
  std::vector<int32_t> ids(f.n_prompt + f.n_tokens);
  uint32_t state = 1;
  for (int32_t& id : ids)
    id = static_cast<int32_t>((state = state * 1664525u + 1013904223u) % model->spec().vocab_size);

  const SessionOptions& resolved = session.options();
  const bool on_cpu = resolved.device == "cpu";  // the floors are this CPU's and say nothing about a GPU
  const double n_bytes = static_cast<double>(weight_bytes_per_token(*model)),
               n_macs = macs_of_prompt(*model, f.n_prompt);
  std::vector<double> prompt, generation, bandwidth, bandwidth_share, mac_peak, mac_share;
  const auto prompt_seconds = [&] {
    session.rewind(0);
    return f.n_prompt == 0 ? 0 : seconds([&] { session.sync(std::span(ids).first(f.n_prompt)); });
  };
  const auto generation_seconds = [&] {
    return seconds([&] {
      for (uint32_t t = 0; t < f.n_tokens; ++t) session.append(ids[f.n_prompt + t]);
    });
  };
  Progress progress("runs");
  progress.update("bench", 0, command.n_repeats + 1);
  prompt_seconds();  // the first run reads the file, moves its pages (sixteen tokens) and does not count
  for (int i = 0; i < 17; ++i) {
    session.rewind(0);
    session.append(ids[0]);
  }
  for (uint32_t i = 0; i < command.n_repeats; ++i) {
    progress.update("bench", i + 1, command.n_repeats + 1);
    const double prompt_time = prompt_seconds();
    if (f.n_prompt > 0) prompt.push_back(prompt_time);
    if (f.n_prompt > 0 && on_cpu) {
      mac_peak.push_back(cpu::measure_mac_peak(resolved.n_threads, resolved.kernels));
      mac_share.push_back(n_macs / prompt.back() / mac_peak.back());
    }
    if (f.n_tokens == 0) continue;
    generation.push_back(generation_seconds());
    if (on_cpu) {
      bandwidth.push_back(
          cpu::measure_read_bandwidth(resolved.n_threads, static_cast<uint64_t>(n_bytes), resolved.kernels));
      bandwidth_share.push_back(n_bytes * f.n_tokens / generation.back() / bandwidth.back());
    }
  }
  progress.clear();

  f.file = file;
  f.device = resolved.device;
  f.n_threads = resolved.n_threads;
  f.n_layers = model->spec().n_layers;
  f.n_gpu_layers = static_cast<uint32_t>(resolved.gpu_layers);
  f.weight_bytes = weight_bytes_per_token(*model);
  f.open_ms = open_seconds * 1e3;
  const auto rate = [](double n, double time) { return time > 0 ? n / time : 0; };
  f.prompt_tps = rate(f.n_prompt, median(prompt));
  f.tps = rate(f.n_tokens, median(generation));
  f.macs_per_s = rate(n_macs, median(prompt));
  f.gb_per_s = n_bytes * f.tps / 1e9;
  if (on_cpu) {
    f.kernels = cpu::select_kernels(resolved.kernels).name;
    f.bandwidth = median(bandwidth) / 1e9;
    f.bandwidth_share = median(bandwidth_share);
    f.mac_peak = median(mac_peak);
    f.mac_share = median(mac_share);
  }
  return f;
}

nlohmann::ordered_json to_json(const Figures& f) {
  nlohmann::ordered_json out;
  out["file"] = f.file;
  out["device"] = f.device;
  if (!f.kernels.empty()) {
    out["kernels"] = f.kernels;
    out["threads"] = f.n_threads;
  }
  out["layers"] = f.n_layers;
  out["gpu_layers"] = f.n_gpu_layers;
  out["open_ms"] = f.open_ms;
  out["prompt_tokens"] = f.n_prompt;
  out["generated_tokens"] = f.n_tokens;
  const bool on_cpu = !f.kernels.empty();
  if (f.n_prompt > 0) out["prompt_tps"] = f.prompt_tps;
  if (f.n_tokens > 0) out["generation_tps"] = f.tps;
  out["weight_bytes_per_token"] = f.weight_bytes;
  if (f.n_tokens > 0) out["gb_per_s"] = f.gb_per_s;
  if (f.n_prompt > 0) out["prompt_macs_per_s"] = f.macs_per_s;
  if (f.n_tokens > 0 && on_cpu) {
    out["bandwidth_gb_per_s"] = f.bandwidth;
    out["bandwidth_share"] = f.bandwidth_share;
  }
  if (f.n_prompt > 0 && on_cpu) {
    out["int8_peak_macs_per_s"] = f.mac_peak;
    out["int8_peak_share"] = f.mac_share;
  }
  return out;
}

std::string to_lines(const Figures& f) {
  std::string on = "device " + f.device, peak_share, bandwidth_share;
  if (f.n_gpu_layers != 0 && f.n_gpu_layers != f.n_layers)
    on += fmt::format(" (layers {})", describe_layers(f.n_layers, f.n_gpu_layers));
  if (!f.kernels.empty()) {
    on = fmt::format("{} kernels, {} threads, device cpu", f.kernels, f.n_threads);
    peak_share = fmt::format(", {:.0f} % of the int8 peak here", 100 * f.mac_share);
    bandwidth_share = fmt::format("      {:.0f} % of the {:.2f} GB/s that reading memory reaches here",
                                  100 * f.bandwidth_share, f.bandwidth);
  }
  std::string out = fmt::format("{}: {}, ready in {:.1f} ms\n", f.file, on, f.open_ms);
  if (f.n_prompt > 0)
    out += fmt::format("prompt      {:>10.1f} tokens/s  {} tokens, {:.1f} G multiply-adds/s{}\n",
                       f.prompt_tps, f.n_prompt, f.macs_per_s / 1e9, peak_share);
  if (f.n_tokens > 0)
    out += fmt::format(
        "generation  {:>10.1f} tokens/s  {} tokens, {} of weights each\n"
        "            {:>10.2f} GB/s{}\n",
        f.tps, f.n_tokens, human_bytes(f.weight_bytes), f.gb_per_s, bandwidth_share);
  return out;
}

// A device's floors are not known: their cells stay empty.
std::string to_markdown(const std::vector<Figures>& rows) {
  std::string out =
      "| file | threads | prompt | of the int8 peak | generation | of the read bandwidth | ready in |\n"
      "|---|---:|---:|---:|---:|---:|---:|\n";
  for (const Figures& f : rows) {
    const bool on_cpu = !f.kernels.empty();
    std::string prompt, generation, peak, bandwidth;
    if (f.n_prompt > 0) prompt = fmt::format("{:.1f} tokens/s of {}", f.prompt_tps, f.n_prompt);
    if (f.n_prompt > 0 && on_cpu)
      peak = fmt::format("{:.0f} % of {:.0f} G MAC/s", 100 * f.mac_share, f.mac_peak / 1e9);
    if (f.n_tokens > 0) generation = fmt::format("{:.1f} tokens/s", f.tps);
    if (f.n_tokens > 0 && on_cpu)
      bandwidth = fmt::format("{:.0f} % of {:.1f} GB/s", 100 * f.bandwidth_share, f.bandwidth);
    out += fmt::format("| {} | {} | {} | {} | {} | {} | {:.1f} ms |\n", f.file.substr(f.file.rfind('/') + 1),
                       on_cpu ? fmt::format("{}", f.n_threads) : f.device, prompt, peak, generation,
                       bandwidth, f.open_ms);
  }
  return out;
}

int run(const BenchCommand& command) {
  if (command.n_prompt == 0 && command.n_tokens == 0)
    throw_error(ErrorCode::kInvalidArgument, "--prompt-tokens 0 and --tokens 0 leave nothing to measure");
  if (command.n_repeats == 0) throw_error(ErrorCode::kInvalidArgument, "--repeat must be at least 1");
  if (command.json && command.markdown)
    throw_error(ErrorCode::kInvalidArgument, "--json and --markdown exclude each other");
  std::vector<Figures> rows;
  for (const std::string& file : command.files) {
    SessionOptions options = command.flags.session_options();
    if (command.markdown && !command.flags.has("threads")) {  // one thread, then as many as there are cores
      options.n_threads = 1;
      rows.push_back(measure(command, file, options));
      if (rows.back().kernels.empty()) continue;  // threads mean nothing to a GPU
      options.n_threads = ThreadPool::n_physical_cores();
    }
    rows.push_back(measure(command, file, options));
  }
  if (command.markdown) {
    write_output(to_markdown(rows));
  } else if (command.json && rows.size() == 1) {
    write_output(to_json(rows.front()).dump(2) + "\n");
  } else if (command.json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const Figures& f : rows) all.push_back(to_json(f));
    write_output(all.dump(2) + "\n");
  } else {
    for (const Figures& f : rows) write_output(to_lines(f));
  }
  return kOk;
}

}  // namespace

void add_bench(CLI::App& root, Action& action) {
  const auto command = std::make_shared<BenchCommand>();
  CLI::App* const app =
      root.add_subcommand("bench", "Prompt and generation speed, shares of the machine's bandwidth and peak");
  app->add_option("FILE", command->files, ".pith files")->required()->type_name("");
  app->add_option("-p,--prompt-tokens", command->n_prompt, "Tokens of the prompt (512), 0 = none")
      ->type_name("N");
  app->add_option("-n,--tokens", command->n_tokens, "Tokens generated one by one (64), 0 = none")
      ->type_name("N");
  app->add_option("--repeat", command->n_repeats,
                  "Runs, of which the median counts, after one that does not (3)")
      ->type_name("N");
  app->add_flag("--json", command->json, "Print JSON: an object, for several files an array");
  app->add_flag("--markdown", command->markdown, "Print a table: each file on one thread and on every core");
  command->flags.add_session(*app);
  command->flags.add_access(*app);
  app->callback([command, &action] {
    action = [command] { return command->flags.in_flags_of([&] { return run(*command); }); };
  });
}

}  // namespace pith::cli
