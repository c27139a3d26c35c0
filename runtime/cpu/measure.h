// What this machine can do at most: the floors that `pith bench` compares with. Both use the given kernels' instructions.
#pragma once
#include <cstdint>
#include <string>

namespace pith::cpu {

// Bytes per second that n_threads read together from memory: the best of several passes over n_bytes on huge pages, but
// 256 MiB at least and 1 GiB at most. As many as the weights: servers have caches of hundreds of megabytes, and read what
// fits there faster. Takes about a second. Throws Error(kOutOfMemory).
double measure_read_bandwidth(uint32_t n_threads, uint64_t n_bytes, const std::string& kernels = "auto");

// Multiply-adds of int8 per second by the widest such instruction that the kernels use, from registers.
double measure_mac_peak(uint32_t n_threads, const std::string& kernels = "auto");

}  // namespace pith::cpu
