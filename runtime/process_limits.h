// What this process may take of the machine: memory, and processor time. cgroups count: those of containers and of services.
//
// root: where /proc and /sys are, for tests.
#pragma once
#include <cstdint>
#include <string>

namespace pith {

// Bytes that can be had without paging out others, swap included unless it says without, and within what a container may take
// (cgroups: of the process's own group and those above it; what files in memory take of it counts as free). UINT64_MAX where the
// system says nothing.
uint64_t available_memory(const std::string& root = "", bool with_swap = true);

// Whether huge pages of 2 MB can be had by asking for them (madvise).
bool has_huge_pages(const std::string& root = "");

// How many processors the quota of the process's group, or of one above it, keeps busy all of the time, rounded up. UINT32_MAX where
// there is none.
uint32_t cpu_quota(const std::string& root = "");

}  // namespace pith
