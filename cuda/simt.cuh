// The few primitives that pith's kernels are written in: a warp of 32 lanes, a block of warps, asynchronous copies.
//
// Kernel bodies (*.cuh) include only this file. Under nvcc the primitives are intrinsics and inline PTX
// (simt_device.cuh); under a host compiler they are an emulation that runs every thread of a block as a fiber
// (simt_emulated.h), so that the same bodies run under ASan and UBSan against the CPU reference. The emulation is
// hostile on purpose: the target of an asynchronous copy holds garbage until it is waited for.
//
// Fragments (PTX ISA, "Matrix Fragments"), with g = lane / 4 and t = lane % 4:
//   mma_u8s8   D[16, 8] += A[16, 32] B[32, 8]     a0: row g,   k 4t..4t+3      a1: row g+8, the same k
//                                                 a2: row g,   k 16+4t..       a3: row g+8
//                                                 b0: k 4t..4t+3 of column g   b1: k 16+4t..
//   mma_f16    D[16, 8] += A[16, 16] B[16, 8]     a0: row g, k 2t, 2t+1   a1: row g+8   a2, a3: k + 8   b0, b1 likewise
//   both                                          c0, c1: row g, columns 2t, 2t+1      c2, c3: row g+8
//
// Warpgroups (sm_90a; PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"): four warps together multiply matrices that lie in
// shared memory, while they go on.
//   warpgroup_mma  D[64, 128] += A[64, 16] B[128, 16]^T, fp16 to float     warp w, c[n][0..3]: rows 16w + g, + 8, columns 8n + 2t..
// A and B are named by a descriptor: rows of 128 bytes (64 fp16), 8 rows a KiB that begins at a multiple of a KiB; the 16-byte chunk c of
// row r lies at c ^ r % 8 ("128-byte swizzle"). 16 columns on is 32 bytes on. Of a batch: warpgroup_fence() before its first product,
// warpgroup_commit() after its last; until warpgroup_wait() neither matrices nor sums may be touched. The copy engine and these products
// see what a thread stored only after its fence_async_proxy() and a barrier.
#pragma once
#include <cstdint>

namespace pith::cuda {

struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};

constexpr uint32_t kWarp = 32;

}  // namespace pith::cuda

#ifdef __CUDACC__
#include "cuda/simt_device.cuh"
#else
#include "cuda/simt_emulated.h"
#endif

namespace pith::cuda {

// Of a matrix whose rows begin at p (or 32 bytes a step of 16 columns further). Bits 0..13: address / 16; 16..29: unused with this layout;
// 32..45: bytes from 8 rows to the next 8, / 16; 62..63: 1, the 128-byte swizzle.
PITH_DEVICE uint64_t matrix_descriptor(const void* p) {
  return uint64_t{shared_address(p) >> 4} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

}  // namespace pith::cuda
