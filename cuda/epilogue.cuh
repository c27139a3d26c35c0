// What becomes of the rows of a matrix-vector product: stores, residual, gated activation, logits with their arg max.
#pragma once
#include "cuda/kernels.h"
#include "cuda/simt.cuh"

namespace pith::cuda {

// act(gate) * up; kClampedSwiglu as in models/spec.h.
PITH_DEVICE float gated(Activation kind, float gate, float up) {
  if (kind == Activation::kSilu) return divide_f32(gate, 1.0f + exp_f32(-gate)) * up;
  if (kind == Activation::kGeluTanh) {
    const float cubic = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);  // sqrt(2 / pi)
    return 0.5f * gate * (1.0f + tanh_f32(cubic)) * up;
  }
  gate = -max_f32(-gate, -7.0f);
  up = max_f32(-max_f32(-up, -7.0f), -7.0f);
  return divide_f32(gate, 1.0f + exp_f32(-1.702f * gate)) * (up + 1.0f);
}

// The largest value seen and the smallest index that has it.
struct Best {
  float value = -INFINITY;
  int32_t idx = 0x7fffffff;

  PITH_DEVICE void take(float v, int32_t i) {
    if (v > value || (v == value && i < idx)) {
      value = v;
      idx = i;
    }
  }
  PITH_DEVICE void take_from_warp() {
    PITH_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) take(shuffle_xor(value, mask), shuffle_xor(idx, mask));
  }
};

// kStore, kAdd, kLogits for one row; `out` is the token's.
PITH_DEVICE void finish_row(const Output& o, float* out, uint32_t row, float y, Best& best) {
  switch (o.epilogue) {
    case Epilogue::kStore:
      out[row] = y;
      break;
    case Epilogue::kAdd:
      out[row] = fma_f32(o.scale, y, out[row]);
      break;
    case Epilogue::kLogits:
      y *= o.scale;
      if (o.softcap > 0) y = o.softcap * tanh_f32(divide_f32(y, o.softcap));
      out[row] = y;
      best.take(y, static_cast<int32_t>(row));
      break;
    case Epilogue::kGlu:
      break;  // pairs of rows: below
  }
}

// Rows 32 * panel + i and + i + 16, i < 16, by one thread.
PITH_DEVICE void finish_row_pair(const Output& o, float* out, uint32_t n_rows, uint32_t panel, uint32_t i,
                                 float y, float y16, Best& best) {
  const uint32_t row = panel * q24::kPanelRows + i;
  if (o.bias != nullptr) {
    if (row < n_rows) y += o.bias[row];
    if (row + 16 < n_rows) y16 += o.bias[row + 16];
  }
  if (o.epilogue == Epilogue::kGlu) {
    out[panel * 16 + i] = gated(o.activation, y, y16);
    return;
  }
  if (row < n_rows) finish_row(o, out, row, y, best);
  if (row + 16 < n_rows) finish_row(o, out, row + 16, y16, best);
}

// One warp has one panel's 32 rows: lane l holds y of row 32 * panel + 8 * (l % 4) + l / 4 (word order).
PITH_DEVICE void finish_rows(const Output& o, uint32_t n_rows, uint32_t panel, uint32_t lane, float y,
                             Best& best) {
  const uint32_t in_panel = q24::word_row(lane);
  const uint32_t row = panel * q24::kPanelRows + in_panel;
  const bool exists = row < n_rows;
  if (o.bias != nullptr && exists) y += o.bias[row];
  if (o.epilogue == Epilogue::kGlu) {
    const float up = shuffle_xor(y, 2);  // row + 16 is two lanes on
    if (in_panel < 16) o.out[panel * 16 + in_panel] = gated(o.activation, y, up);
  } else if (exists) {
    finish_row(o, o.out, row, y, best);
  }
}

// Called by every thread at the end of a kLogits launch; `shared` holds 2 * n_warps floats. The last block to come sees all
// blocks' results: the order in which they came does not matter, a maximum has none.
PITH_DEVICE void finish_best(const Output& o, Best best, float* shared) {
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, n_warps = n_threads() / kWarp;
  best.take_from_warp();
  if (lane == 0) {
    shared[2 * warp] = best.value;
    shared[2 * warp + 1] = bits_to_f32(static_cast<uint32_t>(best.idx));
  }
  sync_block();
  if (warp != 0) return;
  best = Best{};
  for (uint32_t i = 0; i < n_warps; ++i)
    best.take(shared[2 * i], static_cast<int32_t>(f32_to_bits(shared[2 * i + 1])));
  uint32_t arrived = 0;
  if (lane == 0) {
    o.block_best[2 * block_index()] = best.value;
    o.block_best[2 * block_index() + 1] = bits_to_f32(static_cast<uint32_t>(best.idx));
    fence_device();
    arrived = take_ticket(o.ticket);
  }
  if (shuffle(arrived, 0) + 1 != n_blocks()) return;
  fence_device();
  best = Best{};
  for (uint32_t i = lane; i < n_blocks(); i += kWarp)
    best.take(load_coherent(&o.block_best[2 * i]),
              static_cast<int32_t>(f32_to_bits(load_coherent(&o.block_best[2 * i + 1]))));
  best.take_from_warp();
  if (lane == 0) {
    *o.best = best.idx;
    *o.ticket = 0;
  }
}

}  // namespace pith::cuda
