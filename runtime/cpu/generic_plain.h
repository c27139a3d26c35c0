// Products of matrices in 16 and 32 bits, written once over a vector type (generic.h). What is computed: kernels.h.
//
// Few tokens take the rows as they stream from memory. For many, a panel's rows are widened to floats once, in the order in
// which tiles of 4 rows x 3 or 6 tokens read them, and used for all tokens:
//
//   wide [columns / kDepth][row / 4][part][column / 16][row % 4][lanes of a part]
//
// A part is as many of the 16 lanes as a register holds, so that a tile's sums stay in registers. Between two stretches of
// kDepth columns they wait in memory: so long, and no longer, do a tile's rows and tokens fit L1.
#pragma once
#include "runtime/cpu/generic_math.h"
#include "runtime/cpu/kernels.h"

namespace pith::cpu {

template <class V>
struct PlainProducts {
  using Part = typename V::Part;
  static constexpr uint32_t kParts = V::kParts, kWidth = kLanes / kParts;
  static constexpr uint32_t kRows = 4, kTokens = V::kRegisters * kParts >= 32 ? 6 : 3;  // of a tile
  static constexpr uint32_t kDepth = kParts == 1 ? 512 : 1024;
  static constexpr uint32_t kManyTokens = 24;  // from here on widening pays
  static_assert(kPlainTokens % kTokens == 0);

  template <TensorKind kKind>
  static constexpr size_t kSize = kKind == TensorKind::kF32 ? 4 : 2;

  template <TensorKind kKind>
  static V load_weights(const uint8_t* p) {
    if constexpr (kKind == TensorKind::kF32) return V::load(reinterpret_cast<const float*>(p));
    if constexpr (kKind == TensorKind::kF16) return V::load_f16(reinterpret_cast<const uint16_t*>(p));
    if constexpr (kKind == TensorKind::kBF16) return V::load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
  // n weights, 1 to 16; zeros after them.
  template <TensorKind kKind>
  static V load_weights(const uint8_t* p, uint32_t n) {
    if (n == kLanes) return load_weights<kKind>(p);
    alignas(64) uint8_t padded[kLanes * kSize<kKind>] = {};
    for (uint32_t i = 0; i < n * kSize<kKind>; ++i) padded[i] = p[i];
    return load_weights<kKind>(padded);
  }

  // ---- few tokens ----

  // y[r, t] of kRowsHere rows of w (stride bytes apart) and kTokensHere rows of x.
  template <TensorKind kKind, uint32_t kRowsHere, uint32_t kTokensHere>
  static void dot_tile(const uint8_t* w, size_t stride, const float* x, size_t x_stride, uint32_t n, float* y,
                       size_t y_stride) {
    V acc[kRowsHere][kTokensHere];
    for (uint32_t r = 0; r < kRowsHere; ++r)
      for (uint32_t t = 0; t < kTokensHere; ++t) acc[r][t] = V::set1(0);
    uint32_t c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      V xs[kTokensHere];
      for (uint32_t t = 0; t < kTokensHere; ++t) xs[t] = V::load(x + t * x_stride + c);
      for (uint32_t r = 0; r < kRowsHere; ++r) {
        const uint8_t* const at = w + r * stride + c * kSize<kKind>;
        // Decode streams from memory: ask for the next rows while these are computed (19 -> 26 GB/s).
        if (kTokensHere == 1) __builtin_prefetch(at + kRowsHere * stride);
        const V ws = load_weights<kKind>(at);
        for (uint32_t t = 0; t < kTokensHere; ++t) acc[r][t] = V::fma(ws, xs[t], acc[r][t]);
      }
    }
    for (uint32_t r = 0; c < n && r < kRowsHere; ++r) {
      const V ws = load_weights<kKind>(w + r * stride + c * kSize<kKind>, n - c);
      for (uint32_t t = 0; t < kTokensHere; ++t)
        acc[r][t] = V::fma(ws, load_tail<V, float>(V::load, x + t * x_stride + c, n - c), acc[r][t]);
    }
    for (uint32_t r = 0; r < kRowsHere; ++r)
      for (uint32_t t = 0; t < kTokensHere; ++t) y[r * y_stride + t] = V::reduce_add(acc[r][t]);
  }

  // Rows of a panel, whose weights begin at w, for all tokens: from row r on as long as kRowsHere are left; returns the next.
  template <TensorKind kKind, uint32_t kRowsHere, uint32_t kTokensHere>
  static uint32_t dot_rows(const Matrix& m, const uint8_t* w, uint32_t r, uint32_t n_rows, const Input& in,
                           float* y) {
    const size_t stride = m.n_cols * kSize<kKind>;
    for (; r + kRowsHere <= n_rows; r += kRowsHere) {
      const auto dot = [&]<uint32_t kTokensNow>(uint32_t t) {
        dot_tile<kKind, kRowsHere, kTokensNow>(w + r * stride, stride, in.x + size_t{t} * in.x_stride,
                                               in.x_stride, m.n_cols, y + size_t{r} * in.n_lanes + t,
                                               in.n_lanes);
      };
      uint32_t t = 0;
      for (; t + kTokensHere <= in.n_tokens; t += kTokensHere) dot.template operator()<kTokensHere>(t);
      for (; t < in.n_tokens; ++t) dot.template operator()<1>(t);
    }
    return r;
  }

  // ---- many tokens ----

  // wide of a panel, zeros in columns past the last; rows past the last are the last.
  template <TensorKind kKind>
  static void widen(const Matrix& m, uint32_t first, uint32_t n_rows, float* wide) {
    const size_t stride = m.n_cols * kSize<kKind>;
    for (uint32_t begin = 0; begin < m.n_cols; begin += kDepth) {
      const uint32_t n = m.n_cols - begin < kDepth ? m.n_cols - begin : kDepth;
      const uint32_t n_steps = (n + kLanes - 1) / kLanes;
      for (uint32_t r = 0; r < kPanelRows; ++r) {
        const uint8_t* const row =
            m.data + (first + (r < n_rows ? r : n_rows - 1)) * stride + begin * kSize<kKind>;
        float* to = wide + size_t{r / kRows} * n_steps * kRows * kLanes + r % kRows * kWidth;
        for (uint32_t c = 0; c < n; c += kLanes, to += kRows * kWidth) {
          float lanes[kLanes];
          load_weights<kKind>(row + c * kSize<kKind>, n - c < kLanes ? n - c : kLanes).store(lanes);
          for (uint32_t part = 0; part < kParts; ++part)
            Part::load(lanes + part * kWidth).store(to + size_t{part} * n_steps * kRows * kWidth);
        }
      }
      wide += size_t{kPanelRows} * n_steps * kLanes;
    }
  }

  // sums [kRows, kTokensHere, kLanes], one part of the lanes, += n_steps times 16 columns of w and x.
  template <uint32_t kTokensHere>
  static void tile(const float* w, const float* x, size_t x_stride, uint32_t n_steps, float* sums) {
    Part acc[kRows][kTokensHere];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < kRows; ++r)
#pragma GCC unroll 6
      for (uint32_t t = 0; t < kTokensHere; ++t)
        acc[r][t] = Part::load(sums + (r * kTokensHere + t) * kLanes);
    for (uint32_t i = 0; i < n_steps; ++i, w += kRows * kWidth, x += kLanes) {
      Part xs[kTokensHere];
#pragma GCC unroll 6
      for (uint32_t t = 0; t < kTokensHere; ++t) xs[t] = Part::load(x + t * x_stride);
#pragma GCC unroll 4
      for (uint32_t r = 0; r < kRows; ++r) {
        const Part ws = Part::load(w + r * kWidth);
#pragma GCC unroll 6
        for (uint32_t t = 0; t < kTokensHere; ++t) acc[r][t] = Part::fma(ws, xs[t], acc[r][t]);
      }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < kRows; ++r)
#pragma GCC unroll 6
      for (uint32_t t = 0; t < kTokensHere; ++t) acc[r][t].store(sums + (r * kTokensHere + t) * kLanes);
  }

  // tile() for n_tokens, 1 to kTokens.
  template <uint32_t kTokensHere = kTokens>
  static void tile_of(uint32_t n_tokens, const float* w, const float* x, size_t x_stride, uint32_t n_steps,
                      float* sums) {
    if constexpr (kTokensHere > 1)
      if (n_tokens < kTokensHere) return tile_of<kTokensHere - 1>(n_tokens, w, x, x_stride, n_steps, sums);
    tile<kTokensHere>(w, x, x_stride, n_steps, sums);
  }

  // n_tokens (1 to kPlainTokens) rows of x by all of wide; y [kPanelRows, y_stride]. Sums of a tile lie together.
  static void widened(const float* wide, uint32_t n_cols, const float* x, size_t x_stride, uint32_t n_tokens,
                      float* sums, float* y, size_t y_stride) {
    const auto for_each_tile = [n_tokens, sums](auto&& f) {
      uint32_t n_tiles = (n_tokens + kTokens - 1) / kTokens;
      for (uint32_t t = 0, n = 0; t < n_tokens; t += n, --n_tiles) {
        n = (n_tokens - t + n_tiles - 1) / n_tiles;  // tiles of about the same size
        f(t, n, sums + size_t{t} * kPanelRows * kLanes);
      }
    };
    __builtin_memset(sums, 0, sizeof(float) * kPlainTokens * kPanelRows * kLanes);
    for (uint32_t begin = 0; begin < n_cols; begin += kDepth) {
      const uint32_t n = n_cols - begin < kDepth ? n_cols - begin : kDepth;
      const uint32_t n_whole = n / kLanes, rest = n % kLanes;
      float tail[kPlainTokens][kLanes];  // the columns after the last 16
      for (uint32_t t = 0; rest != 0 && t < n_tokens; ++t)
        load_tail<V, float>(V::load, x + t * x_stride + begin + n_whole * kLanes, rest).store(tail[t]);
      for (uint32_t rows = 0; rows < kPanelRows; rows += kRows)
        for (uint32_t lane = 0; lane < kLanes; lane += kWidth) {
          for_each_tile([&](uint32_t t, uint32_t n_here, float* of_tile) {
            float* const to = of_tile + size_t{rows} * n_here * kLanes + lane;
            tile_of(n_here, wide, x + t * x_stride + begin + lane, x_stride, n_whole, to);
            if (rest != 0)
              tile_of(n_here, wide + size_t{n_whole} * kRows * kWidth, tail[t] + lane, kLanes, 1, to);
          });
          wide += size_t{n_whole + (rest != 0)} * kRows * kWidth;
        }
    }
    for_each_tile([&](uint32_t t, uint32_t n_here, const float* of_tile) {
      for (uint32_t r = 0; r < kPanelRows; ++r)
        for (uint32_t i = 0; i < n_here; ++i)
          y[r * y_stride + t + i] = V::reduce_add(V::load(of_tile + (r * n_here + i) * kLanes));
    });
  }

  // ---- what panel() calls ----

  template <TensorKind kKind>
  static void plain_panel(const Matrix& m, uint32_t panel, const Input& in, uint8_t* scratch, float* y) {
    const uint32_t first = panel * kPanelRows;
    const uint32_t n_rows = m.n_rows - first < kPanelRows ? m.n_rows - first : kPanelRows;
    if (in.n_tokens < kManyTokens) {
      const uint8_t* const w = m.data + size_t{first} * m.n_cols * kSize<kKind>;
      uint32_t r = 0;
      if (V::kRegisters >= 32 && in.n_tokens > 1) r = dot_rows<kKind, 8, 3>(m, w, r, n_rows, in, y);
      r = dot_rows<kKind, 4, 4>(m, w, r, n_rows, in, y);
      dot_rows<kKind, 1, 1>(m, w, r, n_rows, in, y);
      return;
    }
    float* const sums = reinterpret_cast<float*>(scratch);
    float* const wide = sums + kPlainTokens * kPanelRows * kLanes;
    widen<kKind>(m, first, n_rows, wide);
    for (uint32_t t = 0; t < in.n_tokens; t += kPlainTokens)
      widened(wide, m.n_cols, in.x + size_t{t} * in.x_stride, in.x_stride,
              in.n_tokens - t < kPlainTokens ? in.n_tokens - t : kPlainTokens, sums, y + t, in.n_lanes);
  }

  static void plain_panel_any(const Matrix& m, uint32_t panel, const Input& in, uint8_t* scratch, float* y) {
    switch (m.kind) {
      case TensorKind::kF32:
        return plain_panel<TensorKind::kF32>(m, panel, in, scratch, y);
      case TensorKind::kF16:
        return plain_panel<TensorKind::kF16>(m, panel, in, scratch, y);
      case TensorKind::kBF16:
        return plain_panel<TensorKind::kBF16>(m, panel, in, scratch, y);
      case TensorKind::kQ24:
        return;
    }
  }
};

}  // namespace pith::cpu
