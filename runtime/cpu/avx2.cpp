// AVX2 kernels, and AVX-VNNI ones (avxvnni.cpp). Same bits as scalar.cpp.
//
// Q24, one token: a vector is 8 words (rows) of a half line. Per k-quad p, codes 4*hi + lo (<= 15) as bytes meet the
// broadcast activations in vpmaddubsw: pair sums of at most 3810 for each of the four quads of a line, 15240 together,
// so they add up in int16, and so do two lines (30480) of one group of 32; one vpmaddwd with the scale in both halves
// of a word then gives s * sum in int32. With AVX-VNNI vpdpbusd sums a line in int32 at once, still below 2^15, so two
// lines' sums are packed into int16 pairs and one vpdpwssd applies both scales.
//
// Many tokens: a vector is 8 tokens. A panel's codes are unpacked to bytes first; then four words' are broadcast against 16
// tokens at a time. Lines are summed in pairs: a quad of activations, and of codes, is
//
//   byte 0        1           2        3                 line A: the pair's even line, B: its odd one; i = 0 .. 7
//   [A[2 i]]  [A[2 i + 1]]  [B[2 i]]  [B[2 i + 1]]
//
// so that eight vpmaddubsw leave the sums of both lines in the halves of a word (16 * 15 * 127 fits int16), and one
// vpmaddwd applies both scales. With AVX-VNNI the codes are scaled while they are unpacked (15 * 15 fits a byte), and
// vpdpbusd alone sums a block.
#include <immintrin.h>

#include <utility>

#include "runtime/cpu/generic.h"
#include "runtime/cpu/panel_scratch.h"
#include "runtime/cpu/read_ahead.h"
#include "runtime/cpu/tables.h"
#include "runtime/cpu/vec_avx2.h"

namespace pith::cpu {

namespace {

using Avx2 = Generic<VecAvx2, true>;

#ifdef __AVXVNNI__
constexpr bool kVnni = true;
#else
constexpr bool kVnni = false;
#endif

// Row of panel held by word w, as a table: results leave the kernel in row order.
constexpr uint8_t kWordRow[32] = {0, 8,  16, 24, 1, 9,  17, 25, 2, 10, 18, 26, 3, 11, 19, 27,
                                  4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31};

__m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

__m256i broadcast(const void* four_bytes) {
  int32_t bits;
  __builtin_memcpy(&bits, four_bytes, 4);
  return _mm256_set1_epi32(bits);
}

// Floats of the fp16 in the low halves of 8 words, whose high halves are 0.
__m256 low_halves(__m256i words) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}

// ---- codes and scales ---------------------------------------------------------------------------------------------

// Byte codes 4*hi (+ lo) of the four quads of a line, 8 words.
struct Codes {
  __m256i quad[4];
};
Codes coarse_codes(__m256i hi) {
  const __m256i mask = _mm256_set1_epi8(0x0c);
  return {{_mm256_and_si256(_mm256_slli_epi32(hi, 2), mask), _mm256_and_si256(hi, mask),
           _mm256_and_si256(_mm256_srli_epi32(hi, 2), mask),
           _mm256_and_si256(_mm256_srli_epi32(hi, 4), mask)}};
}
// Nibbles first: quads 0 and 2 of a byte, then 1 and 3.
Codes fine_codes(__m256i hi, __m256i lo) {
  const __m256i even = _mm256_set1_epi8(0x33), odd = _mm256_set1_epi8(static_cast<char>(0xcc)),
                low = _mm256_set1_epi8(0x0f);
  const __m256i q02 =
      _mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(hi, even), 2), _mm256_and_si256(lo, even));
  const __m256i q13 =
      _mm256_or_si256(_mm256_and_si256(hi, odd), _mm256_srli_epi32(_mm256_and_si256(lo, odd), 2));
  return {{_mm256_and_si256(q02, low), _mm256_and_si256(q13, low),
           _mm256_and_si256(_mm256_srli_epi32(q02, 4), low),
           _mm256_and_si256(_mm256_srli_epi32(q13, 4), low)}};
}

// The sum of a line of codes * activations: int32, or its two halves in int16 without VNNI.
__m256i add_quad(__m256i sum, __m256i codes, __m256i a) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(sum, codes, a);
#else
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, a));
#endif
}
__m256i add_products(__m256i acc, __m256i a, __m256i b) {
#ifdef __AVXVNNI__
  return _mm256_dpwssd_avx_epi32(acc, a, b);
#else
  return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
#endif
}

// The low or the high half of every word, twice.
__m256i half_twice(__m256i words, bool high) {
  const __m256i low =
      _mm256_set_epi64x(0x0d0c0d0c09080908, 0x0504050401000100, 0x0d0c0d0c09080908, 0x0504050401000100);
  return _mm256_shuffle_epi8(words, high ? _mm256_add_epi8(low, _mm256_set1_epi8(2)) : low);
}

// Scales and minimums of a pair of lines for 8 words, each as int16 pairs (even line, odd line).
struct PairScales {
  __m256i s, m;
};
template <uint32_t kGroup>
PairScales pair_scales(const uint8_t* scales, uint32_t pair, uint32_t eighth) {
  const uint8_t* const bytes = scales + size_t{kGroup == 16 ? pair : pair / 2} * 64 + eighth * 16;
  __m256i sm = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  if constexpr (kGroup == 32) sm = half_twice(sm, pair % 2 != 0);  // both lines belong to one group
  return {_mm256_and_si256(sm, _mm256_set1_epi16(15)), _mm256_srli_epi16(sm, 4)};
}

// acc + even line's scale * its sum + the odd line's; without VNNI the only sum of a group of 32 is `even`.
template <uint32_t kGroup>
__m256i add_scaled_pair(__m256i acc, __m256i even, __m256i odd, __m256i s) {
  if constexpr (kVnni)
    return add_products(acc, _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa), s);
  if constexpr (kGroup == 32) return add_products(acc, even, s);
  return add_products(add_products(acc, even, half_twice(s, false)), odd, half_twice(s, true));
}

// ---- one token ----------------------------------------------------------------------------------------------------

// Sum of codes * activations for 8 words, in two parts that spare a shift a line: units + 4 * fours. With VNNI only the low
// half of the total counts.
struct Sum {
  __m256i units = _mm256_setzero_si256(), fours = units;

  __m256i total() const { return _mm256_add_epi16(units, _mm256_slli_epi16(fours, 2)); }
};

// Adds a line for 16 words; hi, lo: their 64 bytes of it, lo only of a 4-bit line; a: the line's 16 activations.
[[gnu::always_inline]] inline void add_line(Sum (&sums)[2], const uint8_t* hi, const int8_t* a) {
  const __m256i ones = _mm256_set1_epi8(0x03), fours = _mm256_set1_epi8(0x0c);
  const __m256i h0 = load256(hi), h1 = load256(hi + 32);
  const __m256i up0 = _mm256_srli_epi32(h0, 4), up1 = _mm256_srli_epi32(h1, 4);
  const auto add = [&](__m256i Sum::*part, __m256i mask, __m256i x0, __m256i x1, const int8_t* quad) {
    const __m256i q = broadcast(quad);
    sums[0].*part = add_quad(sums[0].*part, _mm256_and_si256(x0, mask), q);
    sums[1].*part = add_quad(sums[1].*part, _mm256_and_si256(x1, mask), q);
  };
  add(&Sum::fours, ones, h0, h1, a);
  add(&Sum::units, fours, h0, h1, a + 4);
  add(&Sum::fours, ones, up0, up1, a + 8);
  add(&Sum::units, fours, up0, up1, a + 12);
}
[[gnu::always_inline]] inline void add_line(Sum (&sums)[2], const uint8_t* hi, const uint8_t* lo,
                                            const int8_t* a) {
  const Codes c0 = fine_codes(load256(hi), load256(lo)), c1 = fine_codes(load256(hi + 32), load256(lo + 32));
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    const __m256i q = broadcast(a + p * 4);
    sums[0].units = add_quad(sums[0].units, c0.quad[p], q);
    sums[1].units = add_quad(sums[1].units, c1.quad[p], q);
  }
}

// Sums of the outliers of 8 words.
__m256 outlier_sums(const Matrix& m, uint32_t panel, uint32_t quarter, const Input& in,
                    const ReadAhead& ahead) {
  const q24::Layout& l = m.view.layout;
  __m256 sum = _mm256_setzero_ps();
  for (uint32_t slot = 0; slot < l.shape.n_slots; ++slot) {
    if (slot % 4 == quarter) ahead.fetch_beside_outliers(slot);
    const __m256i words =
        load256(m.view.outliers + (size_t{panel} * l.shape.n_slots + slot) * 64 + quarter * 16);
    const __m256i col = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(l.padded_cols)), col);
    const __m256 x = _mm256_i32gather_ps(in.x_hat, _mm256_and_si256(col, inside), 4);
    const __m256 with = _mm256_fmadd_ps(low_halves(_mm256_srli_epi32(words, 16)), x, sum);
    sum = _mm256_blendv_ps(sum, with, _mm256_castsi256_ps(inside));
  }
  return sum;
}

template <uint32_t kGroup>
void q24_one(const Matrix& m, uint32_t panel, const Input& in, float* y) {
  const q24::Layout& l = m.view.layout;
  const uint8_t* const base = m.view.base + size_t{panel} * l.n_lines * q24::kLineBytes;
  const uint8_t* const fine = m.view.fine + size_t{panel} * l.n_fine_lines * q24::kLineBytes;
  const uint8_t* const scales = m.view.scales + panel * l.scales_stride;
  const uint32_t first_fine = l.n_lines - l.n_fine_lines;
  const ReadAhead ahead(m, panel);

  __m256 acc[4];
  __m256i minimums[4];
  for (int i = 0; i < 4; ++i) acc[i] = _mm256_setzero_ps(), minimums[i] = _mm256_setzero_si256();
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    const uint32_t begin = block * 8, end = begin + 8 < l.n_lines ? begin + 8 : l.n_lines;
    const __m256 scale = _mm256_set1_ps(in.scales[block]);
    for (uint32_t line = begin; line < end; line += 2)
      ahead.fetch<kGroup>(base + size_t{line} * q24::kLineBytes, scales, line / 2);
    for (uint32_t half = 0; half < 2; ++half) {  // 16 words: their sums stay in registers
      __m256i big_t[2], big_m[2] = {minimums[half * 2], minimums[half * 2 + 1]};
      for (__m256i& sum : big_t) sum = _mm256_setzero_si256();
      for (uint32_t line = begin; line < end; line += 2) {
        const uint8_t* const hi = base + size_t{line} * q24::kLineBytes + half * 64;
        const auto lo = [&](uint32_t at) {
          return fine + size_t{at - first_fine} * q24::kLineBytes + half * 64;
        };
        const int8_t* const a = in.a + size_t{line} * 16;
        const __m256i sums_a = broadcast(in.sums + line);
        Sum even[2], odds[2];
        Sum(&odd)[2] = kGroup == 32 && !kVnni ? even : odds;  // one scale: one sum
        if (line < first_fine)
          add_line(even, hi, a);
        else
          add_line(even, hi, lo(line), a);
        if (line + 1 < first_fine)
          add_line(odd, hi + q24::kLineBytes, a + 16);
        else
          add_line(odd, hi + q24::kLineBytes, lo(line + 1), a + 16);
#pragma GCC unroll 2
        for (uint32_t i = 0; i < 2; ++i) {
          const PairScales pair = pair_scales<kGroup>(scales, line / 2, half * 2 + i);
          big_t[i] = add_scaled_pair<kGroup>(big_t[i], even[i].total(), odd[i].total(), pair.s);
          big_m[i] = add_products(big_m[i], pair.m, sums_a);
        }
      }
#pragma GCC unroll 2
      for (uint32_t i = 0; i < 2; ++i) {
        __m256& sum = acc[half * 2 + i];
        sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(big_t[i]), sum);
        minimums[half * 2 + i] = big_m[i];
      }
    }
  }

  const uint16_t* const row_scale = m.view.row_scale + size_t{panel} * 64;
  for (uint32_t i = 0; i < 4; ++i) {
    const __m256i both = load256(row_scale + i * 16);  // words {d, dmin}
    const __m256 d = low_halves(_mm256_and_si256(both, _mm256_set1_epi32(0xffff)));
    const __m256 dmin = low_halves(_mm256_srli_epi32(both, 16));
    __m256 sum = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps(0.25f), d), acc[i],
                                 outlier_sums(m, panel, i, in, ahead));
    sum = _mm256_fnmadd_ps(
        dmin, _mm256_mul_ps(_mm256_set1_ps(in.sum_steps[0]), _mm256_cvtepi32_ps(minimums[i])), sum);
    float out[8];
    _mm256_storeu_ps(out, sum);
    for (int w = 0; w < 8; ++w) y[kWordRow[i * 8 + static_cast<uint32_t>(w)]] = out[w];
  }
}

// ---- many tokens --------------------------------------------------------------------------------------------------

// One block of a panel to bytes, scales and minimums, in word order; codes as pairs of lines.
template <uint32_t kGroup>
void unpack_block(const Matrix& m, uint32_t panel, uint32_t block, UnpackedBlock& out) {
  const q24::Layout& l = m.view.layout;
  const uint8_t* const base = m.view.base + size_t{panel} * l.n_lines * q24::kLineBytes;
  const uint8_t* const fine = m.view.fine + size_t{panel} * l.n_fine_lines * q24::kLineBytes;
  const uint8_t* const scales = m.view.scales + panel * l.scales_stride;
  const uint32_t first_fine = l.n_lines - l.n_fine_lines, begin = block * 8;
  const uint32_t end = begin + m.lines_of(block);
  for (uint32_t i = 0; i < 4; ++i)
    for (uint32_t line = begin; line < end; line += 2) {
      const auto codes_of = [&](uint32_t at) {
        const __m256i hi = load256(base + size_t{at} * q24::kLineBytes + i * 32);
        return at < first_fine
                   ? coarse_codes(hi)
                   : fine_codes(hi, load256(fine + size_t{at - first_fine} * q24::kLineBytes + i * 32));
      };
      const auto store = [&](auto* to, __m256i x) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), x); };
      const PairScales scale = pair_scales<kGroup>(scales, line / 2, i);
      const Codes even = codes_of(line), odd = codes_of(line + 1);
      const uint32_t pair = (line - begin) / 2;
      store(out.minimums[pair] + i * 8, scale.m);
      if (!kVnni) store(out.scales[pair] + i * 8, scale.s);
      const auto put = [&](uint32_t quad, __m256i codes) {  // with VNNI two bytes are scaled as one int16
        store(out.codes[pair * 8 + quad] + i * 32, kVnni ? _mm256_mullo_epi16(codes, scale.s) : codes);
      };
      for (uint32_t p = 0; p < 4; ++p) {
        put(p * 2, _mm256_blend_epi16(even.quad[p], _mm256_slli_epi32(odd.quad[p], 16), 0xaa));
        put(p * 2 + 1, _mm256_blend_epi16(_mm256_srli_epi32(even.quad[p], 16), odd.quad[p], 0xaa));
      }
    }
}

// Words (rows) and vectors of 8 tokens whose sums stay in registers: six loads serve eight products.
constexpr int kTileWords = 4, kTileVectors = 2;
using Sums = __m256i[kTileWords][kTileVectors];

// Calls f(word, vector) for each, with constants by the time that registers are given out.
template <typename F, int... kIndex>
[[gnu::always_inline]] inline void for_each_sum(F&& f, std::integer_sequence<int, kIndex...>) {
  (f(kIndex / kTileVectors, kIndex % kTileVectors), ...);
}
template <typename F>
[[gnu::always_inline]] inline void for_each_sum(F&& f) {
  for_each_sum(f, std::make_integer_sequence<int, kTileWords * kTileVectors>{});
}

// Keeps the compiler from adding in an order of its own, for which it would keep every product (in memory).
[[gnu::always_inline]] inline void in_order(__m256i& sum) {
  asm("" : "+x"(sum));
}

// acc [kTileWords, stride] += scale * sums
[[gnu::always_inline]] inline void accumulate(const Sums& sums, const float* scales, float* acc,
                                              uint32_t stride) {
  for_each_sum([&](int w, int v) {
    float* const at = acc + static_cast<uint32_t>(w) * stride + v * 8;
    const __m256 scale = _mm256_loadu_ps(scales + v * 8);
    _mm256_storeu_ps(at, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums[w][v]), _mm256_loadu_ps(at)));
  });
}

// The products of one block of kLines lines for kTileWords words from `word` on and 16 tokens from `lane` on, added to the
// accumulators [32, stride]. Without loops, as in avx512.cpp (6 % without VNNI, 2 % with).
template <uint32_t kLines>
[[gnu::always_inline]] inline void block_tile(const UnpackedBlock& unpacked, uint32_t block, uint32_t word,
                                              const Input& in, uint32_t lane, float* acc, uint32_t stride) {
  const int8_t* a = quads(in, block, kLines, lane);
  Sums total;
  for_each_sum([&](int w, int v) { total[w][v] = _mm256_setzero_si256(); });
#pragma GCC unroll 4
  for (uint32_t pair = 0; pair < kLines / 2; ++pair) {
    Sums halves;  // the sums of both lines; with VNNI the total
    for_each_sum([&](int w, int v) { halves[w][v] = kVnni ? total[w][v] : _mm256_setzero_si256(); });
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 8; ++i, a += 64) {
      const uint8_t* const codes = unpacked.codes[pair * 8 + i] + word * 4;
      const __m256i x[kTileVectors] = {load256(a), load256(a + 32)};
      for_each_sum([&](int w, int v) {
        halves[w][v] = add_quad(halves[w][v], broadcast(codes + w * 4), x[v]);
        in_order(halves[w][v]);
      });
    }
    for_each_sum([&](int w, int v) {
      total[w][v] = kVnni ? halves[w][v]
                          : add_products(total[w][v], halves[w][v],
                                         broadcast(unpacked.scales[pair] + word + static_cast<uint32_t>(w)));
    });
  }
  accumulate(total, in.scales + size_t{block} * in.n_lanes + lane, acc + word * stride, stride);
}

// Likewise its minimums' products, added to out [32, stride]. Block by block: over all blocks at once they would come from
// L2 (6 % slower).
template <uint32_t kLines>
[[gnu::always_inline]] inline void minimums_tile(const UnpackedBlock& unpacked, uint32_t word,
                                                 const int16_t* line_sums, int32_t* out, uint32_t stride) {
  const auto at = [&](int w, int v) {
    return reinterpret_cast<__m256i*>(out + (word + static_cast<uint32_t>(w)) * stride + v * 8);
  };
  Sums total;
  for_each_sum([&](int w, int v) { total[w][v] = load256(at(w, v)); });
#pragma GCC unroll 4
  for (uint32_t pair = 0; pair < kLines / 2; ++pair, line_sums += 32) {
    const __m256i x[kTileVectors] = {load256(line_sums), load256(line_sums + 16)};
    for_each_sum([&](int w, int v) {
      total[w][v] = add_products(total[w][v],
                                 broadcast(unpacked.minimums[pair] + word + static_cast<uint32_t>(w)), x[v]);
      in_order(total[w][v]);
    });
  }
  for_each_sum([&](int w, int v) { _mm256_storeu_si256(at(w, v), total[w][v]); });
}

// Adds a block's outliers for kVectors x 8 tokens from `lane` on to out [32 words, kVectors * 8].
template <int kVectors>
[[gnu::always_inline]] inline void add_outliers(const Matrix& m, const PanelScratch& scratch, uint32_t block,
                                                const Input& in, uint32_t lane, float* out) {
  const uint32_t n_lines = m.lines_of(block);
  const int8_t* const a = quads(in, block, n_lines, lane);
  __m256 scales[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
    scales[v] = _mm256_loadu_ps(in.scales + size_t{block} * in.n_lanes + lane + v * 8);
  const Outlier* const end = scratch.outliers + scratch.outlier_begin[block + 1];
  for (const Outlier* o = scratch.outliers + scratch.outlier_begin[block]; o < end; ++o) {
    // Where two columns of each line of a pair make a quad: the top of this file.
    const uint32_t quad = o->col / 32u * 8 + o->col % 16u / 2, byte = o->col / 16u % 2 * 2 + o->col % 2u;
    const __m128i up = _mm_cvtsi32_si128(static_cast<int>(24 - byte * 8));
    const __m256 delta = _mm256_set1_ps(o->delta);
    float* const at = out + o->word * kVectors * 8;
#pragma GCC unroll 4
    for (uint32_t v = 0; v < kVectors; ++v) {
      const int8_t* const four = a + v / 2 * n_lines * 256 + v % 2 * 32 + quad * 64;
      const __m256i value = _mm256_srai_epi32(_mm256_sll_epi32(load256(four), up), 24);
      const __m256 x = _mm256_mul_ps(scales[v], _mm256_cvtepi32_ps(value));
      _mm256_storeu_ps(at + v * 8, _mm256_fmadd_ps(delta, x, _mm256_loadu_ps(at + v * 8)));
    }
  }
}

// y of one word for kVectors x 8 tokens from `lane` on, of its three sums for them.
template <int kVectors>
void finish_word(const Matrix& m, uint32_t panel, uint32_t w, const Input& in, uint32_t lane,
                 const float* acc, const int32_t* minimums, const float* outliers, float* y) {
  const uint16_t* const row_scale = m.view.row_scale + (size_t{panel} * kPanelRows + w) * 2;
  const __m256 d = _mm256_set1_ps(0.25f * _cvtsh_ss(row_scale[0])),
               dmin = _mm256_set1_ps(_cvtsh_ss(row_scale[1]));
  for (int v = 0; v < kVectors; ++v) {
    const __m256 minimum = _mm256_mul_ps(_mm256_loadu_ps(in.sum_steps + lane + v * 8),
                                         _mm256_cvtepi32_ps(load256(minimums + v * 8)));
    const __m256 sum = _mm256_fmadd_ps(d, _mm256_loadu_ps(acc + v * 8), _mm256_loadu_ps(outliers + v * 8));
    _mm256_storeu_ps(y + kWordRow[w] * size_t{in.n_lanes} + lane + v * 8,
                     _mm256_fnmadd_ps(dmin, minimum, sum));
  }
}

// 8 * kVectors tokens from `lane` on: all blocks, then y.
template <int kVectors>
void lane_group(const Matrix& m, uint32_t panel, const PanelScratch& scratch, const Input& in, uint32_t lane,
                float* y) {
  constexpr uint32_t kLanesHere = kVectors * 8;
  float* const acc = scratch.accumulators;
  float* const outliers = acc + kPanelRows * kLanesHere;
  int32_t* const minimums = reinterpret_cast<int32_t*>(outliers + kPanelRows * kLanesHere);
  __builtin_memset(acc, 0, 3 * kPanelRows * kLanesHere * sizeof(float));
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    const UnpackedBlock& unpacked = scratch.blocks[block];
    const auto tiles = [&]<uint32_t kLines>() __attribute__((always_inline)) {
      for (uint32_t t = 0; t < kLanesHere; t += kTileVectors * 8) {
        const int16_t* const line_sums = pairs(m, in, lane + t) + size_t{block} * 4 * 32;
        for (uint32_t w = 0; w < kPanelRows; w += kTileWords) {
          minimums_tile<kLines>(unpacked, w, line_sums, minimums + t, kLanesHere);
          block_tile<kLines>(unpacked, block, w, in, lane + t, acc + t, kLanesHere);
        }
      }
    };
    if (m.lines_of(block) == 8)
      tiles.template operator()<8>();
    else
      tiles.template operator()<4>();
    add_outliers<kVectors>(m, scratch, block, in, lane, outliers);
  }
  for (uint32_t w = 0; w < kPanelRows; ++w)
    finish_word<kVectors>(m, panel, w, in, lane, acc + w * kLanesHere, minimums + w * kLanesHere,
                          outliers + w * kLanesHere, y);
}

// The whole panel is unpacked first (L2); then 32 tokens at a time, whose accumulators (12 KB, a third of them rarely used) and one
// block of their activations (4 KB) stay in L1 with that block's codes.
template <uint32_t kGroup>
void q24_many(const Matrix& m, uint32_t panel, const Input& in, uint8_t* memory, float* y) {
  const PanelScratch scratch(m, in.n_lanes, memory);
  for (uint32_t block = 0; block < m.n_blocks(); ++block)
    unpack_block<kGroup>(m, panel, block, scratch.blocks[block]);
  scratch.sort_outliers(m, panel, [](uint16_t half) { return _cvtsh_ss(half); });
  uint32_t lane = 0;
  for (; lane + 32 <= in.n_lanes; lane += 32) lane_group<4>(m, panel, scratch, in, lane, y);
  for (; lane < in.n_lanes; lane += 16) lane_group<2>(m, panel, scratch, in, lane, y);
}

void panel(const Matrix& m, uint32_t index, const Input& in, uint8_t* scratch, float* y) {
  if (!m.is_q24()) return Avx2::plain_panel_any(m, index, in, scratch, y);
  const bool wide = m.view.layout.shape.group == 32;
  if (in.n_lanes == 1) return wide ? q24_one<32>(m, index, in, y) : q24_one<16>(m, index, in, y);
  return wide ? q24_many<32>(m, index, in, scratch, y) : q24_many<16>(m, index, in, scratch, y);
}

uint64_t read(const uint8_t* data, uint64_t size) {
  __m256i sums[4];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (uint64_t i = 0; i < size; i += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(data + i + 4096), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(data + i + 4160), _MM_HINT_T0);
    for (uint32_t j = 0; j < 4; ++j) sums[j] = _mm256_add_epi64(sums[j], load256(data + i + j * 32));
  }
  const __m256i all =
      _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  uint64_t out[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), all);
  return out[0] + out[1] + out[2] + out[3];
}

uint64_t mac_loop(uint64_t rounds) {
  __m256i sums[8], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(2);
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (uint64_t i = 0; i < rounds; ++i)
    for (__m256i& sum : sums) {
      asm volatile("" : "+x"(a));  // a new operand each time, to the compiler
      sum = add_quad(sum, a, b);
    }
  for (__m256i& sum : sums) asm volatile("" : "+x"(sum));
  return rounds * 8 * 32;
}

}  // namespace

#ifdef __AVXVNNI__
const Kernels kAvxVnniKernels = {
    "avxvnni",
#else
const Kernels kAvx2Kernels = {
    "avx2",
#endif
    Avx2::rms_norm,      Avx2::quantize, Avx2::quantize_sums,
    Avx2::quantize_tile, panel,          Avx2::store,
    Avx2::gate,          Avx2::softcap,  Avx2::rope,
    Avx2::append,        Avx2::attend,   Avx2::combine,
    Avx2::finish,        read,           mac_loop,
};

}  // namespace pith::cpu
