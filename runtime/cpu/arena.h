// One block of memory for everything a session owns: sized by a dry run, then taken at once.
//
//   Arena sizer;  Buffers b(sizer, ...);  Arena arena(sizer.size_bytes());  Buffers b(arena, ...);
//
// Memory is zeroed, on huge pages where the system grants them, each piece aligned to 128 bytes. Move-only.
#pragma once
#include <cstdint>

#include "format/checked.h"

namespace pith::cpu {

class Arena {
 public:
  Arena() = default;                    // counts only; take() returns nullptr
  explicit Arena(uint64_t size_bytes);  // throws Error(kOutOfMemory)
  ~Arena();
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;

  template <typename T>
  T* take(uint64_t count) {
    const uint64_t start = used_;
    used_ = checked_add(used_, checked_round_up(checked_mul(count, sizeof(T)), 128));
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + start);
  }
  uint64_t size_bytes() const { return used_; }

 private:
  uint8_t* base_ = nullptr;
  uint64_t used_ = 0, mapped_ = 0;
};

}  // namespace pith::cpu
