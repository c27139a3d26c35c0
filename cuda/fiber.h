// A stack that can be left in the middle and entered again: what the emulation runs a GPU's thread on.
//
// One scheduler and its fibers, all on one thread. Functions are entered and left tens of millions of times in a test, so a switch is a
// dozen instructions where the processor is known (swapcontext, elsewhere, is two system calls). The address sanitizer is told.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace pith::cuda::emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(Fiber&&) noexcept;
  // The next resume() calls entry, which must not return but end with finish(). What was on the stack is forgotten.
  void reset(void (*entry)());
  void resume();  // by the scheduler; returns at the fiber's yield() or finish()
  // By the fiber that runs:
  void entered();  // the first thing in entry
  void yield();
  [[noreturn]] void finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace pith::cuda::emulation
