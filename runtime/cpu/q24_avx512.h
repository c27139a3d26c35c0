// What the AVX-512 kernels and the AMX ones share: codes, scales, the product for one token, the end of a word.
//
// Q24, one token: a vector is the 16 words (rows) of a half line. One GFNI instruction, or a mask, extracts the codes of a
// quad (four columns) as bytes, one vpdpbusd multiplies them with four broadcast activations. A line's sums fit int16
// (16 * 127 * 15 = 30480), so two lines' sums are packed into int16 pairs and one vpdpwssd applies both scales.
//
// Compiled once for each file that includes it (with or without GFNI), so all of it is local to the file.
#pragma once
#include <immintrin.h>

#include "runtime/cpu/generic.h"
#include "runtime/cpu/panel_scratch.h"
#include "runtime/cpu/read_ahead.h"
#include "runtime/cpu/vec_avx512.h"

namespace pith::cpu {
namespace {

using Avx512 = Generic<VecAvx512>;

__m512i load512(const void* p) {
  return _mm512_loadu_si512(p);
}

int32_t load_word(const void* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return bits;
}

// ---- codes --------------------------------------------------------------------------------------------------------

#ifdef __GFNI__
// GF(2) matrices for vgf2p8affineqb: output bit i is the parity of input & byte 7 - i. Bits 2p, 2p + 1 of a byte move
// to bits 2, 3 (hi: the code times 4) or to bits 0, 1 (lo).
constexpr long long kHiMatrix(int p) {
  return (2LL << (2 * p) << 32) | (1LL << (2 * p) << 40);
}
constexpr long long kLoMatrix(int p) {
  return static_cast<long long>((2ULL << (2 * p) << 48) | (1ULL << (2 * p) << 56));
}

// Not by GFNI alone: that goes to the units that multiply, a shift and a mask go to the others (Zen 4: 8 % in cache).
template <int kQuad>
__m512i hi_codes(__m512i hi) {
  if constexpr (kQuad == 3) return _mm512_and_si512(_mm512_srli_epi32(hi, 4), _mm512_set1_epi8(0x0c));
  if constexpr (kQuad == 1) return _mm512_and_si512(hi, _mm512_set1_epi8(0x0c));
  return _mm512_gf2p8affine_epi64_epi8(hi, _mm512_set1_epi64(kHiMatrix(kQuad)), 0);
}
template <int kQuad>
__m512i lo_codes(__m512i lo) {
  if constexpr (kQuad == 0) return _mm512_and_si512(lo, _mm512_set1_epi8(0x03));
  return _mm512_gf2p8affine_epi64_epi8(lo, _mm512_set1_epi64(kLoMatrix(kQuad)), 0);
}
#else  // two instructions instead of one
template <int kQuad>
__m512i hi_codes(__m512i hi) {
  const __m512i moved = kQuad == 0   ? _mm512_slli_epi32(hi, 2)
                        : kQuad == 1 ? hi
                                     : _mm512_srli_epi32(hi, kQuad * 2 - 2);
  return _mm512_and_si512(moved, _mm512_set1_epi8(0x0c));
}
template <int kQuad>
__m512i lo_codes(__m512i lo) {
  return _mm512_and_si512(kQuad == 0 ? lo : _mm512_srli_epi32(lo, kQuad * 2), _mm512_set1_epi8(0x03));
}
#endif

// Scales and minimums of a pair of lines for 16 words, each as int16 pairs (even line, odd line).
struct PairScales {
  __m512i s, m;
};
template <uint32_t kGroup>
PairScales pair_scales(const uint8_t* scales, uint32_t pair, uint32_t half) {
  const uint8_t* const bytes = scales + size_t{kGroup == 16 ? pair : pair / 2} * 64 + half * 32;
  __m512i sm = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
  if constexpr (kGroup == 32) {  // both lines belong to one group: byte 0 or 1 of the word, twice
    const int select = pair % 2 ? static_cast<int>(0x80028002) : static_cast<int>(0x80008000);
    const __m512i each = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    sm = _mm512_shuffle_epi8(sm, _mm512_add_epi32(_mm512_set1_epi32(select), each));
  }
  return {_mm512_and_si512(sm, _mm512_set1_epi16(15)), _mm512_srli_epi16(sm, 4)};
}

// ---- one token ----------------------------------------------------------------------------------------------------

__m512i quad(const int8_t* a, int p) {
  return _mm512_set1_epi32(load_word(a + 4 * p));
}

// One chain a line: several lines are in flight anyway, and each instruction saved lets the core see further ahead.
__m512i code_sums(__m512i hi, const int8_t* a) {
  __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), hi_codes<0>(hi), quad(a, 0));
  sum = _mm512_dpbusd_epi32(sum, hi_codes<1>(hi), quad(a, 1));
  sum = _mm512_dpbusd_epi32(sum, hi_codes<2>(hi), quad(a, 2));
  return _mm512_dpbusd_epi32(sum, hi_codes<3>(hi), quad(a, 3));
}
__m512i fine_sums(__m512i sum, __m512i lo, const int8_t* a) {
  sum = _mm512_dpbusd_epi32(sum, lo_codes<0>(lo), quad(a, 0));
  sum = _mm512_dpbusd_epi32(sum, lo_codes<1>(lo), quad(a, 1));
  sum = _mm512_dpbusd_epi32(sum, lo_codes<2>(lo), quad(a, 2));
  return _mm512_dpbusd_epi32(sum, lo_codes<3>(lo), quad(a, 3));
}

// Sums of the outliers of 16 words.
__m512 outlier_sums(const Matrix& m, uint32_t panel, uint32_t half, const Input& in, const ReadAhead& ahead) {
  const q24::Layout& l = m.view.layout;
  __m512 sum = _mm512_setzero_ps();
  for (uint32_t slot = 0; slot < l.shape.n_slots; ++slot) {
    if (slot % 2 == half) ahead.fetch_beside_outliers(slot);
    const __m512i words =
        load512(m.view.outliers + (size_t{panel} * l.shape.n_slots + slot) * 64 + half * 32);
    const __m512i col = _mm512_and_si512(words, _mm512_set1_epi32(0xffff));
    const __mmask16 inside = _mm512_cmplt_epu32_mask(col, _mm512_set1_epi32(static_cast<int>(l.padded_cols)));
    const __m512 x = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, col, in.x_hat, 4);
    const __m512 delta = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
    sum = _mm512_mask3_fmadd_ps(delta, x, sum, inside);
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

  __m512 acc[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  __m512i big_m[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    const uint32_t end = block * 8 + 8 < l.n_lines ? block * 8 + 8 : l.n_lines;
    __m512i big_t[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (uint32_t line = block * 8; line < end; line += 2) {
      const int8_t* const a = in.a + size_t{line} * 16;
      const uint8_t* const hi = base + size_t{line} * q24::kLineBytes;
      const __m512i sums_a = _mm512_set1_epi32(load_word(in.sums + line));
      ahead.fetch<kGroup>(hi, scales, line / 2);
      __m512i even[2], odd[2];
      for (uint32_t half = 0; half < 2; ++half) {
        even[half] = code_sums(load512(hi + half * 64), a);
        odd[half] = code_sums(load512(hi + q24::kLineBytes + half * 64), a + 16);
      }
      if (line + 1 >= first_fine) {
        const uint8_t* const lo = fine + (size_t{line + 1} - first_fine) * q24::kLineBytes;
        for (uint32_t half = 0; half < 2; ++half)
          odd[half] = fine_sums(odd[half], load512(lo + half * 64), a + 16);
        if (line >= first_fine)
          for (uint32_t half = 0; half < 2; ++half)
            even[half] = fine_sums(even[half], load512(lo - q24::kLineBytes + half * 64), a);
      }
      for (uint32_t half = 0; half < 2; ++half) {
        const PairScales pair = pair_scales<kGroup>(scales, line / 2, half);
        const __m512i both =
            _mm512_mask_blend_epi16(0xaaaaaaaa, even[half], _mm512_slli_epi32(odd[half], 16));
        big_t[half] = _mm512_dpwssd_epi32(big_t[half], both, pair.s);
        big_m[half] = _mm512_dpwssd_epi32(big_m[half], pair.m, sums_a);
      }
    }
    const __m512 scale = _mm512_set1_ps(in.scales[block]);
    for (uint32_t half = 0; half < 2; ++half)
      acc[half] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(big_t[half]), acc[half]);
  }

  __m512 sums[2];
  for (uint32_t half = 0; half < 2; ++half) {
    const __m512i both = load512(m.view.row_scale + size_t{panel} * 64 + half * 32);  // words {d, dmin}
    const __m512 d = _mm512_mul_ps(_mm512_set1_ps(0.25f), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both)));
    const __m512 dmin = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
    const __m512 minimums = _mm512_mul_ps(_mm512_set1_ps(in.sum_steps[0]), _mm512_cvtepi32_ps(big_m[half]));
    sums[half] = _mm512_fmadd_ps(d, acc[half], outlier_sums(m, panel, half, in, ahead));
    sums[half] = _mm512_fnmadd_ps(dmin, minimums, sums[half]);
  }
  // Word order to row order: row r is word 4 * (r % 8) + r / 8.
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  _mm512_storeu_ps(y, _mm512_permutex2var_ps(sums[0], first, sums[1]));
  _mm512_storeu_ps(y + 16,
                   _mm512_permutex2var_ps(sums[0], _mm512_add_epi32(first, _mm512_set1_epi32(2)), sums[1]));
}

// ---- many tokens: outliers, and the end of a word ---------------------------------------------------------------------

// Adds a block's outliers for kVectors x 16 tokens from `lane` on to out [32 words, kVectors * 16], while the block's
// activations are in L1.
template <int kVectors>
[[gnu::always_inline]] inline void add_outliers(const Matrix& m, const PanelScratch& scratch, uint32_t block,
                                                const Input& in, uint32_t lane, float* out) {
  const uint32_t n_lines = m.lines_of(block);
  const int8_t* const a = quads(in, block, n_lines, lane);
  __m512 scales[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
    scales[v] = _mm512_loadu_ps(in.scales + size_t{block} * in.n_lanes + lane + v * 16);
  const Outlier* const end = scratch.outliers + scratch.outlier_begin[block + 1];
  for (const Outlier* o = scratch.outliers + scratch.outlier_begin[block]; o < end; ++o) {
    const __m512i select = _mm512_set1_epi32(1 << (o->col % 4 * 8));  // of four columns, by a product with 1
    const __m512 delta = _mm512_set1_ps(o->delta);
    const int8_t* const quad = a + o->col / 4 * 64;
    float* const at = out + o->word * kVectors * 16;
#pragma GCC unroll 4
    for (uint32_t v = 0; v < kVectors; ++v) {
      const __m512i value =
          _mm512_dpbusd_epi32(_mm512_setzero_si512(), select, load512(quad + v * n_lines * 256));
      const __m512 x = _mm512_mul_ps(scales[v], _mm512_cvtepi32_ps(value));
      _mm512_storeu_ps(at + v * 16, _mm512_fmadd_ps(delta, x, _mm512_loadu_ps(at + v * 16)));
    }
  }
}

// y of one word for kVectors x 16 tokens from `lane` on, of its three sums for them.
template <int kVectors>
void finish_word(const Matrix& m, uint32_t panel, uint32_t w, const Input& in, uint32_t lane,
                 const float* acc, const int32_t* minimums, const float* outliers, float* y) {
  const uint16_t* const row_scale = m.view.row_scale + (size_t{panel} * kPanelRows + w) * 2;
  const __m512 d = _mm512_set1_ps(0.25f * _cvtsh_ss(row_scale[0])),
               dmin = _mm512_set1_ps(_cvtsh_ss(row_scale[1]));
  for (int v = 0; v < kVectors; ++v) {
    const __m512 minimum = _mm512_mul_ps(_mm512_loadu_ps(in.sum_steps + lane + v * 16),
                                         _mm512_cvtepi32_ps(load512(minimums + v * 16)));
    const __m512 sum = _mm512_fmadd_ps(d, _mm512_loadu_ps(acc + v * 16), _mm512_loadu_ps(outliers + v * 16));
    _mm512_storeu_ps(y + q24::word_row(w) * size_t{in.n_lanes} + lane + v * 16,
                     _mm512_fnmadd_ps(dmin, minimum, sum));
  }
}

uint64_t read(const uint8_t* data, uint64_t size) {
  __m512i sums[4];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (uint64_t i = 0; i < size; i += 256)
    for (uint32_t j = 0; j < 4; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(data + i + j * 64 + 4096), _MM_HINT_T0);
      sums[j] = _mm512_add_epi64(sums[j], load512(data + i + j * 64));
    }
  const __m512i all =
      _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3]));
  uint64_t lanes[8], total = 0;  // _mm512_reduce_add_epi64 adds as signed, which may overflow
  _mm512_storeu_si512(lanes, all);
  for (const uint64_t lane : lanes) total += lane;
  return total;
}

}  // namespace
}  // namespace pith::cpu
