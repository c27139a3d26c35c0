// What the generic kernels are written with: exp, tails, whole numbers.
//
// Only templates over V and file-local helpers here: a plain inline function would be compiled once per instruction set
// and linked as whichever copy comes first.
#pragma once
#include <cstdint>

namespace pith::cpu {

constexpr float kMagic =
    12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which its low bits then hold

namespace {  // one a kernel file
// Of values of at most `largest` rounded to whole numbers of at most `limit`.
struct Scale {
  float step, inverse;
  Scale(float largest, float limit) {
    const bool zero = largest < 1e-30f;
    step = zero ? 0.0f : largest / limit;
    inverse = zero ? 0.0f : limit / largest;
  }
};
constexpr float kByteLimit = 127.0f;
constexpr float kSumLimit = 127 * 256.0f;  // so that each is 256 * h + l with int8 h and l (amx.cpp)

// The low bits of a whole number + kMagic are the number's; NaN counts as 0.
[[maybe_unused]] uint32_t whole_bits(float biased) {
  return biased == biased ? __builtin_bit_cast(uint32_t, biased) : 0;
}
}  // namespace

// e^x, relative error below 2e-7 (Cephes' polynomial); x is clamped to [-87, 88].
template <class V>
V exp(V x) {
  x = V::min(V::set1(88.0f), V::max(V::set1(-87.0f), x));
  const V magic = V::set1(kMagic);
  const V t = V::fma(x, V::set1(1.44269504f), magic);
  const V n = t - magic;
  V r = V::fma(n, V::set1(-0.693359375f), x);
  r = V::fma(n, V::set1(2.12194440e-4f), r);
  V p = V::set1(1.9875691500e-4f);
  p = V::fma(p, r, V::set1(1.3981999507e-3f));
  p = V::fma(p, r, V::set1(8.3334519073e-3f));
  p = V::fma(p, r, V::set1(4.1665795894e-2f));
  p = V::fma(p, r, V::set1(1.6666665459e-1f));
  p = V::fma(p, r, V::set1(5.0000001201e-1f));
  p = V::fma(p, r * r, r + V::set1(1.0f));
  return p * V::exp2_of_biased(t);
}

// cap * tanh(x / cap) = cap * (1 - 2 / (e^(2x/cap) + 1))
template <class V>
V soft_capped(V x, float cap) {
  const V e = exp(x * V::set1(2 / cap)) + V::set1(1.0f);
  return V::set1(cap) * (V::set1(1.0f) - V::set1(2.0f) / e);
}

// First `n` (< 16) elements, zeros after them.
template <class V, class T>
V load_tail(V (*load)(const T*), const T* p, uint32_t n) {
  T padded[16] = {};
  for (uint32_t i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}

template <class V>
void store_tail(V x, float* p, uint32_t n) {
  float all[16];
  x.store(all);
  for (uint32_t i = 0; i < n; ++i) p[i] = all[i];
}

// Calls f(offset, load, store) for 16 elements at a time; load(p) and store(v, p) handle the tail.
template <class V, class F>
void for_each_vector(uint32_t n, F&& f) {
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16)
    f(
        i, [](const float* p) { return V::load(p); }, [](V x, float* p) { x.store(p); });
  const uint32_t rest = n - i;
  if (rest != 0)
    f(
        i, [rest](const float* p) { return load_tail<V, float>(V::load, p, rest); },
        [rest](V x, float* p) { store_tail(x, p, rest); });
}

}  // namespace pith::cpu
