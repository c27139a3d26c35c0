// 16 float lanes as two AVX2 registers. Include only where -mavx2 -mfma -mf16c is on. Meaning: vec_scalar.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace pith::cpu {
namespace {  // one type a kernel file: two of them are compiled from one source, for different CPUs

struct VecAvx2 {
  __m256 lo, hi;

  static constexpr uint32_t kRegisters = 8;  // how many of these the CPU holds

  struct Part {
    __m256 v;
    static Part load(const float* p) { return {_mm256_loadu_ps(p)}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    static Part fma(Part a, Part b, Part c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  };
  static constexpr uint32_t kParts = 2;

  static VecAvx2 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static VecAvx2 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static VecAvx2 load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))};
  }
  static VecAvx2 load_bf16(const uint16_t* p) { return {widen_bf16(load128(p)), widen_bf16(load128(p + 8))}; }
  static VecAvx2 load_i8(const int8_t* p) {
    const __m128i bytes = load128(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, lo);
    _mm256_storeu_ps(p + 8, hi);
  }
  void store_f16(uint16_t* p) const {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(lo, kNearest));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(hi, kNearest));
  }
  void store_i8(int8_t* p) const {
    const auto whole = [](__m256 x) {  // NaN becomes 0
      return _mm256_and_si256(_mm256_cvtps_epi32(x), _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q)));
    };
    const __m256i halves = _mm256_packs_epi32(whole(lo), whole(hi));  // 64-bit quarters in order 0, 2, 1, 3
    const __m256i ordered = _mm256_permute4x64_epi64(halves, 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
  }

  friend VecAvx2 operator+(VecAvx2 a, VecAvx2 b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  friend VecAvx2 operator-(VecAvx2 a, VecAvx2 b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
  }
  friend VecAvx2 operator*(VecAvx2 a, VecAvx2 b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }
  friend VecAvx2 operator/(VecAvx2 a, VecAvx2 b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
  }
  static VecAvx2 fma(VecAvx2 a, VecAvx2 b, VecAvx2 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static VecAvx2 max(VecAvx2 a, VecAvx2 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static VecAvx2 min(VecAvx2 a, VecAvx2 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static VecAvx2 abs(VecAvx2 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
  }
  static VecAvx2 keep(VecAvx2 a, uint32_t begin, uint32_t end, float other) {
    const __m256i first = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const auto half = [&](__m256 x, __m256i lane) {
      const __m256i low =
          _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(begin)), lane);               // lane < begin
      const __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(end)), lane);  // lane < end
      return _mm256_blendv_ps(_mm256_set1_ps(other), x, _mm256_castsi256_ps(_mm256_andnot_si256(low, in)));
    };
    return {half(a.lo, first), half(a.hi, _mm256_add_epi32(first, _mm256_set1_epi32(8)))};
  }
  static VecAvx2 exp2_of_biased(VecAvx2 t) {
    const auto half = [](__m256 x) {
      return _mm256_castsi256_ps(
          _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(x), 23), _mm256_set1_epi32(0x3f800000)));
    };
    return {half(t.lo), half(t.hi)};
  }
  static float reduce_add(VecAvx2 a) {
    const __m256 eight = _mm256_add_ps(a.lo, a.hi);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float reduce_max(VecAvx2 a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }

  static void transpose(VecAvx2 (&tile)[16]) {
    const auto eight = [](const __m256(&in)[8], __m256(&out)[8]) {
      __m256 t[8];
      for (int i = 0; i < 8; i += 4) {  // 4 x 4 within each half
        const __m256 a = _mm256_unpacklo_ps(in[i], in[i + 1]), b = _mm256_unpackhi_ps(in[i], in[i + 1]),
                     c = _mm256_unpacklo_ps(in[i + 2], in[i + 3]),
                     d = _mm256_unpackhi_ps(in[i + 2], in[i + 3]);
        t[i] = _mm256_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
      }
      for (int i = 0; i < 4; ++i) {
        out[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
        out[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
      }
    };
    __m256 in[2][2][8], out[2][2][8];  // quarters [rows][columns]
    for (int i = 0; i < 16; ++i) {
      in[i / 8][0][i % 8] = tile[i].lo;
      in[i / 8][1][i % 8] = tile[i].hi;
    }
    for (int r = 0; r < 2; ++r)
      for (int c = 0; c < 2; ++c) eight(in[r][c], out[c][r]);
    for (int i = 0; i < 16; ++i) tile[i] = {out[i / 8][0][i % 8], out[i / 8][1][i % 8]};
  }

 private:
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256 widen_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
};

}  // namespace
}  // namespace pith::cpu
