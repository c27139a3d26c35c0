// Body of decode attention: norm and RoPE of q and k, append to the KV cache, softmax(q k') v over the cache, one token.
//
//   out[h] = sum_p softmax_p(cap(scale * q[h] . k[p])) v[p]          p in the window up to the token's position; a sink may take part
//
// Shapes: qkv [(n_heads + 2 n_kv_heads) * head_dim] float as the projection left it; cache [n_kv_heads, n_ctx, head_dim] fp16, or
// int8 with a scale per row; out [n_heads * head_dim] float. head_dim a multiple of 8, at most 256.
//
// Grid: (n_kv_heads, n_splits) blocks of n_warps warps; split s takes a contiguous range of positions and all the query heads of
// its KV head, kHeads at a time, so that a row of the cache is read once for them. Within a warp, 8 elements a lane:
//
//   lanes_per_row = head_dim / 8 (to a power of 2) lanes share a row, 32 / lanes_per_row rows at once, 4 rows ahead
//   | row p: lane 0 d 0-7 | lane 1 d 8-15 | ... | row p+1: ... |
//
// Every such sub-warp has a running softmax of its own (maximum, sum, weighted v); they are merged once at the end, in order: lanes
// of the warp, warps of the block, splits of the head. The last block of a head to finish merges the splits; a ticket
// decides who is last, not what is added in which order. The split that holds the new position also appends it.
// That RoPE and append are here and not in the projection's epilogue costs nothing (same launches) and spares that epilogue
// rows that lie in other panels.
//
// Shared: q [group][head_dim] | k, v [2][head_dim] | per warp and head: head_dim + 2 floats.
// Bound by: reading the cache. Speed: not measured. Reference: CPU attention in another order of additions; relative
// difference about 2^-24 * (positions + head_dim).
#pragma once
#include "cuda/rows.cuh"

namespace pith::cuda {

constexpr uint32_t kDecodeWarps = 8;  // a block
constexpr uint32_t kRowsAhead = 4;

// Query heads that a warp has at once, of all that share a KV head: kHeads of the kernel that is launched.
inline uint32_t decode_heads(const AttentionLayer& a) {
  const uint32_t n_group = a.n_heads / a.n_kv_heads;
  return n_group <= 2 ? n_group : n_group <= 4 ? 4 : 8;
}

struct AttentionDecodeShared {
  uint32_t q, new_kv, merge, total;
  PITH_SHAPE AttentionDecodeShared(const AttentionLayer& a, uint32_t n_warps, uint32_t n_heads_at_once)
      : q(0),
        new_kv(q + a.n_heads / a.n_kv_heads * a.head_dim * 4),
        merge(new_kv + 2 * a.head_dim * 4),
        total(merge + n_warps * n_heads_at_once * (a.head_dim + 2) * 4) {}
};

inline uint64_t decode_shared_bytes(const AttentionLayer& a) {
  return AttentionDecodeShared(a, kDecodeWarps, decode_heads(a)).total;
}

struct SoftmaxPart {
  float largest, sum;
};

// The block's heads first .. first + kHeads of one split; `merge` as in the head comment. Heads beyond n_group repeat the last.
template <uint32_t kHeads, bool kI8>
PITH_DEVICE void attend_rows(const AttentionDecode& a, uint32_t kv_head, uint32_t begin, uint32_t end,
                             uint32_t first, uint32_t n_group, const float* q, float* merge) {
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, n_warps = n_threads() / kWarp;
  uint32_t lanes_per_row = 1;
  while (lanes_per_row * 8 < a.head_dim) lanes_per_row *= 2;
  const uint32_t rows_at_once = kWarp / lanes_per_row, sub = lane / lanes_per_row,
                 d0 = lane % lanes_per_row * 8;
  const bool active = d0 < a.head_dim;
  const uint64_t rows_before = uint64_t{kv_head} * a.n_ctx;
  constexpr uint32_t kElement = kI8 ? 1 : 2;
  const uint8_t* const k_rows = a.k + rows_before * a.head_dim * kElement;
  const uint8_t* const v_rows = a.v + rows_before * a.head_dim * kElement;

  float query[kHeads][8], value[kHeads][8];
  SoftmaxPart part[kHeads];
  PITH_UNROLL
  for (uint32_t h = 0; h < kHeads; ++h) {
    const uint32_t head = first + h < n_group ? first + h : n_group - 1;
    PITH_UNROLL
    for (uint32_t i = 0; i < 8; ++i) {
      query[h][i] = active ? q[head * a.head_dim + d0 + i] : 0.0f;
      value[h][i] = 0;
    }
    part[h] = {-INFINITY, 0};
  }

  for (uint32_t row0 = begin + warp * rows_at_once; row0 < end; row0 += n_warps * rows_at_once * kRowsAhead) {
    float score[kRowsAhead][kHeads], v[kRowsAhead][8];
    PITH_UNROLL
    for (uint32_t j = 0; j < kRowsAhead; ++j) {
      const uint32_t row = row0 + j * n_warps * rows_at_once + sub;
      const bool exists = row < end && active;
      float k[8];
      PITH_UNROLL
      for (uint32_t i = 0; i < 8; ++i) k[i] = v[j][i] = 0;
      float k_scale = a.scale, v_scale = 1;
      if (exists) {
        load_cache8<kI8>(k_rows, uint64_t{row} * a.head_dim + d0, k);
        load_cache8<kI8>(v_rows, uint64_t{row} * a.head_dim + d0, v[j]);
        if constexpr (kI8) {
          k_scale *= a.k_scale[rows_before + row];
          v_scale = a.v_scale[rows_before + row];
        }
      }
      PITH_UNROLL
      for (uint32_t h = 0; h < kHeads; ++h) {
        float dot = 0;
        PITH_UNROLL
        for (uint32_t i = 0; i < 8; ++i) dot = fma_f32(query[h][i], k[i], dot);
        for (uint32_t mask = 1; mask < lanes_per_row; mask *= 2)
          dot += shuffle_xor(dot, static_cast<int>(mask));
        // The scale of the row is the same in the row's active lanes; the others' result is not used.
        score[j][h] = row < end ? kLog2E * soft_cap(dot * k_scale, a.softcap) : -INFINITY;
      }
      if constexpr (kI8) {
        PITH_UNROLL
        for (uint32_t i = 0; i < 8; ++i) v[j][i] *= v_scale;
      }
    }
    PITH_UNROLL
    for (uint32_t h = 0; h < kHeads; ++h) {
      float largest = part[h].largest;
      PITH_UNROLL
      for (uint32_t j = 0; j < kRowsAhead; ++j) largest = max_f32(largest, score[j][h]);
      const float keep = rescale(part[h].largest, largest);
      part[h].largest = largest;
      part[h].sum *= keep;
      PITH_UNROLL
      for (uint32_t i = 0; i < 8; ++i) value[h][i] *= keep;
      PITH_UNROLL
      for (uint32_t j = 0; j < kRowsAhead; ++j) {
        const float weight = rescale(score[j][h], largest);
        part[h].sum += weight;
        PITH_UNROLL
        for (uint32_t i = 0; i < 8; ++i) value[h][i] = fma_f32(weight, v[j][i], value[h][i]);
      }
    }
  }

  PITH_UNROLL
  for (uint32_t h = 0; h < kHeads; ++h) {
    for (uint32_t mask = lanes_per_row; mask < kWarp; mask *= 2) {
      const float other = shuffle_xor(part[h].largest, static_cast<int>(mask));
      const float largest = max_f32(part[h].largest, other), keep = rescale(part[h].largest, largest);
      part[h].largest = largest;
      part[h].sum *= keep;
      part[h].sum += shuffle_xor(part[h].sum, static_cast<int>(mask));
      PITH_UNROLL
      for (uint32_t i = 0; i < 8; ++i) {
        value[h][i] *= keep;
        value[h][i] += shuffle_xor(value[h][i], static_cast<int>(mask));
      }
    }
    float* const mine = merge + (warp * kHeads + h) * (a.head_dim + 2);
    if (sub == 0 && active) {
      PITH_UNROLL
      for (uint32_t i = 0; i < 8; ++i) mine[d0 + i] = value[h][i];
    }
    if (lane == 0) {
      mine[a.head_dim] = part[h].largest;
      mine[a.head_dim + 1] = part[h].sum;
    }
  }
}

// Element d of n parts `stride` floats apart, merged in order; the sum of weights goes to `sum`, their maximum to `largest`.
template <typename Load>
PITH_DEVICE float merge_parts(uint32_t n, uint32_t stride, uint32_t head_dim, uint32_t d, const float* parts,
                              const Load& load, SoftmaxPart& merged) {
  merged = {-INFINITY, 0};
  for (uint32_t i = 0; i < n; ++i)
    merged.largest = max_f32(merged.largest, load(parts + uint64_t{i} * stride + head_dim));
  float value = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const float* const part = parts + uint64_t{i} * stride;
    const float weight = rescale(load(part + head_dim), merged.largest);
    merged.sum = fma_f32(weight, load(part + head_dim + 1), merged.sum);
    value = fma_f32(weight, load(part + d), value);
  }
  return value;
}

template <uint32_t kHeads, bool kI8>
PITH_DEVICE void attention_decode_body(const AttentionDecode& a, uint8_t* shared) {
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, n_warps = n_threads() / kWarp;
  const uint32_t kv_head = block_index(), split = block_index_y(), n_splits = n_blocks_y();
  const uint32_t n_group = a.n_heads / a.n_kv_heads;
  const AttentionDecodeShared layout(a, n_warps, kHeads);
  float* const q = reinterpret_cast<float*>(shared + layout.q);
  float* const new_kv = reinterpret_cast<float*>(shared + layout.new_kv);
  float* const merge = reinterpret_cast<float*>(shared + layout.merge);

  launch_dependents();
  depend();
  const uint32_t position = static_cast<uint32_t>(*a.position);
  const uint32_t first_row = a.window != 0 && position + 1 > a.window ? position + 1 - a.window : 0;
  const uint32_t n_rows = position + 1 - first_row, rows_per_split = (n_rows + n_splits - 1) / n_splits;
  const uint32_t begin =
      first_row + split * rows_per_split < position + 1 ? first_row + split * rows_per_split : position + 1;
  const uint32_t end = begin + rows_per_split < position + 1 ? begin + rows_per_split : position + 1;
  const bool appends = begin <= position && position < end;

  for (uint32_t i = warp; i < n_group + 2; i += n_warps) {
    if (i < n_group) {
      prepare_head(a.qkv + (uint64_t{kv_head} * n_group + i) * a.head_dim, a.q_norm, a.norm_eps, a.rope,
                   position, a.head_dim, lane, q + i * a.head_dim);
    } else if (appends) {
      const bool is_v = i == n_group + 1;
      const float* from = a.qkv + (uint64_t{a.n_heads} + (is_v ? a.n_kv_heads : 0) + kv_head) * a.head_dim;
      float* const row = new_kv + (is_v ? a.head_dim : 0);
      prepare_head(from, is_v ? nullptr : a.k_norm, a.norm_eps, is_v ? Rotation{} : a.rope, position,
                   a.head_dim, lane, row);
      sync_warp();
      const uint64_t rows_before = uint64_t{kv_head} * a.n_ctx;
      uint8_t* const rows = (is_v ? a.v : a.k) + rows_before * a.head_dim * (kI8 ? 1 : 2);
      store_cache_row(row, rows, kI8 ? (is_v ? a.v_scale : a.k_scale) + rows_before : nullptr, position,
                      a.head_dim, lane);
    }
  }
  sync_block();

  for (uint32_t first = 0; first < n_group; first += kHeads) {
    attend_rows<kHeads, kI8>(a, kv_head, begin, end, first, n_group, q, merge);
    sync_block();
    const uint32_t n_real = n_group - first < kHeads ? n_group - first : kHeads, stride = a.head_dim + 2;
    for (uint32_t i = thread_index(); i < n_real * a.head_dim; i += n_threads()) {
      const uint32_t h = i / a.head_dim, d = i % a.head_dim, head = kv_head * n_group + first + h;
      SoftmaxPart merged;
      const float value = merge_parts(
          n_warps, kHeads * stride, a.head_dim, d, merge + h * stride, [](const float* p) { return *p; },
          merged);
      if (n_splits == 1) {
        a.out[uint64_t{head} * a.head_dim + d] =
            finish_softmax(value, merged.largest, merged.sum, a.sinks, head);
        continue;
      }
      float* const part = a.parts + (uint64_t{head} * n_splits + split) * stride;
      part[d] = value;
      if (d == 0) {
        part[a.head_dim] = merged.largest;
        part[a.head_dim + 1] = merged.sum;
      }
    }
    sync_block();
  }
  if (n_splits == 1) return;

  fence_device();
  sync_block();
  uint32_t* const arrived = reinterpret_cast<uint32_t*>(merge);
  if (thread_index() == 0) *arrived = take_ticket(a.tickets + kv_head);
  sync_block();
  if (*arrived + 1 != n_splits) return;
  fence_device();
  for (uint32_t i = thread_index(); i < n_group * a.head_dim; i += n_threads()) {
    const uint32_t head = kv_head * n_group + i / a.head_dim, d = i % a.head_dim, stride = a.head_dim + 2;
    SoftmaxPart merged;
    const float value = merge_parts(
        n_splits, stride, a.head_dim, d, a.parts + uint64_t{head} * n_splits * stride,
        [](const float* p) { return load_coherent(p); }, merged);
    a.out[uint64_t{head} * a.head_dim + d] = finish_softmax(value, merged.largest, merged.sum, a.sinks, head);
  }
  if (thread_index() == 0) a.tickets[kv_head] = 0;
}

}  // namespace pith::cuda
