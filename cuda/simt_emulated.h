// simt.cuh on a CPU, for tests: every thread of a block is a fiber, switched where a GPU's threads would wait for each
// other (shuffles, mma, barriers). Deterministic and single-threaded: it finds wrong indices, wrong layouts, reads before
// a wait and overwrites before a release, divergent collectives and deadlocks; it cannot find data races.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>

#include "format/float16.h"

#define PITH_DEVICE inline
#define PITH_SHAPE inline
#define PITH_UNROLL
#define PITH_ROLLED

namespace pith::cuda {

namespace emulation {

struct Grid {
  uint32_t n_blocks = 1, n_blocks_y = 1, n_threads = kWarp;
};
// Runs body(shared) in every thread of every block, blocks one after another; `shared` is n_shared_bytes of garbage, 128-byte
// aligned, one allocation a block. Throws std::runtime_error on a misuse of a primitive or a deadlock.
void run(const Grid& grid, size_t n_shared_bytes, const std::function<void(uint8_t* shared)>& body);

// All 32 lanes deposit `value`; returns the 32 values, `stride` bytes apart, valid until the lane's next collective.
constexpr size_t kLaneBytes = 32;
const uint8_t* exchange(const char* what, const void* value, size_t n_bytes);
[[noreturn]] void fail(const char* what);
// A thread stored to p: if that is shared memory, what goes through the asynchronous proxy does not see it yet.
void note_store(const void* p, size_t n_bytes);

inline void require_aligned(const void* p, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) fail("misaligned access");
}
template <typename T>
T load(const void* p) {
  require_aligned(p, sizeof(T));
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename T>
void store(void* p, T v) {
  require_aligned(p, sizeof(T));
  std::memcpy(p, &v, sizeof v);
  note_store(p, sizeof v);
}

}  // namespace emulation

uint32_t thread_index();
uint32_t n_threads();
uint32_t block_index();
uint32_t block_index_y();
uint32_t n_blocks();
uint32_t n_blocks_y();

// ---- Warp ----
inline void sync_warp() {
  emulation::exchange("sync_warp", nullptr, 0);
}
template <typename T>
T shuffle(T v, int source) {
  const uint8_t* const all = emulation::exchange("shuffle", &v, sizeof v);
  std::memcpy(&v, all + (static_cast<size_t>(source) % kWarp) * emulation::kLaneBytes, sizeof v);
  return v;
}
template <typename T>
T shuffle_xor(T v, int mask) {
  return shuffle(v, static_cast<int>(thread_index() % kWarp) ^ mask);
}
void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
inline void mma_u8s8_first(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  c[0] = c[1] = c[2] = c[3] = 0;
  mma_u8s8(c, a, b0, b1);
}
void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// ---- Block and grid ----
void sync_block();
inline void fence_device() {}
inline uint32_t take_ticket(uint32_t* counter) {
  return (*counter)++;
}
inline float load_coherent(const float* p) {
  return *p;
}
inline void depend() {}
inline void launch_dependents() {}

// ---- Loads ----
inline U32x4 load16(const void* p) {
  return emulation::load<U32x4>(p);
}
inline U32x2 load8(const void* p) {
  return emulation::load<U32x2>(p);
}
inline uint32_t load4(const void* p) {
  return emulation::load<uint32_t>(p);
}
inline U32x4 load_stream16(const void* p) {
  return load16(p);
}
inline U32x2 load_stream8(const void* p) {
  return load8(p);
}
inline uint32_t load_stream4(const void* p) {
  return load4(p);
}
inline void store16(void* p, U32x4 v) {
  emulation::store(p, v);
}
inline void prefetch_l2(const void*) {}
inline void store4(void* p, uint32_t v) {
  emulation::store(p, v);
}
inline void store2(void* p, uint16_t v) {
  emulation::store(p, v);
}

// ---- Asynchronous copies: the target is filled with garbage at once and written when it is waited for ----
void async_copy16(void* to, const void* from);
void async_commit();
void async_wait_pending(uint32_t n_pending);
template <int kPending>
void async_wait() {
  async_wait_pending(kPending);
}
void barrier_init(uint64_t* barrier, uint32_t n_arrivals);
inline void barrier_init_fence() {}
void barrier_arrive_expect(uint64_t* barrier, uint32_t n_bytes);
void barrier_wait(uint64_t* barrier, uint32_t parity);
void bulk_copy(void* to, const void* from, uint32_t n_bytes, uint64_t* barrier);

// ---- Warpgroups: products are made when they are waited for, of what fence_async_proxy() and bulk copies let them see by then; until
// then the sums are NaN ----
constexpr bool kHasWarpgroups = true;
uint32_t shared_address(const void* p);
void fence_async_proxy();
void warpgroup_mma(float (&c)[16][4], uint64_t a, uint64_t b);
void warpgroup_fence();
void warpgroup_commit();
void warpgroup_wait_pending(uint32_t n_pending);
template <int kPending>
void warpgroup_wait() {
  warpgroup_wait_pending(kPending);
}
inline void warpgroup_result(float&) {}

// ---- Arithmetic ----
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t{b} << 32 | a;
  uint32_t v = 0;
  for (uint32_t i = 0; i < 4; ++i)
    v |= static_cast<uint32_t>(both >> (8 * (selector >> 4 * i & 7)) & 0xff) << 8 * i;
  return v;
}
inline int32_t dot2(uint32_t a, uint32_t b, uint32_t first_byte, int32_t c) {
  for (uint32_t i = 0; i < 2; ++i)
    c += static_cast<int16_t>(a >> 16 * i) * static_cast<uint8_t>(b >> 8 * (first_byte + i));
  return c;
}
inline int32_t dot2_low(uint32_t a, uint32_t b, int32_t c) {
  return dot2(a, b, 0, c);
}
inline int32_t dot2_high(uint32_t a, uint32_t b, int32_t c) {
  return dot2(a, b, 2, c);
}
inline float f16_to_f32(uint16_t h) {
  return f16_to_float(h);
}
inline uint16_t f32_to_f16(float f) {
  return float_to_f16(f);
}
inline float bf16_to_f32(uint16_t h) {
  return bf16_to_float(h);
}
inline uint32_t pack_f16(float low, float high) {
  return f32_to_f16(low) | uint32_t{f32_to_f16(high)} << 16;
}
// Rounded to float first: may differ from the GPU's in the last bit where that ends between two fp16.
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (uint32_t i = 0; i < 2; ++i) {
    const auto half = [i](uint32_t v) { return double{f16_to_float(static_cast<uint16_t>(v >> 16 * i))}; };
    d |= uint32_t{float_to_f16(static_cast<float>(half(a) * half(b) + half(c)))} << 16 * i;
  }
  return d;
}
inline uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  return fma_f16x2(a, b, 0x80008000u);
}
inline uint32_t add_f16x2(uint32_t a, uint32_t b) {
  return fma_f16x2(a, 0x3c003c00u, b);
}
inline float fma_f32(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float max_f32(float a, float b) {
  return std::fmax(a, b);
}
inline float exp2_f32(float x) {
  return std::exp2(x);
}
inline float exp_f32(float x) {
  return std::exp(x);
}
inline float tanh_f32(float x) {
  return std::tanh(x);
}
inline float sqrt_f32(float x) {
  return std::sqrt(x);
}
inline float divide_f32(float a, float b) {
  return a / b;
}
inline int32_t round_even(float x) {
  return static_cast<int32_t>(std::nearbyint(x));
}
inline float bits_to_f32(uint32_t u) {
  return std::bit_cast<float>(u);
}
inline uint32_t f32_to_bits(float f) {
  return std::bit_cast<uint32_t>(f);
}

}  // namespace pith::cuda
