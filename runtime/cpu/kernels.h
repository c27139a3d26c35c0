// The CPU kernels: what they compute, in which order, and on which layouts. One table of functions an instruction set.
//
// Results are the same bits on every instruction set, for any number of tokens a call and any thread count, as long as inputs
// are finite (what a NaN makes of others is not said, but it leads nowhere outside the buffers). That holds because every float operation and its order is fixed here, and the rest is integer arithmetic without overflow:
//
//   Activations of a Q24 matrix. x'[c] = col_scale[c / 16] * x[perm[c]] in blocks of 128 storage columns (the last may
//   have 64): scale = max|x'| / 127, a = round_to_nearest_even(x' * (127 / max|x'|)); max|x'| < 1e-30 counts as zero.
//   Line sums. sum = scale * (sum of a line's 16 a); step = max|sum| of the token / 32512, q = round(sum * (32512 /
//   max|sum|)), zero as above. So the minimums are one product of integers for all columns, without a scale a block; 15 bits
//   beside the 7 of a.
//   Q24 matvec. Exact in int32: for each row and block T = sum s * a * (4*hi + lo), for each row M = sum m * q.
//     acc = fma(scale, float(T), acc) block after block; out = fma(delta, scale * float(a[column]), out) slot after slot,
//     which kernels for many tokens do block after block: the same where slots ascend by column, as FORMAT.md wants them;
//     y = fma(-dmin, step * float(M), fma(0.25f * d, acc, out)).
//     |T| <= 8 * 15 * 16 * 127 * 15 < 2^24, so float(T) is exact; |M| <= 15 * 32512 * 4092 lines < 2^31.
//   Plain matvec. 16 lanes; lane l sums columns l, l+16, ... by fma; lanes are added as a tree: i += i+8, +4, +2, +1.
//   Attention. The positions that a query sees are cut at multiples of kSegment; within a segment: scores (fma over
//   head_dim in order), their maximum, exp, sum over 16 lanes (lane = position % 16) as a tree, values (fma over the
//   positions in order); segments are then combined in order by combine().
//
// Tokens are lanes: with n_tokens > 1, activations lie by lane with n_lanes a multiple of 16, and a panel's
// result is y[32 rows][n_lanes]; a single token has n_lanes = 1. Nothing here allocates, locks or throws.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "format/container.h"
#include "format/q24.h"
#include "models/spec.h"

namespace pith::cpu {

constexpr uint32_t kLanes = 16;
constexpr uint32_t kPanelRows = q24::kPanelRows;  // rows that one call of `panel` computes, for every kind
constexpr uint32_t kBlock = q24::kActivationBlock;
constexpr uint32_t kSegment = 256;     // positions
constexpr uint32_t kMaxQueries = 32;   // of one call of `attend`
constexpr uint32_t kWidened = 64;      // positions whose keys or values it converts to floats at a time
constexpr uint32_t kPlainTokens = 12;  // whose sums plain products keep at a time

// A linear layer. What the kernels index by is a validated copy, not the mapping.
struct Matrix {
  TensorKind kind = TensorKind::kF32;
  uint32_t n_rows = 0, n_cols = 0;
  const uint8_t* data = nullptr;     // plain kinds: [n_rows, n_cols]
  q24::View view{};                  // kQ24
  const uint16_t* perm = nullptr;    // kQ24: [padded_cols], < n_cols; pads are 0
  const float* col_scale = nullptr;  // kQ24: [padded_cols / 16]

  bool is_q24() const { return kind == TensorKind::kQ24; }
  uint32_t n_panels() const { return (n_rows + kPanelRows - 1) / kPanelRows; }
  uint32_t n_blocks() const { return (view.layout.padded_cols + kBlock - 1) / kBlock; }
  uint32_t lines_of(uint32_t block) const {  // 8, or 4 in a last block of 64 columns
    const uint32_t rest = view.layout.n_lines - block * (kBlock / 16);
    return rest < kBlock / 16 ? rest : kBlock / 16;
  }
  uint32_t n_summed_lines() const { return (view.layout.n_lines + 63) / 64 * 64; }  // of Input::sums
};

// The input of one matrix for n_tokens tokens. Lanes past n_tokens hold anything; so do their results.
struct Input {
  uint32_t n_tokens = 1, n_lanes = 1;
  const float* x = nullptr;  // plain kinds: [n_tokens, x_stride]
  uint32_t x_stride = 0;
  // kQ24: [n_blocks, n_lanes / 16, quads of the block, 16, 4], so that what a tile of tokens reads of a block lies together
  // whatever n_lanes is; [padded_cols] for one token. A quad is 4 columns of a line; of many tokens with avx2.cpp 2 columns
  // each of two lines.
  int8_t* a = nullptr;
  // kQ24: q of each line, zeros past the last: [n_lanes / 16, n_summed_lines / 2, 16, 2], pairs of lines; [n_summed_lines]
  // for one token. amx.cpp keeps the bytes of many tokens in an order of its own.
  int16_t* sums = nullptr;
  float* sum_steps = nullptr;  // kQ24: [n_lanes]
  float* line_sums =
      nullptr;  // kQ24, one token only: [n_summed_lines] what q is rounded from, zeros past the last
  float* scales = nullptr;  // kQ24: [n_blocks, n_lanes]
  float* x_hat = nullptr;   // kQ24, one token only: [padded_cols] scale * a, for outliers
};

// Where the first quad of a block of n_lines lines lies for the token in `lane`; the next is quad_bytes(in) on.
[[gnu::always_inline]] inline int8_t* quads(const Input& in, uint32_t block, uint32_t n_lines,
                                            uint32_t lane) {
  int8_t* const first = in.a + size_t{block} * kBlock * in.n_lanes;
  return in.n_lanes == 1 ? first : first + (size_t{lane / kLanes} * n_lines * 4 * kLanes + lane % kLanes) * 4;
}
[[gnu::always_inline]] inline uint32_t quad_bytes(const Input& in) {
  return in.n_lanes == 1 ? 4 : kLanes * 4;
}

// Where the first pair of line sums lies for the token in `lane`; the next is pair_stride(in) on.
[[gnu::always_inline]] inline int16_t* pairs(const Matrix& m, const Input& in, uint32_t lane) {
  if (in.n_lanes == 1) return in.sums;
  return in.sums + (size_t{lane / kLanes} * m.n_summed_lines() / 2 * kLanes + lane % kLanes) * 2;
}
[[gnu::always_inline]] inline uint32_t pair_stride(const Input& in) {
  return in.n_lanes == 1 ? 2 : kLanes * 2;
}

inline uint32_t lanes_for(uint32_t n_tokens) {
  return n_tokens == 1 ? 1 : (n_tokens + kLanes - 1) / kLanes * kLanes;
}

// One KV head of one layer.
//   k: [n_ctx / 16 tiles, head_dim, 16 positions] (a vector of 16 positions meets one broadcast element of q)
//   v: [n_ctx, padded_head_dim], padded with zeros to a multiple of 16
// fp16 when k_scale is null, otherwise int8 with a scale per position: [n_ctx].
struct KvHead {
  uint8_t* k;
  uint8_t* v;
  float* k_scale;
  float* v_scale;
  uint32_t head_dim, padded_head_dim;
};

// What one query sees of a segment and what comes out of it.
struct Query {
  const float* q;       // [head_dim]
  uint32_t begin, end;  // absolute positions inside the segment; begin < end
  float* out;           // [padded_head_dim + 2]: sum of p * v, then maximum and sum of p
};

struct Kernels {
  const char* name;

  // out = x * (1 / sqrt(mean(x^2) + eps)) * w; out may be x.
  void (*rms_norm)(const float* x, const float* w, uint32_t n, float eps, float* out);
  // Quantizes blocks [block_begin, block_end) of one token's x [n_cols]; when all are done, quantize_sums() rounds the line
  // sums, of which it wants the largest.
  void (*quantize)(const Matrix& m, const float* x, uint32_t block_begin, uint32_t block_end,
                   const Input& in);
  void (*quantize_sums)(const Matrix& m, const Input& in);
  // Quantizes 1 to 16 tokens, x [n_tokens, n_cols] with rows x_stride apart, into lanes `lane` (a multiple of 16) and on.
  // scratch: that of panel().
  void (*quantize_tile)(const Matrix& m, const float* x, size_t x_stride, uint32_t n_tokens, uint32_t lane,
                        const Input& in, float* scratch);
  // y [32, n_lanes] = rows 32 * panel .. of the matrix times the input. Rows past n_rows hold anything.
  // scratch: panel_scratch_bytes(), 64-byte aligned, private to the thread.
  void (*panel)(const Matrix& m, uint32_t panel, const Input& in, uint8_t* scratch, float* y);
  // Rows of a panel to rows of tokens: out[t * out_stride + r] = scale * y[r * n_lanes + t], added to what is there when
  // `add`. y as panel() leaves it.
  void (*store)(const float* y, uint32_t n_lanes, uint32_t n_rows, uint32_t n_tokens, float scale, bool add,
                float* out, size_t out_stride);
  // out[i] = act(gate[i]) * up[i]; out may be gate.
  void (*gate)(Activation activation, const float* gate, const float* up, uint32_t n, float* out);
  // x[i] = cap * tanh(x[i] / cap)
  void (*softcap)(float* x, uint32_t n, float cap);
  // Rotates pairs (i, i + n/2) of x [n] by cos, sin [n/2].
  void (*rope)(float* x, uint32_t n, const float* cos, const float* sin);
  // Stores k and v [head_dim] of one position, rounded to the head's type. fp16 saturates.
  void (*append)(const KvHead& kv, uint32_t position, const float* k, const float* v);
  // n_queries (1 .. kMaxQueries) against one segment. softcap 0 = none. scratch:
  // attend_scratch() floats.
  void (*attend)(const KvHead& kv, uint32_t segment, const Query* queries, uint32_t n_queries, float scale,
                 float softcap, float* scratch);
  // into = into (+) part, both [padded_head_dim + 2] as Query::out.
  void (*combine)(float* into, const float* part, uint32_t padded_head_dim);
  // out [head_dim] = sums / sum of p
  void (*finish)(const float* sums, uint32_t head_dim, uint32_t padded_head_dim, float* out);

  // For measure.h. A sum over all bytes, as fast as they can be read; size is a multiple of 4096.
  uint64_t (*read)(const uint8_t* data, uint64_t size);
  // Multiplies int8 in registers for `rounds` rounds and returns how many multiply-adds that was.
  uint64_t (*mac_loop)(uint64_t rounds);
};

// What a thread needs for panel() and quantize_tile(), for matrices of so many columns and outliers a row or fewer.
uint64_t panel_scratch_bytes(uint32_t q24_padded_cols, uint32_t n_slots, uint32_t plain_cols,
                             uint32_t n_lanes);

// Floats of scratch that attend() wants: scores, and widened keys or values.
inline uint64_t attend_scratch(uint64_t padded_head_dim) {
  return uint64_t{kMaxQueries} * kSegment + kWidened * padded_head_dim;
}

// Row `row` of an embedding of any kind, in input order, times `scale`. out: [n_cols].
void embedding_row(const Matrix& m, uint32_t row, float scale, float* out);

// "auto", "scalar", "avx2", "avxvnni", "avx512-plain" (no GFNI), "avx512", "amx", "neon". Throws
// kInvalidArgument (unknown name) or kUnsupported (the CPU lacks it).
const Kernels& select_kernels(const std::string& name);
std::vector<const Kernels*> supported_kernels();  // best last; for tests and `doctor`

}  // namespace pith::cpu
