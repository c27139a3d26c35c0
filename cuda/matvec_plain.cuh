// Body of the matrix-vector product with 16- or 32-bit weights: the baseline that the Q24 kernels are measured against.
//
//   y[t, r] = sum_c w[r, c] * x[t, c]            x normed first when there is one token and a norm
//
// Shapes: w [n_rows, n_cols] row-major, x [n_tokens, x_stride] float, out [n_tokens, out_stride] float.
//
// Grid: any number of blocks of 8 warps; warp k of the grid takes row pairs k, k + n_warps, ...: pair i is rows
// 32 * (i / 16) + i % 16 and that + 16, which are a gate and its up in an interleaved matrix. Lanes take 16 bytes of a row in turn,
// kAhead of each row under way; more than one token: four at a time, the row coming from the cache again.
//
// Shared memory: x normed [n_cols] floats (one token), then [2 * n_warps] floats.
// Rows that are not a multiple of 16 bytes take a scalar path.
// Bound by: device-memory bandwidth; 2 instructions a weight. Speed: not measured. Order of additions: a lane its columns, then
// lanes as a tree; difference to another order at most (n_cols / 32 + 5) * 2^-24 * sum |w x|.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/epilogue.cuh"

namespace pith::cuda {

constexpr uint32_t kPlainWarps = 8;  // a block
constexpr uint32_t kAhead = 4;
constexpr uint32_t kMatvecTokens = 4;

template <PlainKind kKind>
PITH_DEVICE float plain_value(const uint8_t* row, uint32_t c) {
  if constexpr (kKind == PlainKind::kF32) return reinterpret_cast<const float*>(row)[c];
  if constexpr (kKind == PlainKind::kF16) return f16_to_f32(reinterpret_cast<const uint16_t*>(row)[c]);
  if constexpr (kKind == PlainKind::kBF16) return bf16_to_f32(reinterpret_cast<const uint16_t*>(row)[c]);
}
// Number i of the 4 or 8 in 16 bytes.
template <PlainKind kKind>
PITH_DEVICE float plain_unpacked(const U32x4& v, uint32_t i) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  if constexpr (kKind == PlainKind::kF32) return bits_to_f32(words[i]);
  const uint32_t word = words[i / 2];
  if constexpr (kKind == PlainKind::kBF16) return bits_to_f32(i % 2 ? word & 0xffff0000u : word << 16);
  return f16_to_f32(static_cast<uint16_t>(i % 2 ? word >> 16 : word));
}

constexpr uint32_t plain_bytes(PlainKind kind) {
  return kind == PlainKind::kF32 ? 4 : 2;
}
// Rows that can be read 16 bytes at a time, and their inputs too.
inline bool plain_rows_are_vectors(const PlainWeights& w, uint32_t x_stride) {
  return uint64_t{w.n_cols} * plain_bytes(w.kind) % 16 == 0 && x_stride % 4 == 0;
}

// Sums of rows w0 and w1 with kTokens tokens, over the lanes: every lane gets them.
template <PlainKind kKind, uint32_t kTokens, bool kVector>
PITH_DEVICE void dot_rows(const uint8_t* w0, const uint8_t* w1, const float* x, uint32_t x_stride,
                          uint32_t n_cols, uint32_t lane, float (&sum)[2][kTokens]) {
  PITH_UNROLL
  for (uint32_t t = 0; t < kTokens; ++t) sum[0][t] = sum[1][t] = 0;
  if constexpr (kVector) {
    constexpr uint32_t kPer = 16 / plain_bytes(kKind), kStep = kPer * kWarp;
    for (uint32_t c0 = lane * kPer; c0 < n_cols; c0 += kAhead * kStep) {
      U32x4 v[2][kAhead];
      PITH_UNROLL
      for (uint32_t j = 0; j < kAhead; ++j) {
        const uint32_t c = c0 + j * kStep;
        v[0][j] = v[1][j] = {0, 0, 0, 0};
        if (c < n_cols) {
          v[0][j] = load_stream16(w0 + uint64_t{c} * plain_bytes(kKind));
          v[1][j] = load_stream16(w1 + uint64_t{c} * plain_bytes(kKind));
        }
      }
      PITH_UNROLL
      for (uint32_t j = 0; j < kAhead; ++j) {
        const uint32_t c = c0 + j * kStep;
        if (c >= n_cols) break;
        PITH_UNROLL
        for (uint32_t t = 0; t < kTokens; ++t) {
          PITH_UNROLL
          for (uint32_t i = 0; i < kPer; i += 4) {
            const U32x4 xs = load16(x + uint64_t{t} * x_stride + c + i);
            const uint32_t words[4] = {xs.x, xs.y, xs.z, xs.w};
            PITH_UNROLL
            for (uint32_t k = 0; k < 4; ++k) {
              sum[0][t] = fma_f32(plain_unpacked<kKind>(v[0][j], i + k), bits_to_f32(words[k]), sum[0][t]);
              sum[1][t] = fma_f32(plain_unpacked<kKind>(v[1][j], i + k), bits_to_f32(words[k]), sum[1][t]);
            }
          }
        }
      }
    }
  } else {
    for (uint32_t c = lane; c < n_cols; c += kWarp) {
      PITH_UNROLL
      for (uint32_t t = 0; t < kTokens; ++t) {
        const float xs = x[uint64_t{t} * x_stride + c];
        sum[0][t] = fma_f32(plain_value<kKind>(w0, c), xs, sum[0][t]);
        sum[1][t] = fma_f32(plain_value<kKind>(w1, c), xs, sum[1][t]);
      }
    }
  }
  PITH_UNROLL
  for (uint32_t t = 0; t < kTokens; ++t) {
    PITH_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
      sum[0][t] += shuffle_xor(sum[0][t], mask);
      sum[1][t] += shuffle_xor(sum[1][t], mask);
    }
  }
}

struct MatvecPlainShared {
  uint32_t scratch, total;
  PITH_SHAPE MatvecPlainShared(uint32_t n_cols, uint32_t n_warps, bool one_token)
      : scratch(one_token ? (n_cols * 4 + 127) / 128 * 128 : 0), total(scratch + 2 * n_warps * 4) {}
};

inline uint64_t plain_shared_bytes(uint32_t n_cols, bool one_token) {
  return MatvecPlainShared(n_cols, kPlainWarps, one_token).total;
}
inline bool one_token_shared(const MatvecPlain& args) {
  return shares_input(args.n_tokens, args.w.n_cols, args.input.norm != nullptr);
}

// kOneToken: n_tokens is 1, and x is normed into shared memory.
template <PlainKind kKind, bool kVector, bool kOneToken>
PITH_DEVICE void matvec_plain_body(const PlainWeights& w, const Input& input, const Output& output,
                                   uint32_t n_tokens, uint32_t x_stride, uint32_t out_stride,
                                   uint8_t* shared) {
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, n_warps = n_threads() / kWarp;
  const MatvecPlainShared layout(w.n_cols, n_warps, kOneToken);
  float* const scratch = reinterpret_cast<float*>(shared + layout.scratch);
  const uint64_t row_bytes = uint64_t{w.n_cols} * plain_bytes(kKind);
  const uint32_t n_pairs = (w.n_rows + 31) / 32 * 16, first = block_index() * n_warps + warp;
  // The second row of the last pairs may not exist; the first one is read in its place and the result is not used.
  const auto row_at = [&](uint32_t row) {
    return w.data + (row < w.n_rows ? row : w.n_rows - 1) * row_bytes;
  };
  const auto first_row = [](uint32_t pair) { return pair / 16 * 32 + pair % 16; };

  launch_dependents();
  if (first < n_pairs) {  // weights do not depend on the kernel before: have the first rows on their way
    for (uint64_t at = lane * 128; at < row_bytes; at += kWarp * 128) {
      prefetch_l2(row_at(first_row(first)) + at);
      prefetch_l2(row_at(first_row(first) + 16) + at);
    }
  }
  depend();
  const float* x = input.x;
  if constexpr (kOneToken) {
    float* const normed = reinterpret_cast<float*>(shared);
    const float scale = input.norm != nullptr ? inverse_rms(x, w.n_cols, input.norm_eps, scratch) : 1.0f;
    for (uint32_t c = thread_index(); c < w.n_cols; c += n_threads())
      normed[c] = input.norm != nullptr ? x[c] * scale * input.norm[c] : x[c];
    sync_block();
    x = normed;
  }

  Best best;
  for (uint32_t pair = first; pair < n_pairs; pair += n_blocks() * n_warps) {
    const uint8_t* const w0 = row_at(first_row(pair));
    const uint8_t* const w1 = row_at(first_row(pair) + 16);
    const auto finish = [&](uint32_t token, float y, float y16) {
      if (lane == 0)
        finish_row_pair(output, output.out + uint64_t{token} * out_stride, w.n_rows, pair / 16, pair % 16, y,
                        y16, best);
    };
    uint32_t token = 0;
    for (; token + kMatvecTokens <= n_tokens; token += kMatvecTokens) {
      float sum[2][kMatvecTokens];
      dot_rows<kKind, kMatvecTokens, kVector>(w0, w1, x + uint64_t{token} * x_stride, x_stride, w.n_cols,
                                              lane, sum);
      PITH_UNROLL
      for (uint32_t t = 0; t < kMatvecTokens; ++t) finish(token + t, sum[0][t], sum[1][t]);
    }
    for (; token < n_tokens; ++token) {
      float sum[2][1];
      dot_rows<kKind, 1, kVector>(w0, w1, x + uint64_t{token} * x_stride, x_stride, w.n_cols, lane, sum);
      finish(token, sum[0][0], sum[1][0]);
    }
  }
  if (output.epilogue == Epilogue::kLogits && output.best != nullptr) {
    sync_block();
    finish_best(output, best, scratch);
  }
}

}  // namespace pith::cuda
