// pith doctor: what this machine has, and what pith would choose on it.
#include <fmt/ranges.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/backend.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/human_bytes.h"
#include "runtime/cli/terminal.h"
#include "runtime/cpu/kernels.h"
#include "runtime/pith.h"
#include "runtime/process_limits.h"
#include "runtime/thread_pool.h"

namespace pith::cli {
namespace {

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name") && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  return "unknown";
}

uint64_t memory_bytes() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

int run(bool json) {
  std::vector<std::string> kernels, devices;
  for (const cpu::Kernels* kind : cpu::supported_kernels()) kernels.emplace_back(kind->name);
  for (const BackendKind& kind : backend_kinds())
    if (kind.available()) devices.emplace_back(kind.device);
  std::string gpu = "built without CUDA";
  for (const BackendKind& kind : backend_kinds())
    if (kind.describe != nullptr) gpu = kind.describe();
  const std::string chosen = cpu::select_kernels("auto").name;
  const uint32_t n_cores = ThreadPool::n_physical_cores(), quota = cpu_quota();
  if (json) {
    nlohmann::ordered_json out;
    out["version"] = pith_version();
    out["cpu"] = cpu_name();
    out["hardware_threads"] = std::thread::hardware_concurrency();
    out["threads"] = n_cores;
    out["memory_bytes"] = memory_bytes();
    out["kernels_supported"] = kernels;
    out["kernels"] = chosen;
    out["gpu"] = gpu;
    out["devices"] = devices;
    out["device"] = devices.front();
    write_output(out.dump(2) + "\n");
    return kOk;
  }
  write_output(fmt::format(
      "pith       {}\n"
      "cpu        {}\n"
      "memory     {}\n"
      "threads    {} of {}: one a physical core{}\n"
      "kernels    {} (of {})\n"
      "gpu        {}\n"
      "device     {} (of {})\n",
      pith_version(), cpu_name(), human_bytes(memory_bytes()), n_cores, std::thread::hardware_concurrency(),
      quota == UINT32_MAX ? "" : fmt::format(", at most {}, the CPU quota", quota), chosen,
      fmt::join(kernels, ", "), gpu, devices.front(), fmt::join(devices, ", ")));
  return kOk;
}

}  // namespace

void add_doctor(CLI::App& root, Action& action) {
  const auto json = std::make_shared<bool>(false);
  CLI::App* const app = root.add_subcommand("doctor", "What this machine has and what pith chooses on it");
  app->add_flag("--json", *json, "Print JSON");
  app->callback([json, &action] { action = [json] { return run(*json); }; });
}

}  // namespace pith::cli
