// Random content of Q24 tensors that obeys every rule of FORMAT.md: every code, scale, minimum and slot is
// used, and what is padding is zero, so that unpack(pack(x)) == x.
#pragma once
#include <algorithm>
#include <functional>
#include <random>

#include "format/float16.h"
#include "format/q24.h"

namespace pith::test {

// How large its 16-bit numbers are: called once for each.
struct Q24Numbers {
  std::function<float()> col_scale, d, dmin, delta;
};

template <typename Random>
q24::Unpacked random_q24(const q24::Shape& shape, Random& rng, const Q24Numbers& numbers) {
  const q24::Layout layout = q24::make_layout(shape);
  const uint32_t cols = layout.padded_cols, groups = cols / shape.group, first_fine = cols - shape.n_fine;
  const auto below = [&rng](uint32_t n) { return static_cast<uint32_t>(rng() % n); };
  q24::Unpacked u;
  u.shape = shape;
  u.perm.assign(cols, 0xffff);
  for (uint32_t c = 0; c < shape.n_cols; ++c) u.perm[c] = static_cast<uint16_t>(c);
  std::shuffle(u.perm.begin(), u.perm.begin() + shape.n_cols, rng);
  u.col_scale.assign(layout.n_lines, 0);
  for (uint32_t i = 0; i * 16 < shape.n_cols; ++i) u.col_scale[i] = float_to_f16(numbers.col_scale());
  for (uint32_t r = 0; r < shape.n_rows; ++r) {
    u.d.push_back(float_to_f16(numbers.d()));
    u.dmin.push_back(float_to_f16(numbers.dmin()));
    for (uint32_t c = 0; c < cols; ++c)
      u.codes.push_back(static_cast<uint8_t>(c < shape.n_cols ? below(c < first_fine ? 4 : 16) : 0));
    for (uint32_t g = 0; g < groups; ++g) {
      const bool is_real = g * shape.group < shape.n_cols;
      u.s.push_back(static_cast<uint8_t>(is_real ? below(16) : 0));
      u.m.push_back(static_cast<uint8_t>(is_real ? below(16) : 0));
    }
    for (uint32_t i = 0; i < shape.n_slots; ++i) {
      u.outlier_col.push_back(static_cast<uint16_t>(below(shape.n_cols)));
      u.outlier_delta.push_back(float_to_f16(numbers.delta()));
    }
    std::sort(u.outlier_col.end() - shape.n_slots, u.outlier_col.end());  // as FORMAT.md wants them
  }
  return u;
}

// Numbers from -1 to 1.
inline q24::Unpacked random_q24(const q24::Shape& shape, uint32_t seed) {
  std::mt19937 rng(seed);
  const auto number = [&rng] { return static_cast<float>(rng() % 2001) / 1000.0f - 1.0f; };
  return random_q24(shape, rng, {number, number, number, number});
}

// Weights d * s * code - dmin * m of about this deviation and little mean.
inline q24::Unpacked random_q24(const q24::Shape& shape, double deviation, std::mt19937_64& rng) {
  const auto share = [&rng](uint32_t n) { return static_cast<double>(rng() % n) / 100; };
  return random_q24(shape, rng,
                    {[&] { return static_cast<float>(0.5 + share(100)); },
                     [&] { return static_cast<float>(deviation / 9 * (0.8 + share(40))); },
                     [&] { return static_cast<float>(deviation / 6 * (0.8 + share(40))); },
                     [&] { return static_cast<float>(deviation * (static_cast<double>(rng() % 9) - 4)); }});
}

}  // namespace pith::test
