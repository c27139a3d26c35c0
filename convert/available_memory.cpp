// The least of what /proc/meminfo says is available and what the limits of the process's cgroups, version 1
// or 2, leave.
#include "convert/available_memory.h"

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
  const uint64_t files = number_after(group + "/memory.stat", "inactive_file");
  const uint64_t taken = usage - std::min(usage, files);
  return limit - std::min(limit, taken);
}

// The group of /proc/self/cgroup and all above it. Inside a container its own group is mounted as the root.
uint64_t left_in_groups(const std::string& root, std::string group, const char* limit_file,
                        const char* usage_file) {
  uint64_t left = UINT64_MAX;
  while (true) {
    left = std::min(left, left_in(root + group, limit_file, usage_file));
    if (group.empty()) return left;
    group.erase(group.find_last_of('/'));
  }
}

}  // namespace

uint64_t available_memory(const std::string& root) {
  std::ifstream meminfo(root + "/proc/meminfo");
  uint64_t kilobytes = 0;
  for (std::string line; std::getline(meminfo, line);)
    if (line.starts_with("MemAvailable:") || line.starts_with("SwapFree:"))
      kilobytes += std::strtoull(line.c_str() + line.find(':') + 1, nullptr, 10);
  uint64_t available = kilobytes > 0 ? kilobytes * 1024 : UINT64_MAX;

  std::ifstream groups(root + "/proc/self/cgroup");  // lines "number:controllers:/path"
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos || second + 1 >= line.size() || line[second + 1] != '/') continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers.empty())
      available = std::min(available,
                           left_in_groups(root + "/sys/fs/cgroup", path, "/memory.max", "/memory.current"));
    if (controllers == "memory")
      available = std::min(available, left_in_groups(root + "/sys/fs/cgroup/memory", path,
                                                     "/memory.limit_in_bytes", "/memory.usage_in_bytes"));
  }
  return available;
}

}  // namespace pith
