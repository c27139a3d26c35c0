// Activations of one token, brought to a Q24 tensor's storage order and to int8, in shared memory:
//
//   x'[c] = col_scale[c / 16] * x[perm[c]] (* norm)       per 128 columns: scale = max |x'| / 127, a = round(x' / scale)
//
// Shared layout, n = blocks of 128 columns + 2:
//   a      [n][128] int8, in each line's 16 the words of columns 0.., 8.., 4.., 12..: see decode_step
//   sums   [n][8] int16, of each line's 16 columns      scale [n] float
// Block n - 2 is a copy of the block in which the refinement plane begins, zero before it; block n - 1 is zero. They let the
// decoder multiply every unit in full: what a unit does not have meets a zero.
#pragma once
#include "cuda/q24_tile.cuh"

namespace pith::cuda {

struct SharedActivations {
  int8_t* a;
  int16_t* sums;
  float* scale;
  uint32_t n;

  static PITH_SHAPE uint32_t count(uint32_t padded_cols) {
    return (padded_cols + kUnitCols - 1) / kUnitCols + 2;
  }
  static PITH_SHAPE uint32_t bytes(uint32_t padded_cols) {
    return (count(padded_cols) * (128 + 16 + 4) + 127) / 128 * 128;
  }
  PITH_SHAPE SharedActivations(uint8_t* shared, uint32_t padded_cols)
      : a(reinterpret_cast<int8_t*>(shared)), sums(nullptr), scale(nullptr), n(count(padded_cols)) {
    sums = reinterpret_cast<int16_t*>(shared + n * 128);
    scale = reinterpret_cast<float*>(shared + n * (128 + 16));
  }
};

// Sum over the block; `partial` is shared, [n_threads / 32]. Every thread gets it.
PITH_DEVICE float sum_block(float v, float* partial) {
  PITH_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  if (thread_index() % kWarp == 0) partial[thread_index() / kWarp] = v;
  sync_block();
  float sum = 0;
  for (uint32_t i = 0; i < n_threads() / kWarp; ++i) sum += partial[i];
  return sum;
}

// 1 / sqrt(mean of squares + eps) of x[n]
PITH_DEVICE float inverse_rms(const float* x, uint32_t n, float eps, float* partial) {
  float squares = 0;
  for (uint32_t i = thread_index(); i < n; i += n_threads()) squares = fma_f32(x[i], x[i], squares);
  return divide_f32(1.0f, sqrt_f32(divide_f32(sum_block(squares, partial), static_cast<float>(n)) + eps));
}

struct QuantizedColumns {
  uint32_t a;        // 4 int8: columns 4 * lane .. of the block
  int32_t line_sum;  // of the line that holds them
  float scale;
};

// Where the 4 columns from `column` (a multiple of 4) of a block lie in `a`; single columns follow.
PITH_DEVICE uint32_t word_place(uint32_t column) {
  const uint32_t p = column / 4 % 4;
  return (column & ~12u) | (p >> 1 | (p & 1) << 1) << 2;
}

// One warp, one block of 128 storage columns. norm_scale: the inverse RMS, or 1 with norm == null.
PITH_DEVICE QuantizedColumns quantize_columns(const Q24Weights& w, const float* x, const float* norm,
                                              float norm_scale, uint32_t block, uint32_t lane) {
  float v[4], largest = 0;
  PITH_UNROLL
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t c = block * kUnitCols + lane * 4 + j;
    v[j] = 0;
    const uint32_t source = c < w.padded_cols ? w.perm[c] : 0xffffu;
    if (source < w.n_cols) {
      v[j] = x[source];
      if (norm != nullptr) v[j] = v[j] * norm_scale * norm[source];
      v[j] *= f16_to_f32(w.col_scale[c / q24::kLineCols]);
    }
    largest = max_f32(largest, v[j] < 0 ? -v[j] : v[j]);
  }
  PITH_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) largest = max_f32(largest, shuffle_xor(largest, mask));
  const bool zero = largest < 1e-30f;  // as on the CPU: its inverse would overflow
  QuantizedColumns q{0, 0, zero ? 0.0f : divide_f32(largest, 127.0f)};
  const float inverse = zero ? 0.0f : divide_f32(127.0f, largest);
  PITH_UNROLL
  for (uint32_t j = 0; j < 4; ++j) {
    const int32_t code = round_even(v[j] * inverse);
    q.a |= (static_cast<uint32_t>(code) & 0xffu) << 8 * j;
    q.line_sum += code;
  }
  q.line_sum += shuffle_xor(q.line_sum, 1);
  q.line_sum += shuffle_xor(q.line_sum, 2);
  return q;
}

// The whole block fills `to`. `partial` as in sum_block. Ends with a block barrier.
PITH_DEVICE void quantize_token(const Q24Weights& w, const Input& input, const SharedActivations& to,
                                float* partial) {
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  const float norm_scale =
      input.norm != nullptr ? inverse_rms(input.x, w.n_cols, input.norm_eps, partial) : 1.0f;
  const uint32_t first_fine_col = w.padded_cols - w.n_fine;
  const uint32_t n_real = to.n - 2;
  for (uint32_t block = warp; block < n_real; block += n_threads() / kWarp) {
    const QuantizedColumns q = quantize_columns(w, input.x, input.norm, norm_scale, block, lane);
    store4(to.a + block * 128 + word_place(lane * 4), q.a);
    if (lane % 4 == 0) to.sums[block * 8 + lane / 4] = static_cast<int16_t>(q.line_sum);
    if (lane == 0) to.scale[block] = q.scale;
    if (block == first_fine_col / kUnitCols && w.n_fine != 0) {
      const bool is_fine =
          block * kUnitCols + lane * 4 >= first_fine_col;  // a lane's 4 columns lie in one line
      store4(to.a + n_real * 128 + word_place(lane * 4), is_fine ? q.a : 0u);
      if (lane == 0) to.scale[n_real] = q.scale;
    }
  }
  if (warp == 0) {
    store4(to.a + (n_real + 1) * 128 + lane * 4, 0);
    if (lane < 8) to.sums[(n_real + 1) * 8 + lane] = 0;
    if (lane == 0) to.scale[n_real + 1] = 0;
  }
  sync_block();
}

}  // namespace pith::cuda
