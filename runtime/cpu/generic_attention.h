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

  static V load_kv(const float* p) { return V::load(p); }
  static V load_kv(const uint16_t* p) { return V::load_f16(p); }
  static V load_kv(const int8_t* p) { return V::load_i8(p); }

  // Asks for as many bytes as a step consumes. The cache is streamed from memory in two sequences, k and v of segment
  // after segment; while one is worked on, the same amount of what comes next is on its way.
  template <uint32_t kBytes>
  static void fetch(const uint8_t* ahead, size_t step) {
    for (uint32_t i = 0; i < kBytes; i += 64) __builtin_prefetch(ahead + step * kBytes + i);
  }

  // From kShared queries on (a prompt's), keys and values are converted to floats once for all of them, kWidened positions at
  // a time (L1), and not once for four: a conversion takes as long as two products, of which it then serves sixteen.
  static constexpr uint32_t kShared = 16;
  // Vectors whose sums stay in registers for four queries; of floats fewer will do, because loads of them cost nothing.
  static constexpr uint32_t kVectors = V::kRegisters >= 32 ? 4 : 2,
                            kWideVectors = V::kRegisters >= 32 ? 4 : 1;

  template <class T>
  static void widen(const T* from, size_t n, float* out) {
    for (size_t i = 0; i < n; i += 16) load_kv(from + i).store(out + i);
  }

  // scores[q, ..] = q . k for kQueries queries and kTiles tiles of 16 positions.
  template <class T, uint32_t kQueries, uint32_t kTiles>
  static void score_tile(const T* k, uint32_t head_dim, const Query* queries, float* scores,
                         const uint8_t* ahead) {
    V acc[kQueries][kTiles];
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t t = 0; t < kTiles; ++t) acc[q][t] = V::set1(0);
    for (uint32_t d = 0; d < head_dim; ++d) {
      if (ahead != nullptr) fetch<kTiles * 16 * sizeof(T)>(ahead, d);
      V keys[kTiles];
      for (uint32_t t = 0; t < kTiles; ++t) keys[t] = load_kv(k + (size_t{t} * head_dim + d) * 16);
      for (uint32_t q = 0; q < kQueries; ++q) {
        const V x = V::set1(queries[q].q[d]);
        for (uint32_t t = 0; t < kTiles; ++t) acc[q][t] = V::fma(x, keys[t], acc[q][t]);
      }
    }
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t t = 0; t < kTiles; ++t) acc[q][t].store(scores + q * kSegment + t * 16);
  }
  // All queries, kQueries at a time, and n_tiles tiles; returns how many queries that were.
  template <class T, uint32_t kQueries, uint32_t kTiles>
  static uint32_t score_tiles(const T* k, uint32_t head_dim, uint32_t n_tiles, const Query* queries,
                              uint32_t n_queries, float* scores, const uint8_t* ahead) {
    uint32_t q = 0;
    for (; q + kQueries <= n_queries; q += kQueries) {
      const auto tiles = [&]<uint32_t kNow>(uint32_t t) {
        const size_t at = size_t{t} * head_dim * 16;
        score_tile<T, kQueries, kNow>(k + at, head_dim, queries + q, scores + q * kSegment + t * 16,
                                      ahead == nullptr ? nullptr : ahead + at * sizeof(T));
      };
      uint32_t t = 0;
      for (; t + kTiles <= n_tiles; t += kTiles) tiles.template operator()<kTiles>(t);
      for (; kTiles > 2 && t + 2 <= n_tiles; t += 2) tiles.template operator()<2>(t);
      for (; t < n_tiles; ++t) tiles.template operator()<1>(t);
    }
    return q;
  }

  // All scores of a segment's tiles [tile_begin, tile_end), absolute tile numbers. wide: [kWidened, head_dim]
  template <class T>
  static void score(const KvHead& kv, uint32_t segment, uint32_t tile_begin, uint32_t tile_end,
                    const Query* queries, uint32_t n_queries, float* scores, float* wide) {
    const size_t tile_size = size_t{kv.head_dim} * 16;
    const T* const k = reinterpret_cast<const T*>(kv.k);
    const uint8_t* const ahead =  // v of the same positions
        kv.v + size_t{tile_begin} * 16 * kv.padded_head_dim * sizeof(T);
    const uint32_t n_tiles = tile_end - tile_begin;
    float* const first = scores + (tile_begin - segment * (kSegment / 16)) * 16;
    uint32_t done = 0;
    if (n_queries >= kShared) {
      for (uint32_t t = tile_begin; t < tile_end; t += kWidened / 16) {
        const uint32_t n = tile_end - t < kWidened / 16 ? tile_end - t : kWidened / 16;
        widen(k + t * tile_size, n * tile_size, wide);
        done = score_tiles<float, 4, kWideVectors>(wide, kv.head_dim, n, queries, n_queries,
                                                   first + (t - tile_begin) * 16, nullptr);
      }
    } else {
      done = score_tiles<T, 4, kVectors>(k + tile_begin * tile_size, kv.head_dim, n_tiles, queries, n_queries,
                                         first, ahead);
    }
    score_tiles<T, 1, 4>(k + tile_begin * tile_size, kv.head_dim, n_tiles, queries + done, n_queries - done,
                         first + size_t{done} * kSegment, ahead);
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

  // out[q][d ..] = sum over positions [begin, end) of p * v for kQueries queries and kColumns vectors of dimensions, added to
  // what is there unless `first`. v, p: of position `begin`. ahead: what is asked for meanwhile, or null.
  template <class T, uint32_t kQueries, uint32_t kColumns>
  static void value_tile(const T* v, uint32_t stride, uint32_t n, const Query* queries, const float* p,
                         uint32_t d, bool first, const uint8_t* ahead) {
    V acc[kQueries][kColumns];
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t i = 0; i < kColumns; ++i)
        acc[q][i] = first ? V::set1(0) : V::load(queries[q].out + d + i * 16);
    for (uint32_t at = 0; at < n; ++at) {
      if (ahead != nullptr) fetch<kColumns * 16 * sizeof(T)>(ahead, at);
      V values[kColumns];
      for (uint32_t i = 0; i < kColumns; ++i) values[i] = load_kv(v + size_t{at} * stride + d + i * 16);
      for (uint32_t q = 0; q < kQueries; ++q) {
        const V weight = V::set1(p[q * kSegment + at]);
        for (uint32_t i = 0; i < kColumns; ++i) acc[q][i] = V::fma(weight, values[i], acc[q][i]);
      }
    }
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t i = 0; i < kColumns; ++i) acc[q][i].store(queries[q].out + d + i * 16);
  }
  // All queries, kQueries at a time, and all dimensions; returns how many queries that were. next: k of the next segment, of which
  // each column of values asks for its share.
  template <class T, uint32_t kQueries, uint32_t kColumns>
  static uint32_t value_tiles(const T* v, uint32_t padded_head_dim, uint32_t n, const Query* queries,
                              uint32_t n_queries, const float* p, bool first, const uint8_t* next) {
    uint32_t q = 0;
    for (; q + kQueries <= n_queries; q += kQueries) {
      const auto column = [&]<uint32_t kNow>(uint32_t d) {
        value_tile<T, kQueries, kNow>(v, padded_head_dim, n, queries + q, p + q * kSegment, d, first,
                                      next == nullptr ? nullptr : next + size_t{d} * kSegment * sizeof(T));
      };
      uint32_t d = 0;
      for (; d + kColumns * 16 <= padded_head_dim; d += kColumns * 16)
        column.template operator()<kColumns>(d);
      for (; kColumns > 4 && d + 64 <= padded_head_dim; d += 64) column.template operator()<4>(d);
      for (; kColumns > 2 && d + 32 <= padded_head_dim; d += 32) column.template operator()<2>(d);
      for (; d < padded_head_dim; d += 16) column.template operator()<1>(d);
    }
    return q;
  }

  // wide: [kWidened, padded_head_dim]
  template <class T>
  static void value(const KvHead& kv, uint32_t base, uint32_t begin, uint32_t end, const Query* queries,
                    uint32_t n_queries, const float* scores, float* wide) {
    const uint32_t dim = kv.padded_head_dim;
    const T* const v = reinterpret_cast<const T*>(kv.v) + size_t{begin} * dim;
    const uint8_t* const next = kv.k + (size_t{base} + kSegment) * kv.head_dim * sizeof(T);
    const uint32_t n_positions = end - begin;
    const float* const p = scores + (begin - base);
    uint32_t done = 0;
    if (n_queries >= kShared) {
      for (uint32_t at = 0; at < n_positions; at += kWidened) {
        const uint32_t n = n_positions - at < kWidened ? n_positions - at : kWidened;
        widen(v + size_t{at} * dim, size_t{n} * dim, wide);
        done =
            value_tiles<float, 4, kWideVectors>(wide, dim, n, queries, n_queries, p + at, at == 0, nullptr);
      }
    } else {
      done = value_tiles<T, 4, kVectors>(v, dim, n_positions, queries, n_queries, p, true, next);
    }
    value_tiles<T, 1, 8>(v, dim, n_positions, queries + done, n_queries - done, p + size_t{done} * kSegment,
                         true, next);
  }

  static void attend(const KvHead& kv, uint32_t segment, const Query* queries, uint32_t n_queries,
                     float scale, float softcap, float* scratch) {
    float* const scores = scratch;
    float* const wide = scratch + size_t{kMaxQueries} * kSegment;
    uint32_t begin = queries[0].begin, end = queries[0].end;
    for (uint32_t q = 1; q < n_queries; ++q) {
      begin = queries[q].begin < begin ? queries[q].begin : begin;
      end = queries[q].end > end ? queries[q].end : end;
    }
    const uint32_t base = segment * kSegment, tile_begin = begin / 16, tile_end = (end + 15) / 16;
    const bool i8 = kv.k_scale != nullptr;
    if (i8)
      score<int8_t>(kv, segment, tile_begin, tile_end, queries, n_queries, scores, wide);
    else
      score<uint16_t>(kv, segment, tile_begin, tile_end, queries, n_queries, scores, wide);
    for (uint32_t q = 0; q < n_queries; ++q)
      soften(kv, segment, tile_begin, tile_end, queries[q], scale, softcap, scores + size_t{q} * kSegment);
    if (i8)
      value<int8_t>(kv, base, begin, end, queries, n_queries, scores, wide);
    else
      value<uint16_t>(kv, base, begin, end, queries, n_queries, scores, wide);
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
