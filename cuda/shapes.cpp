// How products are cut up. Plain arithmetic: the same for a GPU and for the emulation.
#include <algorithm>

#include "cuda/kernels.h"

namespace pith::cuda {

namespace {

// 8 warps and 2 stages of 5.4 KB keep 86 KB a multiprocessor under way, three times what hides the latency of memory, and leave
// room for the next kernel's block beside this one's. To be measured against 12 warps and 3 and 4 stages.
constexpr uint32_t kWarps = 8, kStages = 2;

}  // namespace

MatvecShape choose_matvec_shape(Pipeline pipeline, const Q24Weights& w, bool synchronous,
                                uint32_t n_multiprocessors, uint64_t max_shared_bytes) {
  MatvecShape shape{std::min(n_multiprocessors, w.n_panels), kWarps, synchronous ? 1 : kStages};
  while (shape.n_stages > 1 && matvec_q24_shared_bytes(pipeline, w.padded_cols, shape) > max_shared_bytes)
    --shape.n_stages;
  while (shape.n_warps > 1 && matvec_q24_shared_bytes(pipeline, w.padded_cols, shape) > max_shared_bytes)
    shape.n_warps /= 2;
  return shape;
}

uint32_t choose_half_groups(bool warpgroups, bool is_q24, uint32_t n_rows, uint32_t n_tokens,
                            uint32_t n_multiprocessors, uint64_t max_shared_bytes) {
  constexpr uint64_t kGroupRows = 128;
  const uint64_t n_token_tiles = (n_tokens + kTokenTile - 1) / kTokenTile;
  // Tiles of one group that the busiest multiprocessor has. Two groups that share their tokens ask L2 for 22 bytes a clock, at the peak, of
  // about 24; one alone for 38: worth a tenth more tiles.
  const auto rounds = [&](uint64_t n_groups) {
    const uint64_t n_blocks = (n_rows + n_groups * kGroupRows - 1) / (n_groups * kGroupRows) * n_token_tiles;
    return (n_blocks + n_multiprocessors - 1) / n_multiprocessors * n_groups;
  };
  return gemm_half_shared_bytes(warpgroups, is_q24, 2) <= max_shared_bytes && 10 * rounds(2) <= 11 * rounds(1)
             ? 2
             : 1;
}

}  // namespace pith::cuda
