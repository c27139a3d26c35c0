// fp16 and bf16 conversions: every 16-bit value, and round to nearest even at every step between two of them.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "format/float16.h"

using namespace pith;

namespace {

// The value of fp16 bits by the definition of the format.
double f16_value(uint32_t h) {
  const int exponent = static_cast<int>(h >> 10 & 31), mantissa = static_cast<int>(h & 1023);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

}  // namespace

TEST_CASE("every finite fp16 has the value that its bits define, and comes back") {
  bool same = true;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    if ((h & 0x7c00) == 0x7c00) continue;
    const float f = f16_to_float(static_cast<uint16_t>(h));
    same &=
        f == static_cast<float>(f16_value(h)) && std::signbit(f) == (h >> 15 == 1) && float_to_f16(f) == h;
  }
  CHECK(same);
}

TEST_CASE("floats between two fp16 values round to the nearest, ties to even") {
  bool right = true;
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const double low = f16_value(h), high = f16_value(h + 1);
    const auto middle = static_cast<float>((low + high) / 2);  // exact: one bit more
    const auto to = [](float f) { return uint32_t{float_to_f16(f)}; };
    right &= to(middle) == (h % 2 == 0 ? h : h + 1) && to(-middle) == (0x8000 | (h % 2 == 0 ? h : h + 1));
    right &= to(std::nextafter(middle, 0.0f)) == h && to(std::nextafter(middle, 1e9f)) == h + 1;
  }
  CHECK(right);
}

TEST_CASE("fp16 overflows to infinity from 65520 on, NaN stays NaN") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(float_to_f16(std::nextafter(65520.0f, 0.0f)) == 0x7bff);
  CHECK(float_to_f16(65520.0f) == 0x7c00);
  CHECK(float_to_f16(-1e30f) == 0xfc00);
  CHECK(float_to_f16(inf) == 0x7c00);
  CHECK(f16_to_float(0x7c00) == inf);
  CHECK(f16_to_float(0xfc00) == -inf);
  CHECK(std::isnan(f16_to_float(float_to_f16(nan))));
  CHECK(std::isnan(f16_to_float(float_to_f16(std::bit_cast<float>(0x7f800001)))));
}

TEST_CASE("bf16 keeps every value of its own and rounds the others to nearest even") {
  bool right = true;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = bf16_to_float(static_cast<uint16_t>(h));
    if (std::isnan(f)) {
      right &= std::isnan(bf16_to_float(float_to_bf16(f)));
      continue;
    }
    right &= float_to_bf16(f) == h;
    if (std::isinf(f)) continue;
    const auto between = [h](uint32_t low) {
      return uint32_t{float_to_bf16(std::bit_cast<float>(h << 16 | low))};
    };
    right &= between(0x7fff) == h && between(0x8001) == h + 1 && between(0x8000) == h + h % 2;
  }
  CHECK(right);
  CHECK(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7f800001)))));
}
