// What the prefill kernels keep of one panel: its blocks unpacked, accumulators, and its outliers sorted by block.
#pragma once
#include <cstdint>

#include "runtime/cpu/kernels.h"

namespace pith::cpu {

// 32 words (rows) x 128 columns. amx.cpp has its own, which takes no more.
struct UnpackedBlock {
  alignas(64) uint8_t codes[32][128];   // [k-quad][word][4 columns]; avx2: pairs of lines, its own order
  alignas(64) int32_t minimums[4][32];  // [pair of lines][word]: the minimums of both lines as int16
  alignas(64) int32_t scales[4][32];    // likewise the scales, where the codes are not scaled
};
static_assert(sizeof(UnpackedBlock) == 4096 + 512 + 512);

struct Outlier {
  uint32_t where;  // column | word << 24
  float delta;
};

struct PanelScratch {
  UnpackedBlock* blocks;    // [n_blocks]
  float* accumulators;      // [3, 32 words, n_lanes]
  uint32_t* outlier_begin;  // [n_blocks + 2] into outliers; the last are those outside the matrix
  Outlier* outliers;        // [32 * n_slots]
  uint32_t* unsorted_where;
  float* unsorted_delta;

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
    unsorted_where = reinterpret_cast<uint32_t*>(outliers + n_outliers);
    unsorted_delta = reinterpret_cast<float*>(unsorted_where + n_outliers);
  }
  [[gnu::always_inline]] static uint64_t bytes(uint64_t n_blocks, uint64_t n_slots, uint64_t n_lanes) {
    return block_bytes(n_blocks) + accumulator_bytes(n_lanes) + begin_bytes(n_blocks) +
           n_slots * kPanelRows * 2 * sizeof(Outlier);
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

}  // namespace pith::cpu
