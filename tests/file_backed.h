// Whether an address is a file's page or the process's own memory.
#pragma once
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>

namespace pith::test {

// As /proc/self/maps has it: lines "begin-end rights offset device inode path", inode 0 without a file.
inline bool is_file_backed(const void* address) {
  const uint64_t at = reinterpret_cast<uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0, end = 0, inode = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx %*s %*s %*s %lu", &begin, &end, &inode) == 3 && begin <= at &&
        at < end)
      return inode != 0;
  }
  return false;
}

}  // namespace pith::test
