// Body of causal attention for many tokens: tiles of 64 queries against tiles of 64 cached positions (32 of each where heads are long).
//
//   out[t, h] = sum_p softmax_p(cap(scale * q[t, h] . k[p])) v[p]      p <= position of t, within the window; a sink may take part
//
// Shapes: q in qkv [n_tokens, (n_heads + 2 n_kv_heads) * head_dim] float, made ready by append_tokens_body; the cache holds the
// tokens' own rows already; out [n_tokens, n_heads * head_dim]. head_dim <= kDim, a multiple of 8.
//
// Grid (ceil(n_tokens / 64), n_heads), 4 warps (32, 2): warp k has queries 16 k ... Per tile of positions: K and V come to shared memory as
// fp16, V transposed; S = Q K' and O += P V by mma.m16n8k16, softmax running in registers between them (rows g and g + 8 of a
// lane's fragments; the four lanes of a row share maxima by shuffles), P going from the one product's result to the other's
// operand without leaving the registers.
//
// Shared memory, fp16: q [64][kDim + 8] | k [64][kDim + 8] | v' [kDim][72] (32, 32, 40): the 8 extra make fragment reads conflict-free.
// Rounds q, k * scale and the weights to fp16: relative error of a weight about 2^-11 * |score| / sqrt(head_dim), of the
// result about 2^-11.
// Bound by: the matrix units for long prompts. Speed: not measured.
#pragma once
#include "cuda/rows.cuh"

namespace pith::cuda {

// Of heads of up to kDim elements. Long ones take smaller tiles: a block of sm_75 has 64 KB, of sm_86, 89 and 120 99 KB.
template <uint32_t kDim>
struct AttentionPrefillTile {
  static constexpr uint32_t kQueries = kDim > 128 ? 32 : 64, kKeys = kQueries, kWarps = kQueries / 16;
  static constexpr uint32_t kStride = kDim + 8, kValueStride = kKeys + 8;  // of q and k, of v', in elements
  static constexpr uint32_t kKeysAt = kQueries * kStride * 2, kValuesAt = kKeysAt + kKeys * kStride * 2,
                            kSharedBytes = kValuesAt + kDim * kValueStride * 2;
  static_assert(kSharedBytes <= 64 * 1024);
};

// Rows first .. first + kKeys of one head's cache to fp16; rows from `end` on and elements beyond head_dim are zero.
template <uint32_t kDim, bool kI8, bool kTransposed>
PITH_DEVICE void stage_cache_rows(const uint8_t* rows, const float* scales, uint32_t head_dim, uint32_t first,
                                  uint32_t end, uint16_t* to) {
  using Tile = AttentionPrefillTile<kDim>;
  for (uint32_t i = thread_index(); i < Tile::kKeys * (kDim / 8); i += n_threads()) {
    const uint32_t row = i % Tile::kKeys,
                   d0 = i / Tile::kKeys * 8;  // neighbours write neighbours when transposed
    float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (first + row < end && d0 < head_dim) {
      load_cache8<kI8>(rows, uint64_t{first + row} * head_dim + d0, v);
      if constexpr (kI8) {
        const float scale = scales[first + row];
        PITH_UNROLL
        for (uint32_t j = 0; j < 8; ++j) v[j] *= scale;
      }
    }
    if constexpr (kTransposed) {
      PITH_UNROLL
      for (uint32_t j = 0; j < 8; ++j) to[(d0 + j) * Tile::kValueStride + row] = f32_to_f16(v[j]);
    } else {
      store16(to + row * Tile::kStride + d0,
              {pack_f16(v[0], v[1]), pack_f16(v[2], v[3]), pack_f16(v[4], v[5]), pack_f16(v[6], v[7])});
    }
  }
}

struct RowSoftmax {
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // rows g, g + 8
};

// Scores of the tile to weights, masked; rescales `out` by what the maxima moved.
template <uint32_t kTiles, uint32_t kTilesOut>
PITH_DEVICE void soften_tile(const AttentionPrefill& a, uint32_t key0, const uint32_t (&position)[2],
                             uint32_t t, float (&s)[kTiles][4], RowSoftmax& state,
                             float (&out)[kTilesOut][4]) {
  float largest[2] = {state.largest[0], state.largest[1]};
  PITH_UNROLL
  for (uint32_t n = 0; n < kTiles; ++n) {
    PITH_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t key = key0 + n * 8 + 2 * t + i % 2, own = position[i / 2];
      const bool seen = key <= own && (a.window == 0 || key + a.window > own);
      s[n][i] = seen ? kLog2E * soft_cap(s[n][i] * a.scale, a.softcap) : -INFINITY;
      largest[i / 2] = max_f32(largest[i / 2], s[n][i]);
    }
  }
  PITH_UNROLL
  for (int r = 0; r < 2; ++r) {
    largest[r] = max_f32(largest[r], shuffle_xor(largest[r], 1));
    largest[r] = max_f32(largest[r], shuffle_xor(largest[r], 2));
    const float keep = rescale(state.largest[r], largest[r]);
    state.largest[r] = largest[r];
    state.sum[r] *= keep;
    PITH_UNROLL
    for (uint32_t n = 0; n < kTilesOut; ++n) {
      out[n][2 * r] *= keep;
      out[n][2 * r + 1] *= keep;
    }
  }
  PITH_UNROLL
  for (uint32_t n = 0; n < kTiles; ++n) {
    PITH_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      s[n][i] = rescale(s[n][i], largest[i / 2]);
      state.sum[i / 2] += s[n][i];  // the lane's own columns; the row's other lanes are added at the end
    }
  }
}

template <uint32_t kDim, bool kI8>
PITH_DEVICE void attention_prefill_body(const AttentionPrefill& a, uint8_t* shared) {
  using Tile = AttentionPrefillTile<kDim>;
  constexpr uint32_t kStride = Tile::kStride, kQueryTile = Tile::kQueries, kKeyTile = Tile::kKeys;
  uint16_t* const q = reinterpret_cast<uint16_t*>(shared);
  uint16_t* const k = reinterpret_cast<uint16_t*>(shared + Tile::kKeysAt);
  uint16_t* const v = reinterpret_cast<uint16_t*>(shared + Tile::kValuesAt);
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, g = lane / 4, t = lane % 4;
  const uint32_t first = block_index() * kQueryTile, head = block_index_y(),
                 kv_head = head / (a.n_heads / a.n_kv_heads);
  const uint32_t row_floats = (a.n_heads + 2 * a.n_kv_heads) * a.head_dim;

  launch_dependents();
  depend();
  const uint32_t position = static_cast<uint32_t>(*a.position);
  for (uint32_t i = thread_index(); i < kQueryTile * (kDim / 2); i += n_threads()) {
    const uint32_t row = i / (kDim / 2), d = i % (kDim / 2) * 2;
    const bool exists = first + row < a.n_tokens && d < a.head_dim;
    const float* const from = a.qkv + uint64_t{first + row} * row_floats + head * a.head_dim + d;
    store4(q + row * kStride + d, exists ? pack_f16(from[0], from[1]) : 0u);
  }

  const uint32_t n_queries = a.n_tokens - first < kQueryTile ? a.n_tokens - first : kQueryTile;
  const uint32_t end = position + first + n_queries;  // positions the tile's last query sees
  const uint32_t own[2] = {position + first + warp * 16 + g, position + first + warp * 16 + g + 8};
  const uint32_t lowest = position + first + 1;
  const uint32_t begin = a.window != 0 && lowest > a.window ? (lowest - a.window) / kKeyTile * kKeyTile : 0;
  const uint64_t rows_before = uint64_t{kv_head} * a.n_ctx;
  constexpr uint32_t kElement = kI8 ? 1 : 2;
  const uint8_t* const k_rows = a.k + rows_before * a.head_dim * kElement;
  const uint8_t* const v_rows = a.v + rows_before * a.head_dim * kElement;

  float out[kDim / 8][4];
  PITH_UNROLL
  for (uint32_t i = 0; i < kDim / 2; ++i) out[i / 4][i % 4] = 0;
  RowSoftmax state;
  for (uint32_t key0 = begin; key0 < end; key0 += kKeyTile) {
    sync_block();
    stage_cache_rows<kDim, kI8, false>(k_rows, kI8 ? a.k_scale + rows_before : nullptr, a.head_dim, key0, end,
                                       k);
    stage_cache_rows<kDim, kI8, true>(v_rows, kI8 ? a.v_scale + rows_before : nullptr, a.head_dim, key0, end,
                                      v);
    sync_block();

    float s[kKeyTile / 8][4];
    PITH_UNROLL
    for (uint32_t i = 0; i < kKeyTile / 2; ++i) s[i / 4][i % 4] = 0;
    PITH_UNROLL
    for (uint32_t step = 0; step < kDim / 16; ++step) {
      const uint16_t* const rows = q + (warp * 16 + g) * kStride + step * 16 + 2 * t;
      const uint32_t fragment[4] = {load4(rows), load4(rows + 8 * kStride), load4(rows + 8),
                                    load4(rows + 8 * kStride + 8)};
      PITH_UNROLL
      for (uint32_t n = 0; n < kKeyTile / 8; ++n) {
        const uint16_t* const row = k + (n * 8 + g) * kStride + step * 16 + 2 * t;
        mma_f16(s[n], fragment, load4(row), load4(row + 8));
      }
    }
    soften_tile(a, key0, own, t, s, state, out);
    PITH_UNROLL
    for (uint32_t step = 0; step < kKeyTile / 16; ++step) {
      const float(&s0)[4] = s[2 * step];
      const float(&s1)[4] = s[2 * step + 1];
      const uint32_t fragment[4] = {pack_f16(s0[0], s0[1]), pack_f16(s0[2], s0[3]), pack_f16(s1[0], s1[1]),
                                    pack_f16(s1[2], s1[3])};
      PITH_UNROLL
      for (uint32_t n = 0; n < kDim / 8; ++n) {
        const uint16_t* const row = v + (n * 8 + g) * Tile::kValueStride + step * 16 + 2 * t;
        mma_f16(out[n], fragment, load4(row), load4(row + 8));
      }
    }
  }

  PITH_UNROLL
  for (uint32_t r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const uint32_t token = first + warp * 16 + g + 8 * r;
    if (token >= a.n_tokens) continue;
    float* const to = a.out + (uint64_t{token} * a.n_heads + head) * a.head_dim;
    PITH_UNROLL
    for (uint32_t n = 0; n < kDim / 8; ++n) {
      const uint32_t d = n * 8 + 2 * t;
      if (d >= a.head_dim) continue;
      to[d] = finish_softmax(out[n][2 * r], state.largest[r], sum, a.sinks, head);
      to[d + 1] = finish_softmax(out[n][2 * r + 1], state.largest[r], sum, a.sinks, head);
    }
  }
}

}  // namespace pith::cuda
