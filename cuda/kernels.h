// The kernels of pith as plain C++ functions: device pointers, named dimensions, a stream. They know layouts (format/q24.h),
// not layers; runtime/gpu/launches.cpp puts them in order. Nothing here allocates or synchronizes, all of it can be
// captured into a CUDA graph, and results depend on shapes and launch settings only: no float is added atomically.
//
// Pointers are device memory unless a name ends in _host. Brackets are row-major. All launches return at once; an error of
// the launch itself throws as device.h says, naming the kernel.
#pragma once
#include <cstdint>

#include "cuda/stream_handle.h"
#include "format/q24.h"

namespace pith::cuda {

struct Launch {
  StreamHandle stream = nullptr;
  bool overlap = false;  // may start while the kernel before it ends (sm_90 and later)
};

// How codes reach the multiprocessor while earlier ones are decoded. `synchronous` forms of each load, wait, decode, and exist
// to measure what the overlap brings.
enum class Pipeline : uint8_t {
  kRegisters = 1,  // the next unit's loads into registers while this one is decoded: every target
  kAsyncCopy = 2,  // a ring in shared memory filled by cp.async: sm_80 and later
  kBulkCopy = 3,   // the same ring filled by the copy engine (cp.async.bulk + mbarrier): sm_90 and later
};

// A Q24 tensor's planes in device memory (not owned); format/q24.h describes them.
struct Q24Weights {
  const uint16_t* perm;       // [padded_cols]
  const uint16_t* col_scale;  // [padded_cols / 16] fp16
  const uint32_t* row_scale;  // [n_panels, 32 words] d | dmin << 16
  const uint8_t* base;        // [n_panels, n_lines, 128]
  const uint8_t* fine;        // [n_panels, n_fine / 16, 128]
  const uint8_t* scales;      // [n_panels, scales_stride]
  const uint32_t* outliers;   // [n_panels, n_slots, 32 words] column | delta << 16
  uint32_t n_rows, n_cols, padded_cols, n_panels, group, n_fine, n_slots, scales_stride;
};

inline Q24Weights q24_weights(const q24::Layout& l, const uint8_t* data) {
  const auto halves = [data](uint64_t offset) { return reinterpret_cast<const uint16_t*>(data + offset); };
  const auto words = [data](uint64_t offset) { return reinterpret_cast<const uint32_t*>(data + offset); };
  return {halves(l.perm),    halves(l.col_scale), words(l.row_scale),
          data + l.base,     data + l.fine,       data + l.scales,
          words(l.outliers), l.shape.n_rows,      l.shape.n_cols,
          l.padded_cols,     l.n_panels,          l.shape.group,
          l.shape.n_fine,    l.shape.n_slots,     static_cast<uint32_t>(l.scales_stride)};
}

enum class Activation : uint8_t {
  kSilu = 1,
  kGeluTanh = 2,
  kClampedSwiglu = 3
};  // values as in models/spec.h

// What becomes of y = W x (+ bias).
enum class Epilogue : uint8_t {
  kStore = 1,   // out[r] = y[r]
  kAdd = 2,     // out[r] += scale * y[r]: the residual stream
  kGlu = 3,     // rows interleaved by 16 (gate, up): out[16 p + i] = act(y[32 p + i], y[32 p + 16 + i])
  kLogits = 4,  // out[r] = softcap(scale * y[r]), and best[0] = the smallest index of the largest
};

struct Output {
  Epilogue epilogue = Epilogue::kStore;
  Activation activation = Activation::kSilu;
  float scale = 1, softcap = 0;
  const float* bias = nullptr;  // [n_rows] or null
  float* out = nullptr;         // kStore, kAdd, kLogits: [n_rows]; kGlu: [16 * ceil(n_rows / 32)]
  int32_t* best = nullptr;      // kLogits: [1], or null: not wanted, nor the two below
  float* block_best = nullptr;  // kLogits: [2 * n_blocks] scratch
  uint32_t* ticket = nullptr;   // kLogits: [1], zero before the first launch and after each
};

// What the rows are multiplied with: x, or its RMS norm.
struct Input {
  const float* x = nullptr;     // [n_cols]
  const float* norm = nullptr;  // [n_cols] weights of the norm, or null: x as it is
  float norm_eps = 0;
};

// 168 registers a thread. With 16 warps there are 128, and on sm_100 the ring's kernels spill.
constexpr uint32_t kMaxMatvecWarps = 12;

// How a matrix-vector product is cut up. Affects speed and the order of float additions, nothing else.
struct MatvecShape {
  uint32_t n_blocks, n_warps;  // of a block, at most kMaxMatvecWarps
  uint32_t n_stages;           // of the ring, per warp: 1 (synchronous) to 4
};

struct MatvecQ24 {
  Q24Weights w;
  Input input;
  Output output;
  MatvecShape shape;
};
// A good cut for a device of n_multiprocessors whose blocks may have max_shared_bytes; where none fits, the smallest.
MatvecShape choose_matvec_shape(Pipeline pipeline, const Q24Weights& w, bool synchronous,
                                uint32_t n_multiprocessors, uint64_t max_shared_bytes);
// Bytes of shared memory a block, as of every *_shared_bytes; more than the device has is the caller's mistake. Kernels without such a
// function fit every target.
uint64_t matvec_q24_shared_bytes(Pipeline pipeline, uint32_t padded_cols, const MatvecShape& shape);
// One token: norm, quantization, product, epilogue. With n_stages = 1 the pipeline is synchronous.
void launch_matvec_q24(Pipeline pipeline, const MatvecQ24& args, const Launch& how);

// A row-major matrix of 16- or 32-bit numbers.
enum class PlainKind : uint8_t { kF32 = 1, kF16 = 2, kBF16 = 3 };  // values as TensorKind's
struct PlainWeights {
  const uint8_t* data = nullptr;  // [n_rows, n_cols]
  uint32_t n_rows = 0, n_cols = 0;
  PlainKind kind = PlainKind::kF16;
};

struct MatvecPlain {
  PlainWeights w;
  Input input;    // x [n_tokens, x_stride]; with more than one token, norm must be null
  Output output;  // out [n_tokens, out_stride]
  uint32_t n_tokens = 1, x_stride = 0, out_stride = 0;
  uint32_t n_blocks = 1;
};
void launch_matvec_plain(const MatvecPlain& args, const Launch& how);
// Whether x goes to shared memory: one token's does where there is a norm or room on every target.
inline bool shares_input(uint32_t n_tokens, uint32_t n_cols, bool has_norm) {
  return n_tokens == 1 && (has_norm || n_cols <= 12288);
}
// shared_input: shares_input's answer; of an expert's product with one token it is always yes.
uint64_t matvec_plain_shared_bytes(uint32_t n_cols, bool shared_input);

// ---- Several tokens at once (prefill) ----

constexpr uint32_t kTokenTile = 128;  // tokens are padded to this: n_padded below

// Activations of many tokens for one Q24 tensor, block by block; what pads hold does not matter.
struct QuantizedTokens {
  uint8_t* a;      // [n_blocks of 128 columns, n_padded, 128] int8, words in the order of activations.cuh
  uint8_t* sums;   // [n_blocks, n_padded, 8 lines, 2]: a line's sum of a as 16 * h + l
  float* scale;    // [n_blocks, n_padded]
  float* columns;  // [padded_cols, n_padded]: a * scale, for outliers; null when the tensor has none
  uint32_t n_tokens, n_padded;
};

struct QuantizeTokens {
  Q24Weights w;
  Input input;  // x [n_tokens, x_stride]
  uint32_t x_stride;
  QuantizedTokens to;
};
void launch_quantize_tokens(const QuantizeTokens& args, const Launch& how);

struct GemmQ24 {
  Q24Weights w;
  QuantizedTokens tokens;
  Output output;  // out [n_tokens, out_stride]; kLogits stores logits but finds no best
  uint32_t out_stride;
};
void launch_gemm_q24(const GemmQ24& args, const Launch& how);

// The same product in 16 bits: tokens in fp16, weights 16-bit as they are, or Q24 decoded to fp16 where the device multiplies in warpgroups.
struct HalfTokens {
  uint8_t* a;  // [n_cols / 64 rounded up, n_padded, 64] fp16, each row's 16-byte chunk c at place c ^ row % 8
  float* scale;  // [n_padded] powers of two: x = scale * a
  uint32_t n_tokens, n_padded;
};

struct HalveTokens {
  Q24Weights q24;   // the columns' order and scales
  uint32_t n_cols;  // or, not 0: of 16-bit weights, whose order is x's
  Input input;      // x [n_tokens, x_stride]
  uint32_t x_stride;
  HalfTokens to;
};
void launch_halve_tokens(const HalveTokens& args, const Launch& how);

// Once after upload: each row's outliers by column, as launch_gemm_half needs them.
void launch_sort_outliers(const Q24Weights& w, const Launch& how);

// warpgroups: whether the device multiplies in groups of warps (wgmma): compute capability 9.0.
inline bool has_warpgroups(int compute_major, int compute_minor) {
  return compute_major == 9 && compute_minor == 0;
}

struct GemmHalf {
  Q24Weights q24;      // warpgroups only; n_rows 0: it is the other one
  PlainWeights plain;  // fp16 or bf16, n_cols a multiple of 8
  HalfTokens tokens;
  Output output;  // as GemmQ24's
  uint32_t out_stride;
  uint32_t n_groups;  // of four warps a block, 1 or 2: choose_half_groups
  bool warpgroups;
};
void launch_gemm_half(const GemmHalf& args, const Launch& how);
uint64_t gemm_half_shared_bytes(bool warpgroups, bool is_q24, uint32_t n_groups);
// 2 where blocks of twice the rows fit max_shared_bytes and fill n_multiprocessors as well as those of one group.
uint32_t choose_half_groups(bool warpgroups, bool is_q24, uint32_t n_rows, uint32_t n_tokens,
                            uint32_t n_multiprocessors, uint64_t max_shared_bytes);
// Whether launch_gemm_half takes such weights.
inline bool halves_weights(const PlainWeights& w) {
  return w.kind != PlainKind::kF32 && w.n_cols % 8 == 0;
}

// x[t] = scale * row ids[t] of the embedding (plain or Q24; the other pointer's n_rows is 0)
struct Embed {
  PlainWeights plain;
  Q24Weights q24;
  const int32_t* ids;  // [n_tokens], each < n_rows
  float* x;            // [n_tokens, n_cols]
  float scale;
  uint32_t n_tokens;
};
void launch_embed(const Embed& args, const Launch& how);

// out[t] = (add ? out[t] : 0) + scale * norm(x[t]); out may be x.
struct NormTokens {
  const float* x;     // [n_tokens, x_stride]
  const float* norm;  // [n_cols], or null: x as it is
  float norm_eps, scale;
  float* out;  // [n_tokens, out_stride]
  bool add;
  uint32_t n_cols, n_tokens, x_stride, out_stride;
  const int32_t* rows = nullptr;  // [n_tokens] which row of x each is of, -1: leave it out; null: its own
};
void launch_norm_tokens(const NormTokens& args, const Launch& how);

// Tables of the rotary embedding: row `position` turns pairs (i, i + n_rotated / 2). cos null: no rotation.
struct Rotation {
  const float* cos = nullptr;  // [n_ctx, n_rotated / 2]
  const float* sin = nullptr;
  uint32_t n_rotated = 0;
};

// What attention needs of a layer. k_scale null: the cache is fp16, otherwise int8 with a float for each row.
struct AttentionLayer {
  const float* q_norm;  // [head_dim] or null
  const float* k_norm;
  float norm_eps;
  const float* sinks;  // [n_heads] or null: a score of one more position that carries no value
  Rotation rope;
  uint8_t* k;  // [n_kv_heads, n_ctx, head_dim]
  uint8_t* v;
  float* k_scale;  // [n_kv_heads, n_ctx] or null
  float* v_scale;
  uint32_t n_heads, n_kv_heads, head_dim, n_ctx;
  uint32_t window;  // positions seen, the own included; 0 = all
  float scale, softcap;
  const int32_t* position;  // [1] of the (first) token
};

struct AttentionDecode : AttentionLayer {
  const float* qkv;   // [(n_heads + 2 n_kv_heads) * head_dim]
  float* out;         // [n_heads * head_dim]
  float* parts;       // [n_heads, n_splits, head_dim + 2] scratch, unused with one split
  uint32_t* tickets;  // [n_kv_heads], zero before the first launch and after each
};

// Several tokens at positions *position, *position + 1, ...
struct AttentionPrefill : AttentionLayer {
  float* qkv;  // [n_tokens, (n_heads + 2 n_kv_heads) * head_dim]; q is made ready in place
  float* out;  // [n_tokens, n_heads * head_dim]
  uint32_t n_tokens;
};
// Norm, RoPE and append of all tokens; then launch_attention_prefill reads q and the cache.
void launch_append_tokens(const AttentionPrefill& args, const Launch& how);
void launch_attention_prefill(const AttentionPrefill& args, const Launch& how);

void launch_attention_decode(const AttentionDecode& args, uint32_t n_splits, const Launch& how);
// Of the numbers of heads and head_dim alone.
uint64_t attention_decode_shared_bytes(const AttentionLayer& layer);

// ---- Products in float32 (calibration) ----

constexpr uint32_t kFloatTile = 128, kFloatDepth = 16;

// c = (adds ? c : 0) + a' b, the same bits on every device: gemm_float.cuh has the order of additions. A sum that is cut into launches of
// multiples of 256 depths keeps them.
struct GemmFloat {
  const float* a;                  // [depth, n_rows]
  const float* b;                  // [depth, n_cols]
  float* c;                        // [n_rows, n_cols]; symmetric: only tiles on and below the diagonal
  uint32_t depth, n_rows, n_cols;  // multiples of kFloatDepth, kFloatTile, kFloatTile; depth > 0
  bool adds, symmetric;            // symmetric: a is b
};
void launch_gemm_float(const GemmFloat& args, const Launch& how);

// to = from or its transpose, zeros around it.
struct LayOut {
  const float* from;                     // [n_rows, n_cols]
  float* to;                             // [to_rows, to_cols], rows to_stride apart; both multiples of 32
  uint32_t n_rows, n_cols;               // of from
  uint32_t to_rows, to_cols, to_stride;  // not smaller
  bool transposed;
};
void launch_lay_out(const LayOut& args, const Launch& how);

}  // namespace pith::cuda
