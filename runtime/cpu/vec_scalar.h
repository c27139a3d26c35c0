// 16 float lanes in plain C++: the reference for the other vec_*.h, which must agree with it bit for bit.
//
// max and min return the second operand when either is NaN, as x86 does. round is to nearest even.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "format/float16.h"

namespace pith::cpu {

struct VecScalar {
  float v[16];

  static constexpr uint32_t kRegisters = 8;  // how many of these the CPU holds

  // As many of the lanes as one register holds, to be loaded, stored and given to fma on their own.
  using Part = VecScalar;
  static constexpr uint32_t kParts = 1;

  template <typename F>
  static VecScalar each(F&& f) {
    VecScalar r;
    for (uint32_t i = 0; i < 16; ++i) r.v[i] = f(i);
    return r;
  }
  static VecScalar set1(float x) {
    return each([&](uint32_t) { return x; });
  }
  static VecScalar load(const float* p) {
    return each([&](uint32_t i) { return p[i]; });
  }
  static VecScalar load_f16(const uint16_t* p) {
    return each([&](uint32_t i) { return f16_to_float(p[i]); });
  }
  static VecScalar load_bf16(const uint16_t* p) {
    return each([&](uint32_t i) { return bf16_to_float(p[i]); });
  }
  static VecScalar load_i8(const int8_t* p) {
    return each([&](uint32_t i) { return static_cast<float>(p[i]); });
  }
  void store(float* p) const { std::memcpy(p, v, sizeof v); }
  void store_f16(uint16_t* p) const {
    for (uint32_t i = 0; i < 16; ++i) p[i] = float_to_f16(v[i]);
  }
  // Lanes are whole numbers in [-127, 127], or NaN (stored as 0).
  void store_i8(int8_t* p) const {
    for (uint32_t i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v[i] == v[i] ? v[i] : 0);
  }

  friend VecScalar operator+(VecScalar a, VecScalar b) {
    return each([&](uint32_t i) { return a.v[i] + b.v[i]; });
  }
  friend VecScalar operator-(VecScalar a, VecScalar b) {
    return each([&](uint32_t i) { return a.v[i] - b.v[i]; });
  }
  friend VecScalar operator*(VecScalar a, VecScalar b) {
    return each([&](uint32_t i) { return a.v[i] * b.v[i]; });
  }
  friend VecScalar operator/(VecScalar a, VecScalar b) {
    return each([&](uint32_t i) { return a.v[i] / b.v[i]; });
  }
  static VecScalar fma(VecScalar a, VecScalar b, VecScalar c) {
    return each([&](uint32_t i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  static VecScalar max(VecScalar a, VecScalar b) {
    return each([&](uint32_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static VecScalar min(VecScalar a, VecScalar b) {
    return each([&](uint32_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static VecScalar abs(VecScalar a) {
    return each([&](uint32_t i) { return std::fabs(a.v[i]); });
  }
  // Lanes [begin, end) of a, `other` elsewhere.
  static VecScalar keep(VecScalar a, uint32_t begin, uint32_t end, float other) {
    return each([&](uint32_t i) { return i >= begin && i < end ? a.v[i] : other; });
  }
  // 2^n, where t = n + 1.5 * 2^23 (the sum's low bits are n).
  static VecScalar exp2_of_biased(VecScalar t) {
    return each([&](uint32_t i) {
      return std::bit_cast<float>((std::bit_cast<uint32_t>(t.v[i]) << 23) + 0x3f800000);
    });
  }
  static float reduce_add(VecScalar a) {
    for (uint32_t n = 8; n > 0; n /= 2)
      for (uint32_t i = 0; i < n; ++i) a.v[i] += a.v[i + n];
    return a.v[0];
  }
  static float reduce_max(VecScalar a) {
    float m = a.v[0];
    for (uint32_t i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
  }
  // tile [16 rows] of 16 lanes: lane j of row i becomes lane i of row j.
  static void transpose(VecScalar (&tile)[16]) {
    float all[16][16];
    for (uint32_t i = 0; i < 16; ++i) tile[i].store(all[i]);
    for (uint32_t i = 0; i < 16; ++i)
      for (uint32_t j = 0; j < i; ++j) {
        const float other = all[i][j];
        all[i][j] = all[j][i];
        all[j][i] = other;
      }
    for (uint32_t i = 0; i < 16; ++i) tile[i] = load(all[i]);
  }
};

}  // namespace pith::cpu
