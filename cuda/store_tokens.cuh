// How the sums of a matrix product leave: a warp's 32 rows (a panel) x 32 tokens change places through a tile of shared memory, so that
// stores coalesce over rows and gates meet their ups.
#pragma once
#include "cuda/epilogue.cuh"

namespace pith::cuda {

constexpr uint32_t kStoreBytes = 32 * 33 * 4;  // a warp's tile

// sums[half][n][i]: fragments of rows g + 8 (2 half + i / 2), tokens 8n + 2t + i % 2. In the tile, [row][33]: row_scale(k) times them,
// k = 2 half + i / 2; then `adjust(token0)` may change it (lanes in step before and after), and token_scale(token) is applied.
template <uint32_t kTiles, typename RowScale, typename Adjust, typename TokenScale>
PITH_DEVICE void store_tokens(const Output& output, uint32_t out_stride, uint32_t n_rows, uint32_t n_tokens,
                              uint32_t panel, uint32_t first_token, const float (&sums)[2][kTiles][4],
                              const RowScale& row_scale, const Adjust& adjust, const TokenScale& token_scale,
                              float* tile) {
  const uint32_t lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
  Best unused;
  PITH_UNROLL
  for (uint32_t part = 0; part < kTiles / 4; ++part) {
    PITH_UNROLL
    for (uint32_t n = 0; n < 4; ++n) {
      PITH_UNROLL
      for (uint32_t i = 0; i < 8; ++i) {
        const uint32_t row = g + 8 * (i / 2), token = n * 8 + 2 * t + i % 2;
        tile[row * 33 + token] = sums[i / 4][part * 4 + n][i % 4] * row_scale(i / 2);
      }
    }
    sync_warp();
    const uint32_t token0 = first_token + part * 32;
    adjust(token0);
    const uint32_t i = lane % 16;
    for (uint32_t j = lane / 16; j < 32; j += 2) {  // a lane a pair of rows; two tokens at once
      const uint32_t token = token0 + j;
      if (token >= n_tokens) break;
      const float scale = token_scale(token);
      finish_row_pair(output, output.out + uint64_t{token} * out_stride, n_rows, panel, i,
                      tile[i * 33 + j] * scale, tile[(i + 16) * 33 + j] * scale, unused);
    }
    sync_warp();
  }
}

}  // namespace pith::cuda
