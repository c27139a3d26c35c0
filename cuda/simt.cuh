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
#pragma once
#include <cstdint>

namespace pith::cuda {

struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};
struct alignas(16) F32x4 {
  float x, y, z, w;
};

constexpr uint32_t kWarp = 32;

}  // namespace pith::cuda

#ifdef __CUDACC__
#include "cuda/simt_device.cuh"
#else
#include "cuda/simt_emulated.h"
#endif
