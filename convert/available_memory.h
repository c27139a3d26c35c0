// How much memory there is for us.
#pragma once
#include <cstdint>
#include <string>

namespace pith {

// Bytes that can be had without paging out others, swap included, and within what a container may take (cgroups: of the process's
// own group and those above it; what files in memory take of it counts as free). UINT64_MAX where the system says nothing.
// root: where /proc and /sys are, for tests.
uint64_t available_memory(const std::string& root = "");

}  // namespace pith
