// Spinning, then sleeping, on three counters.
#include "runtime/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <set>
#include <string>
#include <system_error>

#include "format/error.h"
#include "runtime/process_limits.h"

namespace pith {

namespace {

constexpr int kSpins = 4000;       // of about 10 to 40 ns: longer than any gap between two phases
constexpr int kCrowdedSpins = 20;  // with more threads than CPUs, spinning only keeps the others from running

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr uint32_t kRun = 1 << 11;  // what a run adds to the epoch; more than there are ever threads

// Returns true as soon as `counter` no longer holds `value`, false when it still does after n_spins.
bool spin_while(const std::atomic<uint32_t>& counter, uint32_t value, int n_spins) {
  for (int i = 0; i < n_spins; ++i) {
    if (counter.load(std::memory_order_acquire) != value) return true;
    relax();
  }
  return false;
}

void sleep_while(const std::atomic<uint32_t>& counter, uint32_t value) {
  while (counter.load(std::memory_order_acquire) == value) counter.wait(value, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(uint32_t n_threads)
    : n_spins_(n_threads <= std::min(std::thread::hardware_concurrency(), cpu_quota()) ? kSpins
                                                                                       : kCrowdedSpins),
      process_(getpid()),
      n_used_(std::max(n_threads, 1u)),
      shares_(n_used_) {
  workers_.reserve(n_used_ - 1);
  try {
    for (uint32_t i = 1; i < n_used_; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error& error) {
    stop();
    throw_error(ErrorCode::kOutOfMemory, "cannot start thread {} of {}: {}", workers_.size() + 1, n_used_,
                error.what());
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(kRun, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) {
    if (getpid() == process_)
      worker.join();
    else
      worker.detach();  // after a fork: it is not here
  }
}

void ThreadPool::use(uint32_t n_threads) {
  n_threads = std::clamp(n_threads, 1u, static_cast<uint32_t>(shares_.size()));
  if (n_threads == n_used_) return;
  n_used_ = n_threads;
  for (Share& share : shares_) {  // their turns fell apart if some did not take part
    share.left.store(0, std::memory_order_relaxed);
    share.turn = 0;
  }
}

void ThreadPool::start_and_wait() {
  if (n_used_ > 1) {
    const uint32_t count = epoch_.load(std::memory_order_relaxed) / kRun + 1;
    epoch_.store(count * kRun + n_used_, std::memory_order_release);
    epoch_.notify_all();
  }
  call_(context_, 0);
  barrier();
}

void ThreadPool::work(uint32_t thread) {
  uint32_t epoch = 0;
  for (;;) {
    if (!spin_while(epoch_, epoch, n_spins_)) sleep_while(epoch_, epoch);
    epoch = epoch_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (thread >= epoch % kRun) continue;
    call_(context_, thread);
    barrier();
  }
}

void ThreadPool::barrier() {
  const uint32_t n = n_used_;  // read before the arrival: after it, the run may end and use() change it
  if (n == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (n_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n) {
    n_arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  } else if (!spin_while(phase_, phase, n_spins_)) {
    const auto start = std::chrono::steady_clock::now();
    sleep_while(phase_, phase);
    stalled_ns_.fetch_add(
        static_cast<uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count()),
        std::memory_order_relaxed);
  }
}

namespace {

constexpr uint64_t kItems = (uint64_t{1} << 28) - 1;

constexpr uint64_t pack(uint64_t begin, uint64_t end, uint64_t turn) {
  return begin | end << 28 | turn << 56;
}

}  // namespace

uint8_t ThreadPool::begin_share(uint32_t thread, uint32_t n_items) {
  Share& share = shares_[thread];
  const auto cut = [&](uint32_t t) { return uint64_t{n_items} * t / n_used_; };
  ++share.turn;
  share.left.store(pack(cut(thread), cut(thread + 1), share.turn), std::memory_order_relaxed);
  return share.turn;
}

bool ThreadPool::take_first(uint32_t thread, uint32_t& item) {
  std::atomic<uint64_t>& word = shares_[thread].left;
  uint64_t left = word.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t begin = left & kItems, end = left >> 28 & kItems;
    if (begin >= end) return false;
    if (word.compare_exchange_weak(left, left + 1, std::memory_order_relaxed)) {
      item = static_cast<uint32_t>(begin);
      return true;
    }
  }
}

bool ThreadPool::take_last(uint32_t victim, uint8_t turn, uint32_t& item) {
  std::atomic<uint64_t>& word = shares_[victim].left;
  uint64_t left = word.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t begin = left & kItems, end = left >> 28 & kItems;
    if (begin >= end || left >> 56 != turn) return false;
    if (word.compare_exchange_weak(left, left - (uint64_t{1} << 28), std::memory_order_relaxed)) {
      item = static_cast<uint32_t>(end - 1);
      return true;
    }
  }
}

uint32_t ThreadPool::n_physical_cores(const std::string& root) {
  const uint32_t quota = cpu_quota(root);
  cpu_set_t usable;
  CPU_ZERO(&usable);
  if (sched_getaffinity(0, sizeof usable, &usable) != 0)
    return std::clamp(std::thread::hardware_concurrency(), 1u, quota);
  std::set<std::string> cores;  // hyper-threads of one core share this list
  uint32_t n_unknown = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &usable)) continue;
    std::ifstream file(root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (std::getline(file, siblings))
      cores.insert(siblings);
    else
      ++n_unknown;
  }
  return std::clamp(static_cast<uint32_t>(cores.size()) + n_unknown, 1u, quota);
}

}  // namespace pith
