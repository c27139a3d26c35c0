// Where the tiles of half_tile.cuh come from: Q24 planes decoded to fp16, or 16-bit rows as they are. One warp group (four warps) fills its
// own tile of 128 rows x 64 columns:
//
//   fetch(block, tile)   asks for a block of 64 columns, to registers or to the tile
//   finish(block, tile)  makes the tile complete, for its own threads' eyes
//   kTiles, kTokenStages  how many tiles of weights and of tokens a group's loop works with
//   row_scale(k)         what the sums of the panel's row g + 8k are to be multiplied with
#pragma once
#include "cuda/half_tile.cuh"
#include "cuda/matvec_plain.cuh"
#include "cuda/q24_tile.cuh"

namespace pith::cuda {

// Columns of a line in the order in which decode_word makes them: 0, 2, 1, 3, 4, 6, 5, 7, ...
PITH_DEVICE uint32_t half_order(uint32_t column) {
  return (column & ~3u) | (column & 1) << 1 | (column >> 1 & 1);
}

// The 16 columns of one row: bits of a code masked in place are a subnormal fp16, code * 2^-20 at bits 4..5, 2^-18 at 6..7, 2^-16 at
// 8..9, so that a mask and one fma make two weights. `add` is the minimum, or, for the refinement, the weights so far (and `to`).
PITH_DEVICE void decode_word(uint32_t x, uint32_t at4, uint32_t at6, uint32_t at8, const uint32_t (&add)[8],
                             uint32_t (&to)[8]) {
  const uint32_t down = x >> 6, up = x << 4;
  to[0] = fma_f16x2(up & 0x00300030u, at4, add[0]);    // columns 0, 2
  to[1] = fma_f16x2(x & 0x03000300u, at8, add[1]);     // 1, 3
  to[2] = fma_f16x2(up & 0x00c000c0u, at6, add[2]);    // 4, 6
  to[3] = fma_f16x2(down & 0x00300030u, at4, add[3]);  // 5, 7
  to[4] = fma_f16x2(x & 0x00300030u, at4, add[4]);     // 8, 10
  to[5] = fma_f16x2(down & 0x00c000c0u, at6, add[5]);  // 9, 11
  to[6] = fma_f16x2(x & 0x00c000c0u, at6, add[6]);     // 12, 14
  to[7] = fma_f16x2(down & 0x03000300u, at8, add[7]);  // 13, 15
}

// A weight w of a row is stored as w / (256 D): with D = max(|d|, |dmin| / 8) the factors s d / D * 2^6..2^12 and m dmin / D / 256 fit fp16,
// and as |d| is D where rows are as usual, s and the codes are exact. (D grows where an outlier would not fit.)
// Lane (g, t) decodes line t of the block's four in rows g + 8k; lane l adds the outliers of word l's row, which ascend by column
// (launch_sort_outliers), one slot ahead. The panel's slots of several on one column add up, as one lane has them all.
template <uint32_t kGroup>
class Q24Tile {
 public:
  static constexpr uint32_t kTiles = 3, kTokenStages = 4, kFetchedAhead = 1;
  static constexpr bool kFetchesToTile = false;

  PITH_DEVICE Q24Tile(const Q24Weights& weights, uint32_t panel)
      : w_(weights), panel_(panel), works_(panel < weights.n_panels) {
    const uint32_t lane = thread_index() % kWarp, g = lane / 4;
    float largest = 0;
    uint32_t d_dmin = 0;
    if (works_) {
      d_dmin = w_.row_scale[uint64_t{panel} * kWarp + lane];
      for (uint32_t i = 0; i < w_.n_slots; ++i) largest = max_f32(largest, magnitude(delta(slot(i))));
      if (w_.n_slots != 0) next_ = slot(0);
    }
    const float d = f16_to_f32(static_cast<uint16_t>(d_dmin)),
                dmin = f16_to_f32(static_cast<uint16_t>(d_dmin >> 16));
    const float unit = max_f32(max_f32(magnitude(d), 0.125f * magnitude(dmin)), largest * 0x1p-20f);
    const float inverse = unit > 0 ? divide_f32(1.0f, unit) : 0.0f;
    delta_scale_ = inverse * 0x1p-8f;
    const float s = d * inverse * 0x1p8f, m = dmin * inverse * -0x1p12f;
    PITH_UNROLL
    for (uint32_t k = 0; k < 4; ++k) row_scale_[k] = 0x1p8f * shuffle(unit, static_cast<int>(4 * g + k));
    PITH_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
      const int from = static_cast<int>(4 * g + 2 * i);
      const float s0 = shuffle(s, from), s1 = shuffle(s, from + 1), m0 = shuffle(m, from),
                  m1 = shuffle(m, from + 1);
      s_[i] = pack_f16(s0, s1);
      m_[i] = pack_f16(m0, m1);
    }
  }

  PITH_DEVICE void fetch(uint32_t block, uint8_t*) {
    if (!works_) return;
    const uint32_t lane = thread_index() % kWarp, g = lane / 4, t = lane % 4, line = block * 4 + t;
    base_ = load_stream16(w_.base + (uint64_t{panel_} * n_lines() + line) * q24::kLineBytes + g * 16);
    if (line >= first_fine())
      fine_ = load_stream16(
          w_.fine + (uint64_t{panel_} * (n_lines() - first_fine()) + line - first_fine()) * q24::kLineBytes +
          g * 16);
    else
      fine_ = {0, 0, 0, 0};
    const uint32_t pair = kGroup == 16 ? line / 2 : block;
    scales_ = load_stream8(w_.scales + uint64_t{panel_} * w_.scales_stride + pair * 64 + g * 8);
  }

  PITH_DEVICE void finish(uint32_t block, uint8_t* tile) {
    if (!works_) return;
    const uint32_t lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
    const uint32_t warp = thread_index() / kWarp % kGroupWarps;
    const uint32_t base[4] = {base_.x, base_.y, base_.z, base_.w},
                   fine[4] = {fine_.x, fine_.y, fine_.z, fine_.w};
    const bool has_fine = block * 4 + 4 > first_fine();
    const uint32_t in_pair = kGroup == 16 ? t % 2 : t / 2;  // which of the pair's two groups
    PITH_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {  // rows g + 16 i, g + 16 i + 8
      const uint32_t bytes = permute_bytes(i ? scales_.y : scales_.x, 0, 0x4240u + in_pair * 0x0101u);
      // 1024 + s as fp16; m at bits 4..7 is m * 2^-20.
      const uint32_t s8 = mul_f16x2(add_f16x2((bytes & 0x000f000fu) | 0x64006400u, 0xe400e400u), s_[i]),
                     minimum = mul_f16x2(bytes & 0x00f000f0u, m_[i]);
      PITH_UNROLL
      for (uint32_t j = 0; j < 2; ++j) {
        const uint32_t k = 2 * i + j, both = j ? 0x3232u : 0x1010u;
        const uint32_t at8 = permute_bytes(s8, 0, both), at6 = mul_f16x2(at8, 0x44004400u /* 4 */),
                       at4 = mul_f16x2(at8, 0x4c004c00u /* 16 */), add = permute_bytes(minimum, 0, both);
        const uint32_t adds[8] = {add, add, add, add, add, add, add, add};
        uint32_t v[8];
        decode_word(base[k], at4, at6, at8, adds, v);
        if (has_fine) decode_word(fine[k], at6, at8, mul_f16x2(at8, 0x34003400u /* 1/4 */), v, v);
        const uint32_t row = tile_row(warp, g, k);
        store16(tile + tile_place(row, 2 * t), {v[0], v[1], v[2], v[3]});
        store16(tile + tile_place(row, 2 * t + 1), {v[4], v[5], v[6], v[7]});
      }
    }
    if (w_.n_slots == 0) return;
    sync_warp();
    add_outliers(block, tile_row(warp, g, t), tile);  // word `lane` is row g + 8t
  }

  PITH_DEVICE float row_scale(uint32_t k) const { return row_scale_[k]; }
  PITH_DEVICE uint32_t n_blocks() const { return w_.padded_cols / kTileCols; }

 private:
  static PITH_DEVICE float magnitude(float v) { return v < 0 ? -v : v; }
  static PITH_DEVICE float delta(uint32_t slot) { return f16_to_f32(static_cast<uint16_t>(slot >> 16)); }
  PITH_DEVICE uint32_t n_lines() const { return w_.padded_cols / q24::kLineCols; }
  PITH_DEVICE uint32_t first_fine() const { return (w_.padded_cols - w_.n_fine) / q24::kLineCols; }
  PITH_DEVICE uint32_t slot(uint32_t i) const {
    return load4(w_.outliers + (uint64_t{panel_} * w_.n_slots + i) * kWarp + thread_index() % kWarp);
  }
  PITH_DEVICE void add_outliers(uint32_t block, uint32_t row, uint8_t* tile) {
    for (; slot_idx_ < w_.n_slots; next_ = ++slot_idx_ < w_.n_slots ? slot(slot_idx_) : 0) {
      const uint32_t column = (next_ & 0xffffu) - block * kTileCols;
      if ((next_ & 0xffffu) >= (block + 1) * kTileCols) return;
      if (column >= kTileCols) continue;  // of a block before: an unused slot
      const uint32_t at = half_order(column);
      uint16_t* const to = reinterpret_cast<uint16_t*>(tile + tile_place(row, at / 8)) + at % 8;
      store2(to, f32_to_f16(fma_f32(delta(next_), delta_scale_, f16_to_f32(*to))));
    }
  }

  const Q24Weights& w_;
  uint32_t panel_;
  bool works_;
  U32x4 base_, fine_;
  U32x2 scales_;
  uint32_t s_[2], m_[2];  // rows (g, g + 8), (g + 16, g + 24): 2^8 d / D, -2^12 dmin / D
  float row_scale_[4], delta_scale_;
  uint32_t slot_idx_ = 0, next_ = 0;
};

// Rows of fp16 or bf16, brought by cp.async. bf16 becomes fp16 in place, where finish() is asked to (warpgroup products read the tile
// themselves), or when fragments are read: exact from 2^-14 to 65504, to 2^-25 below.
template <PlainKind kKind, bool kConvertTile>
class PlainTile {
 public:
  static constexpr uint32_t kTiles = 4, kTokenStages = 3, kFetchedAhead = 3;
  static constexpr bool kFetchesToTile = true;

  PITH_DEVICE PlainTile(const PlainWeights& weights, uint32_t first_panel)
      : w_(weights), first_panel_(first_panel) {}

  // A thread's chunks: chunk i % 8 of the tile's rows i / 8, i / 8 + 16, ...
  PITH_DEVICE void fetch(uint32_t block, uint8_t* tile) {
    const uint32_t i = thread_index() % kGroupThreads, column = block * kTileCols + i % 8 * 8;
    PITH_UNROLL
    for (uint32_t j = 0; j < kTileRows / 16; ++j) {
      const uint32_t in_tile = i / 8 + 16 * j;
      const uint32_t row =
          first_panel_ * q24::kPanelRows + in_tile / 16 % 4 * 32 + in_tile / 64 * 16 + in_tile % 16;
      uint8_t* const to = tile + tile_place(in_tile, i % 8);
      if (row < w_.n_rows && column < w_.n_cols)
        async_copy16(to, w_.data + (uint64_t{row} * w_.n_cols + column) * 2);
      else
        store16(to, {0, 0, 0, 0});
    }
    async_commit();
  }
  PITH_DEVICE void finish(uint32_t block, uint8_t* tile) {
    // Of the blocks fetched, 0 .. block + 1, the last may stay under way; at the end there is none beyond `block`.
    if (block + 1 < n_blocks())
      async_wait<1>();
    else
      async_wait<0>();
    if constexpr (kKind != PlainKind::kBF16 || !kConvertTile) return;
    const uint32_t i = thread_index() % kGroupThreads;
    PITH_UNROLL
    for (uint32_t j = 0; j < kTileRows / 16; ++j) {
      uint8_t* const at = tile + tile_place(i / 8 + 16 * j, i % 8);
      const U32x4 v = load16(at);
      store16(at, {from_bf16(v.x), from_bf16(v.y), from_bf16(v.z), from_bf16(v.w)});
    }
  }
  PITH_DEVICE float row_scale(uint32_t) const { return 1; }
  PITH_DEVICE uint32_t n_blocks() const { return (w_.n_cols + kTileCols - 1) / kTileCols; }

  static PITH_DEVICE uint32_t from_bf16(uint32_t two) {
    return pack_f16(bits_to_f32(two << 16), bits_to_f32(two & 0xffff0000u));
  }
  struct ToF16 {
    PITH_DEVICE uint32_t operator()(uint32_t two) const {
      return kKind == PlainKind::kBF16 ? from_bf16(two) : two;
    }
  };

 private:
  const PlainWeights& w_;
  uint32_t first_panel_;
};

}  // namespace pith::cuda
