// A fixed set of threads that run one function together, phase after phase.
//
// run(f) calls f(thread) for thread 0 .. n_threads-1, 0 being the caller, and returns when all are done. Inside f,
// barrier() waits for all. Waiting spins for some microseconds, then sleeps in the kernel, so that decode pays no
// wake-up per phase and an idle session no CPU. f must not throw. One caller at a time,
// in the process that made the pool: a fork's child has no threads, it may only destroy its copy.
//
// use() lets the runs that follow go on with fewer threads, the caller alone for one: thread_choice.h says when that pays.
//
// for_each() deals out independent items: every thread gets a contiguous share, so that it streams through memory, and
// whoever is done takes items from the far end of another's share. A thread that the system or a noisy neighbour slows
// down then costs one item and not its whole lag (1.1B decode on two shared cores: barriers were 9 % of the time).
#pragma once
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace pith {

class ThreadPool {
 public:
  explicit ThreadPool(uint32_t n_threads);  // throws Error(kOutOfMemory) when the system has no more threads
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t n_threads() const { return n_used_; }  // of a run: all, or what use() said
  void use(uint32_t n_threads);                   // 1 .. all; not inside a run
  // Nanoseconds that threads slept at barriers, all together, since the last call: time for which another had no CPU,
  // or much more to do.
  uint64_t take_stalled_ns() { return stalled_ns_.exchange(0, std::memory_order_relaxed); }

  template <typename F>
  void run(F&& f) {
    call_ = [](void* context, uint32_t thread) {
      (*static_cast<std::remove_reference_t<F>*>(context))(thread);
    };
    context_ = &f;
    start_and_wait();
  }
  void barrier();

  // Calls f(item) once for each item of 0 .. n_items (< 2^28), on some thread. All threads of a run call it, in the same
  // order with the same n_items. No barrier: on return other threads may still work on their last items.
  template <typename F>
  void for_each(uint32_t thread, uint32_t n_items, F&& f) {
    uint32_t item = 0;
    const uint8_t turn = begin_share(thread, n_items);
    while (take_first(thread, item)) f(item);
    for (uint32_t i = 1; i < n_used_; ++i)
      while (take_last((thread + i) % n_used_, turn, item)) f(item);
  }

  // Usable by this process, and no more than the CPU quota of its container keeps busy; at least 1. root: process_limits.h
  static uint32_t n_physical_cores(const std::string& root = "");

 private:
  void start_and_wait();
  void work(uint32_t thread);
  void stop();
  uint8_t begin_share(uint32_t thread, uint32_t n_items);
  bool take_first(uint32_t thread, uint32_t& item);
  bool take_last(uint32_t victim, uint8_t turn, uint32_t& item);

  const int n_spins_;
  const pid_t process_;  // whose threads they are
  uint32_t n_used_;      // written between runs only; read by the threads of a run
  void (*call_)(void*, uint32_t) = nullptr;
  void* context_ = nullptr;
  // Each on its own cache line: workers poll one while others write the next.
  // A new value starts a run: a count, and the number of its threads in the lowest 11 bits. A thread beyond that
  // number reads nothing else, because nobody waits for it before the next run.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<uint32_t> n_arrived_{0};  // threads waiting at the barrier
  alignas(64) std::atomic<uint32_t> phase_{0};      // a new value releases them
  std::atomic<uint64_t> stalled_ns_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;

  // What is left of a thread's share, in one word: first item (28 bits), end (28 bits), turn (8 bits). The turn counts
  // the calls of for_each, so that a thread that is a call ahead or behind takes nothing.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
    uint8_t turn = 0;
  };
  std::vector<Share> shares_;
};

}  // namespace pith
