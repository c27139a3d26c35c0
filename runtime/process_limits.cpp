// Reads /proc and the control files of cgroups, versions 2 and 1.
#include "runtime/process_limits.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>

namespace pith {

namespace {

// The number in a file; UINT64_MAX: none there ("max", or no such file).
uint64_t number_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  return file >> number ? number : UINT64_MAX;
}

// The number after `key` in a file of lines "key number"; 0: none.
uint64_t number_after(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key + " ")) return std::strtoull(line.c_str() + key.size(), nullptr, 10);
  return 0;
}

// What a group's limit leaves. Its files in memory can be dropped.
uint64_t left_in(const std::string& group, const char* limit_file, const char* usage_file) {
  const uint64_t limit = number_in(group + limit_file), usage = number_in(group + usage_file);
  if (limit == UINT64_MAX || usage == UINT64_MAX) return UINT64_MAX;
  const std::string stat = group + "/memory.stat";
  const uint64_t files = number_after(stat, "inactive_file") + number_after(stat, "active_file");
  const uint64_t taken = usage - std::min(usage, files);
  return limit - std::min(limit, taken);
}

// Calls each(folder, is_version_2) for the group of /proc/self/cgroup that `controller` keeps in bounds and for all above it. Inside a
// container its own group is mounted as the root.
template <typename F>
void for_each_group(const std::string& root, const std::string& controller, F&& each) {
  std::ifstream groups(
      root + "/proc/self/cgroup");  // lines "number:controllers:/path", of version 2 without controllers
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos || second + 1 >= line.size() || line[second + 1] != '/') continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_version_2 = controllers.empty();
    if (!is_version_2 && ("," + controllers + ",").find("," + controller + ",") == std::string::npos)
      continue;
    const std::string mount = root + "/sys/fs/cgroup" + (is_version_2 ? "" : "/" + controller);
    for (std::string path = line.substr(second + 1);; path.erase(path.find_last_of('/'))) {
      if (path == "/") path.clear();
      each(mount + path, is_version_2);
      if (path.empty()) break;
    }
  }
}

}  // namespace

uint64_t available_memory(const std::string& root, bool with_swap) {
  std::ifstream meminfo(root + "/proc/meminfo");
  uint64_t kilobytes = 0;
  for (std::string line; std::getline(meminfo, line);)
    if (line.starts_with("MemAvailable:") || (with_swap && line.starts_with("SwapFree:")))
      kilobytes += std::strtoull(line.c_str() + line.find(':') + 1, nullptr, 10);
  uint64_t available = kilobytes > 0 ? kilobytes * 1024 : UINT64_MAX;

  for_each_group(root, "memory", [&](const std::string& group, bool is_version_2) {
    available = std::min(available, is_version_2
                                        ? left_in(group, "/memory.max", "/memory.current")
                                        : left_in(group, "/memory.limit_in_bytes", "/memory.usage_in_bytes"));
  });
  return available;
}

bool has_huge_pages(const std::string& root) {
  const std::string folder = root + "/sys/kernel/mm/transparent_hugepage/";
  // "always [madvise] never": the choice in brackets, since Linux 6.8 one for each size, which may be to inherit.
  const auto has = [&](const char* file, const char* choice) {
    std::string line;
    std::ifstream stream(folder + file);
    return std::getline(stream, line) && line.find(choice) != std::string::npos;
  };
  const auto is_on = [&](const char* file) { return has(file, "[always]") || has(file, "[madvise]"); };
  const char* const of_size = "hugepages-2048kB/enabled";
  const bool inherits = !has(of_size, "[") || has(of_size, "[inherit]");
  return is_on(inherits ? "enabled" : of_size) && number_in(folder + "hpage_pmd_size") == 2 << 20;
}

uint32_t cpu_quota(const std::string& root) {
  uint32_t n_cpus = UINT32_MAX;
  for_each_group(root, "cpu", [&](const std::string& group, bool is_version_2) {
    int64_t quota = 0, period = 0;  // microseconds; no number, or -1: none
    if (is_version_2)
      std::ifstream(group + "/cpu.max") >> quota >> period;
    else if (std::ifstream(group + "/cpu.cfs_quota_us") >> quota)
      std::ifstream(group + "/cpu.cfs_period_us") >> period;
    if (quota <= 0 || period <= 0) return;
    const int64_t n = quota / period + (quota % period != 0);
    n_cpus = static_cast<uint32_t>(std::min<int64_t>(n_cpus, n));
  });
  return n_cpus;
}

}  // namespace pith
