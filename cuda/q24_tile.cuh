// Decoding Q24 for a matrix-vector product: which bytes a lane reads and what it does with them.
//
//   unit  one 128-column block of a panel (8 lines of codes = 1 KiB for 32 rows), of the base or of the refinement plane
//   quad  4 consecutive units; the 4 lanes t = lane % 4 each work through their own, so a warp covers 32 rows x 512 columns
//   step  2 lines of each of the quad's units (4 steps a quad); lane (g, t) reads chunk g of lines 2i and 2i + 1 of unit t:
//         rows g, g + 8, g + 16, g + 24
//
// The matrix unit multiplies with block-diagonal activations: column 2t of B holds line 2i of unit t in the k-quads t and t + 4
// (columns 4p.. of the line for p and p + 2), column 2t + 1 holds line 2i + 1 in a product of its own, all else is zero. So of
// D[16 rows, 8 columns] every number is one row's sum over one line, lane (g, t) ends with the sums of exactly the lines whose
// scales it can read (8 bytes), and no lane needs another's until the panel is done. Codes are never shifted down or
// converted: bits 2p..2p+1 of a byte are masked in place (p = 2, 3 after one shift by 4), and the factor 4 between p = 0 and 1
// is one shift-add on the sums, the factor 16 on m is left to the end of the panel:
//
//   U = 4 * (D of masks 0x03) + (D of masks 0x0c) = 4 * sum of code * a          |U| <= 4*3*127*16 = 24384: an int16
//   T[row] += s * U,   M[row] += 16 m * (sum of a)                               per unit, exact in 32 bits
//
// Alternatives: one token in column 0 and seven pads needs a flush per group, 8 times the MMAs; lines 2i and 2i + 1 in one
// product puts a B fragment's two registers into different loads (32 moves a quad, as compiled).
#pragma once
#include "cuda/kernels.h"
#include "cuda/simt.cuh"

namespace pith::cuda {

constexpr uint32_t kUnitCols = q24::kActivationBlock;          // 128
constexpr uint32_t kUnitLines = kUnitCols / q24::kLineCols;    // 8
constexpr uint32_t kUnitBytes = kUnitLines * q24::kLineBytes;  // 1024
constexpr uint32_t kSteps = kUnitLines / 2;

// The units of a panel: first the blocks of the base plane, then those of the refinement plane, which may begin inside a block.
// Reading a unit always reads 8 lines and its block's scales, also where the panel ends in half a block or the refinement
// begins inside one: what lies there belongs to the tensor (or to the 1 KiB that must be readable after it) and meets
// activations that are zero (activations.cuh). So no load is guarded.
struct UnitMap {
  uint32_t n_base, n_units, n_quads;
  uint32_t fine_shift;  // unit idx of the refinement plane + fine_shift = its block

  PITH_SHAPE explicit UnitMap(const Q24Weights& w)
      : n_base((w.padded_cols + kUnitCols - 1) / kUnitCols), n_units(n_base), n_quads(0), fine_shift(0) {
    if (w.n_fine != 0) {
      const uint32_t first_block = (w.padded_cols - w.n_fine) / kUnitCols;
      n_units += n_base - first_block;
      fine_shift = first_block - n_base;
    }
    n_quads = (n_units + 3) / 4;
  }
  PITH_DEVICE bool is_fine(uint32_t unit) const { return unit >= n_base; }
  PITH_DEVICE uint32_t block(uint32_t unit) const { return is_fine(unit) ? unit + fine_shift : unit; }
};

// First byte of a unit's lines, of its block's scales. A unit beyond the last one: the panel's first.
template <uint32_t kGroup>
struct UnitBytes {
  const uint8_t* codes;
  const uint8_t* scales;
  static constexpr uint32_t kScaleBytes = kUnitCols / (2 * kGroup) * 64;

  PITH_DEVICE UnitBytes(const Q24Weights& w, const UnitMap& map, uint32_t panel, uint32_t unit) {
    if (unit >= map.n_units) unit = 0;
    const bool fine = map.is_fine(unit);
    const uint32_t block = map.block(unit);
    const int32_t n_lines = static_cast<int32_t>(w.padded_cols / q24::kLineCols),
                  n_fine_lines = static_cast<int32_t>(w.n_fine / q24::kLineCols);
    // Of the panel's line 0, were the refinement plane to have one.
    const int64_t first_line =
        fine ? int64_t{panel} * n_fine_lines - (n_lines - n_fine_lines) : int64_t{panel} * n_lines;
    codes = (fine ? w.fine : w.base) + (first_line + int64_t{block} * kUnitLines) * q24::kLineBytes;
    scales = w.scales + uint64_t{panel} * w.scales_stride + block * kScaleBytes;
  }
};

// A lane's scale bytes for step i, brought to the form of group 16: byte 2k, 2k + 1 = s | m << 4 of lines 2i, 2i + 1 for row
// g + 8k. `scales` is the block's first scale byte, in shared or global memory.
template <uint32_t kGroup, typename Load>
PITH_DEVICE U32x2 step_scales(const uint8_t* scales, uint32_t g, uint32_t i, const Load& load) {
  if constexpr (kGroup == 16) {
    return load(scales + i * 64 + g * 8);
  } else {  // both lines are in group i of the block: one byte serves them
    const U32x2 pair = load(scales + i / 2 * 64 + g * 8);
    const uint32_t selector = i % 2 == 0 ? 0x2200u : 0x3311u;
    return {permute_bytes(pair.x, 0, selector), permute_bytes(pair.y, 0, selector)};
  }
}

struct UnitSums {
  int32_t t[4] = {0, 0, 0, 0}, m[4] = {0, 0, 0, 0};  // rows g, g + 8, g + 16, g + 24; m times 16
};

// One step. c0, c1: the lane's chunks of lines 2i, 2i + 1. b0, b1: its activations of these lines, words p = 0, 2, 1, 3, zero in
// lanes that do not own the line's column. line_sums: two int16.
PITH_DEVICE void decode_step(const U32x4& c0, const U32x4& c1, const U32x2& scales, const uint32_t (&b0)[4],
                             const uint32_t (&b1)[4], uint32_t line_sums, UnitSums& sums) {
  PITH_UNROLL
  for (int half = 0; half < 2; ++half) {  // rows g, g + 8, then g + 16, g + 24
    int32_t low[4], high[4];
    PITH_UNROLL
    for (int line = 0; line < 2; ++line) {
      const U32x4& c = line ? c1 : c0;
      const uint32_t(&b)[4] = line ? b1 : b0;
      const uint32_t x = half ? c.z : c.x, y = half ? c.w : c.y, x4 = x >> 4, y4 = y >> 4;
      const uint32_t a_low[4] = {x & 0x03030303u, y & 0x03030303u, x4 & 0x03030303u, y4 & 0x03030303u};
      const uint32_t a_high[4] = {x & 0x0c0c0c0cu, y & 0x0c0c0c0cu, x4 & 0x0c0c0c0cu, y4 & 0x0c0c0c0cu};
      if (line == 0) {
        mma_u8s8_first(low, a_low, b[0], b[1]);
        mma_u8s8_first(high, a_high, b[2], b[3]);
      } else {
        mma_u8s8(low, a_low, b[0], b[1]);
        mma_u8s8(high, a_high, b[2], b[3]);
      }
    }
    uint32_t u[4];
    PITH_UNROLL
    for (int i = 0; i < 4; ++i) u[i] = static_cast<uint32_t>(4 * low[i] + high[i]);
    const uint32_t word = half ? scales.y : scales.x;
    const uint32_t s = word & 0x0f0f0f0fu, m = word & 0xf0f0f0f0u;
    sums.t[2 * half] = dot2_low(permute_bytes(u[0], u[1], 0x5410), s, sums.t[2 * half]);
    sums.t[2 * half + 1] = dot2_high(permute_bytes(u[2], u[3], 0x5410), s, sums.t[2 * half + 1]);
    sums.m[2 * half] = dot2_low(line_sums, m, sums.m[2 * half]);
    sums.m[2 * half + 1] = dot2_high(line_sums, m, sums.m[2 * half + 1]);
  }
}

// Adds v[k] (row g + 8k) over the four lanes t; lane (g, t) is left with row g + 8t, which is word `lane` of the panel.
PITH_DEVICE float sum_rows(const float (&v)[4], uint32_t lane) {
  const bool upper = (lane & 2) != 0, odd = (lane & 1) != 0;
  const float first = (upper ? v[2] : v[0]) + shuffle_xor(upper ? v[0] : v[2], 2);
  const float second = (upper ? v[3] : v[1]) + shuffle_xor(upper ? v[1] : v[3], 2);
  return (odd ? second : first) + shuffle_xor(odd ? first : second, 1);
}

}  // namespace pith::cuda
