// Q24: checks of a tensor's content, the part that its shape cannot say.
#include <algorithm>
#include <cstring>

#include "format/error.h"
#include "format/q24.h"

namespace pith::q24 {
namespace {

bool f16_is_finite(uint16_t h) {
  return (h & 0x7c00) != 0x7c00;
}

// One tensor under check. Each member function throws at its first violation.
class Checker {
 public:
  Checker(const View& view, const char* name)
      : v_(view),
        name_(name),
        real_lines_((s_.n_cols + kLineCols - 1) / kLineCols),
        real_groups_((s_.n_cols + s_.group - 1) / s_.group) {
    for (uint32_t c = s_.n_cols; c < real_lines_ * kLineCols; ++c)
      last_line_pads_ |= 3u << (c % 4 * 8 + c % kLineCols / 4 * 2);
  }

  void col_scale() const {
    for (uint32_t i = 0; i < real_lines_; ++i)
      if (!f16_is_finite(v_.col_scale[i])) refuse("col_scale", i, "finite");
    const uint16_t* const end = v_.col_scale + (l_.row_scale - l_.col_scale) / 2;
    for (const uint16_t* pad = v_.col_scale + real_lines_; pad < end; ++pad)
      if (*pad != 0) refuse("col_scale", static_cast<uint64_t>(pad - v_.col_scale), "zero (padding)");
  }

  void panel(uint32_t p) const {
    const uint32_t n_rows =
        static_cast<uint32_t>(std::min<uint64_t>(kPanelRows, s_.n_rows - uint64_t{p} * kPanelRows));
    codes("base", v_.base + uint64_t{p} * l_.n_lines * kLineBytes, 0, l_.n_lines, n_rows);
    codes("fine", v_.fine + uint64_t{p} * l_.n_fine_lines * kLineBytes, l_.n_lines - l_.n_fine_lines,
          l_.n_fine_lines, n_rows);
    const uint8_t* const scales = v_.scales + p * l_.scales_stride;
    for (uint64_t i = l_.n_pairs * uint64_t{64}; i < l_.scales_stride; ++i)
      if (scales[i] != 0) refuse("scales of panel", p, "zero after the last pair");
    for (uint32_t w = 0; w < kPanelRows; ++w) row(p, w, word_row(w) < n_rows);
  }

 private:
  [[noreturn]] void refuse(const char* plane, uint64_t at, const char* expected) const {
    throw_error(ErrorCode::kFormat, "tensor '{}': {} {}: expected {}", name_, plane, at, expected);
  }

  // Codes of rows and columns that do not exist are zero. `lines` are those of one panel, from `first_line` on.
  void codes(const char* plane, const uint8_t* lines, uint32_t first_line, uint32_t n_lines,
             uint32_t n_rows) const {
    for (uint32_t i = 0; i < n_lines; ++i) {
      const uint32_t line = first_line + i;
      const uint32_t pads = line >= real_lines_ ? ~0u : line + 1 == real_lines_ ? last_line_pads_ : 0;
      if (pads == 0 && n_rows == kPanelRows) continue;
      for (uint32_t w = 0; w < kPanelRows; ++w) {
        uint32_t word;
        std::memcpy(&word, lines + i * size_t{kLineBytes} + w * 4, sizeof word);
        if (word & (word_row(w) < n_rows ? pads : ~0u)) refuse(plane, line, "zero codes in padding");
      }
    }
  }

  // Word w of panel p in the planes that have one entry a row.
  void row(uint32_t p, uint32_t w, bool exists) const {
    const uint64_t r = uint64_t{p} * kPanelRows + word_row(w);
    const uint16_t* const d = v_.row_scale + (uint64_t{p} * kPanelRows + w) * 2;
    if (!f16_is_finite(d[0]) || !f16_is_finite(d[1])) refuse("row_scale of row", r, "finite d and dmin");
    if (!exists && (d[0] != 0 || d[1] != 0)) refuse("row_scale of row", r, "zero (padding)");

    const uint8_t* const scales = v_.scales + p * l_.scales_stride + w * 2;
    for (uint32_t g = exists ? real_groups_ : 0; g < 2 * l_.n_pairs; ++g)
      if (scales[g / 2 * size_t{64} + g % 2] != 0) refuse("scales of row", r, "zero in padding");

    uint16_t last = 0;  // column of the used slot before
    for (uint32_t i = 0; i < s_.n_slots; ++i) {
      const uint16_t* const slot = v_.outliers + ((uint64_t{p} * s_.n_slots + i) * kPanelRows + w) * 2;
      if (slot[0] >= s_.n_cols) refuse("outliers of row", r, "a column");
      if (!f16_is_finite(slot[1])) refuse("outliers of row", r, "a finite delta");
      if (!exists && (slot[0] != 0 || slot[1] != 0)) refuse("outliers of row", r, "zero (padding)");
      if (slot[0] == 0 && slot[1] == 0) continue;
      if (slot[0] < last) refuse("outliers of row", r, "ascending columns");
      last = slot[0];
    }
  }

  const View& v_;
  const Layout& l_ = v_.layout;
  const Shape& s_ = l_.shape;
  const char* const name_;
  const uint32_t real_lines_, real_groups_;  // those that hold a real column
  uint32_t last_line_pads_ = 0;              // code bits of the columns >= n_cols in line real_lines_ - 1
};

}  // namespace

void check_perm(const View& view, const char* tensor_name) {
  const Shape& s = view.layout.shape;
  std::vector<bool> seen(s.n_cols);
  for (uint32_t c = 0; c < view.layout.padded_cols; ++c) {
    const uint16_t source = view.perm[c];
    if (c >= s.n_cols) {
      if (source != 0xffff)
        throw_error(ErrorCode::kFormat, "tensor '{}': perm[{}] is {}, expected 65535 (a pad)", tensor_name, c,
                    source);
    } else if (source >= s.n_cols || seen[source]) {
      throw_error(ErrorCode::kFormat, "tensor '{}': perm[{}] is {}, expected each of 0 to {} once",
                  tensor_name, c, source, s.n_cols - 1);
    } else {
      seen[source] = true;
    }
  }
}

void check(const View& view, const char* tensor_name) {
  check_perm(view, tensor_name);
  const Checker checker(view, tensor_name);
  checker.col_scale();
  for (uint32_t p = 0; p < view.layout.n_panels; ++p) checker.panel(p);
}

}  // namespace pith::q24
