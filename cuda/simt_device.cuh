// simt.cuh on a GPU: intrinsics and inline PTX. What a target lacks falls back (int8 mma on sm_75) or traps (bulk copies
// below sm_90, cp.async below sm_80, warpgroups elsewhere than on sm_90a): what is launched is chosen by the device's compute capability.
#pragma once
#include <cuda_fp16.h>

#define PITH_DEVICE __device__ __forceinline__
// Layout arithmetic that the launcher needs as well.
#define PITH_SHAPE __host__ __device__ __forceinline__
#define PITH_UNROLL _Pragma("unroll")
#define PITH_ROLLED _Pragma("unroll 1")

namespace pith::cuda {

#ifdef __CUDA_ARCH__
#define PITH_SM __CUDA_ARCH__
#else
#define PITH_SM 0
#endif

PITH_DEVICE uint32_t thread_index() {
  return threadIdx.x;
}
PITH_DEVICE uint32_t n_threads() {
  return blockDim.x;
}
PITH_DEVICE uint32_t block_index() {
  return blockIdx.x;
}
PITH_DEVICE uint32_t block_index_y() {
  return blockIdx.y;
}
PITH_DEVICE uint32_t n_blocks() {
  return gridDim.x;
}
PITH_DEVICE uint32_t n_blocks_y() {
  return gridDim.y;
}

// ---- Warp ----
PITH_DEVICE void sync_warp() {
  __syncwarp();
}
template <typename T>
PITH_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
template <typename T>
PITH_DEVICE T shuffle(T v, int source) {
  return __shfl_sync(0xffffffffu, v, source);
}

PITH_DEVICE void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if PITH_SM >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif PITH_SM >= 750
  // Turing has m8n8k16: the four quadrants of A, whose fragments are the same registers.
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+r"(c[0]), "+r"(c[1])
               : "r"(a[0]), "r"(b0));
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+r"(c[0]), "+r"(c[1])
               : "r"(a[2]), "r"(b1));
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+r"(c[2]), "+r"(c[3])
               : "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+r"(c[2]), "+r"(c[3])
               : "r"(a[3]), "r"(b1));
#endif
}

// The first product of a sum: D = A B.
PITH_DEVICE void mma_u8s8_first(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if PITH_SM >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%10,%10,%10};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
#else
  c[0] = c[1] = c[2] = c[3] = 0;
  mma_u8s8(c, a, b0, b1);
#endif
}

PITH_DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if PITH_SM >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif PITH_SM >= 750
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// ---- Block ----
PITH_DEVICE void sync_block() {
  __syncthreads();
}

// ---- Grid: no float is ever added atomically; a ticket tells the last block of a set that the others are done. ----
PITH_DEVICE void fence_device() {
  __threadfence();
}
PITH_DEVICE uint32_t take_ticket(uint32_t* counter) {
  return atomicAdd(counter, 1u);
}
// A value that another block wrote during this launch: read past L1.
PITH_DEVICE float load_coherent(const float* p) {
  return __ldcg(p);
}

// Programmatic dependent launch: everything before depend() may run while the kernel before still runs.
PITH_DEVICE void depend() {
#if PITH_SM >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PITH_DEVICE void launch_dependents() {
#if PITH_SM >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- Loads ----
// Weights: read once, so they do not displace activations in L1.
PITH_DEVICE U32x4 load_stream16(const void* p) {
  U32x4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
PITH_DEVICE U32x2 load_stream8(const void* p) {
  U32x2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
PITH_DEVICE uint32_t load_stream4(const void* p) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
PITH_DEVICE U32x4 load16(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {v.x, v.y, v.z, v.w};
}
PITH_DEVICE U32x2 load8(const void* p) {
  const uint2 v = *static_cast<const uint2*>(p);
  return {v.x, v.y};
}
PITH_DEVICE uint32_t load4(const void* p) {
  return *static_cast<const uint32_t*>(p);
}
PITH_DEVICE void store16(void* p, U32x4 v) {
  *static_cast<uint4*>(p) = make_uint4(v.x, v.y, v.z, v.w);
}
PITH_DEVICE void store4(void* p, uint32_t v) {
  *static_cast<uint32_t*>(p) = v;
}
PITH_DEVICE void store2(void* p, uint16_t v) {
  *static_cast<uint16_t*>(p) = v;
}

PITH_DEVICE void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// ---- Asynchronous copies, global to shared ----
PITH_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// cp.async (sm_80): per thread; 16 bytes.
PITH_DEVICE void async_copy16(void* to, const void* from) {
#if PITH_SM >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
#else
  store16(to, load16(from));
#endif
}
PITH_DEVICE void async_commit() {
#if PITH_SM >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `kPending` of this thread's groups are under way.
template <int kPending>
PITH_DEVICE void async_wait() {
#if PITH_SM >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Bulk copies (sm_90) complete on a barrier in shared memory.
PITH_DEVICE void barrier_init(uint64_t* barrier, uint32_t n_arrivals) {
#if PITH_SM >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_arrivals)
               : "memory");
#else
  __trap();
#endif
}
// Makes barrier_init visible to the copy engine; a block barrier must follow.
PITH_DEVICE void barrier_init_fence() {
#if PITH_SM >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
PITH_DEVICE void barrier_arrive_expect(uint64_t* barrier, uint32_t n_bytes) {
#if PITH_SM >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(n_bytes)
               : "memory");
#endif
}
PITH_DEVICE void barrier_wait(uint64_t* barrier, uint32_t parity) {
#if PITH_SM >= 900
  asm volatile(
      "{\n .reg .pred done;\n"
      "again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @!done bra again;\n}" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}
PITH_DEVICE void bulk_copy(void* to, const void* from, uint32_t n_bytes, uint64_t* barrier) {
#if PITH_SM >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(n_bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}

// ---- Warpgroups ----
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHasWarpgroups = true;
#else
constexpr bool kHasWarpgroups = false;
#endif

PITH_DEVICE void fence_async_proxy() {
#if PITH_SM >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
PITH_DEVICE void warpgroup_mma(float (&c)[16][4], uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, "
      "0, 0;\n}"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]),
        "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]),
        "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]),
        "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]), "+f"(c[10][1]),
        "+f"(c[10][2]), "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]),
        "+f"(c[12][0]), "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]),
        "+f"(c[13][2]), "+f"(c[13][3]), "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]),
        "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3])
      : "l"(a), "l"(b));
#endif
}
PITH_DEVICE void warpgroup_fence() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
PITH_DEVICE void warpgroup_commit() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until at most `kPending` batches are under way.
template <int kPending>
PITH_DEVICE void warpgroup_wait() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}
// Between the last wait and the use of a sum: keeps the compiler from reading it earlier.
PITH_DEVICE void warpgroup_result(float& v) {
  asm volatile("" : "+f"(v)::"memory");
}

// ---- Arithmetic ----
PITH_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
// c + (two int16 of a) . (bytes 0, 1 / bytes 2, 3 of b, unsigned)
PITH_DEVICE int32_t dot2_low(uint32_t a, uint32_t b, int32_t c) {
  int32_t d;
  asm("dp2a.lo.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
PITH_DEVICE int32_t dot2_high(uint32_t a, uint32_t b, int32_t c) {
  int32_t d;
  asm("dp2a.hi.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
PITH_DEVICE float f16_to_f32(uint16_t h) {
  return __half2float(__ushort_as_half(h));
}
PITH_DEVICE uint16_t f32_to_f16(float f) {
  return __half_as_ushort(__float2half_rn(f));
}
PITH_DEVICE float bf16_to_f32(uint16_t h) {
  return __uint_as_float(uint32_t{h} << 16);
}
// Two floats as fp16: `low` in bits 0..15.
PITH_DEVICE uint32_t pack_f16(float low, float high) {
  const __half2 h = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&h);
}
// Two fp16 at once, rounded to nearest, subnormals kept.
PITH_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
PITH_DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
PITH_DEVICE uint32_t add_f16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
PITH_DEVICE float fma_f32(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
PITH_DEVICE float max_f32(float a, float b) {
  return fmaxf(a, b);
}
PITH_DEVICE float exp2_f32(float x) {
  return exp2f(x);
}
PITH_DEVICE float exp_f32(float x) {
  return __expf(x);
}
PITH_DEVICE float tanh_f32(float x) {
  return tanhf(x);
}
PITH_DEVICE float sqrt_f32(float x) {
  return __fsqrt_rn(x);
}
PITH_DEVICE float divide_f32(float a, float b) {
  return __fdiv_rn(a, b);
}
PITH_DEVICE int32_t round_even(float x) {
  return __float2int_rn(x);
}
PITH_DEVICE float bits_to_f32(uint32_t u) {
  return __uint_as_float(u);
}
PITH_DEVICE uint32_t f32_to_bits(float f) {
  return __float_as_uint(f);
}

}  // namespace pith::cuda
