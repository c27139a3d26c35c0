// 16 float lanes as one AVX-512 register. Include only where -mavx512f -mavx512bw -mavx512dq -mavx512vl is on.
// Meaning: vec_scalar.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace pith::cpu {
namespace {  // one type a kernel file: two of them are compiled from one source, for different CPUs

struct VecAvx512 {
  __m512 v;

  static constexpr uint32_t kRegisters = 32;  // how many of these the CPU holds

  using Part = VecAvx512;
  static constexpr uint32_t kParts = 1;

  static VecAvx512 set1(float x) { return {_mm512_set1_ps(x)}; }
  static VecAvx512 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static VecAvx512 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(load256(p))}; }
  static VecAvx512 load_bf16(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16))};
  }
  static VecAvx512 load_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_f16(uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store_i8(int8_t* p) const {
    const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(number, v)));
  }

  friend VecAvx512 operator+(VecAvx512 a, VecAvx512 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend VecAvx512 operator-(VecAvx512 a, VecAvx512 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend VecAvx512 operator*(VecAvx512 a, VecAvx512 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend VecAvx512 operator/(VecAvx512 a, VecAvx512 b) { return {_mm512_div_ps(a.v, b.v)}; }
  static VecAvx512 fma(VecAvx512 a, VecAvx512 b, VecAvx512 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static VecAvx512 max(VecAvx512 a, VecAvx512 b) { return {_mm512_max_ps(a.v, b.v)}; }
  static VecAvx512 min(VecAvx512 a, VecAvx512 b) { return {_mm512_min_ps(a.v, b.v)}; }
  static VecAvx512 abs(VecAvx512 a) { return {_mm512_abs_ps(a.v)}; }
  static VecAvx512 keep(VecAvx512 a, uint32_t begin, uint32_t end, float other) {
    const uint32_t mask = ((1u << end) - 1) & ~((1u << begin) - 1);  // begin, end <= 16
    return {_mm512_mask_blend_ps(static_cast<__mmask16>(mask), _mm512_set1_ps(other), a.v)};
  }
  static VecAvx512 exp2_of_biased(VecAvx512 t) {
    return {_mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(t.v), 23), _mm512_set1_epi32(0x3f800000)))};
  }
  static float reduce_add(VecAvx512 a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float reduce_max(VecAvx512 a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }

  static void transpose(VecAvx512 (&tile)[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 4) {  // 4 x 4 within each 128-bit lane
      const __m512 a = _mm512_unpacklo_ps(tile[i].v, tile[i + 1].v),
                   b = _mm512_unpackhi_ps(tile[i].v, tile[i + 1].v),
                   c = _mm512_unpacklo_ps(tile[i + 2].v, tile[i + 3].v),
                   d = _mm512_unpackhi_ps(tile[i + 2].v, tile[i + 3].v);
      t[i] = _mm512_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // then 4 x 4 of those lanes
      const __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88),
                   b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd),
                   c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88),
                   d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
      tile[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
      tile[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
      tile[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
      tile[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }

 private:
  static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
};

}  // namespace
}  // namespace pith::cpu
