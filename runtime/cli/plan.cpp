// pith plan: the memory a session would take; nothing is loaded.
#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/cli/cli.h"
#include "runtime/cli/handles.h"
#include "runtime/cli/terminal.h"

namespace pith::cli {
namespace {

struct PlanOptions {
  std::string file;
  bool json = false;
  SessionFlags flags;
};

int run(const PlanOptions& options) {
  pith_memory_plan plan{};
  plan.size = sizeof plan;
  check(pith_plan(options.file.c_str(), options.flags.options().data(), &plan));
  if (options.json) {
    nlohmann::ordered_json out;
    out["ctx"] = plan.n_ctx;
    out["weights_bytes"] = plan.weights_bytes;
    out["kv_bytes"] = plan.kv_bytes;
    out["scratch_bytes"] = plan.scratch_bytes;
    out["total_bytes"] = plan.total_bytes;
    write_output(out.dump(2) + "\n");
    return kOk;
  }
  const auto line = [](const char* what, uint64_t n_bytes) {
    return fmt::format("{:<10}{:>16} bytes  {:>10}\n", what, n_bytes, human_bytes(n_bytes));
  };
  write_output(fmt::format("context   {:>16} tokens\n", plan.n_ctx) + line("weights", plan.weights_bytes) +
               line("kv cache", plan.kv_bytes) + line("scratch", plan.scratch_bytes) +
               line("total", plan.total_bytes));
  return kOk;
}

}  // namespace

void add_plan(CLI::App& root, Action& action) {
  const auto options = std::make_shared<PlanOptions>();
  CLI::App* const app = root.add_subcommand("plan", "The exact memory a session would take; loads nothing");
  app->add_option("FILE", options->file, "A .pith file")->required()->type_name("");
  app->add_flag("--json", options->json, "Print JSON");
  options->flags.add_session(*app);
  app->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace pith::cli
