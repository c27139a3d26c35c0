// Q24: layout arithmetic, pack, unpack and scalar decode. q24.h is the description.
//
// pack and unpack move whole words: the four columns 4p..4p+3 of a row are one little-endian uint32 of codes,
// and because byte j of a line's word holds columns 4p + j at bits 2p, a word is simply v0 | v1<<2 | v2<<4 |
// v3<<6.
#include "format/q24.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "format/checked.h"
#include "format/error.h"
#include "format/float16.h"

static_assert(std::endian::native == std::endian::little, "pith files are little-endian and used in place");

namespace pith::q24 {
namespace {

constexpr uint32_t kLowBits = 0x03030303;  // the low 2 bits of four codes

uint32_t load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void store32(uint8_t* p, uint32_t v) {
  std::memcpy(p, &v, sizeof v);
}
void store16(uint8_t* p, uint16_t v) {
  std::memcpy(p, &v, sizeof v);
}

uint32_t n_groups(const Layout& l) {
  return l.padded_cols / l.shape.group;
}
uint32_t first_fine_col(const Layout& l) {
  return l.padded_cols - l.shape.n_fine;
}

void require(bool ok, const char* what) {
  if (!ok) throw_error(ErrorCode::kInternal, "q24 pack: {}", what);
}

}  // namespace

Layout make_layout(const Shape& s) {
  const auto refuse = [&](const char* field, uint32_t found, const std::string& expected) {
    throw_error(ErrorCode::kFormat, "q24 shape [{}, {}]: {} is {}, expected {}", s.n_rows, s.n_cols, field,
                found, expected);
  };
  if (s.n_rows < 1) refuse("n_rows", s.n_rows, "at least 1");
  if (s.n_cols < 1 || s.n_cols > kMaxCols) refuse("n_cols", s.n_cols, fmt::format("1 to {}", kMaxCols));
  if (s.group != 16 && s.group != 32) refuse("group", s.group, "16 or 32");

  Layout l{};
  l.shape = s;
  l.padded_cols = padded_cols(s.n_cols);
  if (s.n_fine % s.group != 0 || s.n_fine > l.padded_cols)
    refuse("n_fine", s.n_fine, fmt::format("a multiple of {} up to {}", s.group, l.padded_cols));
  if (s.n_slots > l.padded_cols - s.n_fine)
    refuse("n_slots", s.n_slots, fmt::format("at most {}", l.padded_cols - s.n_fine));

  l.n_panels = static_cast<uint32_t>((uint64_t{s.n_rows} + kPanelRows - 1) / kPanelRows);
  l.n_lines = l.padded_cols / kLineCols;
  l.n_fine_lines = s.n_fine / kLineCols;
  l.n_pairs = l.padded_cols / (2 * s.group);
  l.scales_stride = checked_round_up(checked_mul(l.n_pairs, 64), kLineBytes);

  uint64_t end = 0;
  const auto place = [&end](uint64_t bytes) {
    const uint64_t start = end;
    end = checked_add(start, checked_round_up(bytes, kLineBytes));
    return start;
  };
  const auto lines = [&](uint64_t per_panel) {
    return checked_mul(checked_mul(l.n_panels, per_panel), kLineBytes);
  };
  l.perm = place(uint64_t{l.padded_cols} * 2);
  l.col_scale = place(uint64_t{l.n_lines} * 2);
  l.row_scale = place(lines(1));
  l.base = place(lines(l.n_lines));
  l.fine = place(lines(l.n_fine_lines));
  l.scales = place(checked_mul(l.n_panels, l.scales_stride));
  l.outliers = place(lines(s.n_slots));
  l.size_bytes = end;
  return l;
}

View make_view(const Shape& shape, const uint8_t* data) {
  View v{};
  v.layout = make_layout(shape);
  const auto halves = [data](uint64_t offset) { return reinterpret_cast<const uint16_t*>(data + offset); };
  v.perm = halves(v.layout.perm);
  v.col_scale = halves(v.layout.col_scale);
  v.row_scale = halves(v.layout.row_scale);
  v.base = data + v.layout.base;
  v.fine = data + v.layout.fine;
  v.scales = data + v.layout.scales;
  v.outliers = halves(v.layout.outliers);
  return v;
}

void pack(const Unpacked& in, std::span<uint8_t> out) {
  const Layout l = make_layout(in.shape);
  const Shape& s = l.shape;
  const uint32_t groups = n_groups(l);
  const uint64_t rows = s.n_rows;
  require(out.size() == l.size_bytes, "output size differs from the layout's");
  require(in.perm.size() == l.padded_cols, "perm size");
  require(in.col_scale.size() == l.n_lines, "col_scale size");
  require(in.d.size() == rows && in.dmin.size() == rows, "d or dmin size");
  require(in.codes.size() == rows * l.padded_cols, "codes size");
  require(in.s.size() == rows * groups && in.m.size() == rows * groups, "s or m size");
  require(in.outlier_col.size() == rows * s.n_slots && in.outlier_delta.size() == rows * s.n_slots,
          "outlier size");

  std::memset(out.data(), 0, out.size());
  if (!in.perm.empty()) std::memcpy(out.data() + l.perm, in.perm.data(), in.perm.size() * 2);
  // Lines and groups that hold no real column stay zero whatever the quantizer left there: one content, one
  // file.
  const uint32_t real_lines = (s.n_cols + kLineCols - 1) / kLineCols;
  const uint32_t real_groups = (s.n_cols + s.group - 1) / s.group;
  const uint32_t tail_cols = s.n_cols % kLineCols;  // real columns of the last real line, 0 = all
  std::memcpy(out.data() + l.col_scale, in.col_scale.data(), real_lines * size_t{2});

  const uint32_t first_fine_line = l.n_lines - l.n_fine_lines;
  uint32_t wide = 0;  // bits found where a code, scale or minimum is too large
  for (uint32_t r = 0; r < s.n_rows; ++r) {
    const uint64_t panel = r / kPanelRows;
    const uint32_t w = row_word(r % kPanelRows);
    uint8_t* const row_scale = out.data() + l.row_scale + panel * kLineBytes + w * 4;
    store16(row_scale, in.d[r]);
    store16(row_scale + 2, in.dmin[r]);

    const uint8_t* const codes = in.codes.data() + uint64_t{r} * l.padded_cols;
    uint8_t* const base = out.data() + l.base + panel * l.n_lines * kLineBytes + w * 4;
    uint8_t* const fine = out.data() + l.fine + panel * l.n_fine_lines * kLineBytes + w * 4;
    for (uint32_t line = 0; line < real_lines; ++line) {
      uint8_t line_codes[kLineCols];
      std::memcpy(line_codes, codes + size_t{line} * kLineCols, kLineCols);
      if (tail_cols != 0 && line + 1 == real_lines)
        std::memset(line_codes + tail_cols, 0, kLineCols - tail_cols);
      const bool is_fine = line >= first_fine_line;
      uint32_t hi = 0, lo = 0;
      for (uint32_t p = 0; p < 4; ++p) {
        const uint32_t v = load32(line_codes + 4 * p);
        if (is_fine) {
          wide |= v & 0xf0f0f0f0;
          hi |= (v >> 2 & kLowBits) << 2 * p;
          lo |= (v & kLowBits) << 2 * p;
        } else {
          wide |= v & ~kLowBits;
          hi |= (v & kLowBits) << 2 * p;
        }
      }
      store32(base + size_t{line} * kLineBytes, hi);
      if (is_fine) store32(fine + size_t{line - first_fine_line} * kLineBytes, lo);
    }

    uint8_t* const scales = out.data() + l.scales + panel * l.scales_stride + w * 2;
    const uint8_t* const row_s = in.s.data() + uint64_t{r} * groups;
    const uint8_t* const row_m = in.m.data() + uint64_t{r} * groups;
    for (uint32_t g = 0; g < real_groups; ++g) {
      wide |= (row_s[g] | row_m[g]) & 0xf0u;
      scales[g / 2 * size_t{64} + g % 2] = static_cast<uint8_t>(row_s[g] | row_m[g] << 4);
    }

    uint8_t* const slots = out.data() + l.outliers + panel * s.n_slots * kLineBytes + w * 4;
    for (uint32_t i = 0; i < s.n_slots; ++i) {
      store16(slots + size_t{i} * kLineBytes, in.outlier_col[uint64_t{r} * s.n_slots + i]);
      store16(slots + size_t{i} * kLineBytes + 2, in.outlier_delta[uint64_t{r} * s.n_slots + i]);
    }
  }
  require(wide == 0, "a code, scale or minimum exceeds its bits");
}

Unpacked unpack(const View& view) {
  const Layout& l = view.layout;
  const Shape& s = l.shape;
  const uint32_t groups = n_groups(l);
  const uint64_t rows = s.n_rows;
  Unpacked out;
  out.shape = s;
  out.perm.assign(view.perm, view.perm + l.padded_cols);
  out.col_scale.assign(view.col_scale, view.col_scale + l.n_lines);
  out.d.resize(rows);
  out.dmin.resize(rows);
  out.codes.resize(checked_mul(rows, l.padded_cols));
  out.s.resize(checked_mul(rows, groups));
  out.m.resize(checked_mul(rows, groups));
  out.outlier_col.resize(checked_mul(rows, s.n_slots));
  out.outlier_delta.resize(checked_mul(rows, s.n_slots));

  const uint32_t first_fine_line = l.n_lines - l.n_fine_lines;
  for (uint32_t r = 0; r < s.n_rows; ++r) {
    const uint64_t panel = r / kPanelRows;
    const uint32_t w = row_word(r % kPanelRows);
    const uint16_t* const row_scale = view.row_scale + (panel * kPanelRows + w) * 2;
    out.d[r] = row_scale[0];
    out.dmin[r] = row_scale[1];

    uint8_t* const codes = out.codes.data() + uint64_t{r} * l.padded_cols;
    const uint8_t* const base = view.base + panel * l.n_lines * kLineBytes + w * 4;
    const uint8_t* const fine = view.fine + panel * l.n_fine_lines * kLineBytes + w * 4;
    for (uint32_t line = 0; line < l.n_lines; ++line) {
      const bool is_fine = line >= first_fine_line;
      const uint32_t hi = load32(base + size_t{line} * kLineBytes);
      const uint32_t lo = is_fine ? load32(fine + size_t{line - first_fine_line} * kLineBytes) : 0;
      for (uint32_t p = 0; p < 4; ++p) {
        const uint32_t v = hi >> 2 * p & kLowBits;
        store32(codes + size_t{line} * kLineCols + 4 * p, is_fine ? v << 2 | (lo >> 2 * p & kLowBits) : v);
      }
    }

    const uint8_t* const scales = view.scales + panel * l.scales_stride + w * 2;
    for (uint32_t g = 0; g < groups; ++g) {
      const uint8_t sm = scales[g / 2 * size_t{64} + g % 2];
      out.s[uint64_t{r} * groups + g] = sm & 15;
      out.m[uint64_t{r} * groups + g] = static_cast<uint8_t>(sm >> 4);
    }

    const uint16_t* const slots = view.outliers + (panel * s.n_slots * kPanelRows + w) * 2;
    for (uint32_t i = 0; i < s.n_slots; ++i) {
      out.outlier_col[uint64_t{r} * s.n_slots + i] = slots[size_t{i} * kPanelRows * 2];
      out.outlier_delta[uint64_t{r} * s.n_slots + i] = slots[size_t{i} * kPanelRows * 2 + 1];
    }
  }
  return out;
}

void dequantize_row(const View& view, uint32_t r, float* out, float factor) {
  const Layout& l = view.layout;
  const Shape& s = l.shape;
  const uint64_t panel = r / kPanelRows;
  const uint32_t w = row_word(r % kPanelRows);
  const uint16_t* const row_scale = view.row_scale + (panel * kPanelRows + w) * 2;
  const float d = f16_to_float(row_scale[0]);
  const float dmin = f16_to_float(row_scale[1]);
  const uint8_t* const base = view.base + panel * l.n_lines * kLineBytes + w * 4;
  const uint8_t* const fine = view.fine + panel * l.n_fine_lines * kLineBytes + w * 4;
  const uint8_t* const scales = view.scales + panel * l.scales_stride + w * 2;
  const uint32_t first_fine = first_fine_col(l);

  for (uint32_t c = 0; c < s.n_cols; ++c) {
    const uint32_t line = c / kLineCols, p = c % kLineCols / 4, j = c % 4, g = c / s.group;
    const uint32_t hi = base[size_t{line} * kLineBytes + j] >> 2 * p & 3u;
    uint32_t lo = 0;
    if (c >= first_fine) lo = fine[size_t{line - first_fine / kLineCols} * kLineBytes + j] >> 2 * p & 3u;
    const uint8_t sm = scales[g / 2 * size_t{64} + g % 2];
    const float scale = d * static_cast<float>(sm & 15);
    const float min = dmin * static_cast<float>(sm >> 4);
    const float code = static_cast<float>(4 * hi + lo) * 0.25f;
    out[view.perm[c]] = scale * code - min;
  }
  const uint16_t* const slots = view.outliers + (panel * s.n_slots * kPanelRows + w) * 2;
  for (uint32_t i = 0; i < s.n_slots; ++i) {
    const uint16_t column = slots[size_t{i} * kPanelRows * 2];  // once: the mapping may change
    if (column < s.n_cols) out[view.perm[column]] += f16_to_float(slots[size_t{i} * kPanelRows * 2 + 1]);
  }
  for (uint32_t c = 0; c < s.n_cols; ++c)
    out[view.perm[c]] *= f16_to_float(view.col_scale[c / kLineCols]) * factor;
}

}  // namespace pith::q24
