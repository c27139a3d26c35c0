// What this machine can do at most: the floors that `pith bench` compares with. Both use the given kernels' instructions.
#pragma once
#include <cstdint>
#include <string>

namespace pith::cpu {

// Bytes per second that n_threads read together from memory, past every cache: the best of several passes over
// 256 MiB on huge pages. Takes about half a second. Throws Error(kOutOfMemory).
double measure_read_bandwidth(uint32_t n_threads, const std::string& kernels = "auto");

// Multiply-adds of int8 per second by the widest such instruction that the kernels use, from registers.
double measure_mac_peak(uint32_t n_threads, const std::string& kernels = "auto");

}  // namespace pith::cpu
