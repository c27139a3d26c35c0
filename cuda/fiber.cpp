// See fiber.h.
#include "cuda/fiber.h"

#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#define PITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PITH_ASAN 1
#endif
#endif
#ifdef PITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
// Saves the callee's registers and the stack pointer to *save, goes on where `to` was saved.
extern "C" void pith_switch_stack(void** save, void* to);
asm(R"(
.text
.type pith_switch_stack, @function
.hidden pith_switch_stack
.globl pith_switch_stack
pith_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pith_switch_stack, .-pith_switch_stack
)");
#else
#include <ucontext.h>
#endif

namespace pith::cuda::emulation {

namespace {

constexpr size_t kStackBytes = 256 * 1024;

}  // namespace

struct Fiber::Context {
  std::unique_ptr<uint8_t[]> stack{new uint8_t[kStackBytes]};
#ifdef __x86_64__
  void *own = nullptr, *scheduler = nullptr;  // stack pointers while the other one runs
  void start(void (*entry)()) {
    void** top =
        reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack.get() + kStackBytes) & ~uintptr_t{15});
    *--top = nullptr;  // the entry's return address: the end of a backtrace
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // registers
    own = top;
  }
  void enter() {
    pith_switch_stack(&scheduler, own);
  }
  void leave() {
    pith_switch_stack(&own, scheduler);
  }
#else
  ucontext_t own{}, scheduler{};
  void start(void (*entry)()) {
    getcontext(&own);
    own.uc_stack.ss_sp = stack.get();
    own.uc_stack.ss_size = kStackBytes;
    own.uc_link = nullptr;
    makecontext(&own, entry, 0);
  }
  void enter() {
    swapcontext(&scheduler, &own);
  }
  void leave() {
    swapcontext(&own, &scheduler);
  }
#endif
#ifdef PITH_ASAN
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  bool in_use = false;  // entered and not finished
#endif
};

Fiber::Fiber() : context_(std::make_unique<Context>()) {}
Fiber::~Fiber() = default;
Fiber::Fiber(Fiber&&) noexcept = default;

void Fiber::reset(void (*entry)()) {
#ifdef PITH_ASAN
  // A fiber that was given up in the middle leaves the frames that it was in marked.
  if (context_->in_use) __asan_unpoison_memory_region(context_->stack.get(), kStackBytes);
  context_->in_use = true;
#endif
  context_->start(entry);
}

void Fiber::resume() {
#ifdef PITH_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, context_->stack.get(), kStackBytes);
#endif
  context_->enter();
#ifdef PITH_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Fiber::entered() {
#ifdef PITH_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &context_->scheduler_stack, &context_->scheduler_stack_bytes);
#endif
}

void Fiber::yield() {
#ifdef PITH_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, context_->scheduler_stack, context_->scheduler_stack_bytes);
#endif
  context_->leave();
#ifdef PITH_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Fiber::finish() {
#ifdef PITH_ASAN
  context_->in_use = false;
  __sanitizer_start_switch_fiber(nullptr, context_->scheduler_stack, context_->scheduler_stack_bytes);
#endif
  context_->leave();
  std::abort();  // nobody resumes a finished fiber
}

}  // namespace pith::cuda::emulation
