// The kernels that are written once over a 16-lane vector type (vec_*.h) and instantiated for each instruction set.
// What each computes: kernels.h.
//
// Only templates over V and file-local helpers here: a plain inline function would be compiled once per instruction set
// and linked as whichever copy comes first.
#pragma once
#include <cstddef>
#include <cstdint>

#include "runtime/cpu/kernels.h"

namespace pith::cpu {

constexpr float kMagic =
    12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which its low bits then hold

namespace {  // one a kernel file
// Of values of at most `largest` rounded to int8.
struct Scale {
  float step, inverse;
  explicit Scale(float largest) {
    const bool zero = largest < 1e-30f;
    step = zero ? 0.0f : largest / 127.0f;
    inverse = zero ? 0.0f : 127.0f / largest;
  }
};
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

// A whole number in float as int; 0 for NaN.
template <class Float>
int whole(Float x) {
  return x == x ? static_cast<int>(x) : 0;
}

// kLinePairs: quads of many tokens as avx2.cpp wants them, two columns of each line of a pair.
template <class V, bool kLinePairs = false>
struct Generic {
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
      const Scale scale(V::reduce_max(largest));
      in.scales[b] = scale.step;
      const V inverse = V::set1(scale.inverse), magic = V::set1(kMagic);
      for (uint32_t i = 0; i < n_lines; ++i) {
        const uint32_t line = first_line + i;
        const V rounded = values[i] * inverse + magic - magic;
        rounded.store_i8(in.a + line * 16);
        (V::set1(scale.step) * rounded).store(in.x_hat + line * 16);
        const int sum = whole(V::reduce_add(rounded));  // of whole numbers below 2^11: exact in any order
        in.sums[line] = static_cast<int16_t>(sum);
      }
    }
  }

  // Tokens are lanes here too: x is turned first, so that a column is a vector, and a permuted column a load.
  static void quantize_tile(const Matrix& m, const float* x, size_t x_stride, uint32_t n_tokens,
                            uint32_t lane, const Input& in, float* columns) {
    turn(x, x_stride, n_tokens, m.n_cols, columns);
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
      float inverses[kLanes];
      largest.store(inverses);
      for (uint32_t t = 0; t < kLanes; ++t) {
        const Scale scale(inverses[t]);
        in.scales[size_t{b} * in.n_lanes + lane + t] = scale.step;
        inverses[t] = scale.inverse;
      }
      const V inverse = V::load(inverses), magic = V::set1(kMagic);
      alignas(64) float sums[kBlock / 16][kLanes] = {};  // zeros for the lines that half a block lacks
      for (uint32_t i = 0; i < n_lines; ++i) {
        V sum = V::set1(0);
        for (float(*value)[kLanes] = values + i * 16; value < values + (i + 1) * 16; ++value) {
          const V biased = V::load(*value) * inverse + magic;
          biased.store(*value);
          sum = sum + (biased - magic);
        }
        sum.store(sums[i]);
      }
      store_quads(values, n_lines, quads(in, b, n_lines, lane));
      for (uint32_t pair = 0; pair < kBlock / 32; ++pair) {
        int16_t* const out = in.sums + ((size_t{b} * 4 + pair) * in.n_lanes + lane) * 2;
        for (uint32_t t = 0; t < kLanes; ++t)
          for (uint32_t i = 0; i < 2; ++i)
            out[t * 2 + i] = static_cast<int16_t>(whole(sums[pair * 2 + i][t]));
      }
    }
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

  // biased [16 * n_lines columns][16]: whole numbers + kMagic, whose low byte is the number's; NaN counts as 0.
  static void store_quads(const float (*biased)[kLanes], uint32_t n_lines, int8_t* out) {
    const auto byte = [](float x) { return x == x ? __builtin_bit_cast(uint32_t, x) & 0xff : 0; };
    for (uint32_t quad = 0; quad < n_lines * 4; ++quad, out += kLanes * 4) {
      const uint32_t first = kLinePairs ? quad / 8 * 32 + quad % 8 * 2 : quad * 4;
      const float(*const a)[kLanes] = biased + first, (*const b)[kLanes] = a + (kLinePairs ? 16 : 2);
      uint32_t words[kLanes];
      for (uint32_t t = 0; t < kLanes; ++t)
        words[t] = byte(a[0][t]) | byte(a[1][t]) << 8 | byte(b[0][t]) << 16 | byte(b[1][t]) << 24;
      __builtin_memcpy(out, words, sizeof words);
    }
  }

  // ---- plain matrices -------------------------------------------------------------------------------------------

  template <TensorKind kKind>
  static V load_weights(const uint8_t* p) {
    if constexpr (kKind == TensorKind::kF32) return V::load(reinterpret_cast<const float*>(p));
    if constexpr (kKind == TensorKind::kF16) return V::load_f16(reinterpret_cast<const uint16_t*>(p));
    if constexpr (kKind == TensorKind::kBF16) return V::load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
  template <TensorKind kKind>
  static V load_weights_tail(const uint8_t* p, uint32_t n) {
    constexpr uint32_t kSize = kKind == TensorKind::kF32 ? 4 : 2;
    alignas(64) uint8_t padded[16 * kSize] = {};
    for (uint32_t i = 0; i < n * kSize; ++i) padded[i] = p[i];
    return load_weights<kKind>(padded);
  }

  // y[r, t] for kRows rows of w (stride bytes apart) and kTokens rows of x.
  template <TensorKind kKind, uint32_t kRows, uint32_t kTokens>
  static void dot_tile(const uint8_t* w, size_t w_stride, const float* x, size_t x_stride, uint32_t n,
                       float* y, size_t y_stride) {
    constexpr uint32_t kSize = kKind == TensorKind::kF32 ? 4 : 2;
    V acc[kRows][kTokens];
    for (uint32_t r = 0; r < kRows; ++r)
      for (uint32_t t = 0; t < kTokens; ++t) acc[r][t] = V::set1(0);
    uint32_t c = 0;
    for (; c + 16 <= n; c += 16) {
      V xs[kTokens];
      for (uint32_t t = 0; t < kTokens; ++t) xs[t] = V::load(x + t * x_stride + c);
      for (uint32_t r = 0; r < kRows; ++r) {
        const uint8_t* const at = w + r * w_stride + size_t{c} * kSize;
        // Decode streams from memory: ask for the next rows while these are computed (19 -> 26 GB/s).
        if (kTokens == 1) __builtin_prefetch(at + kRows * w_stride);
        const V ws = load_weights<kKind>(at);
        for (uint32_t t = 0; t < kTokens; ++t) acc[r][t] = V::fma(ws, xs[t], acc[r][t]);
      }
    }
    if (c < n) {
      for (uint32_t r = 0; r < kRows; ++r) {
        const V ws = load_weights_tail<kKind>(w + r * w_stride + size_t{c} * kSize, n - c);
        for (uint32_t t = 0; t < kTokens; ++t)
          acc[r][t] = V::fma(ws, load_tail<V, float>(V::load, x + t * x_stride + c, n - c), acc[r][t]);
      }
    }
    for (uint32_t r = 0; r < kRows; ++r)
      for (uint32_t t = 0; t < kTokens; ++t) y[r * y_stride + t] = V::reduce_add(acc[r][t]);
  }

  template <TensorKind kKind>
  static void plain_panel(const Matrix& m, uint32_t panel, const Input& in, float* y) {
    constexpr uint32_t kSize = kKind == TensorKind::kF32 ? 4 : 2;
    const size_t stride = size_t{m.n_cols} * kSize;
    const uint32_t first = panel * kPanelRows;
    const uint32_t n_rows = m.n_rows - first < kPanelRows ? m.n_rows - first : kPanelRows;
    const uint8_t* const w = m.data + first * stride;
    uint32_t r = 0;
    if (V::kRegisters >= 32 &&
        in.n_tokens > 1) {  // eight rows stay in L1 and halve the passes over x, which do not
      for (; r + 8 <= n_rows; r += 8) {
        uint32_t t = 0;
        for (; t + 3 <= in.n_tokens; t += 3)
          dot_tile<kKind, 8, 3>(w + r * stride, stride, in.x + size_t{t} * in.x_stride, in.x_stride, m.n_cols,
                                y + size_t{r} * in.n_lanes + t, in.n_lanes);
        for (; t < in.n_tokens; ++t)
          dot_tile<kKind, 8, 1>(w + r * stride, stride, in.x + size_t{t} * in.x_stride, in.x_stride, m.n_cols,
                                y + size_t{r} * in.n_lanes + t, in.n_lanes);
      }
    }
    for (; r + 4 <= n_rows; r += 4) {
      uint32_t t = 0;
      for (; t + 4 <= in.n_tokens; t += 4)
        dot_tile<kKind, 4, 4>(w + r * stride, stride, in.x + size_t{t} * in.x_stride, in.x_stride, m.n_cols,
                              y + size_t{r} * in.n_lanes + t, in.n_lanes);
      for (; t < in.n_tokens; ++t)
        dot_tile<kKind, 4, 1>(w + r * stride, stride, in.x + size_t{t} * in.x_stride, in.x_stride, m.n_cols,
                              y + size_t{r} * in.n_lanes + t, in.n_lanes);
    }
    for (; r < n_rows; ++r)
      for (uint32_t t = 0; t < in.n_tokens; ++t)
        dot_tile<kKind, 1, 1>(w + r * stride, stride, in.x + size_t{t} * in.x_stride, in.x_stride, m.n_cols,
                              y + size_t{r} * in.n_lanes + t, in.n_lanes);
  }

  static void plain_panel_any(const Matrix& m, uint32_t panel, const Input& in, float* y) {
    switch (m.kind) {
      case TensorKind::kF32:
        return plain_panel<TensorKind::kF32>(m, panel, in, y);
      case TensorKind::kF16:
        return plain_panel<TensorKind::kF16>(m, panel, in, y);
      case TensorKind::kBF16:
        return plain_panel<TensorKind::kBF16>(m, panel, in, y);
      case TensorKind::kQ24:
        return;
    }
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

  // ---- elementwise ----------------------------------------------------------------------------------------------

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

  // ---- attention ------------------------------------------------------------------------------------------------

  // Rounds x [n] to int8 and returns the scale.
  static float round_i8(const float* x, uint32_t n, int8_t* out) {
    V largest = V::set1(0);
    for_each_vector<V>(n,
                       [&](uint32_t i, auto load, auto) { largest = V::max(largest, V::abs(load(x + i))); });
    const Scale scale(V::reduce_max(largest));
    const V inverse = V::set1(scale.inverse), magic = V::set1(kMagic);
    for_each_vector<V>(n, [&](uint32_t i, auto load, auto) {
      int8_t a[16];
      (load(x + i) * inverse + magic - magic).store_i8(a);
      for (uint32_t j = 0; j < 16 && i + j < n; ++j) out[i + j] = a[j];
    });
    return scale.step;
  }

  static void append(const KvHead& kv, uint32_t position, const float* k, const float* v) {
    const size_t tile = size_t{position / 16} * kv.head_dim * 16 + position % 16;
    const size_t row = size_t{position} * kv.padded_head_dim;
    if (kv.k_scale != nullptr) {
      int8_t rounded[1024];  // head_dim's cap
      kv.k_scale[position] = round_i8(k, kv.head_dim, rounded);
      int8_t* const k8 = reinterpret_cast<int8_t*>(kv.k) + tile;
      for (uint32_t d = 0; d < kv.head_dim; ++d) k8[size_t{d} * 16] = rounded[d];
      kv.v_scale[position] = round_i8(v, kv.head_dim, reinterpret_cast<int8_t*>(kv.v) + row);
      return;
    }
    uint16_t* const k16 = reinterpret_cast<uint16_t*>(kv.k) + tile;
    uint16_t* const v16 = reinterpret_cast<uint16_t*>(kv.v) + row;
    const V low = V::set1(-65504.0f), high = V::set1(65504.0f);
    for_each_vector<V>(kv.head_dim, [&](uint32_t i, auto load, auto) {
      uint16_t a[16];
      V::max(low, V::min(high, load(k + i))).store_f16(a);
      for (uint32_t j = 0; j < 16 && i + j < kv.head_dim; ++j) k16[size_t{i + j} * 16] = a[j];
      V::max(low, V::min(high, load(v + i))).store_f16(a);
      for (uint32_t j = 0; j < 16 && i + j < kv.head_dim; ++j) v16[i + j] = a[j];
    });
  }

  template <bool kI8>
  static V load_kv(const uint8_t* p, size_t element) {
    if constexpr (kI8)
      return V::load_i8(reinterpret_cast<const int8_t*>(p) + element);
    else
      return V::load_f16(reinterpret_cast<const uint16_t*>(p) + element);
  }

  // Asks for as many bytes as a step consumes. The cache is streamed from memory in two sequences, k and v of segment
  // after segment; while one is worked on, the same amount of what comes next is on its way.
  template <uint32_t kBytes>
  static void fetch(const uint8_t* ahead, size_t step) {
    for (uint32_t i = 0; i < kBytes; i += 64) __builtin_prefetch(ahead + step * kBytes + i);
  }

  // scores[q, 16 * tile ..] = q . k for kQueries queries and kTiles tiles of 16 positions.
  template <bool kI8, uint32_t kQueries, uint32_t kTiles>
  static void score_tile(const KvHead& kv, uint32_t first_tile, const Query* queries, float* scores,
                         const uint8_t* ahead) {
    V acc[kQueries][kTiles];
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t t = 0; t < kTiles; ++t) acc[q][t] = V::set1(0);
    const size_t tile_size = size_t{kv.head_dim} * 16;
    for (uint32_t d = 0; d < kv.head_dim; ++d) {
      fetch<kTiles * 16 * (kI8 ? 1 : 2)>(ahead, d);
      V k[kTiles];
      for (uint32_t t = 0; t < kTiles; ++t)
        k[t] = load_kv<kI8>(kv.k, (first_tile + t) * tile_size + size_t{d} * 16);
      for (uint32_t q = 0; q < kQueries; ++q) {
        const V x = V::set1(queries[q].q[d]);
        for (uint32_t t = 0; t < kTiles; ++t) acc[q][t] = V::fma(x, k[t], acc[q][t]);
      }
    }
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t t = 0; t < kTiles; ++t) acc[q][t].store(scores + q * kSegment + t * 16);
  }

  // All scores of a segment's tiles [tile_begin, tile_end), absolute tile numbers.
  template <bool kI8>
  static void score(const KvHead& kv, uint32_t segment, uint32_t tile_begin, uint32_t tile_end,
                    const Query* queries, uint32_t n_queries, float* scores) {
    const uint32_t first = segment * (kSegment / 16);
    const auto ahead = [&](uint32_t t) {  // v of the tile's positions
      return kv.v + size_t{t} * 16 * kv.padded_head_dim * (kI8 ? 1 : 2);
    };
    uint32_t q = 0;
    for (; q + 4 <= n_queries; q += 4) {
      float* const row = scores + size_t{q} * kSegment;
      uint32_t t = tile_begin;
      for (; V::kRegisters >= 32 && t + 4 <= tile_end; t += 4)
        score_tile<kI8, 4, 4>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
      for (; t + 2 <= tile_end; t += 2)
        score_tile<kI8, 4, 2>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
      for (; t < tile_end; ++t) score_tile<kI8, 4, 1>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
    }
    for (; q < n_queries; ++q) {
      float* const row = scores + size_t{q} * kSegment;
      uint32_t t = tile_begin;
      for (; t + 4 <= tile_end; t += 4)
        score_tile<kI8, 1, 4>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
      for (; t < tile_end; ++t) score_tile<kI8, 1, 1>(kv, t, queries + q, row + (t - first) * 16, ahead(t));
    }
  }

  // Scores to probabilities times the segment's sum, zero outside the query's range within the tiles.
  static void soften(const KvHead& kv, uint32_t segment, uint32_t tile_begin, uint32_t tile_end,
                     const Query& query, float scale, float softcap, float* scores) {
    const uint32_t base = segment * kSegment;
    V largest = V::set1(-__builtin_inff());
    // A lane's range within its tile: [begin, end) of the query, cut to 0 .. 16.
    const auto from = [&](uint32_t p) {
      return query.begin > p ? (query.begin - p < 16 ? query.begin - p : 16) : 0;
    };
    const auto to = [&](uint32_t p) { return query.end > p ? (query.end - p < 16 ? query.end - p : 16) : 0; };
    const auto keep = [&](V x, uint32_t p, float other) {
      const bool whole_tile = query.begin <= p && p + 16 <= query.end;
      return whole_tile ? x : V::keep(x, from(p), to(p), other);
    };
    for (uint32_t t = tile_begin; t < tile_end; ++t) {
      const uint32_t p = t * 16;
      V s = V::load(scores + (p - base)) * V::set1(scale);
      if (kv.k_scale != nullptr) s = s * V::load(kv.k_scale + p);
      if (softcap != 0) s = soft_capped(s, softcap);
      s = keep(s, p, -__builtin_inff());
      s.store(scores + (p - base));
      largest = V::max(largest, s);
    }
    const float max = V::reduce_max(largest);
    V sum = V::set1(0);
    for (uint32_t t = tile_begin; t < tile_end; ++t) {
      const uint32_t p = t * 16;
      V e = keep(exp(V::load(scores + (p - base)) - V::set1(max)), p, 0);
      sum = sum + e;
      if (kv.v_scale != nullptr) e = keep(e * V::load(kv.v_scale + p), p, 0);
      e.store(scores + (p - base));
    }
    query.out[kv.padded_head_dim] = max;
    query.out[kv.padded_head_dim + 1] = V::reduce_add(sum);
  }

  // out[q][d ..] = sum over positions of p * v for kQueries queries and kVectors vectors of dimensions.
  template <bool kI8, uint32_t kQueries, uint32_t kVectors>
  static void value_tile(const KvHead& kv, uint32_t base, uint32_t begin, uint32_t end, uint32_t d,
                         const Query* queries, const float* scores) {
    constexpr uint32_t kBytes = kVectors * 16 * (kI8 ? 1 : 2);
    // k of the next segment: this column of values takes its share of it
    const uint8_t* const ahead =
        kv.k + (size_t{base} + kSegment) * kv.head_dim * (kI8 ? 1 : 2) + size_t{d} * kSegment * (kI8 ? 1 : 2);
    V acc[kQueries][kVectors];
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t i = 0; i < kVectors; ++i) acc[q][i] = V::set1(0);
    for (uint32_t p = begin; p < end; ++p) {
      fetch<kBytes>(ahead, p - base);
      V v[kVectors];
      for (uint32_t i = 0; i < kVectors; ++i)
        v[i] = load_kv<kI8>(kv.v, size_t{p} * kv.padded_head_dim + d + i * 16);
      for (uint32_t q = 0; q < kQueries; ++q) {
        const V weight = V::set1(scores[q * kSegment + (p - base)]);
        for (uint32_t i = 0; i < kVectors; ++i) acc[q][i] = V::fma(weight, v[i], acc[q][i]);
      }
    }
    for (uint32_t q = 0; q < kQueries; ++q)
      for (uint32_t i = 0; i < kVectors; ++i) acc[q][i].store(queries[q].out + d + i * 16);
  }

  template <bool kI8>
  static void value(const KvHead& kv, uint32_t base, uint32_t begin, uint32_t end, const Query* queries,
                    uint32_t n_queries, const float* scores) {
    uint32_t q = 0;
    for (; q + 4 <= n_queries; q += 4) {
      const float* const row = scores + size_t{q} * kSegment;
      uint32_t d = 0;
      for (; V::kRegisters >= 32 && d + 64 <= kv.padded_head_dim; d += 64)
        value_tile<kI8, 4, 4>(kv, base, begin, end, d, queries + q, row);
      for (; d + 32 <= kv.padded_head_dim; d += 32)
        value_tile<kI8, 4, 2>(kv, base, begin, end, d, queries + q, row);
      for (; d < kv.padded_head_dim; d += 16)
        value_tile<kI8, 4, 1>(kv, base, begin, end, d, queries + q, row);
    }
    for (; q < n_queries; ++q) {
      const float* const row = scores + size_t{q} * kSegment;
      uint32_t d = 0;
      for (; d + 128 <= kv.padded_head_dim; d += 128)
        value_tile<kI8, 1, 8>(kv, base, begin, end, d, queries + q, row);
      for (; d + 64 <= kv.padded_head_dim; d += 64)
        value_tile<kI8, 1, 4>(kv, base, begin, end, d, queries + q, row);
      for (; d < kv.padded_head_dim; d += 16)
        value_tile<kI8, 1, 1>(kv, base, begin, end, d, queries + q, row);
    }
  }

  static void attend(const KvHead& kv, uint32_t segment, const Query* queries, uint32_t n_queries,
                     float scale, float softcap, float* scores) {
    uint32_t begin = queries[0].begin, end = queries[0].end;
    for (uint32_t q = 1; q < n_queries; ++q) {
      begin = queries[q].begin < begin ? queries[q].begin : begin;
      end = queries[q].end > end ? queries[q].end : end;
    }
    const uint32_t base = segment * kSegment, tile_begin = begin / 16, tile_end = (end + 15) / 16;
    const bool i8 = kv.k_scale != nullptr;
    if (i8)
      score<true>(kv, segment, tile_begin, tile_end, queries, n_queries, scores);
    else
      score<false>(kv, segment, tile_begin, tile_end, queries, n_queries, scores);
    for (uint32_t q = 0; q < n_queries; ++q)
      soften(kv, segment, tile_begin, tile_end, queries[q], scale, softcap, scores + size_t{q} * kSegment);
    if (i8)
      value<true>(kv, base, begin, end, queries, n_queries, scores);
    else
      value<false>(kv, base, begin, end, queries, n_queries, scores);
  }

  static void combine(float* into, const float* part, uint32_t padded_head_dim) {
    float& max = into[padded_head_dim];
    float& sum = into[padded_head_dim + 1];
    const float part_max = part[padded_head_dim], new_max = max > part_max ? max : part_max;
    float factors[16] = {max - new_max, part_max - new_max};
    exp(V::load(factors)).store(factors);
    const V keep = V::set1(factors[0]), add = V::set1(factors[1]);
    for (uint32_t d = 0; d < padded_head_dim; d += 16)
      V::fma(V::load(part + d), add, V::load(into + d) * keep).store(into + d);
    sum = __builtin_fmaf(part[padded_head_dim + 1], factors[1], sum * factors[0]);
    max = new_max;
  }

  static void finish(const float* sums, uint32_t head_dim, uint32_t padded_head_dim, float* out) {
    const V sum = V::set1(sums[padded_head_dim + 1]);
    for_each_vector<V>(head_dim,
                       [&](uint32_t i, auto, auto store) { store(V::load(sums + i) / sum, out + i); });
  }
};

}  // namespace pith::cpu
