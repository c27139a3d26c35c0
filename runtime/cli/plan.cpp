// pith plan: the memory a session would take; nothing is loaded.
#include <memory>
#include <nlohmann/json.hpp>

#include "convert/bits.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/handles.h"
#include "runtime/cli/human_bytes.h"
#include "runtime/cli/terminal.h"
#include "runtime/gpu_plan.h"
#include "runtime/placement.h"

namespace pith::cli {
namespace {

struct PlanOptions {
  std::string file;
  bool json = false, gpus = false;
  std::string bits = "2.85";
  SessionFlags flags;
};

int run_gpus(const PlanOptions& options) {
  const double bits = parse_bits(options.bits);
  if (bits >= 16)
    throw_error(ErrorCode::kInvalidArgument,
                "--bits {}: expected less than the 16 bits that it stands beside", options.bits);
  const std::vector<GpuPlan> plans = plan_gpus(bits);
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  std::string text = fmt::format("{:<13}{:>5}{:>11}{:>10}{:>9}{:>10}", "shape", "bits", "weights", "cache",
                                 "scratch", "total");
  for (const uint64_t size : kGpuSizes) text += fmt::format("{:>9}", fmt::format("x {} GiB", size >> 30));
  text += "\n";
  for (size_t i = 0; i < plans.size(); ++i) {
    const GpuPlan& p = plans[i];
    text += fmt::format("{:<13}{:>5}{:>11}{:>10}{:>9}{:>10}", p.shape, p.bits, human_bytes(p.weights_bytes),
                        human_bytes(p.kv_bytes), human_bytes(p.scratch_bytes), human_bytes(p.total_bytes()));
    for (const uint32_t n : p.n_gpus) text += fmt::format("{:>9}", n);
    text += "\n";
    nlohmann::ordered_json one = {{"shape", p.shape},
                                  {"bits", p.bits},
                                  {"weights_bytes", p.weights_bytes},
                                  {"kv_bytes", p.kv_bytes},
                                  {"scratch_bytes", p.scratch_bytes},
                                  {"total_bytes", p.total_bytes()},
                                  {"token_bytes", p.token_bytes},
                                  {"gpus", p.n_gpus}};
    if (i % 2 == 1) {  // against the same shape at 16 bits, one row up
      const GpuPlan& full = plans[i - 1];
      const double running = static_cast<double>(full.token_bytes) / static_cast<double>(p.token_bytes);
      text += fmt::format("{:<13}{:>45}", "",
                          fmt::format("16 bits over {}: running {:.2f}, hardware", p.bits, running));
      std::vector<double> hardware;
      for (size_t k = 0; k < p.n_gpus.size(); ++k) {
        hardware.push_back(static_cast<double>(full.n_gpus[k]) / p.n_gpus[k]);
        text += fmt::format("{:>9.2f}", hardware.back());
      }
      text += "\n";
      one["running_ratio"] = running;
      one["hardware_ratios"] = hardware;
    }
    out.push_back(one);
  }
  text += fmt::format(
      "cache of {} tokens, int8 below 16 bits; embedding and head then at 4.5 bits; prompts in chunks of {}\n"
      "GPUs = total / (size - {} GiB); hardware = their ratio; running = ratio of bytes read a token "
      "(memory-bound, not measured)\n",
      kGpuPlanTokens, kGpuPlanChunk, kGpuReserveBytes >> 30);
  write_output(options.json ? out.dump(2) + "\n" : text);
  return kOk;
}

int run(const PlanOptions& options) {
  if (options.gpus) {
    if (!options.file.empty() || options.flags.options().size() > 1)
      throw_error(ErrorCode::kInvalidArgument,
                  "--gpus plans fixed shapes: expected no FILE and no options of a session");
    return run_gpus(options);
  }
  if (options.file.empty()) throw_error(ErrorCode::kInvalidArgument, "plan needs a FILE, or --gpus");
  pith_memory_plan plan{};
  plan.size = sizeof plan;
  options.flags.in_flags_of(
      [&] { check(pith_plan(options.file.c_str(), options.flags.options().data(), &plan)); });
  if (options.json) {
    nlohmann::ordered_json out;
    out["ctx"] = plan.n_ctx;
    out["weights_bytes"] = plan.weights_bytes;
    out["kv_bytes"] = plan.kv_bytes;
    out["scratch_bytes"] = plan.scratch_bytes;
    out["total_bytes"] = plan.total_bytes;
    out["layers"] = plan.n_layers;
    out["gpu_layers"] = plan.n_gpu_layers;
    out["gpu_bytes"] = plan.gpu_bytes;
    write_output(out.dump(2) + "\n");
    return kOk;
  }
  const auto line = [](const char* what, uint64_t n_bytes) {
    return fmt::format("{:<10}{:>16} bytes  {:>10}\n", what, n_bytes, human_bytes(n_bytes));
  };
  write_output(fmt::format("context   {:>16} tokens\n", plan.n_ctx) + line("weights", plan.weights_bytes) +
               line("kv cache", plan.kv_bytes) + line("scratch", plan.scratch_bytes) +
               line("total", plan.total_bytes) +
               (plan.n_gpu_layers == 0 ? "" : line("of it GPU", plan.gpu_bytes)) +
               fmt::format("layers    {}\n", describe_layers(plan.n_layers, plan.n_gpu_layers)));
  return kOk;
}

}  // namespace

void add_plan(CLI::App& root, Action& action) {
  const auto options = std::make_shared<PlanOptions>();
  CLI::App* const app = root.add_subcommand("plan", "The exact memory a session would take; loads nothing");
  app->add_option("FILE", options->file, "A .pith file")->type_name("");
  CLI::Option* const gpus =
      app->add_flag("--gpus", options->gpus, "How many GPUs the 7B, 13B and 70B shapes need, without a file");
  app->add_option("-b,--bits", options->bits, "With --gpus: bits per weight beside 16 (2.85)")
      ->type_name("B")
      ->needs(gpus);
  app->add_flag("--json", options->json, "Print JSON");
  options->flags.add_session(*app);
  app->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace pith::cli
