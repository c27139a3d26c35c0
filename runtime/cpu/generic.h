// The kernels that are written once over a 16-lane vector type (vec_*.h) and instantiated for each instruction set: those
// here and those of the headers below. What each computes: kernels.h.
//
// Only templates over V and file-local helpers here: a plain inline function would be compiled once per instruction set
// and linked as whichever copy comes first.
#pragma once
#include "runtime/cpu/generic_attention.h"
#include "runtime/cpu/generic_plain.h"
#include "runtime/cpu/generic_quantize.h"

namespace pith::cpu {

// kLinePairs: generic_quantize.h.
template <class V, bool kLinePairs = false>
struct Generic : Quantizing<V, kLinePairs>, PlainProducts<V>, Attention<V> {
  static void rms_norm(const float* x, const float* w, uint32_t n, float eps, float* out) {
    V sum = V::set1(0);
    for_each_vector<V>(n, [&](uint32_t i, auto load, auto) {
      const V v = load(x + i);
      sum = V::fma(v, v, sum);
    });
    const float mean = V::reduce_add(sum) / static_cast<float>(n);
    const V scale = V::set1(1 / __builtin_sqrtf(mean + eps));
    for_each_vector<V>(
        n, [&](uint32_t i, auto load, auto store) { store(load(x + i) * scale * load(w + i), out + i); });
  }

  // Whole lines are written, through registers: 4-byte stores to a line that another core holds leave the store buffer
  // one by one, and took as long as the products where two cores share no cache.
  static void store(const float* y, uint32_t n_lanes, uint32_t n_rows, uint32_t n_tokens, float scale,
                    bool add, float* out, size_t out_stride) {
    const V factor = V::set1(scale);
    const auto put = [&](V values, float* to, uint32_t n) {
      values = values * factor;
      if (n == 16) return (add ? V::load(to) + values : values).store(to);
      if (add) values = load_tail<V, float>(V::load, to, n) + values;
      store_tail(values, to, n);
    };
    for (uint32_t r = 0; r < n_rows; r += 16) {
      const uint32_t n = n_rows - r < 16 ? n_rows - r : 16;
      if (n_lanes == 1) {
        put(V::load(y + r), out + r, n);
        continue;
      }
      for (uint32_t t = 0; t < n_tokens; t += 16) {
        V tile[16];
        for (uint32_t i = 0; i < 16; ++i) tile[i] = V::load(y + size_t{r + i} * n_lanes + t);
        V::transpose(tile);
        for (uint32_t i = 0; i < 16 && t + i < n_tokens; ++i)
          put(tile[i], out + size_t{t + i} * out_stride + r, n);
      }
    }
  }

  static void gate(Activation activation, const float* g, const float* up, uint32_t n, float* out) {
    const V one = V::set1(1.0f);
    if (activation == Activation::kSilu) {
      for_each_vector<V>(n, [&](uint32_t i, auto load, auto store) {
        const V x = load(g + i);
        store(x / (one + exp(V::set1(0) - x)) * load(up + i), out + i);
      });
    } else if (activation == Activation::kClampedSwiglu) {
      const V limit = V::set1(7.0f), alpha = V::set1(1.702f);
      for_each_vector<V>(n, [&](uint32_t i, auto load, auto store) {
        const V x = V::min(limit, load(g + i));
        const V u = V::max(V::set1(-7.0f), V::min(limit, load(up + i)));
        store(x / (one + exp(V::set1(0) - x * alpha)) * (u + one), out + i);
      });
    } else {  // gelu, tanh form: x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3))
      for_each_vector<V>(n, [&](uint32_t i, auto load, auto store) {
        const V x = load(g + i);
        const V u = V::fma(x * x * x, V::set1(0.044715f), x) * V::set1(1.5957691216f);
        store(x / (one + exp(V::set1(0) - u)) * load(up + i), out + i);
      });
    }
  }

  static void softcap(float* x, uint32_t n, float cap) {
    for_each_vector<V>(
        n, [&](uint32_t i, auto load, auto store) { store(soft_capped(load(x + i), cap), x + i); });
  }

  static void rope(float* x, uint32_t n, const float* cos, const float* sin) {
    float* const y = x + n / 2;
    for_each_vector<V>(n / 2, [&](uint32_t i, auto load, auto store) {
      const V a = load(x + i), b = load(y + i), c = load(cos + i), s = load(sin + i);
      store(a * c - b * s, x + i);
      store(b * c + a * s, y + i);
    });
  }
};

}  // namespace pith::cpu
