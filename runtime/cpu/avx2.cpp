// AVX2 kernels. Same bits as scalar.cpp.
//
// Q24, one token: a vector is 8 words (rows) of a half line. Per k-quad p, codes 4*hi + lo (<= 15) as bytes meet the
// broadcast activations in vpmaddubsw: pair sums of at most 3810 for each of the four quads of a line, 15240 together,
// so they add up in int16; one vpmaddwd with the group's scale in both halves of a word then gives s * sum in int32.
// With AVX-VNNI (avxvnni.cpp) vpdpbusd sums a line in int32 at once, still below 2^15, and vpdpwssd applies the scale.
// More tokens: a vector is 8 tokens; a panel's codes are unpacked block by block and broadcast.
#include <immintrin.h>

#include "runtime/cpu/generic.h"
#include "runtime/cpu/panel_scratch.h"
#include "runtime/cpu/tables.h"
#include "runtime/cpu/vec_avx2.h"

namespace pith::cpu {

namespace {

using Avx2 = Generic<VecAvx2>;

// ---- one token ----------------------------------------------------------------------------------------------------

// Row of panel held by word w, as a table: results leave the kernel in row order.
constexpr uint8_t kWordRow[32] = {0, 8,  16, 24, 1, 9,  17, 25, 2, 10, 18, 26, 3, 11, 19, 27,
                                  4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31};

__m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// Byte codes 4*hi + lo of quad p of a line.
template <int kQuad>
__m256i coarse_codes(__m256i hi) {
  const __m256i mask = _mm256_set1_epi8(0x0c);
  if constexpr (kQuad == 0) return _mm256_and_si256(_mm256_slli_epi32(hi, 2), mask);
  if constexpr (kQuad == 1) return _mm256_and_si256(hi, mask);
  if constexpr (kQuad == 2) return _mm256_and_si256(_mm256_srli_epi32(hi, 2), mask);
  if constexpr (kQuad == 3) return _mm256_and_si256(_mm256_srli_epi32(hi, 4), mask);
}
template <int kQuad>
__m256i fine_codes(__m256i lo) {
  const __m256i mask = _mm256_set1_epi8(0x03);
  return _mm256_and_si256(kQuad == 0 ? lo : _mm256_srli_epi32(lo, 2 * kQuad), mask);
}

__m256i quad(const int8_t* a) {
  int32_t bits;
  __builtin_memcpy(&bits, a, 4);
  return _mm256_set1_epi32(bits);
}

// One line's sum of codes * activations grows by a quad: int32, or its two halves in int16 without VNNI.
__m256i add_quad(__m256i sum, __m256i codes, __m256i a) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(sum, codes, a);
#else
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, a));
#endif
}
// acc + scale * sum of a line; `scales` as the next two make them. A minimum meets sums of a alike.
__m256i add_scaled(__m256i acc, __m256i sum, __m256i scales) {
#ifdef __AVXVNNI__
  return _mm256_dpwssd_avx_epi32(acc, sum, scales);
#else
  return _mm256_add_epi32(acc, _mm256_madd_epi16(sum, scales));
#endif
}
#ifdef __AVXVNNI__
constexpr bool kHalves = false;  // the scale meets the low half, which is all of the sum
#else
constexpr bool kHalves = true;
#endif
__m256i scale_operand(__m256i s) {
  return kHalves ? _mm256_or_si256(s, _mm256_slli_epi32(s, 16)) : s;
}
__m256i scale_operand(int s) {
  return _mm256_set1_epi32(kHalves ? s | s << 16 : s);
}

// Sum of one line for 8 rows; a: the line's 16 activations.
__m256i line_sums(__m256i hi, const int8_t* a) {
  __m256i sum = add_quad(_mm256_setzero_si256(), coarse_codes<0>(hi), quad(a));
  sum = add_quad(sum, coarse_codes<1>(hi), quad(a + 4));
  sum = add_quad(sum, coarse_codes<2>(hi), quad(a + 8));
  return add_quad(sum, coarse_codes<3>(hi), quad(a + 12));
}
__m256i line_sums(__m256i hi, __m256i lo, const int8_t* a) {
  const auto codes = [](__m256i h, __m256i l) { return _mm256_or_si256(h, l); };
  __m256i sum = add_quad(_mm256_setzero_si256(), codes(coarse_codes<0>(hi), fine_codes<0>(lo)), quad(a));
  sum = add_quad(sum, codes(coarse_codes<1>(hi), fine_codes<1>(lo)), quad(a + 4));
  sum = add_quad(sum, codes(coarse_codes<2>(hi), fine_codes<2>(lo)), quad(a + 8));
  return add_quad(sum, codes(coarse_codes<3>(hi), fine_codes<3>(lo)), quad(a + 12));
}

// The 8 words' bytes s | m << 4 of the line's group, one in each 32-bit lane.
__m256i group_bytes(const uint8_t* pair, uint32_t odd) {
  const __m256i both = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pair)));
  return odd ? _mm256_srli_epi32(both, 8) : _mm256_and_si256(both, _mm256_set1_epi32(0xff));
}

void q24_one(const Matrix& m, uint32_t panel, const Input& in, float* y) {
  const q24::Layout& l = m.view.layout;
  const uint8_t* const base = m.view.base + size_t{panel} * l.n_lines * q24::kLineBytes;
  const uint8_t* const fine = m.view.fine + size_t{panel} * l.n_fine_lines * q24::kLineBytes;
  const uint8_t* const scales = m.view.scales + panel * l.scales_stride;
  const uint32_t first_fine = l.n_lines - l.n_fine_lines, group_shift = l.shape.group == 16 ? 0 : 1;

  __m256 acc_s[4], acc_m[4];
  for (int i = 0; i < 4; ++i) acc_s[i] = acc_m[i] = _mm256_setzero_ps();
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    const uint32_t end = block * 8 + 8 < l.n_lines ? block * 8 + 8 : l.n_lines;
    __m256i big_t[4], big_m[4];
    for (int i = 0; i < 4; ++i) big_t[i] = big_m[i] = _mm256_setzero_si256();
    for (uint32_t line = block * 8; line < end; ++line) {
      const uint32_t g = line >> group_shift;
      const uint8_t* const hi = base + size_t{line} * q24::kLineBytes;
      const uint8_t* const pair = scales + size_t{g / 2} * 64;
      const int8_t* const a = in.a + size_t{line} * 16;
      const __m256i sum_a = _mm256_set1_epi32(in.sums[line]);
      for (int i = 0; i < 4; ++i) {
        const __m256i sums =
            line < first_fine
                ? line_sums(load256(hi + i * 32), a)
                : line_sums(load256(hi + i * 32),
                            load256(fine + size_t{line - first_fine} * q24::kLineBytes + i * 32), a);
        const __m256i sm = group_bytes(pair + i * 16, g & 1);
        const __m256i s = _mm256_and_si256(sm, _mm256_set1_epi32(15));
        big_t[i] = add_scaled(big_t[i], sums, scale_operand(s));
        // m in the low half, 0 in the high: the sum's high half does not matter
        big_m[i] = add_scaled(big_m[i], _mm256_srli_epi32(sm, 4), sum_a);
      }
    }
    const __m256 scale = _mm256_set1_ps(in.scales[block]);
    for (int i = 0; i < 4; ++i) {
      acc_s[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(big_t[i]), acc_s[i]);
      acc_m[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(big_m[i]), acc_m[i]);
    }
  }

  const uint16_t* const row_scale = m.view.row_scale + size_t{panel} * 64;
  for (int i = 0; i < 4; ++i) {
    const __m256i both = load256(row_scale + i * 16);  // words {d, dmin}
    const auto halves_to_float = [](__m256i words) {   // low 16 bits of each 32-bit lane
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
      return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
    };
    const __m256 d = halves_to_float(_mm256_and_si256(both, _mm256_set1_epi32(0xffff)));
    const __m256 dmin = halves_to_float(_mm256_srli_epi32(both, 16));
    __m256 sum =
        _mm256_fnmadd_ps(dmin, acc_m[i], _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(0.25f), d), acc_s[i]));
    for (uint32_t slot = 0; slot < l.shape.n_slots; ++slot) {
      const __m256i words = load256(m.view.outliers + (size_t{panel} * l.shape.n_slots + slot) * 64 + i * 16);
      const __m256i col = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
      const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(l.padded_cols)), col);
      const __m256i at = _mm256_and_si256(col, inside);
      const __m256 x = _mm256_i32gather_ps(in.x_hat, at, 4);
      const __m256 with = _mm256_fmadd_ps(halves_to_float(_mm256_srli_epi32(words, 16)), x, sum);
      sum = _mm256_blendv_ps(sum, with, _mm256_castsi256_ps(inside));
    }
    float out[8];
    _mm256_storeu_ps(out, sum);
    for (int w = 0; w < 8; ++w) y[kWordRow[i * 8 + w]] = out[w];
  }
}

// ---- many tokens --------------------------------------------------------------------------------------------------

// Codes 4*hi + lo of one block of a panel, in word order.
void unpack_block(const Matrix& m, uint32_t panel, uint32_t block, PanelScratch& out) {
  const q24::Layout& l = m.view.layout;
  const uint8_t* const base = m.view.base + size_t{panel} * l.n_lines * q24::kLineBytes;
  const uint8_t* const fine = m.view.fine + size_t{panel} * l.n_fine_lines * q24::kLineBytes;
  const uint32_t first_fine = l.n_lines - l.n_fine_lines, begin = block * 8;
  const uint32_t end = begin + 8 < l.n_lines ? begin + 8 : l.n_lines;
  for (uint32_t line = begin; line < end; ++line)
    for (int i = 0; i < 4; ++i) {
      const __m256i hi = load256(base + size_t{line} * q24::kLineBytes + i * 32);
      const __m256i lo = line >= first_fine
                             ? load256(fine + size_t{line - first_fine} * q24::kLineBytes + i * 32)
                             : _mm256_setzero_si256();
      const auto put = [&](uint32_t p, __m256i h, __m256i f) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(out.codes[(line - begin) * 4 + p] + i * 32),
                           _mm256_or_si256(h, f));
      };
      put(0, coarse_codes<0>(hi), fine_codes<0>(lo));
      put(1, coarse_codes<1>(hi), fine_codes<1>(lo));
      put(2, coarse_codes<2>(hi), fine_codes<2>(lo));
      put(3, coarse_codes<3>(hi), fine_codes<3>(lo));
    }
}

// One block of one word (row) for 8 * kVectors tokens from `lane` on, added to the accumulators.
template <int kVectors>
void block_row(const Matrix& m, uint32_t panel, uint32_t block, uint32_t w, const PanelScratch& unpacked,
               const Input& in, uint32_t lane, float* acc_s, float* acc_m) {
  const q24::Layout& l = m.view.layout;
  const uint32_t group_shift = l.shape.group == 16 ? 0 : 1, begin = block * 8;
  const uint32_t end = begin + 8 < l.n_lines ? begin + 8 : l.n_lines;
  const uint8_t* const scales = m.view.scales + panel * l.scales_stride + w * 2;
  __m256i big_t[kVectors], big_m[kVectors];
  for (int v = 0; v < kVectors; ++v) big_t[v] = big_m[v] = _mm256_setzero_si256();
  for (uint32_t line = begin; line < end; ++line) {
    const uint32_t g = line >> group_shift;
    const int sm = scales[size_t{g / 2} * 64 + (g & 1)];
    const __m256i s = scale_operand(sm & 15);
    // The sums of a pair of lines lie together; m is placed at this line's half.
    const __m256i minimum = _mm256_set1_epi32((sm >> 4) << (line % 2 * 16));
    const int8_t* const a = in.a + (size_t{line} * 4 * in.n_lanes + lane) * 4;
    const int16_t* const sums = in.sums + (size_t{line / 2} * in.n_lanes + lane) * 2;
    __m256i quads[4];
    for (uint32_t p = 0; p < 4; ++p)
      quads[p] = quad(reinterpret_cast<const int8_t*>(unpacked.codes[(line - begin) * 4 + p] + w * 4));
    for (int v = 0; v < kVectors; ++v) {
      __m256i sum = _mm256_setzero_si256();
      for (uint32_t p = 0; p < 4; ++p)
        sum = add_quad(sum, quads[p], load256(a + size_t{p} * in.n_lanes * 4 + v * 32));
      big_t[v] = add_scaled(big_t[v], sum, s);
      big_m[v] = add_scaled(big_m[v], load256(sums + v * 16), minimum);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const uint32_t at = lane + static_cast<uint32_t>(v) * 8;
    const __m256 scale = _mm256_loadu_ps(in.scales + size_t{block} * in.n_lanes + at);
    const auto add = [&](float* acc, __m256i sums) {
      _mm256_storeu_ps(acc + at, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums), _mm256_loadu_ps(acc + at)));
    };
    add(acc_s, big_t[v]);
    add(acc_m, big_m[v]);
  }
}

// y of one word: scales, minimums, outliers.
void finish_word(const Matrix& m, uint32_t panel, uint32_t w, const Input& in, const float* acc_s,
                 const float* acc_m, float* y) {
  const q24::Layout& l = m.view.layout;
  const uint16_t* const row_scale = m.view.row_scale + (size_t{panel} * kPanelRows + w) * 2;
  const __m256 d = _mm256_set1_ps(0.25f * _cvtsh_ss(row_scale[0])),
               dmin = _mm256_set1_ps(_cvtsh_ss(row_scale[1]));
  for (uint32_t lane = 0; lane < in.n_lanes; lane += 8) {
    __m256 sum = _mm256_fnmadd_ps(dmin, _mm256_loadu_ps(acc_m + lane),
                                  _mm256_mul_ps(d, _mm256_loadu_ps(acc_s + lane)));
    for (uint32_t slot = 0; slot < l.shape.n_slots; ++slot) {
      const uint16_t* const word =
          m.view.outliers + ((size_t{panel} * l.shape.n_slots + slot) * kPanelRows + w) * 2;
      const uint32_t col = word[0];
      if (col >= l.padded_cols) continue;
      const __m256i bytes = load256(in.a + (size_t{col / 4} * in.n_lanes + lane) * 4);
      const __m128i up = _mm_cvtsi32_si128(static_cast<int>(24 - col % 4 * 8));
      const __m256 a = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sll_epi32(bytes, up), 24));
      const __m256 x =
          _mm256_mul_ps(_mm256_loadu_ps(in.scales + size_t{col / kBlock} * in.n_lanes + lane), a);
      sum = _mm256_fmadd_ps(_mm256_set1_ps(_cvtsh_ss(word[1])), x, sum);
    }
    _mm256_storeu_ps(y + lane, sum);
  }
}

void q24_many(const Matrix& m, uint32_t panel, const Input& in, uint8_t* scratch, float* y) {
  PanelScratch& unpacked = *reinterpret_cast<PanelScratch*>(scratch);
  const size_t lanes = in.n_lanes;
  float* const acc_s = unpacked.accumulators();
  float* const acc_m = acc_s + kPanelRows * lanes;
  __builtin_memset(acc_s, 0, 2 * kPanelRows * lanes * sizeof(float));
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    unpack_block(m, panel, block, unpacked);
    for (uint32_t w = 0; w < kPanelRows; ++w) {
      float* const s = acc_s + w * lanes;
      float* const minimums = acc_m + w * lanes;
      uint32_t lane = 0;
      for (; lane + 32 <= lanes; lane += 32)
        block_row<4>(m, panel, block, w, unpacked, in, lane, s, minimums);
      for (; lane < lanes; lane += 16) block_row<2>(m, panel, block, w, unpacked, in, lane, s, minimums);
    }
  }
  for (uint32_t w = 0; w < kPanelRows; ++w)
    finish_word(m, panel, w, in, acc_s + w * lanes, acc_m + w * lanes, y + kWordRow[w] * lanes);
}

void panel(const Matrix& m, uint32_t index, const Input& in, uint8_t* scratch, float* y) {
  if (!m.is_q24())
    Avx2::plain_panel_any(m, index, in, y);
  else if (in.n_lanes == 1)
    q24_one(m, index, in, y);
  else
    q24_many(m, index, in, scratch, y);
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
    Avx2::rms_norm, Avx2::quantize, panel,         Avx2::store,  Avx2::gate, Avx2::softcap, Avx2::rope,
    Avx2::append,   Avx2::attend,   Avx2::combine, Avx2::finish, read,       mac_loop,
};

}  // namespace pith::cpu
