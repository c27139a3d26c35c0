// Q24: pith's mixed 2/4/16-bit layout of one linear layer W [n_rows, n_cols] (rows = outputs).
//
//   W[r, c] = d[r] * s[r, g] * (hi + lo/4) - dmin[r] * m[r, g] + outlier delta        g = c / group
//
// hi: 2-bit code of every column (base plane).  lo: 2-bit refinement code of the 4-bit columns, 0 elsewhere;
// a 4-bit code is 4*hi + lo.  s, m: 4-bit group scale and minimum.  d, dmin: fp16 per row (second order).
// Columns here are *storage* columns. A layer's input x is brought to storage order once per token:
//
//   x'[c] = col_scale[c / 16] * x[perm[c]],      y = W x'
//
// The converter sorts the input columns so that the 4-bit ones are the last n_fine columns; the permutation
// is shared by all rows. After arXiv 2311.16442 (sections 3-4: 4-bit groups are whole input-channel groups for all
// rows, outliers inside 2-bit groups only, second-order scales); free minimum and column sort are pith's.
//
// Storage. Rows come in panels of 32, columns are padded to a multiple of 64 (kColAlign). One 128-byte line
// holds the 2-bit codes of 32 rows x 16 columns, and it is the unit of everything:
//
//   word w (0..31) of a line  <->  row 8*(w % 4) + w/4 of the panel        ("word order", see word_row())
//   byte j (0..3) of a word, bits 2p..2p+1 (p = 0..3)  <->  column 4*p + j of the line's 16
//
//            bit  7 6   5 4   3 2   1 0
//   byte j:      |12+j | 8+j | 4+j | 0+j |   columns
//
// Why word order: chunk g (16 bytes) holds rows {g, g+8, g+16, g+24}, so lane (g, t) of a GPU warp finds the A
// fragment of mma.m16n8k32 (u8 x s8) in chunk g of lines t and t+4, and a CPU vector of 16 words is 16 rows with
// one k-quad of a broadcast activation: no shuffles on either. Row-indexed planes below use the same word order.
//
// Planes of a tensor, in this order, each starting at a multiple of 128 bytes from the tensor's start:
//   perm       uint16 perm[padded_cols]; entry c < n_cols is a permutation of 0..n_cols-1, the pads are 0xffff
//   col_scale  fp16 [padded_cols / 16]
//   row_scale  {fp16 d, fp16 dmin} [n_panels][32 words]           one line per panel
//   base       [n_panels][padded_cols / 16] lines of codes hi
//   fine       [n_panels][n_fine / 16] lines of codes lo, for the last n_fine columns
//   scales     [n_panels][n_pairs] x 64 bytes, a panel's stride rounded up to 128; pair i = groups 2i and 2i+1:
//              byte 2*w + (g & 1) = s | m << 4
//   outliers   [n_panels][n_slots] lines; word w = {uint16 column, fp16 delta}: every row has n_slots slots.
//              Those in use ascend by column, others are zero. Readers ignore columns >= padded_cols.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace pith {

namespace q24 {

constexpr uint32_t kPanelRows = 32;
constexpr uint32_t kLineCols = 16;
constexpr uint32_t kLineBytes = 128;
constexpr uint32_t kColAlign = 64;
constexpr uint32_t kMaxCols = 65472;  // a uint16 column index, 0xffff kept for pads
constexpr uint32_t kActivationBlock =
    128;  // columns sharing one int8 activation scale (kernels, not the file)

// Row of the panel held by word w of a line, and back.
constexpr uint32_t word_row(uint32_t w) {
  return 8 * (w % 4) + w / 4;
}
constexpr uint32_t row_word(uint32_t r) {
  return 4 * (r % 8) + r / 8;
}

// Columns with their pads.
constexpr uint32_t padded_cols(uint32_t n_cols) {
  return (n_cols + kColAlign - 1) / kColAlign * kColAlign;
}

// What distinguishes one Q24 tensor from another. Checked by make_layout.
struct Shape {
  uint32_t n_rows = 0;
  uint32_t n_cols = 0;
  uint32_t group = 16;   // columns per group: 16 or 32
  uint32_t n_fine = 0;   // 4-bit columns, a multiple of group, <= padded_cols
  uint32_t n_slots = 0;  // outlier slots per row, <= padded_cols - n_fine (they belong in 2-bit columns)
};

// Byte offsets of the planes from the tensor's start, and derived counts.
struct Layout {
  Shape shape;
  uint32_t padded_cols, n_panels, n_lines /* padded_cols / 16 */, n_fine_lines, n_pairs /* group pairs */;
  uint64_t perm, col_scale, row_scale, base, fine, scales, outliers;  // offsets
  uint64_t scales_stride;                                             // bytes per panel of `scales`
  uint64_t size_bytes;                                                // a multiple of 128
};

// Throws Error(kFormat) naming the field when a shape breaks the rules above.
Layout make_layout(const Shape& shape);

// A tensor's planes inside a container (not owned). Pointers are 128-byte aligned.
struct View {
  Layout layout;
  const uint16_t* perm;       // [padded_cols]
  const uint16_t* col_scale;  // [padded_cols / 16] fp16 bits
  const uint16_t* row_scale;  // [n_panels, 32 words, 2] fp16 bits: d, dmin
  const uint8_t* base;        // [n_panels, n_lines, 128]
  const uint8_t* fine;        // [n_panels, n_fine_lines, 128]
  const uint8_t* scales;      // [n_panels, scales_stride]
  const uint16_t* outliers;   // [n_panels, n_slots, 32 words, 2]: column, fp16 bits of delta
};
View make_view(const Shape& shape, const uint8_t* data);

// The unpacked content of a tensor: what the quantizer produces and pack() writes. Row-major, storage columns.
struct Unpacked {
  Shape shape;
  std::vector<uint16_t> perm;       // [padded_cols]
  std::vector<uint16_t> col_scale;  // [padded_cols / 16] fp16 bits
  std::vector<uint16_t> d, dmin;    // [n_rows] fp16 bits
  std::vector<uint8_t> codes;       // [n_rows, padded_cols]: 0..3 in 2-bit columns, 0..15 in 4-bit columns
  std::vector<uint8_t> s, m;        // [n_rows, padded_cols / group]: 0..15
  std::vector<uint16_t> outlier_col, outlier_delta;  // [n_rows, n_slots]
};

// Writes `in` to `out` (layout.size_bytes, zero-filled where padded). Throws Error(kInternal) on a bad Unpacked.
void pack(const Unpacked& in, std::span<uint8_t> out);
Unpacked unpack(const View& view);

// Scalar decode, the reference for every kernel: row r of W in *input* order and scale, so that
// y[r] = sum_i out[i] * x[i] where factor is 1: every element is multiplied by col_scale * factor.  out: [n_cols].
void dequantize_row(const View& view, uint32_t r, float* out, float factor = 1);

// Checks what the directory cannot say: perm is a permutation, outlier columns exist,
// d/dmin/col_scale/deltas are finite, pads are zero. Throws Error(kFormat) with the first violation.
// check_perm() alone is what opening a file does (it touches only the perm plane).
void check_perm(const View& view, const char* tensor_name);
void check(const View& view, const char* tensor_name);

}  // namespace q24
}  // namespace pith
