// Products of matrices in 16 and 32 bits, written once over a vector type (generic.h). What is computed: kernels.h.
#pragma once
#include "runtime/cpu/generic_math.h"
#include "runtime/cpu/kernels.h"

namespace pith::cpu {

template <class V>
struct PlainProducts {
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

  // kRows rows from row `r` of a panel on, whose weights begin at w, for all tokens, kTokens at a time.
  template <TensorKind kKind, uint32_t kRows, uint32_t kTokens>
  static void plain_rows(const Matrix& m, const uint8_t* w, size_t stride, uint32_t r, const Input& in,
                         float* y) {
    const auto tile = [&]<uint32_t kTokensHere>(uint32_t t) {
      dot_tile<kKind, kRows, kTokensHere>(w + r * stride, stride, in.x + size_t{t} * in.x_stride, in.x_stride,
                                          m.n_cols, y + size_t{r} * in.n_lanes + t, in.n_lanes);
    };
    uint32_t t = 0;
    for (; t + kTokens <= in.n_tokens; t += kTokens) tile.template operator()<kTokens>(t);
    for (; t < in.n_tokens; ++t) tile.template operator()<1>(t);
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
        in.n_tokens > 1)  // eight rows stay in L1 and halve the passes over x, which do not
      for (; r + 8 <= n_rows; r += 8) plain_rows<kKind, 8, 3>(m, w, stride, r, in, y);
    for (; r + 4 <= n_rows; r += 4) plain_rows<kKind, 4, 4>(m, w, stride, r, in, y);
    for (; r < n_rows; ++r) plain_rows<kKind, 1, 1>(m, w, stride, r, in, y);
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
};

}  // namespace pith::cpu
