// AVX-512 kernels (VNNI, and GFNI where avx512_plain.cpp does not say otherwise). Same bits as scalar.cpp.
//
// One token: q24_avx512.h. Many tokens: a vector is 16 tokens. A panel's block (32 rows x 128 columns) is unpacked once to
// bytes scale * (4*hi + lo) <= 225, so that vpdpbusd alone sums a block, and is used for all tokens: 4 rows x 64 tokens at
// a time, 16 accumulators against 8 loads for 16 vpdpbusd. The minimums are an eighth as many vpdpwssd, sixteen blocks at
// a time.
#include "runtime/cpu/q24_avx512.h"
#include "runtime/cpu/tables.h"

namespace pith::cpu {

namespace {

// One block of a panel to bytes and minimums, in word order.
template <uint32_t kGroup>
void unpack_block(const Matrix& m, uint32_t panel, uint32_t block, UnpackedBlock& out) {
  const q24::Layout& l = m.view.layout;
  const uint8_t* const base = m.view.base + size_t{panel} * l.n_lines * q24::kLineBytes;
  const uint8_t* const fine = m.view.fine + size_t{panel} * l.n_fine_lines * q24::kLineBytes;
  const uint8_t* const scales = m.view.scales + panel * l.scales_stride;
  const uint32_t first_fine = l.n_lines - l.n_fine_lines, begin = block * 8;
  const uint32_t end = begin + 8 < l.n_lines ? begin + 8 : l.n_lines;
  for (uint32_t half = 0; half < 2; ++half)
    for (uint32_t line = begin; line < end; line += 2) {
      const PairScales pair = pair_scales<kGroup>(scales, line / 2, half);
      _mm512_store_si512(out.minimums[(line - begin) / 2] + half * 16, pair.m);
      const __m512i even = _mm512_and_si512(pair.s, _mm512_set1_epi32(15)),
                    odd = _mm512_srli_epi32(pair.s, 16);
      const auto unpack = [&](uint32_t at, __m512i scale) {
        const __m512i s16 = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
        const __m512i hi = load512(base + size_t{at} * q24::kLineBytes + half * 64);
        __m512i codes[4] = {hi_codes<0>(hi), hi_codes<1>(hi), hi_codes<2>(hi), hi_codes<3>(hi)};
        if (at >= first_fine) {
          const __m512i lo = load512(fine + size_t{at - first_fine} * q24::kLineBytes + half * 64);
          codes[0] = _mm512_or_si512(codes[0], lo_codes<0>(lo));
          codes[1] = _mm512_or_si512(codes[1], lo_codes<1>(lo));
          codes[2] = _mm512_or_si512(codes[2], lo_codes<2>(lo));
          codes[3] = _mm512_or_si512(codes[3], lo_codes<3>(lo));
        }
        // A product fits its byte (15 * 15), so two bytes are multiplied as one word.
        for (uint32_t p = 0; p < 4; ++p)
          _mm512_store_si512(out.codes[(at - begin) * 4 + p] + half * 64, _mm512_mullo_epi16(codes[p], s16));
      };
      unpack(line, even);
      unpack(line + 1, odd);
    }
}

// acc += dot products, in place. By asm because GCC 12 copies every accumulator around the intrinsic in a loop, which
// takes a third of the prefill kernel's issue slots (312 instead of 362 G weights/s).
[[gnu::always_inline]] inline void dpbusd(__m512i& acc, __m512i u8, __m512i s8) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u8), "v"(s8));
}
[[gnu::always_inline]] inline void dpwssd(__m512i& acc, __m512i a, __m512i b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}

// acc [kRows, kVectors, 16] += scale * sums
template <int kRows, int kVectors>
[[gnu::always_inline]] inline void accumulate(const __m512i (&sums)[kRows][kVectors], const float* scales,
                                              float* acc) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* const at = acc + (r * kVectors + v) * 16;
      const __m512 scale = _mm512_loadu_ps(scales + v * 16);
      _mm512_storeu_ps(at, _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[r][v]), _mm512_loadu_ps(at)));
    }
}

// One block of kLines lines for kRows words from `word` on and kVectors x 16 tokens from `lane` on, added to the
// accumulators. Without any branch: a loop over the quads is left by a mispredicted one each time (7 to 9 % slower).
template <int kRows, int kVectors, uint32_t kLines>
[[gnu::always_inline]] inline void block_tile(const UnpackedBlock& unpacked, uint32_t block, uint32_t word,
                                              const Input& in, uint32_t lane, float* acc) {
  __m512i sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_si512();
  const int8_t* a = quads(in, block, kLines, lane);
  const uint8_t* codes = unpacked.codes[0] + word * 4;
#pragma GCC unroll 32
  for (uint32_t q = 0; q < kLines * 4; ++q, a += 64, codes += 128) {
    __m512i x[kVectors];
#pragma GCC unroll 4
    for (uint32_t v = 0; v < kVectors; ++v) x[v] = load512(a + v * kLines * 256);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i w = _mm512_set1_epi32(load_word(codes + r * 4));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) dpbusd(sums[r][v], w, x[v]);
    }
  }
  accumulate(sums, in.scales + size_t{block} * in.n_lanes + lane, acc + word * kVectors * 16);
}

// The minimums of blocks [first, end) for as many words and tokens, added to `out`. All four pairs of half a block too: the
// sums of those that it lacks are 0.
template <int kRows, int kVectors>
[[gnu::always_inline]] inline void minimums_tile(const UnpackedBlock* blocks, uint32_t first, uint32_t end,
                                                 uint32_t word, const Matrix& m, const Input& in,
                                                 uint32_t lane, int32_t* out) {
  out += word * kVectors * 16;
  __m512i sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = load512(out + (r * kVectors + v) * 16);
  const int16_t* line_sums = pairs(m, in, lane) + size_t{first} * 4 * 32;
  for (uint32_t block = first; block < end; ++block)
#pragma GCC unroll 4
    for (uint32_t pair = 0; pair < 4; ++pair, line_sums += 32) {
      __m512i x[kVectors];
#pragma GCC unroll 4
      for (uint32_t v = 0; v < kVectors; ++v) x[v] = load512(line_sums + v * m.n_summed_lines() * 16);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m512i w = _mm512_set1_epi32(blocks[block].minimums[pair][word + static_cast<uint32_t>(r)]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) dpwssd(sums[r][v], w, x[v]);
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_si512(out + (r * kVectors + v) * 16, sums[r][v]);
}

// 16 * kVectors tokens from `lane` on: all blocks for 64 / kVectors words at a time, then y.
template <int kVectors>
void lane_group(const Matrix& m, uint32_t panel, const PanelScratch& scratch, const Input& in, uint32_t lane,
                float* y) {
  constexpr uint32_t kLanesHere = kVectors * 16, kRows = 16 / kVectors;
  constexpr uint32_t kSummed = 16;  // blocks whose minimums are summed at a time: their line sums are 16 KB
  const UnpackedBlock* const blocks = scratch.blocks;
  float* const acc = scratch.accumulators;
  float* const outliers = acc + kPanelRows * kLanesHere;
  int32_t* const minimums = reinterpret_cast<int32_t*>(outliers + kPanelRows * kLanesHere);
  __builtin_memset(acc, 0, 3 * kPanelRows * kLanesHere * sizeof(float));
  for (uint32_t block = 0; block < m.n_blocks(); ++block) {
    if (block % kSummed == 0)
      for (uint32_t w = 0, end = block + kSummed < m.n_blocks() ? block + kSummed : m.n_blocks();
           w < kPanelRows; w += kRows)
        minimums_tile<kRows, kVectors>(blocks, block, end, w, m, in, lane, minimums);
    const auto tiles = [&]<uint32_t kLines>() __attribute__((always_inline)) {
      for (uint32_t w = 0; w < kPanelRows; w += kRows)
        block_tile<kRows, kVectors, kLines>(blocks[block], block, w, in, lane, acc);
    };
    if (m.lines_of(block) == 8)
      tiles.template operator()<8>();
    else
      tiles.template operator()<4>();
    add_outliers<kVectors>(m, scratch, block, in, lane, outliers);
  }
  for (uint32_t w = 0; w < kPanelRows; ++w)
    finish_word<kVectors>(m, panel, w, in, lane, acc + w * kLanesHere, minimums + w * kLanesHere,
                          outliers + w * kLanesHere, y);
}

// The whole panel is unpacked first (L2); then 64 tokens at a time, whose accumulators (24 KB, a third of them rarely used)
// and one block of their activations (8 KB) stay in L1 with that block's codes.
template <uint32_t kGroup>
void q24_many(const Matrix& m, uint32_t panel, const Input& in, uint8_t* memory, float* y) {
  const PanelScratch scratch(m, in.n_lanes, memory);
  for (uint32_t block = 0; block < m.n_blocks(); ++block)
    unpack_block<kGroup>(m, panel, block, scratch.blocks[block]);
  scratch.sort_outliers(m, panel, [](uint16_t half) { return _cvtsh_ss(half); });
  uint32_t lane = 0;
  for (; lane + 64 <= in.n_lanes; lane += 64) lane_group<4>(m, panel, scratch, in, lane, y);
  for (; lane + 32 <= in.n_lanes; lane += 32) lane_group<2>(m, panel, scratch, in, lane, y);
  for (; lane < in.n_lanes; lane += 16) lane_group<1>(m, panel, scratch, in, lane, y);
}

void panel(const Matrix& m, uint32_t index, const Input& in, uint8_t* scratch, float* y) {
  if (!m.is_q24()) return Avx512::plain_panel_any(m, index, in, scratch, y);
  const bool wide = m.view.layout.shape.group == 32;
  if (in.n_lanes == 1) return wide ? q24_one<32>(m, index, in, y) : q24_one<16>(m, index, in, y);
  return wide ? q24_many<32>(m, index, in, scratch, y) : q24_many<16>(m, index, in, scratch, y);
}

uint64_t mac_loop(uint64_t rounds) {
  __m512i sums[16], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2);
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (uint64_t i = 0; i < rounds; ++i)
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  for (__m512i& sum : sums) asm volatile("" : "+v"(sum));
  return rounds * 16 * 64;
}

}  // namespace

#ifdef __GFNI__
const Kernels kAvx512Kernels = {
    "avx512",
#else
const Kernels kAvx512PlainKernels = {
    "avx512-plain",
#endif
    Avx512::rms_norm,
    Avx512::quantize,
    Avx512::quantize_sums,
    Avx512::quantize_tile,
    panel,
    Avx512::store,
    Avx512::gate,
    Avx512::softcap,
    Avx512::rope,
    Avx512::append,
    Avx512::attend,
    Avx512::combine,
    Avx512::finish,
    read,
    mac_loop,
};

}  // namespace pith::cpu
