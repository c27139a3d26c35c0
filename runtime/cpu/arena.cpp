// Anonymous memory with a wish for huge pages.
#include "runtime/cpu/arena.h"

#include <sys/mman.h>

#include <utility>

namespace pith::cpu {

Arena::Arena(uint64_t size_bytes) {
  constexpr uint64_t kHugePage = 2 << 20;
  mapped_ = size_bytes >= kHugePage ? checked_round_up(size_bytes, kHugePage)
                                    : checked_round_up(size_bytes + 1, 4096);
  void* const memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    throw_error(ErrorCode::kOutOfMemory, "cannot take {} MiB for the session's cache and scratch",
                mapped_ >> 20);
  if (size_bytes >= kHugePage) madvise(memory, mapped_, MADV_HUGEPAGE);  // advice: failure changes nothing
  base_ = static_cast<uint8_t*>(memory);
}

Arena::~Arena() {
  if (base_ != nullptr) munmap(base_, mapped_);
}

Arena::Arena(Arena&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), used_(other.used_), mapped_(other.mapped_) {}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(used_, other.used_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

}  // namespace pith::cpu
