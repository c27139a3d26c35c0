// The key/value cache and attention, written once over a vector type (generic.h). What is computed: kernels.h.
#pragma once
#include <cstddef>

#include "runtime/cpu/generic_math.h"
#include "runtime/cpu/kernels.h"

namespace pith::cpu {

template <class V>
struct Attention {
  // Rounds x [n] to int8 and returns the scale.
  static float round_i8(const float* x, uint32_t n, int8_t* out) {
    V largest = V::set1(0);
    for_each_vector<V>(n,
                       [&](uint32_t i, auto load, auto) { largest = V::max(largest, V::abs(load(x + i))); });
    const Scale scale(V::reduce_max(largest), kByteLimit);
    const V inverse = V::set1(scale.inverse), magic = V::set1(kMagic);
    for_each_vector<V>(n, [&](uint32_t i, auto load, auto) {
      int8_t a[16];
      (load(x + i) * inverse + magic - magic).store_i8(a);
      for (uint32_t j = 0; j < 16 && i + j < n; ++j) out[i + j] = a[j];
    });
    return scale.step;
  }

  static void append(const KvHead& kv, uint32_t position, const float* k, const float* v) {
    const size_t tile = size_t{position / 16} * kv.head_dim * 16 + position % 16;
    const size_t row = size_t{position} * kv.padded_head_dim;
    if (kv.k_scale != nullptr) {
      int8_t rounded[kMaxHeadDim];
      kv.k_scale[position] = round_i8(k, kv.head_dim, rounded);
      int8_t* const k8 = reinterpret_cast<int8_t*>(kv.k) + tile;
      for (uint32_t d = 0; d < kv.head_dim; ++d) k8[size_t{d} * 16] = rounded[d];
      kv.v_scale[position] = round_i8(v, kv.head_dim, reinterpret_cast<int8_t*>(kv.v) + row);
      return;
    }
    uint16_t* const k16 = reinterpret_cast<uint16_t*>(kv.k) + tile;
    uint16_t* const v16 = reinterpret_cast<uint16_t*>(kv.v) + row;
    const V low = V::set1(-65504.0f), high = V::set1(65504.0f);
    for_each_vector<V>(kv.head_dim, [&](uint32_t i, auto load, auto) {
      uint16_t a[16];
      V::max(low, V::min(high, load(k + i))).store_f16(a);
      for (uint32_t j = 0; j < 16 && i + j < kv.head_dim; ++j) k16[size_t{i + j} * 16] = a[j];
      V::max(low, V::min(high, load(v + i))).store_f16(a);
      for (uint32_t j = 0; j < 16 && i + j < kv.head_dim; ++j) v16[i + j] = a[j];
    });
  }

  template <bool kI8>
  static V load_kv(const uint8_t* p, size_t element) {
    if constexpr (kI8)
      return V::load_i8(reinterpret_cast<const int8_t*>(p) + element);
    else
      return V::load_f16(reinterpret_cast<const uint16_t*>(p) + element);
  }

  // Asks for as many bytes as a step consumes. The cache is streamed from memory in two sequences, k and v of segment
  // after segment; while one is worked on, the same amount of what comes next is on its way.
  template <uint32_t kBytes>
  static void fetch(const uint8_t* ahead, size_t step) {
    for (uint32_t i = 0; i < kBytes; i += 64) __builtin_prefetch(ahead + step * kBytes + i);
  }

  // scores[q, 16 * tile ..] = q . k for kQueries queries and kTiles tiles of 16 positions.
  template <bool kI8, uint32_t kQueries, uint32_t kTiles>
  static void score_tile(const KvHead& kv, uint32_t first_tile, const Query* queries, float* scores,
                         const uint8_t* ahead) {
    V acc[kQueries][kTiles];
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t t = 0; t < kTiles; ++t) acc[q][t] = V::set1(0);
    const size_t tile_size = size_t{kv.head_dim} * 16;
    for (uint32_t d = 0; d < kv.head_dim; ++d) {
      fetch<kTiles * 16 * (kI8 ? 1 : 2)>(ahead, d);
      V k[kTiles];
      for (uint32_t t = 0; t < kTiles; ++t)
        k[t] = load_kv<kI8>(kv.k, (first_tile + t) * tile_size + size_t{d} * 16);
      for (uint32_t q = 0; q < kQueries; ++q) {
        const V x = V::set1(queries[q].q[d]);
        for (uint32_t t = 0; t < kTiles; ++t) acc[q][t] = V::fma(x, k[t], acc[q][t]);
      }
    }
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t t = 0; t < kTiles; ++t) acc[q][t].store(scores + q * kSegment + t * 16);
  }

  // All scores of a segment's tiles [tile_begin, tile_end), absolute tile numbers.
  template <bool kI8>
  static void score(const KvHead& kv, uint32_t segment, uint32_t tile_begin, uint32_t tile_end,
                    const Query* queries, uint32_t n_queries, float* scores) {
    const uint32_t first = segment * (kSegment / 16);
    const auto ahead = [&](uint32_t t) {  // v of the tile's positions
      return kv.v + size_t{t} * 16 * kv.padded_head_dim * (kI8 ? 1 : 2);
    };
    uint32_t q = 0;
    for (; q + 4 <= n_queries; q += 4) {
      float* const row = scores + size_t{q} * kSegment;
      uint32_t t = tile_begin;
      for (; V::kRegisters >= 32 && t + 4 <= tile_end; t += 4)
        score_tile<kI8, 4, 4>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
      for (; t + 2 <= tile_end; t += 2)
        score_tile<kI8, 4, 2>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
      for (; t < tile_end; ++t) score_tile<kI8, 4, 1>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
    }
    for (; q < n_queries; ++q) {
      float* const row = scores + size_t{q} * kSegment;
      uint32_t t = tile_begin;
      for (; t + 4 <= tile_end; t += 4)
        score_tile<kI8, 1, 4>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
      for (; t < tile_end; ++t) score_tile<kI8, 1, 1>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
    }
  }

  // Scores to probabilities times the segment's sum, zero outside the query's range within the tiles.
  static void soften(const KvHead& kv, uint32_t segment, uint32_t tile_begin, uint32_t tile_end,
                     const Query& query, float scale, float softcap, float* scores) {
    const uint32_t base = segment * kSegment;
    V largest = V::set1(-__builtin_inff());
    // A lane's range within its tile: [begin, end) of the query, cut to 0 .. 16.
    const auto from = [&](uint32_t p) {
      return query.begin > p ? (query.begin - p < 16 ? query.begin - p : 16) : 0;
    };
    const auto to = [&](uint32_t p) { return query.end > p ? (query.end - p < 16 ? query.end - p : 16) : 0; };
    const auto keep = [&](V x, uint32_t p, float other) {
      const bool whole_tile = query.begin <= p && p + 16 <= query.end;
      return whole_tile ? x : V::keep(x, from(p), to(p), other);
    };
    for (uint32_t t = tile_begin; t < tile_end; ++t) {
      const uint32_t p = t * 16;
      V s = V::load(scores + (p - base)) * V::set1(scale);
      if (kv.k_scale != nullptr) s = s * V::load(kv.k_scale + p);
      if (softcap != 0) s = soft_capped(s, softcap);
      s = keep(s, p, -__builtin_inff());
      s.store(scores + (p - base));
      largest = V::max(largest, s);
    }
    const float max = V::reduce_max(largest);
    V sum = V::set1(0);
    for (uint32_t t = tile_begin; t < tile_end; ++t) {
      const uint32_t p = t * 16;
      V e = keep(exp(V::load(scores + (p - base)) - V::set1(max)), p, 0);
      sum = sum + e;
      if (kv.v_scale != nullptr) e = keep(e * V::load(kv.v_scale + p), p, 0);
      e.store(scores + (p - base));
    }
    query.out[kv.padded_head_dim] = max;
    query.out[kv.padded_head_dim + 1] = V::reduce_add(sum);
  }

  // out[q][d ..] = sum over positions of p * v for kQueries queries and kVectors vectors of dimensions.
  template <bool kI8, uint32_t kQueries, uint32_t kVectors>
  static void value_tile(const KvHead& kv, uint32_t base, uint32_t begin, uint32_t end, uint32_t d,
                         const Query* queries, const float* scores) {
    constexpr uint32_t kBytes = kVectors * 16 * (kI8 ? 1 : 2);
    // k of the next segment: this column of values takes its share of it
    const uint8_t* const ahead =
        kv.k + (size_t{base} + kSegment) * kv.head_dim * (kI8 ? 1 : 2) + size_t{d} * kSegment * (kI8 ? 1 : 2);
    V acc[kQueries][kVectors];
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t i = 0; i < kVectors; ++i) acc[q][i] = V::set1(0);
    for (uint32_t p = begin; p < end; ++p) {
      fetch<kBytes>(ahead, p - base);
      V v[kVectors];
      for (uint32_t i = 0; i < kVectors; ++i)
        v[i] = load_kv<kI8>(kv.v, size_t{p} * kv.padded_head_dim + d + i * 16);
      for (uint32_t q = 0; q < kQueries; ++q) {
        const V weight = V::set1(scores[q * kSegment + (p - base)]);
        for (uint32_t i = 0; i < kVectors; ++i) acc[q][i] = V::fma(weight, v[i], acc[q][i]);
      }
    }
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t i = 0; i < kVectors; ++i) acc[q][i].store(queries[q].out + d + i * 16);
  }

  template <bool kI8>
  static void value(const KvHead& kv, uint32_t base, uint32_t begin, uint32_t end, const Query* queries,
                    uint32_t n_queries, const float* scores) {
    uint32_t q = 0;
    for (; q + 4 <= n_queries; q += 4) {
      const float* const row = scores + size_t{q} * kSegment;
      uint32_t d = 0;
      for (; V::kRegisters >= 32 && d + 64 <= kv.padded_head_dim; d += 64)
        value_tile<kI8, 4, 4>(kv, base, begin, end, d, queries + q, row);
      for (; d + 32 <= kv.padded_head_dim; d += 32)
        value_tile<kI8, 4, 2>(kv, base, begin, end, d, queries + q, row);
      for (; d < kv.padded_head_dim; d += 16)
        value_tile<kI8, 4, 1>(kv, base, begin, end, d, queries + q, row);
    }
    for (; q < n_queries; ++q) {
      const float* const row = scores + size_t{q} * kSegment;
      uint32_t d = 0;
      for (; d + 128 <= kv.padded_head_dim; d += 128)
        value_tile<kI8, 1, 8>(kv, base, begin, end, d, queries + q, row);
      for (; d + 64 <= kv.padded_head_dim; d += 64)
        value_tile<kI8, 1, 4>(kv, base, begin, end, d, queries + q, row);
      for (; d < kv.padded_head_dim; d += 16)
        value_tile<kI8, 1, 1>(kv, base, begin, end, d, queries + q, row);
    }
  }

  static void attend(const KvHead& kv, uint32_t segment, const Query* queries, uint32_t n_queries,
                     float scale, float softcap, float* scores) {
    uint32_t begin = queries[0].begin, end = queries[0].end;
    for (uint32_t q = 1; q < n_queries; ++q) {
      begin = queries[q].begin < begin ? queries[q].begin : begin;
      end = queries[q].end > end ? queries[q].end : end;
    }
    const uint32_t base = segment * kSegment, tile_begin = begin / 16, tile_end = (end + 15) / 16;
    const bool i8 = kv.k_scale != nullptr;
    if (i8)
      score<true>(kv, segment, tile_begin, tile_end, queries, n_queries, scores);
    else
      score<false>(kv, segment, tile_begin, tile_end, queries, n_queries, scores);
    for (uint32_t q = 0; q < n_queries; ++q)
      soften(kv, segment, tile_begin, tile_end, queries[q], scale, softcap, scores + size_t{q} * kSegment);
    if (i8)
      value<true>(kv, base, begin, end, queries, n_queries, scores);
    else
      value<false>(kv, base, begin, end, queries, n_queries, scores);
  }

  static void combine(float* into, const float* part, uint32_t padded_head_dim) {
    float& max = into[padded_head_dim];
    float& sum = into[padded_head_dim + 1];
    const float part_max = part[padded_head_dim], new_max = max > part_max ? max : part_max;
    float factors[16] = {max - new_max, part_max - new_max};
    exp(V::load(factors)).store(factors);
    const V keep = V::set1(factors[0]), add = V::set1(factors[1]);
    for (uint32_t d = 0; d < padded_head_dim; d += 16)
      V::fma(V::load(part + d), add, V::load(into + d) * keep).store(into + d);
    sum = __builtin_fmaf(part[padded_head_dim + 1], factors[1], sum * factors[0]);
    max = new_max;
  }

  static void finish(const float* sums, uint32_t head_dim, uint32_t padded_head_dim, float* out) {
    const V sum = V::set1(sums[padded_head_dim + 1]);
    for_each_vector<V>(head_dim,
                       [&](uint32_t i, auto, auto store) { store(V::load(sums + i) / sum, out + i); });
  }
};

}  // namespace pith::cpu
