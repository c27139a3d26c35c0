// NEON kernels with the dot product instructions (Armv8.2). Same bits as scalar.cpp.
//
// Q24, one token: a vector is 4 words (rows) of a line; per quad, codes 4*hi + lo (<= 15) meet one lane of the line's 16
// activations in sdot, and the group's scale multiplies the line's sum in int32.
// More tokens: a vector is 4 tokens; a panel's block is unpacked to [line][word][16 codes], whose four lanes are the
// broadcast operands.
#include <arm_neon.h>

#include "runtime/cpu/generic.h"
#include "runtime/cpu/panel_scratch.h"
#include "runtime/cpu/tables.h"
#include "runtime/cpu/vec_neon.h"

namespace pith::cpu {

namespace {

using Neon = Generic<VecNeon>;

float half_to_float(uint16_t h) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

// Codes of the four quads of 4 words.
struct Codes {
  int8x16_t quad[4];
};
Codes unpack(const uint8_t* hi_line, const uint8_t* lo_line) {
  const uint8x16_t hi = vld1q_u8(hi_line), high = vdupq_n_u8(0x0c), low = vdupq_n_u8(0x03);
  uint8x16_t c[4] = {vandq_u8(vshlq_n_u8(hi, 2), high), vandq_u8(hi, high), vandq_u8(vshrq_n_u8(hi, 2), high),
                     vandq_u8(vshrq_n_u8(hi, 4), high)};
  if (lo_line != nullptr) {
    const uint8x16_t lo = vld1q_u8(lo_line);
    c[0] = vorrq_u8(c[0], vandq_u8(lo, low));
    c[1] = vorrq_u8(c[1], vandq_u8(vshrq_n_u8(lo, 2), low));
    c[2] = vorrq_u8(c[2], vandq_u8(vshrq_n_u8(lo, 4), low));
    c[3] = vorrq_u8(c[3], vshrq_n_u8(lo, 6));
  }
  Codes codes;
  for (int p = 0; p < 4; ++p) codes.quad[p] = vreinterpretq_s8_u8(c[p]);
  return codes;
}

// Where the planes of one panel and line are.
struct Line {
  const uint8_t *hi, *lo, *scales;  // lo: nullptr in the 2-bit columns; scales: byte of word 0, words 2 apart
};
Line line_of(const Matrix& m, uint32_t panel, uint32_t line) {
  const q24::Layout& l = m.view.layout;
  const uint32_t first_fine = l.n_lines - l.n_fine_lines, g = line * 16 / l.shape.group;
  return {m.view.base + (size_t{panel} * l.n_lines + line) * q24::kLineBytes,
          line < first_fine
              ? nullptr
              : m.view.fine + (size_t{panel} * l.n_fine_lines + (line - first_fine)) * q24::kLineBytes,
          m.view.scales + panel * l.scales_stride + size_t{g / 2} * 64 + g % 2};
}

// The bytes s | m << 4 of words 4i .. 4i + 3.
int32x4_t group_bytes(const uint8_t* scales, uint32_t i) {
  const uint8_t* const p = scales + i * 8;
  const int32_t bytes[4] = {p[0], p[2], p[4], p[6]};
  return vld1q_s32(bytes);
}

void q24_one(const Matrix& m, uint32_t panel, const Input& in, float* y) {
  const q24::Layout& l = m.view.layout;
  float32x4_t acc[8];
  int32x4_t minimums[8];
  for (int i = 0; i < 8; ++i) acc[i] = vdupq_n_f32(0), minimums[i] = vdupq_n_s32(0);
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    const uint32_t end = block * 8 + 8 < l.n_lines ? block * 8 + 8 : l.n_lines;
    int32x4_t big_t[8];
    for (int32x4_t& sum : big_t) sum = vdupq_n_s32(0);
    for (uint32_t line = block * 8; line < end; ++line) {
      const Line at = line_of(m, panel, line);
      const int8x16_t a = vld1q_s8(in.a + size_t{line} * 16);
      const int32_t sum_a = in.sums[line];
      __builtin_prefetch(at.hi + 2048);
      for (uint32_t i = 0; i < 8; ++i) {
        const Codes c = unpack(at.hi + i * 16, at.lo == nullptr ? nullptr : at.lo + i * 16);
        int32x4_t sum = vdotq_laneq_s32(vdupq_n_s32(0), c.quad[0], a, 0);
        sum = vdotq_laneq_s32(sum, c.quad[1], a, 1);
        sum = vdotq_laneq_s32(sum, c.quad[2], a, 2);
        sum = vdotq_laneq_s32(sum, c.quad[3], a, 3);
        const int32x4_t sm = group_bytes(at.scales, i);
        big_t[i] = vmlaq_s32(big_t[i], sum, vandq_s32(sm, vdupq_n_s32(15)));
        minimums[i] = vmlaq_n_s32(minimums[i], vshrq_n_s32(sm, 4), sum_a);
      }
    }
    const float32x4_t scale = vdupq_n_f32(in.scales[block]);
    for (int i = 0; i < 8; ++i) acc[i] = vfmaq_f32(acc[i], scale, vcvtq_f32_s32(big_t[i]));
  }
  for (uint32_t w = 0; w < kPanelRows; ++w) {
    const uint16_t* const row_scale = m.view.row_scale + (size_t{panel} * kPanelRows + w) * 2;
    float out = 0;
    for (uint32_t slot = 0; slot < l.shape.n_slots; ++slot) {
      const uint16_t* const word =
          m.view.outliers + ((size_t{panel} * l.shape.n_slots + slot) * kPanelRows + w) * 2;
      const uint32_t col = word[0];  // read once: the mapping may change
      if (col < l.padded_cols) out = __builtin_fmaf(half_to_float(word[1]), in.x_hat[col], out);
    }
    const float minimum = in.sum_steps[0] * static_cast<float>(minimums[w / 4][w % 4]);
    out = __builtin_fmaf(0.25f * half_to_float(row_scale[0]), acc[w / 4][w % 4], out);
    y[q24::word_row(w)] = __builtin_fmaf(-half_to_float(row_scale[1]), minimum, out);
  }
}

// codes: [8 lines][32 words][16]
void unpack_block(const Matrix& m, uint32_t panel, uint32_t first, uint32_t end, int8_t* codes) {
  for (uint32_t line = first; line < end; ++line) {
    const Line at = line_of(m, panel, line);
    for (uint32_t i = 0; i < 8; ++i) {
      const Codes c = unpack(at.hi + i * 16, at.lo == nullptr ? nullptr : at.lo + i * 16);
      int32x4x4_t quads;
      for (int p = 0; p < 4; ++p) quads.val[p] = vreinterpretq_s32_s8(c.quad[p]);
      vst4q_s32(reinterpret_cast<int32_t*>(codes + (size_t{line - first} * 32 + i * 4) * 16), quads);
    }
  }
}

// One block of one word for 16 tokens from `lane` on, added to the accumulators.
void block_row(const Matrix& m, uint32_t panel, uint32_t block, uint32_t w, const int8_t* codes,
               const Input& in, uint32_t lane, float* acc, int32_t* minimums) {
  const uint32_t first = block * 8, end = first + m.lines_of(block);
  const int8_t* const first_quad = quads(in, block, end - first, lane);
  const size_t lanes = in.n_lanes;
  int32x4_t big_t[4], big_m[4];
  for (int v = 0; v < 4; ++v) big_t[v] = vdupq_n_s32(0), big_m[v] = vld1q_s32(minimums + lane + v * 4);
  for (uint32_t line = first; line < end; ++line) {
    const int sm = line_of(m, panel, line).scales[w * 2];
    const int8x16_t c = vld1q_s8(codes + (size_t{line - first} * 32 + w) * 16);
    const int8_t* const a = first_quad + (line - first) * 256;
    const int16_t* const sums = pairs(m, in, lane) + size_t{line / 2} * pair_stride(in);
    for (int v = 0; v < 4; ++v) {
      const auto x = [&](size_t p) { return vld1q_s8(a + p * 64 + v * 16); };
      int32x4_t sum = vdotq_laneq_s32(vdupq_n_s32(0), x(0), c, 0);
      sum = vdotq_laneq_s32(sum, x(1), c, 1);
      sum = vdotq_laneq_s32(sum, x(2), c, 2);
      sum = vdotq_laneq_s32(sum, x(3), c, 3);
      big_t[v] = vmlaq_n_s32(big_t[v], sum, sm & 15);
      const int32x4_t both = vreinterpretq_s32_s16(vld1q_s16(sums + v * 8));  // (even line, odd line)
      const int32x4_t mine = line % 2 ? vshrq_n_s32(both, 16) : vshrq_n_s32(vshlq_n_s32(both, 16), 16);
      big_m[v] = vmlaq_n_s32(big_m[v], mine, sm >> 4);
    }
  }
  for (int v = 0; v < 4; ++v) {
    const uint32_t at = lane + static_cast<uint32_t>(v) * 4;
    const float32x4_t scale = vld1q_f32(in.scales + block * lanes + at);
    vst1q_f32(acc + at, vfmaq_f32(vld1q_f32(acc + at), scale, vcvtq_f32_s32(big_t[v])));
    vst1q_s32(minimums + at, big_m[v]);
  }
}

// Adds a block's outliers for all tokens to out [32 words, n_lanes].
void add_outliers(const Matrix& m, const PanelScratch& scratch, uint32_t block, const Input& in, float* out) {
  const Outlier* const end = scratch.outliers + scratch.outlier_begin[block + 1];
  for (const Outlier* o = scratch.outliers + scratch.outlier_begin[block]; o < end; ++o) {
    const int32x4_t up = vdupq_n_s32(24 - o->col % 4 * 8);
    const float32x4_t delta = vdupq_n_f32(o->delta);
    for (uint32_t lane = 0; lane < in.n_lanes; lane += 4) {
      const int8_t* const quad = quads(in, block, m.lines_of(block), lane) + o->col / 4 * 64;
      const int32x4_t value = vshrq_n_s32(vshlq_s32(vreinterpretq_s32_s8(vld1q_s8(quad)), up), 24);
      const float32x4_t scale = vld1q_f32(in.scales + size_t{block} * in.n_lanes + lane);
      float* const at = out + size_t{o->word} * in.n_lanes + lane;
      vst1q_f32(at, vfmaq_f32(vld1q_f32(at), delta, vmulq_f32(scale, vcvtq_f32_s32(value))));
    }
  }
}

void finish_word(const Matrix& m, uint32_t panel, uint32_t w, const Input& in, const float* acc,
                 const int32_t* minimums, const float* outliers, float* y) {
  const uint16_t* const row_scale = m.view.row_scale + (size_t{panel} * kPanelRows + w) * 2;
  const float32x4_t d = vdupq_n_f32(0.25f * half_to_float(row_scale[0]));
  const float32x4_t dmin = vdupq_n_f32(half_to_float(row_scale[1]));
  for (uint32_t lane = 0; lane < in.n_lanes; lane += 4) {
    const float32x4_t minimum =
        vmulq_f32(vld1q_f32(in.sum_steps + lane), vcvtq_f32_s32(vld1q_s32(minimums + lane)));
    const float32x4_t sum = vfmaq_f32(vld1q_f32(outliers + lane), d, vld1q_f32(acc + lane));
    vst1q_f32(y + lane, vfmsq_f32(sum, dmin, minimum));
  }
}

void q24_many(const Matrix& m, uint32_t panel, const Input& in, uint8_t* memory, float* y) {
  const PanelScratch scratch(m, in.n_lanes, memory);
  int8_t* const codes = reinterpret_cast<int8_t*>(scratch.blocks[0].codes);
  const size_t lanes = in.n_lanes;
  float* const acc = scratch.accumulators;
  float* const outliers = acc + kPanelRows * lanes;
  int32_t* const minimums = reinterpret_cast<int32_t*>(outliers + kPanelRows * lanes);
  __builtin_memset(acc, 0, 3 * kPanelRows * lanes * sizeof(float));
  scratch.sort_outliers(m, panel, half_to_float);
  const uint32_t n_lines = m.view.layout.n_lines;
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    unpack_block(m, panel, block * 8, block * 8 + 8 < n_lines ? block * 8 + 8 : n_lines, codes);
    for (uint32_t w = 0; w < kPanelRows; ++w)
      for (uint32_t lane = 0; lane < lanes; lane += 16)
        block_row(m, panel, block, w, codes, in, lane, acc + w * lanes, minimums + w * lanes);
    add_outliers(m, scratch, block, in, outliers);
  }
  for (uint32_t w = 0; w < kPanelRows; ++w)
    finish_word(m, panel, w, in, acc + w * lanes, minimums + w * lanes, outliers + w * lanes,
                y + q24::word_row(w) * lanes);
}

void panel(const Matrix& m, uint32_t index, const Input& in, uint8_t* scratch, float* y) {
  if (!m.is_q24())
    Neon::plain_panel_any(m, index, in, scratch, y);
  else if (in.n_lanes == 1)
    q24_one(m, index, in, y);
  else
    q24_many(m, index, in, scratch, y);
}

uint64_t read(const uint8_t* data, uint64_t size) {
  uint64x2_t sums[4];
  for (uint64x2_t& sum : sums) sum = vdupq_n_u64(0);
  for (uint64_t i = 0; i < size; i += 64)
    for (uint32_t j = 0; j < 4; ++j)
      sums[j] = vaddq_u64(sums[j], vreinterpretq_u64_u8(vld1q_u8(data + i + j * 16)));
  const uint64x2_t all = vaddq_u64(vaddq_u64(sums[0], sums[1]), vaddq_u64(sums[2], sums[3]));
  return vgetq_lane_u64(all, 0) + vgetq_lane_u64(all, 1);
}

uint64_t mac_loop(uint64_t rounds) {
  int32x4_t sums[16];
  for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
  const int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(2);
  for (uint64_t i = 0; i < rounds; ++i)
    for (int32x4_t& sum : sums) sum = vdotq_s32(sum, a, b);
  for (int32x4_t& sum : sums) asm volatile("" : "+w"(sum));
  return rounds * 16 * 16;
}

}  // namespace

const Kernels kNeonKernels = {
    "neon",       Neon::rms_norm, Neon::quantize, Neon::quantize_sums, Neon::quantize_tile,
    panel,        Neon::store,    Neon::gate,     Neon::softcap,       Neon::rope,
    Neon::append, Neon::attend,   Neon::combine,  Neon::finish,        read,
    mac_loop,
};

}  // namespace pith::cpu
