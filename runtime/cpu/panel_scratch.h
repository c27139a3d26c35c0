// What the prefill kernels keep of one panel: its blocks unpacked, accumulators, and its outliers sorted by block.
#pragma once
#include <cstdint>

#include "runtime/cpu/kernels.h"

namespace pith::cpu {
namespace {  // compiled once for each file that includes it, for different CPUs

// 32 words (rows) x 128 columns. amx.cpp has its own, which takes no more from two blocks on.
struct UnpackedBlock {
  alignas(64) uint8_t codes[32][128];   // [k-quad][word][4 columns]; avx2: pairs of lines, its own order
  alignas(64) int32_t minimums[4][32];  // [pair of lines][word]: the minimums of both lines as int16
  alignas(64) int32_t scales[4][32];    // likewise the scales, where the codes are not scaled
};
static_assert(sizeof(UnpackedBlock) == 4096 + 512 + 512);

struct Outlier {
  uint16_t col;   // in its block
  uint16_t word;  // of the panel
  float delta;
};

struct PanelScratch {
  UnpackedBlock* blocks;    // [max(2, n_blocks)]
  float* accumulators;      // [3, 32 words, n_lanes]
  uint32_t* outlier_begin;  // [n_blocks + 2] into outliers; the last are those outside the matrix
  Outlier* outliers;        // [32 * n_slots]
  uint32_t* unsorted;       // [32 * n_slots] the words of the file

  [[gnu::always_inline]] PanelScratch(const Matrix& m, uint32_t n_lanes, uint8_t* memory) {
    const uint64_t n_blocks = m.n_blocks();
    blocks = reinterpret_cast<UnpackedBlock*>(memory);
    memory += block_bytes(n_blocks);
    accumulators = reinterpret_cast<float*>(memory);
    memory += accumulator_bytes(n_lanes);
    outlier_begin = reinterpret_cast<uint32_t*>(memory);
    memory += begin_bytes(n_blocks);
    outliers = reinterpret_cast<Outlier*>(memory);
    const uint64_t n_outliers = uint64_t{m.view.layout.shape.n_slots} * kPanelRows;
    unsorted = reinterpret_cast<uint32_t*>(outliers + n_outliers);
  }
  [[gnu::always_inline]] static uint64_t bytes(uint64_t n_blocks, uint64_t n_slots, uint64_t n_lanes) {
    return block_bytes(n_blocks) + accumulator_bytes(n_lanes) + begin_bytes(n_blocks) +
           n_slots * kPanelRows * (sizeof(Outlier) + sizeof(uint32_t));
  }

  // Outliers by block, those of a row in the order of their slots, so that each block's are added while its activations are
  // in L1. half_to_float: of the instruction set.
  template <typename F>
  void sort_outliers(const Matrix& m, uint32_t panel, F&& half_to_float) const {
    const uint32_t n = m.view.layout.shape.n_slots * kPanelRows, n_blocks = m.n_blocks();
    // Read once: the mapping may change.
    __builtin_memcpy(unsorted, m.view.outliers + size_t{panel} * n * 2, n * sizeof *unsorted);
    const auto block_of = [&](uint32_t outlier) {
      const uint32_t col = outlier & 0xffff;
      return col < m.view.layout.padded_cols ? col / kBlock : n_blocks;
    };
    uint32_t* const begin = outlier_begin;
    __builtin_memset(begin, 0, (n_blocks + 2) * sizeof *begin);
    for (uint32_t i = 0; i < n; ++i) ++begin[block_of(unsorted[i]) + 1];
    for (uint32_t b = 0; b < n_blocks; ++b) begin[b + 1] += begin[b];
    // From here on begin[b + 1] is where the next outlier of block b goes: in the end where the next block begins.
    for (uint32_t b = n_blocks + 1; b > 0; --b) begin[b] = begin[b - 1];
    for (uint32_t i = 0; i < n; ++i)
      outliers[begin[block_of(unsorted[i]) + 1]++] = {
          static_cast<uint16_t>(unsorted[i] % kBlock), static_cast<uint16_t>(i % kPanelRows),
          half_to_float(static_cast<uint16_t>(unsorted[i] >> 16))};
  }

 private:  // multiples of 64
  [[gnu::always_inline]] static uint64_t block_bytes(uint64_t n_blocks) {
    return (n_blocks < 2 ? 2 : n_blocks) * sizeof(UnpackedBlock);  // amx.cpp wants more than one
  }
  [[gnu::always_inline]] static uint64_t accumulator_bytes(uint64_t n_lanes) {
    return 3 * kPanelRows * n_lanes * sizeof(float);
  }
  [[gnu::always_inline]] static uint64_t begin_bytes(uint64_t n_blocks) {
    return (n_blocks + 2 + 15) / 16 * 64;
  }
};

}  // namespace
}  // namespace pith::cpu
