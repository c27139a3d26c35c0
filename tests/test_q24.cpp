// Layout Q24: shape rules, pack and unpack, scalar decode, content checks, over awkward shapes.
#include <catch2/catch.hpp>

#include "format_samples.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

namespace {

// Every combination of the shapes where rounding to panels, lines, pairs and paddings changes.
std::vector<q24::Shape> awkward_shapes() {
  std::vector<q24::Shape> shapes;
  for (const uint32_t rows : {1, 31, 32, 33})
    for (const uint32_t cols : {1, 16, 63, 64, 65, 172, 256})
      for (const uint32_t group : {16, 32}) {
        const uint32_t padded = (cols + 63) / 64 * 64;
        for (const uint32_t n_fine : {0u, group, padded / 2, padded - group, padded})
          for (const uint32_t slots : {0, 1, 2, 3})
            if (slots <= padded - n_fine) shapes.push_back({rows, cols, group, n_fine, slots});
      }
  return shapes;
}

struct Packed {
  explicit Packed(const q24::Unpacked& content)
      : bytes(pack(content)), view(q24::make_view(content.shape, data())) {}
  static Bytes pack(const q24::Unpacked& content) {
    Bytes out(q24::make_layout(content.shape).size_bytes, 0xee);
    q24::pack(content, out);
    return out;
  }
  const uint8_t* data() const { return std::span<const uint8_t>(bytes).data(); }
  uint8_t* edit(uint64_t at) { return const_cast<uint8_t*>(data()) + at; }
  void put16(uint64_t at, uint16_t value) { std::memcpy(edit(at), &value, 2); }
  std::string fault() const {
    try {
      q24::check(view, "t");
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }

  AlignedBytes bytes;
  q24::View view;
};

std::string shape_fault(const q24::Shape& shape) {
  try {
    q24::make_layout(shape);
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kFormat);
    return error.what();
  }
}

// W[r, c] of the header's formula, times col_scale, from the unpacked content: no bit of the layout in it.
std::vector<float> naive_row(const q24::Unpacked& u, uint32_t r) {
  const auto& s = u.shape;
  const uint32_t padded = static_cast<uint32_t>(u.perm.size()), first_fine = padded - s.n_fine;
  std::vector<float> stored(padded), out(s.n_cols);
  for (uint32_t c = 0; c < s.n_cols; ++c) {
    const uint32_t code = u.codes[r * padded + c], g = r * (padded / s.group) + c / s.group;
    const float q = c < first_fine ? static_cast<float>(code) : static_cast<float>(code) / 4.0f;
    stored[c] = f16_to_float(u.d[r]) * u.s[g] * q - f16_to_float(u.dmin[r]) * u.m[g];
  }
  for (uint32_t i = r * s.n_slots; i < (r + 1) * s.n_slots; ++i)
    stored[u.outlier_col[i]] += f16_to_float(u.outlier_delta[i]);
  for (uint32_t c = 0; c < s.n_cols; ++c) out[u.perm[c]] = stored[c] * f16_to_float(u.col_scale[c / 16]);
  return out;
}

const q24::Shape kPlainShape{33, 65, 16, 80, 2};  // 128 padded columns, the last 80 are 4-bit

template <typename F>
std::string pack_fault(F&& edit) {
  q24::Unpacked u = random_q24(kPlainShape, 1);
  edit(u);
  try {
    Packed::pack(u);
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInternal);
    return error.what();
  }
}

}  // namespace

TEST_CASE("word order puts rows g, g+8, g+16, g+24 into the four words of chunk g") {
  for (uint32_t g = 0; g < 8; ++g)
    for (uint32_t i = 0; i < 4; ++i) CHECK(q24::word_row(4 * g + i) == g + 8 * i);
  for (uint32_t r = 0; r < 32; ++r) CHECK(q24::word_row(q24::row_word(r)) == r);
}

TEST_CASE("every code lies where the bit diagram says") {
  const q24::Unpacked u = random_q24(kPlainShape, 5);
  const Packed p(u);
  const q24::Layout& l = p.view.layout;
  bool same = true;
  for (uint32_t r = 0; r < 33; ++r)
    for (uint32_t c = 0; c < 128; ++c) {
      const uint32_t row = r % 32, word = 4 * (row % 8) + row / 8, j = c % 4, bit = c % 16 / 4 * 2;
      const auto at = [&](uint64_t plane, uint32_t lines, uint32_t line) {
        return p.data()[plane + (r / 32 * lines + line) * 128 + word * 4 + j] >> bit & 3;
      };
      const int code = u.codes[r * 128 + c];
      const int hi = at(l.base, 8, c / 16);
      same &= c < 48 ? hi == code : hi == code >> 2 && at(l.fine, 5, (c - 48) / 16) == (code & 3);
    }
  CHECK(same);
}

TEST_CASE("scales, row scales and outliers lie where the table of planes says") {
  const q24::Unpacked u = random_q24(kPlainShape, 6);
  const Packed p(u);
  const q24::Layout& l = p.view.layout;
  const auto half = [&](uint64_t at) { return static_cast<uint16_t>(p.data()[at] | p.data()[at + 1] << 8); };
  for (uint32_t r = 0; r < 33; ++r) {
    const uint64_t panel = r / 32, w = q24::row_word(r % 32);
    CHECK(half(l.row_scale + panel * 128 + w * 4) == u.d[r]);
    CHECK(half(l.row_scale + panel * 128 + w * 4 + 2) == u.dmin[r]);
    for (uint32_t g = 0; g < 8; ++g)
      CHECK(p.data()[l.scales + panel * 256 + g / 2 * 64 + 2 * w + g % 2] ==
            (u.s[r * 8 + g] | u.m[r * 8 + g] << 4));
    for (uint32_t i = 0; i < 2; ++i) {
      CHECK(half(l.outliers + (panel * 2 + i) * 128 + w * 4) == u.outlier_col[r * 2 + i]);
      CHECK(half(l.outliers + (panel * 2 + i) * 128 + w * 4 + 2) == u.outlier_delta[r * 2 + i]);
    }
  }
}

TEST_CASE("planes follow one another at multiples of 128") {
  for (const q24::Shape& shape : awkward_shapes()) {
    const q24::Layout l = q24::make_layout(shape);
    const uint64_t panels = (shape.n_rows + 31) / 32, padded = (shape.n_cols + 63) / 64 * 64;
    const auto up = [](uint64_t n) { return (n + 127) / 128 * 128; };
    CHECK(l.perm == 0);
    CHECK(l.col_scale == padded * 2);
    CHECK(l.row_scale == l.col_scale + up(padded / 8));
    CHECK(l.base == l.row_scale + panels * 128);
    CHECK(l.fine == l.base + panels * padded * 8);
    CHECK(l.scales == l.fine + panels * shape.n_fine * 8);
    CHECK(l.outliers == l.scales + panels * up(padded / shape.group * 32));
    CHECK(l.size_bytes == l.outliers + panels * shape.n_slots * 128);
  }
}

TEST_CASE("unpack restores what pack wrote, for every awkward shape") {
  for (const q24::Shape& s : awkward_shapes()) {
    CAPTURE(s.n_rows, s.n_cols, s.group, s.n_fine, s.n_slots);
    const q24::Unpacked u = random_q24(s, s.n_rows + s.n_cols);
    const Packed p(u);
    CHECK(p.fault() == "");
    const q24::Unpacked v = q24::unpack(p.view);
    const bool same = v.perm == u.perm && v.col_scale == u.col_scale && v.d == u.d && v.dmin == u.dmin &&
                      v.codes == u.codes && v.s == u.s && v.m == u.m && v.outlier_col == u.outlier_col &&
                      v.outlier_delta == u.outlier_delta;
    CHECK(same);
  }
}

TEST_CASE("dequantize_row equals the formula, for every awkward shape") {
  for (const q24::Shape& s : awkward_shapes()) {
    CAPTURE(s.n_rows, s.n_cols, s.group, s.n_fine, s.n_slots);
    const q24::Unpacked u = random_q24(s, s.n_rows * 7 + s.n_cols);
    const Packed p(u);
    for (uint32_t r = 0; r < s.n_rows; ++r) {
      std::vector<float> row(s.n_cols, -1e9f);
      q24::dequantize_row(p.view, r, row.data());
      const std::vector<float> expected = naive_row(u, r);
      float worst = 0;  // the formula's order of operations is the decoder's but for the product d * s * q
      for (uint32_t i = 0; i < s.n_cols; ++i) worst = std::max(worst, std::abs(row[i] - expected[i]));
      // |d * s * q| < 60: three roundings of 2^-24 relative each.
      CHECK(worst <= 60.0f * 3 * 0x1p-24f);
    }
  }
}

TEST_CASE("dequantize_row ignores outlier columns beyond the columns") {
  const q24::Unpacked u = random_q24({1, 64, 16, 0, 1}, 3);
  Packed p(u);
  std::vector<float> with(64), without(64);
  p.put16(p.view.layout.outliers, 64);
  q24::dequantize_row(p.view, 0, with.data());
  p.put16(p.view.layout.outliers + 2, 0);
  q24::dequantize_row(p.view, 0, without.data());
  CHECK(with == without);
}

TEST_CASE("pack writes zeros for columns that do not exist, whatever the content says") {
  const q24::Unpacked clean = random_q24({3, 50, 16, 32, 1}, 1);
  q24::Unpacked dirty = clean;
  for (uint32_t r = 0; r < 3; ++r)
    for (uint32_t c = 50; c < 64; ++c) dirty.codes[r * 64 + c] = 15;
  CHECK(Packed::pack(dirty) == Packed::pack(clean));

  const q24::Unpacked narrow = random_q24({3, 16, 16, 0, 0}, 1);
  q24::Unpacked wide = narrow;
  for (uint32_t i = 1; i < 4; ++i) wide.col_scale[i] = 0x3c00;
  for (uint32_t r = 0; r < 3; ++r)
    for (uint32_t g = 1; g < 4; ++g) wide.s[r * 4 + g] = wide.m[r * 4 + g] = 5;
  CHECK(Packed::pack(wide) == Packed::pack(narrow));
}

TEST_CASE("pack refuses content that does not fit its shape") {
  CHECK(pack_fault([](q24::Unpacked&) {}) == "");
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.perm.pop_back(); }), Contains("perm"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.col_scale.pop_back(); }), Contains("col_scale"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.d.pop_back(); }), Contains("dmin"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.dmin.pop_back(); }), Contains("dmin"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.codes.pop_back(); }), Contains("codes"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.s.pop_back(); }), Contains("s or m"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.m.pop_back(); }), Contains("s or m"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.outlier_col.pop_back(); }), Contains("outlier"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.outlier_delta.pop_back(); }), Contains("outlier"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.codes[0] = 4; }), Contains("exceeds its bits"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.codes[50] = 16; }), Contains("exceeds its bits"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.s[0] = 16; }), Contains("exceeds its bits"));
  CHECK_THAT(pack_fault([](q24::Unpacked& u) { u.m[0] = 16; }), Contains("exceeds its bits"));
  Bytes small(q24::make_layout(kPlainShape).size_bytes - 128);
  CHECK_THROWS_WITH(q24::pack(random_q24(kPlainShape, 1), small), Contains("output size"));
}

TEST_CASE("a shape that breaks a rule has no layout") {
  CHECK(shape_fault({1, 65472, 16, 65472, 0}) == "");
  CHECK(shape_fault({0xffffffff, 65472, 16, 0, 65472}) == "");
  CHECK_THAT(shape_fault({0, 64, 16, 0, 0}), Contains("n_rows is 0"));
  CHECK_THAT(shape_fault({1, 0, 16, 0, 0}), Contains("n_cols is 0"));
  CHECK_THAT(shape_fault({1, 65473, 16, 0, 0}), Contains("n_cols is 65473"));
  CHECK_THAT(shape_fault({1, 64, 0, 0, 0}), Contains("group is 0"));
  CHECK_THAT(shape_fault({1, 64, 64, 0, 0}), Contains("group is 64"));
  CHECK_THAT(shape_fault({1, 64, 32, 16, 0}), Contains("n_fine is 16"));
  CHECK_THAT(shape_fault({1, 64, 16, 80, 0}), Contains("n_fine is 80"));
  CHECK_THAT(shape_fault({1, 64, 16, 48, 17}), Contains("n_slots is 17"));
}

TEST_CASE("the last panel of the largest tensor has its full number") {
  const q24::Layout l = q24::make_layout({0xffffffff, 64, 16, 0, 0});
  CHECK(l.n_panels == 0x8000000);
  CHECK(l.size_bytes == 128 + 128 + uint64_t{0x8000000} * (128 + 4 * 128 + 128));
}

TEST_CASE("check names the first violation in a tensor's content") {
  const q24::Shape shape{33, 50, 32, 32,
                         2};  // the padded 64 columns: 0..31 in 2 bits, 32..49 in 4, then 14 pads
  const q24::Unpacked u = random_q24(shape, 9);
  const q24::Layout l = q24::make_layout(shape);
  const auto after16 = [&](uint64_t at, uint16_t value) {
    Packed p(u);
    p.put16(at, value);
    return p.fault();
  };
  const auto after = [&](uint64_t at, uint8_t value) {
    Packed p(u);
    *p.edit(at) = value;
    return p.fault();
  };
  const uint16_t inf = 0x7c00;
  const uint64_t w = q24::row_word(1);  // in panel 1 this is row 33, which does not exist
  const uint64_t ghost = 128 + w * 4;   // its word in planes of one line a panel
  CHECK(Packed(u).fault() == "");
  CHECK_THAT(after16(0, 50), Contains("perm[0] is 50"));
  CHECK_THAT(after16(0, u.perm[1]), Contains("once"));
  CHECK_THAT(after16(2 * 50, 50), Contains("perm[50] is 50, expected 65535"));
  CHECK_THAT(after16(l.col_scale + 2 * 3, inf), Contains("col_scale 3: expected finite"));
  CHECK_THAT(after16(l.col_scale + 2 * 4, 1), Contains("col_scale 4: expected zero"));
  CHECK_THAT(after16(l.row_scale - 2, 1), Contains("col_scale 63: expected zero"));
  CHECK_THAT(after16(l.row_scale, inf), Contains("row_scale of row 0: expected finite"));
  CHECK_THAT(after16(l.row_scale + 2, 0xffff), Contains("row_scale of row 0: expected finite"));
  CHECK_THAT(after16(l.row_scale + ghost, 1), Contains("row_scale of row 33: expected zero"));
  CHECK_THAT(after16(l.row_scale + ghost + 2, 1), Contains("row_scale of row 33: expected zero"));
  // Column 50 is byte 2 of the last line's word, bits 0 and 1.
  CHECK_THAT(after(l.base + 3 * 128 + 2, 0x02), Contains("base 3: expected zero codes"));
  CHECK_THAT(after(l.fine + 1 * 128 + 2, 0x02), Contains("fine 3: expected zero codes"));
  CHECK_THAT(after(l.base + 4 * 128 + w * 4, 1), Contains("base 0: expected zero codes"));
  CHECK_THAT(after(l.fine + 2 * 128 + w * 4, 1), Contains("fine 2: expected zero codes"));
  CHECK_THAT(after(l.scales + 64, 1), Contains("scales of panel 0: expected zero"));
  CHECK_THAT(after(l.scales + l.scales_stride + 2 * w, 1), Contains("scales of row 33: expected zero"));
  CHECK_THAT(after16(l.outliers, 50), Contains("outliers of row 0: expected a column"));
  CHECK_THAT(after16(l.outliers + 2, inf), Contains("outliers of row 0: expected a finite delta"));
  CHECK_THAT(after16(l.outliers + 128 + ghost, 1), Contains("outliers of row 33: expected zero"));
  CHECK_THAT(after16(l.outliers + 128 + ghost + 2, 1), Contains("outliers of row 33: expected zero"));
}

TEST_CASE("check notices lines, groups and outliers beyond the last column") {
  const q24::Unpacked u = random_q24({32, 16, 16, 0, 1}, 9);
  const q24::Layout l = q24::make_layout(u.shape);
  Packed code(u), scale(u), outlier(u);
  *code.edit(l.base + 128) = 1;   // line 1: columns 16..31
  *scale.edit(l.scales + 1) = 1;  // group 1
  outlier.put16(l.outliers, 16);  // inside the padded columns
  CHECK_THAT(code.fault(), Contains("base 1: expected zero codes"));
  CHECK_THAT(scale.fault(), Contains("scales of row 0: expected zero"));
  CHECK_THAT(outlier.fault(), Contains("outliers of row 0: expected a column"));
}

TEST_CASE("check notices outliers that descend, past a slot that is not used") {
  const auto fault = [](uint16_t first, uint16_t last) {
    Packed p(random_q24({32, 64, 16, 0, 3}, 10));
    const uint64_t slots = p.view.layout.outliers;
    p.put16(slots, first), p.put16(slots + 2, 0x3c00);
    p.put16(slots + 128, 0), p.put16(slots + 130, 0);
    p.put16(slots + 256, last), p.put16(slots + 258, 0x3c00);
    return p.fault();
  };
  CHECK(fault(7, 8) == "");
  CHECK(fault(7, 7) == "");
  CHECK_THAT(fault(7, 6), Contains("outliers of row 0: expected ascending columns"));
}
