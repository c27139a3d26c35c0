// What the prefill kernels keep of one panel: unpacked blocks of 32 words (rows) x 128 columns, one after another or all
// of them at once, and accumulators behind.
#pragma once
#include <cstdint>

namespace pith::cpu {

struct PanelScratch {
  alignas(64) uint8_t codes[32][128];   // [k-quad][word][4 columns]; avx2: pairs of lines, its own order
  alignas(64) int32_t minimums[4][32];  // [pair of lines][word]: the minimums of both lines as int16
  alignas(64) int32_t scales[4][32];    // likewise the scales, where the codes are not scaled

  // Behind the only block. acc_s [32 words, n_lanes], then acc_m likewise.
  float* accumulators() { return reinterpret_cast<float*>(this + 1); }
};
static_assert(sizeof(PanelScratch) == 4096 + 512 + 512);

}  // namespace pith::cpu
