// Activations to int8, written once over a vector type (generic.h). What is computed: kernels.h.
#pragma once
#include "runtime/cpu/generic_math.h"
#include "runtime/cpu/kernels.h"

namespace pith::cpu {

// kLinePairs: quads of many tokens as avx2.cpp wants them, two columns of each line of a pair.
template <class V, bool kLinePairs>
struct Quantizing {
  // out[i] = x[order[i]] for n (a multiple of 16) elements, one by one: a gather instruction takes longer (24 cycles for
  // 16 on Zen 5), and so does what compilers make of these loads and stores when they may group them.
  static void permute(const float* x, const uint16_t* order, uint32_t n, float* out) {
    for (uint32_t i = 0; i < n; i += 4) {
      uint64_t four;
      __builtin_memcpy(&four, order + i, sizeof four);
      for (uint32_t j = 0; j < 4; ++j, four >>= 16) {
        out[i + j] = x[four & 0xffff];
        asm volatile("" ::: "memory");
      }
    }
  }

  // One token.
  static void quantize(const Matrix& m, const float* x, uint32_t block_begin, uint32_t block_end,
                       const Input& in) {
    for (uint32_t b = block_begin; b < block_end; ++b) {
      const uint32_t first_line = b * (kBlock / 16), n_lines = m.lines_of(b);
      alignas(64) float permuted[kBlock];
      permute(x, m.perm + size_t{first_line} * 16, n_lines * 16, permuted);
      V values[8], largest = V::set1(0);
      for (uint32_t i = 0; i < n_lines; ++i) {
        const uint32_t col = (first_line + i) * 16;
        V v = V::load(permuted + i * 16) * V::set1(m.col_scale[first_line + i]);
        if (col + 16 > m.n_cols) v = V::keep(v, 0, col < m.n_cols ? m.n_cols - col : 0, 0);
        values[i] = v;
        largest = V::max(largest, V::abs(v));
      }
      const Scale scale(V::reduce_max(largest), kByteLimit);
      in.scales[b] = scale.step;
      const V inverse = V::set1(scale.inverse), magic = V::set1(kMagic);
      for (uint32_t i = 0; i < n_lines; ++i) {
        const uint32_t line = first_line + i;
        const V rounded = values[i] * inverse + magic - magic;
        rounded.store_i8(in.a + line * 16);
        (V::set1(scale.step) * rounded).store(in.x_hat + line * 16);
        in.line_sums[line] = scale.step * V::reduce_add(rounded);  // of whole numbers: exact in any order
      }
      if (b + 1 == m.n_blocks())
        for (uint32_t line = first_line + n_lines; line < m.n_summed_lines(); ++line) in.line_sums[line] = 0;
    }
  }

  static void quantize_sums(const Matrix& m, const Input& in) {
    const uint32_t n = m.n_summed_lines();
    V largest = V::set1(0);
    for (uint32_t i = 0; i < n; i += 16) largest = V::max(largest, V::abs(V::load(in.line_sums + i)));
    const Scale scale(V::reduce_max(largest), kSumLimit);
    in.sum_steps[0] = scale.step;
    const V inverse = V::set1(scale.inverse), magic = V::set1(kMagic);
    for (uint32_t i = 0; i < n; i += 16) {
      float biased[16];
      (V::load(in.line_sums + i) * inverse + magic).store(biased);
      for (uint32_t j = 0; j < 16; ++j) in.sums[i + j] = static_cast<int16_t>(whole_bits(biased[j]));
    }
  }

  // Tokens are lanes here too: x is turned first, so that a column is a vector, and a permuted column a load.
  static void quantize_tile(const Matrix& m, const float* x, size_t x_stride, uint32_t n_tokens,
                            uint32_t lane, const Input& in, float* scratch) {
    float* const columns = scratch;                                // [n_cols, 16]
    float* const line_sums = scratch + size_t{m.n_cols} * kLanes;  // [n_lines, 16]
    turn(x, x_stride, n_tokens, m.n_cols, columns);
    V largest_sum = V::set1(0);
    for (uint32_t b = 0; b < m.n_blocks(); ++b) {
      const uint32_t first_line = b * (kBlock / 16), n_lines = m.lines_of(b);
      alignas(64) float values[kBlock][kLanes];
      V largest = V::set1(0);
      for (uint32_t c = 0; c < n_lines * 16; ++c) {
        const uint32_t column = first_line * 16 + c;
        const V v = column < m.n_cols ? V::load(columns + size_t{m.perm[column]} * kLanes) *
                                            V::set1(m.col_scale[column / 16])
                                      : V::set1(0);
        v.store(values[c]);
        largest = V::max(largest, V::abs(v));
      }
      float* const steps = in.scales + size_t{b} * in.n_lanes + lane;
      const V inverse = set_scales(largest, kByteLimit, steps), step = V::load(steps),
              magic = V::set1(kMagic);
      for (uint32_t i = 0; i < n_lines; ++i) {
        V sum = V::set1(0);
        for (float(*value)[kLanes] = values + i * 16; value < values + (i + 1) * 16; ++value) {
          const V biased = V::load(*value) * inverse + magic;
          biased.store(*value);
          sum = sum + (biased - magic);
        }
        const V line_sum = step * sum;
        line_sum.store(line_sums + size_t{first_line + i} * kLanes);
        largest_sum = V::max(largest_sum, V::abs(line_sum));
      }
      store_quads(values, n_lines, quads(in, b, n_lines, lane));
    }
    const V inverse = set_scales(largest_sum, kSumLimit, in.sum_steps + lane), magic = V::set1(kMagic);
    const uint32_t n_lines = m.view.layout.n_lines;  // a multiple of 4: columns are padded to 64
    int16_t* out = pairs(m, in, lane);
    for (uint32_t line = 0; line < n_lines; line += 2, out += kLanes * 2) {
      float biased[2][kLanes];
      for (uint32_t i = 0; i < 2; ++i)
        (V::load(line_sums + size_t{line + i} * kLanes) * inverse + magic).store(biased[i]);
      for (uint32_t t = 0; t < kLanes; ++t)
        for (uint32_t i = 0; i < 2; ++i) out[t * 2 + i] = static_cast<int16_t>(whole_bits(biased[i][t]));
    }
    __builtin_memset(out, 0, size_t{m.n_summed_lines() - n_lines} * kLanes * sizeof(int16_t));
  }

  // Scales of 16 tokens: stores the steps, returns the inverses.
  static V set_scales(V largest, float limit, float* steps) {
    float all[kLanes];
    largest.store(all);
    for (uint32_t t = 0; t < kLanes; ++t) {
      const Scale scale(all[t], limit);
      steps[t] = scale.step;
      all[t] = scale.inverse;
    }
    return V::load(all);
  }

  // x [n_tokens, n] to [n, 16], zeros for the tokens that are not there.
  static void turn(const float* x, size_t x_stride, uint32_t n_tokens, uint32_t n, float* out) {
    for (uint32_t c = 0; c < n; c += 16) {
      const uint32_t rest = n - c < 16 ? n - c : 16;
      V tile[16];
      for (uint32_t t = 0; t < kLanes; ++t) {
        const float* const row = x + t * x_stride + c;
        tile[t] = t >= n_tokens ? V::set1(0)
                  : rest == 16  ? V::load(row)
                                : load_tail<V, float>(V::load, row, rest);
      }
      V::transpose(tile);
      for (uint32_t i = 0; i < rest; ++i) tile[i].store(out + size_t{c + i} * kLanes);
    }
  }

  // biased [16 * n_lines columns][16]: whole numbers + kMagic.
  static void store_quads(const float (*biased)[kLanes], uint32_t n_lines, int8_t* out) {
    const auto byte = [](float x) { return whole_bits(x) & 0xff; };
    for (uint32_t quad = 0; quad < n_lines * 4; ++quad, out += kLanes * 4) {
      const uint32_t first = kLinePairs ? quad / 8 * 32 + quad % 8 * 2 : quad * 4;
      const float(*const a)[kLanes] = biased + first, (*const b)[kLanes] = a + (kLinePairs ? 16 : 2);
      uint32_t words[kLanes];
      for (uint32_t t = 0; t < kLanes; ++t)
        words[t] = byte(a[0][t]) | byte(a[1][t]) << 8 | byte(b[0][t]) << 16 | byte(b[1][t]) << 24;
      __builtin_memcpy(out, words, sizeof words);
    }
  }
};

}  // namespace pith::cpu
