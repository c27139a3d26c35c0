// Body of the matrix product in 16 bits: Q24 weights decoded to fp16 (sm_90a), or 16-bit weights as they are (every target).
//
//   y[t, r] = token scale[t] * row scale[r] * sum_c w'[r, c] * a[t, c]              sums in float, by the matrix unit; then the epilogue
//
// Shapes: W [n_rows, n_cols]; tokens as HalfTokens, fp16 with a power of two for each token; out [n_tokens, out_stride].
//
// Grid (tiles of 128 tokens, tiles of 128 or 256 rows): blocks that run side by side share their rows, which come from L2 then. A block is
// 1 or 2 groups of four warps; a group has 128 rows (half_tile.cuh) and both share the tokens. Block of 64 columns after block:
//
//   warpgroups   matrix unit  === b - 1 ===|======== b ========|=== b + 1     from shared memory, beside
//                warps                     decode b + 1 | load b + 2 | decode    and the copies of the tokens of b + 2, b + 3
//   mma.sync     cp.async of b + 1 runs while b is multiplied
//
// Shared memory, from a multiple of 1 KiB: tokens [stages][16 KiB] | weights [groups][tiles][16 KiB] | an mbarrier a stage. With 3 tiles and
// 4 stages (or 4 and 3) two blocks of one group fit a multiprocessor. In the epilogue the first bytes hold a tile a warp (store_tokens.cuh).
//
// What it must reach (H200, Llama-2-7B shape, 2048 tokens, 25,000 tokens/s): 2 * 6.6e9 * 25e3 = 330 TFLOP/s of 989, that is 1360 of
// the 4096 operations a clock and multiprocessor. A tile of 256 rows x 128 tokens x 64 columns is 1024 clocks at the peak, 2.95 thousand
// at the goal. Then
//   issue          4 schedulers * 1024 slots; decoding asks for about 2 slots a weight and lane: 8 warps * 64 weights * 2 = 1024, a quarter
//   shared memory  tokens in 16 + read by four products 64, weights written and read 32 + 32 = 144 KB of 131 KB: bound at 91 % of the peak
//   L2             tokens 16 + codes 6 KB: 22 bytes a clock of about 24
// int8 products of twice the peak would have to turn sums into floats every 128 columns, as gemm_q24.cuh does: 5 slots a sum and 128
// products, 1280 for the same tile beside the decoding; the issue slots would bound them at the same speed, with less exact tokens.
// Speed: not measured. Instructions, from SASS: README.md of this folder.
//
// Exactness: tokens are rounded to 11 bits of the larger of themselves and 2^-25 of the token's largest; Q24 weights, where |d| >= |dmin| / 8,
// in the minimum and in the difference, 2^-11 of each; fp16 weights not at all. Preconditions: rows of tokens padded to 128; n_cols a
// multiple of 8, 16-bit weights aligned to 16 bytes.
#pragma once
#include "cuda/half_weights.cuh"
#include "cuda/store_tokens.cuh"

namespace pith::cuda {

constexpr uint32_t kPlainStages = 2;  // by mma.sync

struct HalfShared {
  uint32_t weights, barriers, total;  // byte offsets; tokens are at 0
  PITH_SHAPE HalfShared(uint32_t n_token_stages, uint32_t n_weight_tiles, uint32_t n_groups)
      : weights(n_token_stages * kTileBytes),
        barriers(weights + n_groups * n_weight_tiles * kTileBytes),
        total(barriers + n_token_stages * 8) {}
};
static_assert(kGroupWarps * kStoreBytes <= 2 * kTileBytes);  // what a group brings of them, at least

inline uint64_t half_shared_bytes(bool warpgroups, bool is_q24, uint32_t n_groups) {
  using Q24 = Q24Tile<16>;
  using Plain = PlainTile<PlainKind::kF16, true>;
  if (!warpgroups)
    return HalfShared(kPlainStages, kPlainStages, n_groups)
        .barriers;  // it has none: 64 KiB are all of sm_75's
  return is_q24 ? HalfShared(Q24::kTokenStages, Q24::kTiles, n_groups).total
                : HalfShared(Plain::kTokenStages, Plain::kTiles, n_groups).total;
}
struct HalfGrid {
  uint32_t n_token_tiles, n_row_tiles;
  HalfGrid(uint32_t n_rows, uint32_t n_tokens, uint32_t n_groups)
      : n_token_tiles((n_tokens + kTokenTile - 1) / kTokenTile),
        n_row_tiles((n_rows + n_groups * kTileRows - 1) / (n_groups * kTileRows)) {}
};

// The tokens first_token .. + 128 of a block of columns lie in one piece.
PITH_DEVICE const uint8_t* token_tile(const HalfTokens& tokens, uint32_t block, uint32_t first_token) {
  return tokens.a + (uint64_t{block} * tokens.n_padded + first_token) * kTileRowBytes;
}

// Products in warpgroups. A warp that waited for its part of a product knows nothing of the other warps' parts: tiles are written again
// after a block barrier only.
template <typename Weights>
PITH_DEVICE void sum_warpgroups(Weights& weights, const HalfTokens& tokens, uint32_t first_token,
                                uint8_t* shared, TileSums& sums) {
  const uint32_t n_blocks = weights.n_blocks();
  constexpr uint32_t kStages = Weights::kTokenStages;
  const uint32_t n_groups = n_threads() / kGroupThreads, group = thread_index() / kGroupThreads;
  const HalfShared at(kStages, Weights::kTiles, n_groups);
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + at.barriers);
  uint8_t* const tiles = shared + at.weights + group * Weights::kTiles * kTileBytes;
  const auto tile = [&](uint32_t block) { return tiles + block % Weights::kTiles * kTileBytes; };
  const auto copy_tokens = [&](uint32_t block) {
    if (thread_index() != 0 || block >= n_blocks) return;
    uint64_t* const barrier = barriers + block % kStages;
    barrier_arrive_expect(barrier, kTileBytes);
    bulk_copy(shared + block % kStages * kTileBytes, token_tile(tokens, block, first_token), kTileBytes,
              barrier);
  };
  const auto fetch = [&](uint32_t block) {
    if (block < n_blocks) weights.fetch(block, tile(block));
  };
  const auto finish = [&](uint32_t block) {
    if (block >= n_blocks) return;
    weights.finish(block, tile(block));
    fence_async_proxy();
  };

  if (thread_index() == 0) {
    for (uint32_t i = 0; i < kStages; ++i) barrier_init(barriers + i, 1);
    barrier_init_fence();
  }
  for (uint32_t b = 0; b < Weights::kFetchedAhead; ++b) fetch(b);
  finish(0);
  if constexpr (!Weights::kFetchesToTile) fetch(1);
  sync_block();
  depend();  // nothing above reads what an earlier kernel writes
  for (uint32_t b = 0; b < kStages - 1; ++b) copy_tokens(b);

  for (uint32_t b = 0; b < n_blocks; ++b) {
    barrier_wait(barriers + b % kStages, b / kStages & 1);
    start_tile(tile(b), shared + b % kStages * kTileBytes, sums);
    finish(b + 1);
    if constexpr (!Weights::kFetchesToTile) fetch(b + 2);
    warpgroup_wait<1>();
    sync_block();  // tile b + 1 is there for all, and nobody multiplies b - 1 any more
    copy_tokens(b + kStages - 1);
    if constexpr (Weights::kFetchesToTile) fetch(b + Weights::kFetchedAhead);
  }
  warpgroup_wait<0>();
}

// Products by mma.sync, of 16-bit weights.
template <typename Weights>
PITH_DEVICE void sum_warps(Weights& weights, const HalfTokens& tokens, uint32_t first_token, uint8_t* shared,
                           TileSums& sums) {
  const uint32_t n_blocks = weights.n_blocks();
  const uint32_t group = thread_index() / kGroupThreads;
  const HalfShared at(kPlainStages, kPlainStages, n_threads() / kGroupThreads);
  uint8_t* const tiles = shared + at.weights + group * kPlainStages * kTileBytes;
  const auto fetch = [&](uint32_t block) {
    const uint8_t* const from = token_tile(tokens, block, first_token);
    uint8_t* const to = shared + block % kPlainStages * kTileBytes;
    for (uint32_t i = thread_index(); i < kTileBytes / 16; i += n_threads())
      async_copy16(to + i * 16, from + i * 16);
    weights.fetch(block, tiles + block % kPlainStages * kTileBytes);
  };
  depend();
  fetch(0);
  for (uint32_t b = 0; b < n_blocks; ++b) {
    async_wait<0>();
    sync_block();  // block b is here, and nobody reads b - 1 any more
    if (b + 1 < n_blocks) fetch(b + 1);
    multiply_tile(tiles + b % kPlainStages * kTileBytes, shared + b % kPlainStages * kTileBytes,
                  typename Weights::ToF16(), sums);
  }
}

// The tokens first_token .. + kTokenTile, the row tile `tile` of the grid.
template <bool kWarpgroups, typename Weights>
PITH_DEVICE void gemm_half_body(Weights& weights, uint32_t n_rows, const HalfTokens& tokens,
                                const Output& output, uint32_t out_stride, uint32_t first_token,
                                uint32_t tile, uint8_t* shared) {
  const uint32_t warp = thread_index() / kWarp, panel = tile * (n_threads() / kWarp) + warp;
  TileSums sums;
  PITH_UNROLL
  for (uint32_t i = 0; i < sizeof(sums.y) / 4; ++i)
    sums.y[i / (kTokenTile / 2)][i / 4 % (kTokenTile / 8)][i % 4] = 0;
  launch_dependents();
  if constexpr (kWarpgroups)
    sum_warpgroups(weights, tokens, first_token, shared, sums);
  else
    sum_warps(weights, tokens, first_token, shared, sums);
  PITH_UNROLL
  for (uint32_t i = 0; i < sizeof(sums.y) / 4; ++i)
    warpgroup_result(sums.y[i / (kTokenTile / 2)][i / 4 % (kTokenTile / 8)][i % 4]);
  sync_block();
  if (panel * q24::kPanelRows >= n_rows) return;
  store_tokens(
      output, out_stride, n_rows, tokens.n_tokens, panel, first_token, sums.y,
      [&](uint32_t k) { return weights.row_scale(k); }, [](uint32_t) {},
      [&](uint32_t token) { return tokens.scale[token]; },
      reinterpret_cast<float*>(shared + warp * kStoreBytes));
}

template <uint32_t kGroup>
PITH_DEVICE void gemm_half_q24_body(const Q24Weights& w, const HalfTokens& tokens, const Output& output,
                                    uint32_t out_stride, uint32_t first_token, uint32_t tile,
                                    uint8_t* shared) {
  Q24Tile<kGroup> weights(w, tile * (n_threads() / kWarp) + thread_index() / kWarp);
  gemm_half_body<true>(weights, w.n_rows, tokens, output, out_stride, first_token, tile, shared);
}
template <PlainKind kKind, bool kWarpgroups>
PITH_DEVICE void gemm_half_plain_body(const PlainWeights& w, const HalfTokens& tokens, const Output& output,
                                      uint32_t out_stride, uint32_t first_token, uint32_t tile,
                                      uint8_t* shared) {
  PlainTile<kKind, kWarpgroups> weights(
      w, tile * (n_threads() / kWarp) + thread_index() / kGroupThreads * kGroupWarps);
  gemm_half_body<kWarpgroups>(weights, w.n_rows, tokens, output, out_stride, first_token, tile, shared);
}

// ---- Tokens ----

// The whole block makes row `row` of `to` from value(column), column < n_columns, a multiple of 64, in the order that order(column)
// undoes: place i holds column order(i). `shared`: [n_warps] floats.
template <typename Value, typename Order>
PITH_DEVICE void halve_row(uint32_t n_columns, const Value& value, const Order& order, const HalfTokens& to,
                           uint32_t row, uint8_t* shared) {
  float* const partial = reinterpret_cast<float*>(shared);
  float largest = 0;
  for (uint32_t c = thread_index(); c < n_columns; c += n_threads()) {
    const float v = value(c);
    largest = max_f32(largest, v < 0 ? -v : v);
  }
  PITH_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) largest = max_f32(largest, shuffle_xor(largest, mask));
  sync_block();  // `partial` may still be read as something else
  if (thread_index() % kWarp == 0) partial[thread_index() / kWarp] = largest;
  sync_block();
  for (uint32_t i = 0; i < n_threads() / kWarp; ++i) largest = max_f32(largest, partial[i]);
  // The power of two with largest / scale in 1024..2048; of a token of (nearly) zeros the smallest whose inverse is one too.
  uint32_t exponent = f32_to_bits(largest) >> 23;
  exponent = exponent < 11 ? 11 : exponent;
  const float scale = bits_to_f32((exponent - 10) << 23), inverse = bits_to_f32((264 - exponent) << 23);
  if (thread_index() == 0) to.scale[row] = scale;
  for (uint32_t i = thread_index(); i < n_columns / 8; i += n_threads()) {
    uint32_t words[4];
    PITH_UNROLL
    for (uint32_t j = 0; j < 4; ++j)
      words[j] = pack_f16(value(order(i * 8 + 2 * j)) * inverse, value(order(i * 8 + 2 * j + 1)) * inverse);
    store16(to.a + (uint64_t{i / 8} * to.n_padded + row) * kTileRowBytes + (i % 8 ^ row % 8) * 16,
            {words[0], words[1], words[2], words[3]});
  }
}

PITH_DEVICE void halve_q24_row(const Q24Weights& w, const Input& input, const HalfTokens& to, uint32_t row,
                               uint8_t* shared) {
  const float norm_scale =
      input.norm != nullptr ? inverse_rms(input.x, w.n_cols, input.norm_eps, reinterpret_cast<float*>(shared))
                            : 1.0f;
  const auto value = [&](uint32_t c) {
    const uint32_t source = w.perm[c];
    if (source >= w.n_cols) return 0.0f;
    const float x =
        input.norm != nullptr ? input.x[source] * norm_scale * input.norm[source] : input.x[source];
    return x * f16_to_f32(w.col_scale[c / q24::kLineCols]);
  };
  halve_row(w.padded_cols, value, half_order, to, row, shared);
}
PITH_DEVICE void halve_plain_row(uint32_t n_cols, const Input& input, const HalfTokens& to, uint32_t row,
                                 uint8_t* shared) {
  const float norm_scale =
      input.norm != nullptr ? inverse_rms(input.x, n_cols, input.norm_eps, reinterpret_cast<float*>(shared))
                            : 1.0f;
  const auto value = [&](uint32_t c) {
    if (c >= n_cols) return 0.0f;
    return input.norm != nullptr ? input.x[c] * norm_scale * input.norm[c] : input.x[c];
  };
  halve_row((n_cols + kTileCols - 1) / kTileCols * kTileCols, value, [](uint32_t c) { return c; }, to, row,
            shared);
}

// One block a token.
PITH_DEVICE void halve_tokens_body(const HalveTokens& args, uint8_t* shared) {
  launch_dependents();
  depend();
  const uint32_t token = block_index();
  const Input input{args.input.x + uint64_t{token} * args.x_stride, args.input.norm, args.input.norm_eps};
  if (args.n_cols == 0)
    halve_q24_row(args.q24, input, args.to, token, shared);
  else
    halve_plain_row(args.n_cols, input, args.to, token, shared);
}

// One thread a row: its slots by column, the unused ones (delta 0) last.
PITH_DEVICE void sort_outliers_body(const Q24Weights& w, uint8_t*) {
  depend();
  const uint32_t row = block_index() * n_threads() + thread_index();
  if (row >= w.n_panels * kWarp) return;
  uint32_t* const slots =
      const_cast<uint32_t*>(w.outliers) + uint64_t{row / kWarp} * w.n_slots * kWarp + row % kWarp;
  const auto key = [](uint32_t slot) { return slot >> 16 == 0 ? 0xffffu : slot & 0xffffu; };
  for (uint32_t i = 1; i < w.n_slots; ++i) {
    const uint32_t slot = slots[i * kWarp];
    uint32_t at = i;
    for (; at > 0 && key(slots[(at - 1) * kWarp]) > key(slot); --at)
      slots[at * kWarp] = slots[(at - 1) * kWarp];
    slots[at * kWarp] = slot;
  }
}

}  // namespace pith::cuda
