// Timed loops over the kernels' read and mac_loop.
#include "runtime/cpu/measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "runtime/cpu/arena.h"
#include "runtime/cpu/kernels.h"
#include "runtime/thread_pool.h"

namespace pith::cpu {

namespace {

template <typename F>
double best_seconds(int n_passes, F&& pass) {
  double best = 1e9;
  for (int i = 0; i < n_passes; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pass();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

double measure_read_bandwidth(uint32_t n_threads, uint64_t n_bytes, const std::string& kernels) {
  n_bytes = std::clamp<uint64_t>(n_bytes, 256 << 20, 1 << 30);
  const Kernels& k = select_kernels(kernels);
  ThreadPool pool(n_threads);
  Arena arena(n_bytes);
  uint8_t* const data = arena.take<uint8_t>(n_bytes);
  const uint64_t share = n_bytes / pool.n_threads() / 4096 * 4096;
  pool.run([&](uint32_t thread) {  // each thread touches its part first
    std::fill_n(data + thread * share, share, uint8_t{1});
  });
  std::atomic<uint64_t> sum{0};  // keeps the reads
  const double seconds = best_seconds(
      10, [&] { pool.run([&](uint32_t thread) { sum += k.read(data + thread * share, share); }); });
  return static_cast<double>(share * pool.n_threads()) / seconds;
}

double measure_mac_peak(uint32_t n_threads, const std::string& kernels) {
  constexpr uint64_t kRounds = 1 << 20;
  const Kernels& k = select_kernels(kernels);
  ThreadPool pool(n_threads);
  std::atomic<uint64_t> n_macs{0};
  const double seconds = best_seconds(10, [&] {
    n_macs = 0;
    pool.run([&](uint32_t) { n_macs += k.mac_loop(kRounds); });
  });
  return static_cast<double>(n_macs.load()) / seconds;
}

}  // namespace pith::cpu
