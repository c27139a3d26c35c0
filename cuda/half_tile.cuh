// A tile of the 16-bit matrix product: 128 rows of weights times 128 tokens, 64 columns at a time from shared memory, by four warps.
//
// Both operands lie as simt.cuh's matrix descriptors want them: rows of 64 fp16 = 128 bytes, the 16-byte chunk c of row r at
// c ^ r % 8. Reads of a fragment's 8 rows x 16 bytes are then free of bank conflicts for mma.sync too, so one layout serves both.
// Rows of weights lie so that warp w of the four ends with the sums of panel w:
//
//   tile row  64 h + 16 w + i   <->   row 32 w + 16 h + i of the 128,    h = 0, 1,  i = 0..15
//
// Sums: half h, tile n of 8 tokens: fragment i of lane (g, t) is row 16 h + g + 8 (i / 2) of the panel, token 8 n + 2t + i % 2.
#pragma once
#include "cuda/kernels.h"
#include "cuda/simt.cuh"

namespace pith::cuda {

constexpr uint32_t kTileCols = 64, kTileRowBytes = kTileCols * 2;
constexpr uint32_t kTileRows = 128, kGroupWarps = 4, kGroupThreads = kGroupWarps * kWarp;
constexpr uint32_t kTileBytes =
    kTileRows * kTileRowBytes;  // 16 KiB: weights of four warps, or kTokenTile tokens
static_assert(kTokenTile * kTileRowBytes == kTileBytes);

PITH_DEVICE uint32_t tile_place(uint32_t row, uint32_t chunk) {
  return row * kTileRowBytes + ((chunk ^ row % 8) * 16);
}
// Of row g + 8k of a warp's panel.
PITH_DEVICE uint32_t tile_row(uint32_t warp_in_group, uint32_t g, uint32_t k) {
  return k / 2 * 64 + warp_in_group * 16 + k % 2 * 8 + g;
}

struct TileSums {
  float y[2][kTokenTile / 8][4];
};

// Adds weights[128, 64] tokens[128, 64]^T as products under way; the batch begins and ends here.
PITH_DEVICE void start_tile(const uint8_t* weights, const uint8_t* tokens, TileSums& sums) {
  const uint64_t a = matrix_descriptor(weights), b = matrix_descriptor(tokens);
  warpgroup_fence();
  PITH_UNROLL
  for (uint32_t step = 0; step < kTileCols / 16; ++step) {
    PITH_UNROLL
    for (uint32_t half = 0; half < 2; ++half)
      warpgroup_mma(sums.y[half], a + (half * kTileBytes / 2 + step * 32) / 16, b + step * 32 / 16);
  }
  warpgroup_commit();
}

// The same by mma.sync, at once. to_f16 turns two stored weights into two fp16.
template <typename ToF16>
PITH_DEVICE void multiply_tile(const uint8_t* weights, const uint8_t* tokens, const ToF16& to_f16,
                               TileSums& sums) {
  const uint32_t lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
  const uint32_t first_row = thread_index() / kWarp % kGroupWarps * 16 + g;
  PITH_UNROLL
  for (uint32_t step = 0; step < kTileCols / 16; ++step) {
    uint32_t a[2][4];
    PITH_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      PITH_UNROLL
      for (uint32_t i = 0; i < 4; ++i)
        a[half][i] =
            to_f16(load4(weights + tile_place(half * 64 + first_row + i % 2 * 8, 2 * step + i / 2) + t * 4));
    }
    PITH_UNROLL
    for (uint32_t n = 0; n < kTokenTile / 8; ++n) {
      const uint32_t b0 = load4(tokens + tile_place(n * 8 + g, 2 * step) + t * 4),
                     b1 = load4(tokens + tile_place(n * 8 + g, 2 * step + 1) + t * 4);
      mma_f16(sums.y[0][n], a[0], b0, b1);
      mma_f16(sums.y[1][n], a[1], b0, b1);
    }
  }
}

}  // namespace pith::cuda
