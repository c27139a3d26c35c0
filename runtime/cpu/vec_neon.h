// 16 float lanes as four NEON registers. Meaning: vec_scalar.h.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace pith::cpu {

struct VecNeon {
  float32x4_t v[4];

  template <typename F>
  [[gnu::always_inline]] static VecNeon each(F&& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static constexpr uint32_t kRegisters = 8;  // how many of these the CPU holds

  struct Part {
    float32x4_t v;
    static Part load(const float* p) { return {vld1q_f32(p)}; }
    void store(float* p) const { vst1q_f32(p, v); }
    static Part fma(Part a, Part b, Part c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  };
  static constexpr uint32_t kParts = 4;

  static VecNeon set1(float x) {
    return each([&](int) { return vdupq_n_f32(x); });
  }
  static VecNeon load(const float* p) {
    return each([&](int i) { return vld1q_f32(p + 4 * i); });
  }
  static VecNeon load_f16(const uint16_t* p) {
    return each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static VecNeon load_bf16(const uint16_t* p) {
    return each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static VecNeon load_i8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
  }
  void store(float* p) const {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v[i]);
  }
  void store_f16(uint16_t* p) const {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v[i])));
  }
  void store_i8(int8_t* p) const {  // the conversion turns NaN into 0
    const int16x8_t low = vcombine_s16(vmovn_s32(vcvtq_s32_f32(v[0])), vmovn_s32(vcvtq_s32_f32(v[1])));
    const int16x8_t high = vcombine_s16(vmovn_s32(vcvtq_s32_f32(v[2])), vmovn_s32(vcvtq_s32_f32(v[3])));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }

  friend VecNeon operator+(VecNeon a, VecNeon b) {
    return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
  }
  friend VecNeon operator-(VecNeon a, VecNeon b) {
    return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
  }
  friend VecNeon operator*(VecNeon a, VecNeon b) {
    return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
  }
  friend VecNeon operator/(VecNeon a, VecNeon b) {
    return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
  }
  static VecNeon fma(VecNeon a, VecNeon b, VecNeon c) {
    return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
  }
  // By comparison, because vmaxq and vminq return NaN where x86 returns the second operand.
  static VecNeon max(VecNeon a, VecNeon b) {
    return each([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  static VecNeon min(VecNeon a, VecNeon b) {
    return each([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  static VecNeon abs(VecNeon a) {
    return each([&](int i) { return vabsq_f32(a.v[i]); });
  }
  static VecNeon keep(VecNeon a, uint32_t begin, uint32_t end, float other) {
    const uint32_t first[4] = {0, 1, 2, 3};
    const uint32x4_t low = vdupq_n_u32(begin), high = vdupq_n_u32(end);
    return each([&](int i) {
      const uint32x4_t lane = vaddq_u32(vld1q_u32(first), vdupq_n_u32(static_cast<uint32_t>(4 * i)));
      return vbslq_f32(vandq_u32(vcgeq_u32(lane, low), vcltq_u32(lane, high)), a.v[i], vdupq_n_f32(other));
    });
  }
  static VecNeon exp2_of_biased(VecNeon t) {
    return each([&](int i) {
      return vreinterpretq_f32_u32(
          vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(t.v[i]), 23), vdupq_n_u32(0x3f800000)));
    });
  }
  static float reduce_add(VecNeon a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static float reduce_max(VecNeon a) {
    float values[16];
    a.store(values);
    float m = values[0];
    for (int i = 1; i < 16; ++i) m = values[i] > m ? values[i] : m;
    return m;
  }
  // tile [16 rows] of 16 lanes: lane j of row i becomes lane i of row j.
  static void transpose(VecNeon (&tile)[16]) {
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
