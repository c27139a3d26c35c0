// The reference kernels: plain C++, any CPU. Q24 here is the definition that the vector versions must match.
#include "format/float16.h"
#include "runtime/cpu/generic.h"
#include "runtime/cpu/tables.h"
#include "runtime/cpu/vec_scalar.h"

namespace pith::cpu {

namespace {

// Codes of columns 4p .. 4p+3 of one line and word, as 4*hi + lo in four bytes.
struct Word {
  uint32_t hi, lo;
  uint32_t code(uint32_t p, uint32_t j) const {
    const uint32_t shift = 8 * j + 2 * p;
    return (hi >> shift & 3) * 4 + (lo >> shift & 3);
  }
};

uint32_t load_word(const uint8_t* line, uint32_t w) {
  uint32_t word;
  std::memcpy(&word, line + w * 4, sizeof word);
  return word;
}

// The byte s + 16 m of one word (row) and line.
uint8_t group_byte(const Matrix& m, uint32_t panel, uint32_t w, uint32_t line) {
  const q24::Layout& l = m.view.layout;
  const uint32_t g = line * 16 / l.shape.group;
  return m.view.scales[panel * l.scales_stride + size_t{g / 2} * 64 + w * 2 + g % 2];
}

// T of one word and block for one token.
int32_t block_sum(const Matrix& m, uint32_t panel, uint32_t w, uint32_t block, const Input& in, uint32_t t) {
  const q24::Layout& l = m.view.layout;
  const uint32_t n_lines = m.lines_of(block);
  const uint32_t first_fine = l.n_lines - l.n_fine_lines;
  int32_t big_t = 0;
  const int8_t* a = quads(in, block, n_lines, t);
  for (uint32_t line = block * 8; line < block * 8 + n_lines; ++line) {
    Word word{load_word(m.view.base + (size_t{panel} * l.n_lines + line) * q24::kLineBytes, w), 0};
    if (line >= first_fine)
      word.lo = load_word(
          m.view.fine + (size_t{panel} * l.n_fine_lines + (line - first_fine)) * q24::kLineBytes, w);
    int32_t sum = 0;
    for (uint32_t p = 0; p < 4; ++p, a += quad_bytes(in))
      for (uint32_t j = 0; j < 4; ++j) sum += static_cast<int32_t>(word.code(p, j)) * a[j];
    big_t += (group_byte(m, panel, w, line) & 15) * sum;
  }
  return big_t;
}

// M of one word for one token.
int32_t minimum_sum(const Matrix& m, uint32_t panel, uint32_t w, const Input& in, uint32_t t) {
  const int16_t* const sums = pairs(m, in, t);
  int32_t big_m = 0;
  for (uint32_t line = 0; line < m.view.layout.n_lines; ++line)
    big_m += (group_byte(m, panel, w, line) >> 4) * sums[size_t{line / 2} * pair_stride(in) + line % 2];
  return big_m;
}

void q24_panel(const Matrix& m, uint32_t panel, const Input& in, float* y) {
  const q24::Layout& l = m.view.layout;
  for (uint32_t w = 0; w < kPanelRows; ++w) {
    const uint16_t* const row_scale = m.view.row_scale + (size_t{panel} * kPanelRows + w) * 2;
    const float d = 0.25f * f16_to_float(row_scale[0]), dmin = f16_to_float(row_scale[1]);
    for (uint32_t t = 0; t < in.n_tokens; ++t) {
      float acc = 0, out = 0;
      for (uint32_t b = 0; b < m.n_blocks(); ++b)
        acc = std::fma(in.scales[size_t{b} * in.n_lanes + t],
                       static_cast<float>(block_sum(m, panel, w, b, in, t)), acc);
      for (uint32_t i = 0; i < l.shape.n_slots; ++i) {
        const uint16_t* const slot =
            m.view.outliers + ((size_t{panel} * l.shape.n_slots + i) * kPanelRows + w) * 2;
        const uint32_t col = slot[0];
        if (col >= l.padded_cols) continue;
        const uint32_t block = col / kBlock;
        const int8_t* const a = quads(in, block, m.lines_of(block), t) + col % kBlock / 4 * quad_bytes(in);
        const float x = in.scales[size_t{block} * in.n_lanes + t] * static_cast<float>(a[col % 4]);
        out = std::fma(f16_to_float(slot[1]), x, out);
      }
      const float minimums = in.sum_steps[t] * static_cast<float>(minimum_sum(m, panel, w, in, t));
      y[size_t{q24::word_row(w)} * in.n_lanes + t] = std::fma(-dmin, minimums, std::fma(d, acc, out));
    }
  }
}

using Scalar = Generic<VecScalar>;

void panel(const Matrix& m, uint32_t index, const Input& in, uint8_t* scratch, float* y) {
  if (m.is_q24())
    q24_panel(m, index, in, y);
  else
    Scalar::plain_panel_any(m, index, in, scratch, y);
}

uint64_t read(const uint8_t* data, uint64_t size) {
  uint64_t sums[8] = {};
  for (uint64_t i = 0; i < size; i += 64)
    for (uint32_t j = 0; j < 8; ++j) {
      uint64_t word;
      std::memcpy(&word, data + i + j * 8, 8);
      sums[j] += word;
    }
  return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

uint64_t mac_loop(uint64_t rounds) {
  volatile int8_t source = 3;  // not a constant to the compiler
  int32_t sums[8] = {}, a = source, b = source;
  for (uint64_t i = 0; i < rounds; ++i)
    for (int32_t& sum : sums) {
      sum += a * b;
      asm volatile("" : "+r"(sum));
    }
  return rounds * 8;
}

}  // namespace

const Kernels kScalarKernels = {
    "scalar",       Scalar::rms_norm, Scalar::quantize, Scalar::quantize_sums, Scalar::quantize_tile,
    panel,          Scalar::store,    Scalar::gate,     Scalar::softcap,       Scalar::rope,
    Scalar::append, Scalar::attend,   Scalar::combine,  Scalar::finish,        read,
    mac_loop,
};

}  // namespace pith::cpu
