// Body of the Q24 matrix product for many tokens.
//
//   y[t, r] = sum_b scale[t, b] * (0.25 * d[r] * T - dmin[r] * M) + sum_slots delta * x'[t, col]       then the epilogue
//   T = sum over block b of (s * (4 hi + lo)) * a      one u8 (<= 225) times int8, in int32       M = sum of m * sum a
//
// Shapes: W [n_rows, n_cols] Q24; tokens as QuantizedTokens; out [n_tokens, out_stride].
//
// Grid (ceil(n_panels / 4), n_padded / 128), 8 warps a block: warp k has panel 4 x + k % 4 and the tokens 64 * (k / 4) .. of the
// block's 128. Block of columns after block of columns:
//
//   A (weights)      global -> registers ahead of time; codes times scale once, used for 64 tokens. Lane (g, t) holds rows g + 8k
//                    of lines 2t, 2t + 1: k-quad t is columns 4p.. of a line and k-quad t + 4 columns 4(p + 2)..
//   B (activations)  cp.async into 2 stages of shared memory, a row of 128 columns a token, 144 bytes apart: conflict-free
//   M                one more product: u8 pairs (16 m, m) with the line sums' (h, l), k-quads 4..7 zero
//
// Shared memory: 2 stages x (activations 128 x 144, sums 128 x 16, scales 128 x 4) = 42 KB; in the epilogue the same bytes hold, per
// warp, a 32 x 33 tile of floats through which rows and tokens change places, outliers are added and stores coalesce.
// Preconditions: n_padded a multiple of 128. Tokens beyond n_tokens are computed and not stored.
// Bound by: int8 tensor throughput by design (64 + 16 products against about 420 other instructions a block and warp).
// Speed: not measured. Order of additions: blocks in order, then slots, as on the CPU; but minimums exactly, a
// block at a time, and with one more rounding each.
#pragma once
#include "cuda/q24_tile.cuh"
#include "cuda/store_tokens.cuh"

namespace pith::cuda {

constexpr uint32_t kGemmWarps = 8, kGemmPanels = 4, kWarpTokens = 64, kTokenTiles = kWarpTokens / 8;
constexpr uint32_t kGemmRowBytes = kUnitCols + 16;
constexpr uint32_t kGemmSums = kTokenTile * kGemmRowBytes;
constexpr uint32_t kGemmScales = kGemmSums + kTokenTile * 16;
constexpr uint32_t kGemmStageBytes = kGemmScales + kTokenTile * 4;
constexpr uint32_t kGemmSharedBytes = 2 * kGemmStageBytes;
static_assert(kGemmWarps * kStoreBytes <= kGemmSharedBytes);

// What a lane needs of one block of columns of its panel.
template <uint32_t kGroup>
struct PanelBlock {
  U32x4 base[2], fine[2];  // lines 2t, 2t + 1
  U32x2 scales;

  PITH_DEVICE void load(const Q24Weights& w, uint32_t panel, uint32_t block, uint32_t g, uint32_t t) {
    const uint32_t n_lines = w.padded_cols / q24::kLineCols, n_fine_lines = w.n_fine / q24::kLineCols;
    const uint32_t first_fine_line = n_lines - n_fine_lines;
    scales = {0, 0};
    PITH_UNROLL
    for (uint32_t j = 0; j < 2; ++j) {
      const uint32_t line = block * kUnitLines + 2 * t + j;
      base[j] = fine[j] = {0, 0, 0, 0};
      if (line >= n_lines) continue;
      base[j] = load_stream16(w.base + (uint64_t{panel} * n_lines + line) * q24::kLineBytes + g * 16);
      if (line >= first_fine_line)
        fine[j] = load_stream16(
            w.fine + (uint64_t{panel} * n_fine_lines + (line - first_fine_line)) * q24::kLineBytes + g * 16);
    }
    if (block * kUnitLines + 2 * t < n_lines)
      scales = step_scales<kGroup>(
          w.scales + uint64_t{panel} * w.scales_stride + block * UnitBytes<kGroup>::kScaleBytes, g, t,
          [](const uint8_t* p) { return load_stream8(p); });
  }
};

// A fragments of one line: [half][p = 0 and 2 | 1 and 3]; every byte is s * (4 hi + lo).
PITH_DEVICE void expand_line(const U32x4& base, const U32x4& fine, const U32x2& scales, uint32_t line,
                             uint32_t (&a)[2][2][4]) {
  PITH_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint32_t x[2] = {half ? base.z : base.x, half ? base.w : base.y};
    const uint32_t f[2] = {half ? fine.z : fine.x, half ? fine.w : fine.y};
    const uint32_t word = (half ? scales.y : scales.x) >> 8 * line;
    PITH_UNROLL
    for (int i = 0; i < 2; ++i) {               // rows g, g + 8 (+ 16)
      const uint32_t s = word >> 16 * i & 15u;  // times a word: no byte exceeds 225
      a[half][0][i] = ((x[i] << 2 & 0x0c0c0c0cu) | (f[i] & 0x03030303u)) * s;
      a[half][0][2 + i] = ((x[i] >> 2 & 0x0c0c0c0cu) | (f[i] >> 4 & 0x03030303u)) * s;
      a[half][1][i] = ((x[i] & 0x0c0c0c0cu) | (f[i] >> 2 & 0x03030303u)) * s;
      a[half][1][2 + i] = ((x[i] >> 4 & 0x0c0c0c0cu) | (f[i] >> 6 & 0x03030303u)) * s;
    }
  }
}

struct GemmSums {
  float y[2][kTokenTiles][4];  // [rows g.. | g + 16..][8 tokens][fragment]
};

// Adds one block of columns. `load_next` overwrites `block` once its codes are in fragments: the next block's are on their way while
// this one's sums become floats, without registers for two.
template <uint32_t kGroup, typename LoadNext>
PITH_DEVICE void multiply_block(const PanelBlock<kGroup>& block, const uint8_t* stage, uint32_t first_token,
                                uint32_t g, uint32_t t, const float (&d)[4], const float (&dmin)[4],
                                GemmSums& sums, const LoadNext& load_next) {
  int32_t acc[2][kTokenTiles][4];
  PITH_UNROLL
  for (uint32_t line = 0; line < 2; ++line) {
    uint32_t a[2][2][4];
    expand_line(block.base[line], block.fine[line], block.scales, line, a);
    PITH_UNROLL
    for (uint32_t n = 0; n < kTokenTiles; ++n) {
      const U32x4 b = load16(stage + (first_token + n * 8 + g) * kGemmRowBytes + (2 * t + line) * 16);
      PITH_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (line == 0)
          mma_u8s8_first(acc[half][n], a[half][0], b.x, b.y);
        else
          mma_u8s8(acc[half][n], a[half][0], b.x, b.y);
        mma_u8s8(acc[half][n], a[half][1], b.z, b.w);
      }
    }
  }
  uint32_t minimums[2][4];
  PITH_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint32_t m16 = (half ? block.scales.y : block.scales.x) & 0xf0f0f0f0u, m = m16 >> 4;
    minimums[half][0] = permute_bytes(m16, m, 0x5140);
    minimums[half][1] = permute_bytes(m16, m, 0x7362);
    minimums[half][2] = minimums[half][3] = 0;
  }
  load_next();
  PITH_UNROLL
  for (uint32_t n = 0; n < kTokenTiles; ++n) {
    const uint32_t token = first_token + n * 8;
    const uint32_t b = load4(stage + kGemmSums + (token + g) * 16 + t * 4);
    const U32x2 scales = load8(stage + kGemmScales + (token + 2 * t) * 4);
    PITH_UNROLL
    for (int half = 0; half < 2; ++half) {
      int32_t m[4];
      mma_u8s8_first(m, minimums[half], b, 0);
      PITH_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int k = 2 * half + i / 2;
        const float y =
            fma_f32(-dmin[k], static_cast<float>(m[i]), d[k] * static_cast<float>(acc[half][n][i]));
        sums.y[half][n][i] = fma_f32(bits_to_f32(i % 2 ? scales.y : scales.x), y, sums.y[half][n][i]);
      }
    }
  }
}

PITH_DEVICE void fetch_tokens(const QuantizedTokens& tokens, uint32_t block, uint32_t first_token,
                              uint8_t* stage) {
  const uint64_t at = uint64_t{block} * tokens.n_padded + first_token;
  for (uint32_t i = thread_index(); i < kTokenTile * 8; i += n_threads())
    async_copy16(stage + i / 8 * kGemmRowBytes + i % 8 * 16, tokens.a + (at * 8 + i) * 16);
  for (uint32_t i = thread_index(); i < kTokenTile; i += n_threads())
    async_copy16(stage + kGemmSums + i * 16, tokens.sums + (at + i) * 16);
  for (uint32_t i = thread_index(); i < kTokenTile / 4; i += n_threads())
    async_copy16(stage + kGemmScales + i * 16, tokens.scale + at + i * 4);
  async_commit();
}

// To a panel's tile (store_tokens.cuh) of the 32 tokens token0 ..: a lane a token.
PITH_DEVICE void add_outliers(const Q24Weights& w, const QuantizedTokens& tokens, uint32_t panel,
                              uint32_t token0, uint32_t lane, float* tile) {
  if (w.n_slots == 0) return;
  for (uint32_t word = 0; word < 32; ++word) {
    float y = tile[q24::word_row(word) * 33 + lane];
    for (uint32_t i = 0; i < w.n_slots; ++i) {
      const uint32_t slot = w.outliers[(uint64_t{panel} * w.n_slots + i) * kWarp + word],
                     column = slot & 0xffffu;
      if (column < w.padded_cols)
        y = fma_f32(f16_to_f32(static_cast<uint16_t>(slot >> 16)),
                    tokens.columns[uint64_t{column} * tokens.n_padded + token0 + lane], y);
    }
    tile[q24::word_row(word) * 33 + lane] = y;
  }
  sync_warp();
}

// The tokens first_token .. + kTokenTile.
template <uint32_t kGroup>
PITH_DEVICE void gemm_q24_body(const Q24Weights& w, const QuantizedTokens& tokens, const Output& output,
                               uint32_t out_stride, uint32_t first_token, uint8_t* shared) {
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, g = lane / 4, t = lane % 4;
  const uint32_t panel = block_index() * kGemmPanels + warp % kGemmPanels;
  const uint32_t warp_token = warp / kGemmPanels * kWarpTokens;
  const uint32_t n = (w.padded_cols + kUnitCols - 1) / kUnitCols;
  // A warp without a panel still moves activations and meets the barriers.
  const bool works = panel < w.n_panels && first_token + warp_token < tokens.n_tokens;

  launch_dependents();
  PanelBlock<kGroup> block;
  float d[4] = {0, 0, 0, 0}, dmin[4] = {0, 0, 0, 0};
  if (works) {
    block.load(w, panel, 0, g, t);
    const U32x4 rows = load_stream16(w.row_scale + uint64_t{panel} * kWarp + g * 4);
    const uint32_t words[4] = {rows.x, rows.y, rows.z, rows.w};
    PITH_UNROLL
    for (int k = 0; k < 4; ++k) {
      d[k] = 0.25f * f16_to_f32(static_cast<uint16_t>(words[k]));
      dmin[k] = f16_to_f32(static_cast<uint16_t>(words[k] >> 16));
    }
  }
  GemmSums sums;
  PITH_UNROLL
  for (uint32_t i = 0; i < 2 * kTokenTiles * 4; ++i)
    sums.y[i / (kTokenTiles * 4)][i / 4 % kTokenTiles][i % 4] = 0;

  depend();
  fetch_tokens(tokens, 0, first_token, shared);
  for (uint32_t b = 0; b < n; ++b) {
    async_wait<0>();
    sync_block();  // stage b is here, and nobody reads the other one any more
    if (b + 1 < n) fetch_tokens(tokens, b + 1, first_token, shared + (b + 1) % 2 * kGemmStageBytes);
    if (!works) continue;
    multiply_block<kGroup>(block, shared + b % 2 * kGemmStageBytes, warp_token, g, t, d, dmin, sums, [&] {
      if (b + 1 < n) block.load(w, panel, b + 1, g, t);
    });
  }
  sync_block();
  if (works) {
    float* const tile = reinterpret_cast<float*>(shared + warp * kStoreBytes);
    store_tokens(
        output, out_stride, w.n_rows, tokens.n_tokens, panel, first_token + warp_token, sums.y,
        [](uint32_t) { return 1.0f; },
        [&](uint32_t token0) { add_outliers(w, tokens, panel, token0, lane, tile); },
        [](uint32_t) { return 1.0f; }, tile);
  }
}

}  // namespace pith::cuda
