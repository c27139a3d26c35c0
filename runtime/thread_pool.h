// A fixed set of threads that run one function together, phase after phase.
//
// run(f) calls f(thread) for thread 0 .. n_threads-1, 0 being the caller, and returns when all are done. Inside f,
// barrier() waits for all. Waiting spins for some microseconds, then sleeps in the kernel, so that decode pays no
// wake-up per phase and an idle session no CPU. f must not throw. One caller at a time.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace pith {

class ThreadPool {
 public:
  explicit ThreadPool(uint32_t n_threads);  // throws Error(kOutOfMemory) when the system has no more threads
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t n_threads() const { return n_threads_; }

  template <typename F>
  void run(F&& f) {
    call_ = [](void* context, uint32_t thread) {
      (*static_cast<std::remove_reference_t<F>*>(context))(thread);
    };
    context_ = &f;
    start_and_wait();
  }
  void barrier();

  static uint32_t n_physical_cores();  // usable by this process; at least 1

 private:
  void start_and_wait();
  void work(uint32_t thread);
  void stop();

  const uint32_t n_threads_;
  const int n_spins_;
  void (*call_)(void*, uint32_t) = nullptr;
  void* context_ = nullptr;
  // Each on its own cache line: workers poll one while others write the next.
  alignas(64) std::atomic<uint32_t> epoch_{0};      // a new value starts a run
  alignas(64) std::atomic<uint32_t> n_arrived_{0};  // threads waiting at the barrier
  alignas(64) std::atomic<uint32_t> phase_{0};      // a new value releases them
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace pith
