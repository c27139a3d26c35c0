// What the attention kernels share: a head's row of q or k made ready (norm, RoPE), and the KV cache's rows.
#pragma once
#include "cuda/kernels.h"
#include "cuda/simt.cuh"

namespace pith::cuda {

PITH_DEVICE float sum_warp(float v) {
  PITH_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}
PITH_DEVICE float max_warp(float v) {
  PITH_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) v = max_f32(v, shuffle_xor(v, mask));
  return v;
}

// One warp: to[head_dim] = RoPE(norm(from)), both optional. `to` is shared or global and may be `from`.
PITH_DEVICE void prepare_head(const float* from, const float* norm, float norm_eps, const Rotation& rope,
                              uint32_t position, uint32_t head_dim, uint32_t lane, float* to) {
  float scale = 1;
  if (norm != nullptr) {
    float squares = 0;
    for (uint32_t d = lane; d < head_dim; d += kWarp) squares = fma_f32(from[d], from[d], squares);
    scale =
        divide_f32(1.0f, sqrt_f32(divide_f32(sum_warp(squares), static_cast<float>(head_dim)) + norm_eps));
  }
  const auto value = [&](uint32_t d) { return norm != nullptr ? from[d] * scale * norm[d] : from[d]; };
  const uint32_t half = rope.cos != nullptr ? rope.n_rotated / 2 : 0;
  for (uint32_t d = lane; d < half; d += kWarp) {  // a lane reads and writes its own pairs: in place is safe
    const float c = rope.cos[uint64_t{position} * half + d], s = rope.sin[uint64_t{position} * half + d];
    const float a = value(d), b = value(d + half);
    to[d] = a * c - b * s;
    to[d + half] = b * c + a * s;
  }
  for (uint32_t d = 2 * half + lane; d < head_dim; d += kWarp) to[d] = value(d);
}

// One warp: writes a row [head_dim] of the cache. `scales` null: fp16, saturating; otherwise int8 and scales[position].
PITH_DEVICE void store_cache_row(const float* from, uint8_t* rows, float* scales, uint32_t position,
                                 uint32_t head_dim, uint32_t lane) {
  if (scales == nullptr) {
    uint16_t* const to = reinterpret_cast<uint16_t*>(rows) + uint64_t{position} * head_dim;
    for (uint32_t d = lane; d < head_dim; d += kWarp)
      to[d] = f32_to_f16(max_f32(-65504.0f, -max_f32(-65504.0f, -from[d])));
    return;
  }
  float largest = 0;
  for (uint32_t d = lane; d < head_dim; d += kWarp)
    largest = max_f32(largest, from[d] < 0 ? -from[d] : from[d]);
  largest = max_warp(largest);
  const bool zero = largest < 1e-30f;
  const float inverse = zero ? 0.0f : divide_f32(127.0f, largest);
  int8_t* const to = reinterpret_cast<int8_t*>(rows) + uint64_t{position} * head_dim;
  for (uint32_t d = lane; d < head_dim; d += kWarp)
    to[d] = static_cast<int8_t>(round_even(from[d] * inverse));
  if (lane == 0) scales[position] = zero ? 0.0f : divide_f32(largest, 127.0f);
}

// Eight consecutive elements of a cache row; the int8 form without its scale. `element` is a multiple of 8.
template <bool kI8>
PITH_DEVICE void load_cache8(const uint8_t* rows, uint64_t element, float (&v)[8]) {
  if constexpr (kI8) {
    const U32x2 w = load8(rows + element);
    PITH_UNROLL
    for (uint32_t i = 0; i < 8; ++i)
      v[i] = static_cast<float>(static_cast<int8_t>((i < 4 ? w.x : w.y) >> 8 * (i % 4)));
  } else {
    const U32x4 w = load16(rows + element * 2);
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    PITH_UNROLL
    for (uint32_t i = 0; i < 8; ++i) v[i] = f16_to_f32(static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2)));
  }
}

PITH_DEVICE float soft_cap(float x, float cap) {
  return cap > 0 ? cap * tanh_f32(divide_f32(x, cap)) : x;
}

constexpr float kLog2E = 1.44269504f;

// exp2(m - largest) where both may be -infinity: nothing seen yet weighs nothing.
PITH_DEVICE float rescale(float m, float largest) {
  return m == -INFINITY ? 0.0f : exp2_f32(m - largest);
}

// value / sum, the sum of 2^(score - largest); with sinks, theirs is one more score of the head.
PITH_DEVICE float finish_softmax(float value, float largest, float sum, const float* sinks, uint32_t head) {
  if (sinks == nullptr) return divide_f32(value, sum);
  const float sink = kLog2E * sinks[head], top = max_f32(largest, sink), keep = rescale(largest, top);
  return divide_f32(value * keep, fma_f32(sum, keep, exp2_f32(sink - top)));
}

}  // namespace pith::cuda
