// Body of the float32 matrix product that calibration runs on (convert/products.h), and of the copy that lays out its operands.
//
//   c[i, j] = (adds ? c[i, j] : 0) + sum_d a[d, i] * b[d, j]
//
// Shapes: a [depth, n_rows], b [depth, n_cols], c [n_rows, n_cols], all dense; n_rows and n_cols multiples of 128, depth of 16. What is
// narrower is padded with zeros (lay_out below), so that nothing here looks at an edge. symmetric: a is b, and tiles above the diagonal are
// left out.
//
// Grid (column tiles, row tiles) of blocks of 8 warps, a tile of 128 x 128 each. A warp has 64 x 32 of it, a lane 8 x 8:
//
//   rows     warp / 4 * 64 + bits 1, 3, 4 of the lane * 4 + {0..3, 32..35}
//   columns  warp % 4 * 32 + bits 0, 2 of the lane * 4 + {0..3, 16..19}
//
// so that a lane's 16 values of a depth are four loads of 16 bytes. Lanes i and i ^ 1 want the same of a, i and i ^ 2 the same of b: then
// shared memory serves half a warp at a time, not a quarter.
// Shared memory: [2 stages][a | b][16 depths][128] floats, 32 KiB. cp.async fills one stage while the other is multiplied.
//
// Order of additions: by depth, with fma, in passes of 256 that are added up in c. It depends on nothing else, neither on how a caller
// cuts depth into launches (at multiples of 256) nor on the device: every GPU and the emulation give the same bits. Error at most
// (256 + depth / 256) * 2^-24 * sum |a b|, what the CPU's passes of 256 have too (convert/gemm.h, which adds them in double).
//
// Plain float32 units on purpose: Hessians want their 24 bits, and every target has them. Bound by: issue of FFMA, one a clock and
// scheduler; loads from shared memory are 4 of 68 instructions. L2: 16 KB in 2048 clocks a block. Speed: not measured; README.md has
// instructions and floor.
#pragma once
#include "cuda/kernels.h"
#include "cuda/simt.cuh"

namespace pith::cuda {

constexpr uint32_t kFloatWarps = 8;
constexpr uint32_t kFloatPass = 256;                            // depths between two additions to c
constexpr uint32_t kFloatStage = kFloatDepth * kFloatTile * 2;  // floats: of a, then of b
constexpr uint32_t kFloatSharedBytes = 2 * kFloatStage * 4;

PITH_DEVICE void load_floats(const float* from, float* to) {
  const U32x4 v = load16(from);
  to[0] = bits_to_f32(v.x), to[1] = bits_to_f32(v.y), to[2] = bits_to_f32(v.z), to[3] = bits_to_f32(v.w);
}

// A lane's 8 x 8 sums: its first row and column in the tile, rows 0..3 and 32..35, columns 0..3 and 16..19 from there.
struct FloatSums {
  float c[8][8];
  uint32_t row, col;
  PITH_DEVICE FloatSums() {
    const uint32_t warp = thread_index() / kWarp, lane = thread_index() % kWarp;
    row = warp / 4 * 64 + (lane / 2 % 2 + lane / 8 * 2) * 4;
    col = warp % 4 * 32 + (lane % 2 + lane / 4 % 2 * 2) * 4;
    clear();
  }
  PITH_DEVICE void clear() {
    PITH_UNROLL
    for (uint32_t i = 0; i < 64; ++i) c[i / 8][i % 8] = 0;
  }
  // stage: [a | b][kFloatDepth][kFloatTile]
  PITH_DEVICE void multiply(const float* stage) {
    PITH_UNROLL
    for (uint32_t d = 0; d < kFloatDepth; ++d) {
      const float* const a_row = stage + d * kFloatTile + row;
      const float* const b_row = stage + (kFloatDepth + d) * kFloatTile + col;
      float a[8], b[8];
      load_floats(a_row, a);
      load_floats(a_row + 32, a + 4);
      load_floats(b_row, b);
      load_floats(b_row + 16, b + 4);
      PITH_UNROLL
      for (uint32_t i = 0; i < 64; ++i) c[i / 8][i % 8] = fma_f32(a[i / 8], b[i % 8], c[i / 8][i % 8]);
    }
  }
  // The sums of a pass go to `tile`, the block's first element of c. They end here: the next pass begins with zeros.
  PITH_DEVICE void move_to(float* tile, uint32_t stride, bool adds) {
    PITH_UNROLL
    for (uint32_t i = 0; i < 8; ++i) {
      PITH_UNROLL
      for (uint32_t j = 0; j < 8; j += 4) {
        float* const to = tile + uint64_t{row + i / 4 * 32 + i % 4} * stride + col + j * 4;
        float old[4] = {0, 0, 0, 0};
        if (adds) load_floats(to, old);
        store16(to, {f32_to_bits(old[0] + c[i][j]), f32_to_bits(old[1] + c[i][j + 1]),
                     f32_to_bits(old[2] + c[i][j + 2]), f32_to_bits(old[3] + c[i][j + 3])});
      }
    }
    clear();
  }
};

PITH_DEVICE void gemm_float_body(const GemmFloat& args, uint8_t* shared) {
  const uint32_t first_col = block_index() * kFloatTile, first_row = block_index_y() * kFloatTile;
  if (args.symmetric && first_col > first_row) return;
  float* const stages = reinterpret_cast<float*>(shared);
  float* const tile = args.c + uint64_t{first_row} * args.n_cols + first_col;
  const auto fetch = [&](uint32_t step) {
    float* const to = stages + step % 2 * kFloatStage;
    constexpr uint32_t kChunks = kFloatTile / 4;  // of a depth
    PITH_UNROLL
    for (uint32_t k = 0; k < kFloatDepth * kChunks / (kFloatWarps * kWarp); ++k) {
      const uint32_t i = k * kFloatWarps * kWarp + thread_index();
      const uint64_t depth = uint64_t{step} * kFloatDepth + i / kChunks;
      async_copy16(to + i * 4, args.a + depth * args.n_rows + first_row + i % kChunks * 4);
      async_copy16(to + kFloatStage / 2 + i * 4, args.b + depth * args.n_cols + first_col + i % kChunks * 4);
    }
    async_commit();
  };

  FloatSums sums;
  const uint32_t n_steps = args.depth / kFloatDepth;
  bool adds = args.adds;
  depend();
  fetch(0);
  PITH_ROLLED
  for (uint32_t step = 0; step < n_steps; ++step) {
    async_wait<0>();
    sync_block();  // this stage is here for all, and nobody reads the other one any more
    if (step + 1 < n_steps) fetch(step + 1);
    sums.multiply(stages + step % 2 * kFloatStage);
    const bool ends_pass = (step + 1) % (kFloatPass / kFloatDepth) == 0;
    if (!ends_pass && step + 1 < n_steps) continue;
    sums.move_to(tile, args.n_cols, adds);
    adds = true;
  }
}

// ---- Operands ----

constexpr uint32_t kLayTile = 32;

// Blocks of 8 warps, a tile of 32 x 32 of `to` each: grid (column tiles, row tiles). Shared memory, when transposed: [32][33] floats.
PITH_DEVICE void lay_out_body(const LayOut& args, uint8_t* shared) {
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, n_warps = n_threads() / kWarp;
  const uint32_t first_col = block_index() * kLayTile, first_row = block_index_y() * kLayTile;
  float* const tile = reinterpret_cast<float*>(shared);
  depend();
  // Of the input's tile, whose rows are the output's columns when transposed.
  const uint32_t from_row = args.transposed ? first_col : first_row,
                 from_col = (args.transposed ? first_row : first_col) + lane;
  for (uint32_t r = warp; r < kLayTile; r += n_warps) {
    const bool is_there = from_row + r < args.n_rows && from_col < args.n_cols;
    const float v = is_there ? args.from[uint64_t{from_row + r} * args.n_cols + from_col] : 0.0f;
    if (args.transposed)
      tile[r * (kLayTile + 1) + lane] = v;
    else
      args.to[uint64_t{first_row + r} * args.to_stride + first_col + lane] = v;
  }
  if (!args.transposed) return;
  sync_block();
  for (uint32_t r = warp; r < kLayTile; r += n_warps)
    args.to[uint64_t{first_row + r} * args.to_stride + first_col + lane] = tile[lane * (kLayTile + 1) + r];
}

}  // namespace pith::cuda
