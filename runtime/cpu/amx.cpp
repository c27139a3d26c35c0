// AMX kernels (Sapphire Rapids and later): products of many tokens by tiles of 16 x 64 bytes, all else as avx512.cpp.
// Same bits as scalar.cpp.
//
// A panel's block (32 rows x 128 columns) is unpacked once to bytes scale * (4*hi + lo) <= 225, as rows of 64 columns. One
// tdpbusd multiplies 16 rows by 64 columns with 64 columns by 16 tokens, which lie in `Input::a` as a tile wants them:
//
//   weights   [16 rows][64 columns]   u8     activations  [16 quads][16 tokens][4 columns]                s8
//   minimums  [16 rows][64 lines]     u8     line sums    [16 quads of lines][h, l][16 tokens][4 lines]   s8
//
// A line sum is two bytes, q = 256 * h + l, each of which is multiplied with the minimums.
// Tiles cannot be converted to float: their sums go through memory (L1), and while one tile's are converted, scaled and
// added to the accumulators, the products of the next are under way.
#include "runtime/cpu/q24_avx512.h"
#include "runtime/cpu/tables.h"

namespace pith::cpu {

namespace {

constexpr uint32_t kTile = 16;  // rows, or tokens, of a tile

// Tile registers: sums of two halves of a panel by two times 16 tokens, then one of each operand.
enum : int { kWeights = 4, kActivations = 5 };

// By asm: the compilers' intrinsics take literal numbers only, and GCC 12's do not say what they read.
void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } const config;
  asm volatile("ldtilecfg %0" ::"m"(config));
}
void release_tiles() {
  asm volatile("tilerelease");
}
template <int kTo>
[[gnu::always_inline]] inline void load_tile(const void* from, size_t row_stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTo), "r"(from), "r"(row_stride) : "memory");
}
template <int kFrom>
[[gnu::always_inline]] inline void store_tile(void* to, size_t row_stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kFrom), "r"(to), "r"(row_stride) : "memory");
}
template <int kSums>
[[gnu::always_inline]] inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kSums));
}
template <int kSums, int kU8, int kS8>
[[gnu::always_inline]] inline void multiply() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kU8), "i"(kS8));
}

// A block of a panel. Row r of a half is its word 4 * (r % 4) + r / 4.
struct Codes {
  alignas(64) uint8_t rows[2][2][kTile][64];  // [half of the words][half of the columns]
};
// The minimums of eight blocks, in word order.
struct Minimums {
  alignas(64) uint8_t words[2][kTile][64];  // [half of the words], 64 lines
};
constexpr uint32_t kMinimumBlocks = 8;

// In the place of PanelScratch's blocks: codes of all blocks, then their minimums.
struct UnpackedPanel {
  Codes* codes;
  Minimums* minimums;
  uint32_t n_minimums;

  UnpackedPanel(const Matrix& m, const PanelScratch& scratch)
      : codes(reinterpret_cast<Codes*>(scratch.blocks)),
        minimums(reinterpret_cast<Minimums*>(codes + m.n_blocks())),
        n_minimums(m.n_summed_lines() / 64) {}
};
static_assert(sizeof(Codes) * 2 + sizeof(Minimums) <= sizeof(UnpackedBlock) * 2);
static_assert(sizeof(Codes) * kMinimumBlocks + sizeof(Minimums) <= sizeof(UnpackedBlock) * kMinimumBlocks);

// 4 x 4 words within each 128 bits: lane i of v[k] becomes word 4i + k of the four.
void transpose_words(__m512i (&v)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi32(v[0], v[1]), high01 = _mm512_unpackhi_epi32(v[0], v[1]),
                low23 = _mm512_unpacklo_epi32(v[2], v[3]), high23 = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(low01, low23);
  v[1] = _mm512_unpackhi_epi64(low01, low23);
  v[2] = _mm512_unpacklo_epi64(high01, high23);
  v[3] = _mm512_unpackhi_epi64(high01, high23);
}

// Word l of lane `lane`, four times in lane l.
__m512i spread(__m512i v, int lane) {
  const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutexvar_epi32(_mm512_add_epi32(each, _mm512_set1_epi32(lane * 4)), v);
}

template <uint32_t kGroup>
void unpack_block(const Matrix& m, uint32_t panel, uint32_t block, const UnpackedPanel& out) {
  const q24::Layout& l = m.view.layout;
  const uint8_t* const base = m.view.base + size_t{panel} * l.n_lines * q24::kLineBytes;
  const uint8_t* const fine = m.view.fine + size_t{panel} * l.n_fine_lines * q24::kLineBytes;
  const uint8_t* const scales = m.view.scales + panel * l.scales_stride;
  const uint32_t first_fine = l.n_lines - l.n_fine_lines, begin = block * 8, n_lines = m.lines_of(block);
  // Quad p of a word has bits 2p, 2p + 1 of each byte: they move to bits 2, 3 (hi) or 0, 1 (lo).
  const __m512i to_hi = _mm512_set4_epi32(4, 2, 0, 30), to_lo = _mm512_set4_epi32(6, 4, 2, 0);
  const __m512i hi_bits = _mm512_set1_epi8(0x0c), lo_bits = _mm512_set1_epi8(0x03);
  for (uint32_t half = 0; half < 2; ++half) {
    __m512i minimums[4] = {};  // of a half block: zeros for the lines that it lacks
    for (uint32_t quarter = 0; quarter < n_lines / 4; ++quarter) {  // four lines
      const uint32_t line = begin + quarter * 4;
      __m512i hi[4], lo[4], scale[4];
      for (uint32_t i = 0; i < 4; ++i) {
        hi[i] = load512(base + size_t{line + i} * q24::kLineBytes + half * 64);
        lo[i] = line + i < first_fine
                    ? _mm512_setzero_si512()
                    : load512(fine + size_t{line + i - first_fine} * q24::kLineBytes + half * 64);
      }
      for (uint32_t i = 0; i < 2; ++i) {
        const PairScales pair = pair_scales<kGroup>(scales, line / 2 + i, half);
        const __m512i even = _mm512_and_si512(pair.s, _mm512_set1_epi32(15)),
                      odd = _mm512_srli_epi32(pair.s, 16);
        scale[i * 2] = _mm512_or_si512(even, _mm512_slli_epi32(even, 16));
        scale[i * 2 + 1] = _mm512_or_si512(odd, _mm512_slli_epi32(odd, 16));
        minimums[quarter * 2 + i] = pair.m;
      }
      transpose_words(hi);
      transpose_words(scale);
      const bool any_fine = line + 4 > first_fine;
      if (any_fine) transpose_words(lo);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k)
#pragma GCC unroll 4
        for (int lane = 0; lane < 4; ++lane) {
          __m512i codes = _mm512_and_si512(_mm512_rorv_epi32(spread(hi[k], lane), to_hi), hi_bits);
          if (any_fine)
            codes = _mm512_or_si512(codes,
                                    _mm512_and_si512(_mm512_rorv_epi32(spread(lo[k], lane), to_lo), lo_bits));
          // A product fits its byte (15 * 15), so two bytes are multiplied as one word.
          _mm512_store_si512(out.codes[block].rows[half][quarter][k * 4 + lane],
                             _mm512_mullo_epi16(codes, spread(scale[k], lane)));
        }
    }
    // Words {even line, odd line} to bytes, then the eight lines of a word beside each other.
    const auto four = [](__m512i pair, __m512i next) {
      const auto bytes = [](__m512i x) { return _mm512_or_si512(x, _mm512_srli_epi32(x, 8)); };
      return _mm512_mask_blend_epi16(0xaaaaaaaa, bytes(pair), _mm512_slli_epi32(bytes(next), 16));
    };
    const __m512i low = four(minimums[0], minimums[1]), high = four(minimums[2], minimums[3]);
    alignas(64) uint64_t words[16];  // in each 128 bits 0, 1 of the low halves, 2, 3 of the high ones
    _mm512_store_si512(words, _mm512_unpacklo_epi32(low, high));
    _mm512_store_si512(words + 8, _mm512_unpackhi_epi32(low, high));
    for (uint32_t w = 0; w < kTile; ++w)
      __builtin_memcpy(&out.minimums[block / kMinimumBlocks].words[half][w][block % kMinimumBlocks * 8],
                       &words[w % 4 / 2 * 8 + w / 4 * 2 + w % 2], 8);
  }
}

// Sums of a block: [half of the words][16 tokens' tile][row][token].
template <int kTiles>
using TileSums = int32_t[2][kTiles][kTile][kTile];

// Sums registers 0 and 1 are the halves for the first 16 tokens, 2 and 3 for the next. Each operand is loaded in turn: to the
// other half, then to the other tokens.
template <int kTiles>
[[gnu::always_inline]] inline void clear_sums() {
  clear_tile<0>();
  clear_tile<1>();
  if (kTiles == 1) return;
  clear_tile<2>();
  clear_tile<3>();
}
template <int kTiles>
[[gnu::always_inline]] inline void store_sums(TileSums<kTiles>& to) {
  store_tile<0>(to[0][0], kTile * 4);
  store_tile<1>(to[1][0], kTile * 4);
  if (kTiles == 1) return;
  store_tile<2>(to[0][kTiles - 1], kTile * 4);
  store_tile<3>(to[1][kTiles - 1], kTile * 4);
}

// Adds kU8 [2 halves] times kS8 [kTiles] to the sums.
template <int kTiles, int kU8, int kS8>
[[gnu::always_inline]] inline void add_products(const void* u8_first, const void* u8_second, size_t u8_stride,
                                                const void* s8_first, const void* s8_second,
                                                size_t s8_stride) {
  load_tile<kU8>(u8_first, u8_stride);
  load_tile<kS8>(s8_first, s8_stride);
  multiply<0, kU8, kS8>();
  if (kTiles == 1) {
    load_tile<kU8>(u8_second, u8_stride);
    return multiply<1, kU8, kS8>();
  }
  load_tile<kS8>(s8_second, s8_stride);
  multiply<2, kU8, kS8>();
  load_tile<kU8>(u8_second, u8_stride);
  multiply<3, kU8, kS8>();
  load_tile<kS8>(s8_first, s8_stride);
  multiply<1, kU8, kS8>();
}

template <int kTiles>
[[gnu::always_inline]] inline void sum_weights(const Codes& w, uint32_t n_lines, const int8_t* a) {
  clear_sums<kTiles>();
  for (uint32_t half = 0; half < n_lines / 4; ++half, a += 1024)
    add_products<kTiles, kWeights, kActivations>(w.rows[0][half], w.rows[1][half], 64, a, a + n_lines * 256,
                                                 64);
}

// out [32 words, stride tokens] = minimums times line sums, for kTiles x 16 tokens whose line sums are at `sums`.
template <int kTiles>
void sum_minimums(const UnpackedPanel& w, const int8_t* sums, int32_t* out, uint32_t stride) {
  alignas(64) TileSums<kTiles> high, low;
  const auto sum = [&](const int8_t* bytes, TileSums<kTiles>& to) __attribute__((always_inline)) {
    clear_sums<kTiles>();
    for (uint32_t i = 0; i < w.n_minimums; ++i, bytes += 2048)
      add_products<kTiles, kWeights, kActivations>(w.minimums[i].words[0], w.minimums[i].words[1], 64, bytes,
                                                   bytes + w.n_minimums * 2048, 128);
    store_sums<kTiles>(to);
  };
  sum(sums, high);
  sum(sums + 64, low);
  for (uint32_t i = 0; i < kPanelRows; ++i)
    for (uint32_t t = 0; t < kTiles; ++t) {
      const __m512i h = load512(high[i / kTile][t][i % kTile]), l = load512(low[i / kTile][t][i % kTile]);
      _mm512_storeu_si512(out + i * stride + t * kTile, _mm512_add_epi32(_mm512_slli_epi32(h, 8), l));
    }
}

// acc [32 rows, kStride tokens] += scale * sums
template <int kTiles, uint32_t kStride>
[[gnu::always_inline]] inline void accumulate(const TileSums<kTiles>& sums, const float* scales, float* acc) {
#pragma GCC unroll 2
  for (uint32_t t = 0; t < kTiles; ++t) {
    const __m512 scale = _mm512_loadu_ps(scales + t * kTile);
    for (uint32_t half = 0; half < 2; ++half)
#pragma GCC unroll 16
      for (uint32_t r = 0; r < kTile; ++r) {
        float* const at = acc + (half * kTile + r) * kStride + t * kTile;
        const __m512 sum = _mm512_cvtepi32_ps(load512(sums[half][t][r]));
        _mm512_storeu_ps(at, _mm512_fmadd_ps(scale, sum, _mm512_loadu_ps(at)));
      }
  }
}

// kVectors x 16 tokens from `lane` on: all blocks, then y.
template <int kVectors>
void lane_group(const Matrix& m, uint32_t panel, const PanelScratch& scratch, const Input& in, uint32_t lane,
                float* y) {
  constexpr uint32_t kLanesHere = kVectors * kTile;
  constexpr int kTiles = kVectors == 1 ? 1 : 2;
  const UnpackedPanel unpacked(m, scratch);
  float* const acc = scratch.accumulators;
  float* const outliers = acc + kPanelRows * kLanesHere;
  int32_t* const minimums = reinterpret_cast<int32_t*>(outliers + kPanelRows * kLanesHere);
  __builtin_memset(acc, 0, 2 * kPanelRows * kLanesHere * sizeof(float));
  for (uint32_t t = 0; t < kLanesHere; t += kTiles * kTile)
    sum_minimums<kTiles>(unpacked, reinterpret_cast<const int8_t*>(pairs(m, in, lane + t)), minimums + t,
                         kLanesHere);
  // Sums on their way through memory. What is added while products are under way is of the step before.
  alignas(64) TileSums<kTiles> sums[2];
  const float* last_scales = nullptr;
  float* last_acc = nullptr;
  uint32_t step = 0;
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    const uint32_t n_lines = m.lines_of(block);
    for (uint32_t t = 0; t < kLanesHere; t += kTiles * kTile, ++step) {
      sum_weights<kTiles>(unpacked.codes[block], n_lines, quads(in, block, n_lines, lane + t));
      if (last_acc != nullptr) accumulate<kTiles, kLanesHere>(sums[(step + 1) % 2], last_scales, last_acc);
      store_sums<kTiles>(sums[step % 2]);
      last_scales = in.scales + size_t{block} * in.n_lanes + lane + t;
      last_acc = acc + t;
    }
    add_outliers<kVectors>(m, scratch, block, in, lane, outliers);
  }
  accumulate<kTiles, kLanesHere>(sums[(step + 1) % 2], last_scales, last_acc);
  for (uint32_t i = 0; i < kPanelRows; ++i) {
    const uint32_t r = i % kTile, w = i / kTile * kTile + 4 * (r % 4) + r / 4;
    finish_word<kVectors>(m, panel, w, in, lane, acc + i * kLanesHere, minimums + w * kLanesHere,
                          outliers + w * kLanesHere, y);
  }
}

template <uint32_t kGroup>
void q24_many(const Matrix& m, uint32_t panel, const Input& in, uint8_t* memory, float* y) {
  const PanelScratch scratch(m, in.n_lanes, memory);
  const UnpackedPanel unpacked(m, scratch);
  for (uint32_t block = 0; block < m.n_blocks(); ++block) unpack_block<kGroup>(m, panel, block, unpacked);
  scratch.sort_outliers(m, panel, [](uint16_t half) { return _cvtsh_ss(half); });
  configure_tiles();
  uint32_t lane = 0;
  for (; lane + 64 <= in.n_lanes; lane += 64) lane_group<4>(m, panel, scratch, in, lane, y);
  for (; lane + 32 <= in.n_lanes; lane += 32) lane_group<2>(m, panel, scratch, in, lane, y);
  for (; lane < in.n_lanes; lane += 16) lane_group<1>(m, panel, scratch, in, lane, y);
  release_tiles();
}

void panel(const Matrix& m, uint32_t index, const Input& in, uint8_t* scratch, float* y) {
  if (!m.is_q24()) return Avx512::plain_panel_any(m, index, in, scratch, y);
  const bool wide = m.view.layout.shape.group == 32;
  if (in.n_lanes == 1) return wide ? q24_one<32>(m, index, in, y) : q24_one<16>(m, index, in, y);
  return wide ? q24_many<32>(m, index, in, scratch, y) : q24_many<16>(m, index, in, scratch, y);
}

// As every set does, then the line sums of each two pairs as the bytes of a tile.
void quantize_tile(const Matrix& m, const float* x, size_t x_stride, uint32_t n_tokens, uint32_t lane,
                   const Input& in, float* scratch) {
  Avx512::quantize_tile(m, x, x_stride, n_tokens, lane, in, scratch);
  // Bytes 0, 2 (or 1, 3) of each word to its lower (or upper) half.
  const __m512i first = _mm512_set4_epi32(0x80800e0c, 0x80800a08, 0x80800604, static_cast<int>(0x80800200)),
                next = _mm512_set4_epi32(0x0e0c8080, 0x0a088080, 0x06048080, 0x02008080);
  const auto gather = [&](__m512i even, __m512i odd) {
    return _mm512_or_si512(_mm512_shuffle_epi8(even, first), _mm512_shuffle_epi8(odd, next));
  };
  const auto high = [](__m512i q) {
    return _mm512_srli_epi16(_mm512_add_epi16(q, _mm512_set1_epi16(128)), 8);
  };
  int16_t* at = pairs(m, in, lane);
  for (uint32_t line = 0; line < m.n_summed_lines(); line += 4, at += 64) {
    const __m512i even = load512(at), odd = load512(at + 32);
    _mm512_storeu_si512(at, gather(high(even), high(odd)));
    _mm512_storeu_si512(at + 32, gather(even, odd));
  }
}

uint64_t mac_loop(uint64_t rounds) {
  configure_tiles();
  clear_tile<kWeights>();
  clear_tile<kActivations>();
  clear_sums<2>();
  for (uint64_t i = 0; i < rounds; i += 16) {  // a product takes 16 cycles
    multiply<0, kWeights, kActivations>();
    multiply<1, kWeights, kActivations>();
    multiply<2, kWeights, kActivations>();
    multiply<3, kWeights, kActivations>();
  }
  release_tiles();
  return (rounds + 15) / 16 * 4 * kTile * kTile * 64;
}

}  // namespace

const Kernels kAmxKernels = {
    "amx",          Avx512::rms_norm, Avx512::quantize, Avx512::quantize_sums, quantize_tile,
    panel,          Avx512::store,    Avx512::gate,     Avx512::softcap,       Avx512::rope,
    Avx512::append, Avx512::attend,   Avx512::combine,  Avx512::finish,        read,
    mac_loop,
};

}  // namespace pith::cpu
