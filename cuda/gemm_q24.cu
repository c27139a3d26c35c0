// Kernels of gemm_q24.cuh and their launch.
#include "cuda/gemm_q24.cuh"
#include "cuda/launch.cuh"

namespace pith::cuda {
namespace {

template <uint32_t kGroup>
__global__ void __launch_bounds__(kGemmWarps* kWarp, 1) gemm_q24(const __grid_constant__ GemmQ24 args) {
  extern __shared__ __align__(128) uint8_t shared[];
  gemm_q24_body<kGroup>(args.w, args.tokens, args.output, args.out_stride, block_index_y() * kTokenTile,
                        shared);
}

}  // namespace

void launch_gemm_q24(const GemmQ24& args, const Launch& how) {
  if (args.tokens.n_padded % kTokenTile != 0 || (args.w.n_slots != 0 && args.tokens.columns == nullptr))
    check(cudaErrorInvalidConfiguration, "gemm_q24");
  const uint32_t n_tiles = (args.tokens.n_tokens + kTokenTile - 1) / kTokenTile;
  launch("gemm_q24", args.w.group == 16 ? gemm_q24<16> : gemm_q24<32>,
         dim3((args.w.n_panels + kGemmPanels - 1) / kGemmPanels, n_tiles), kGemmWarps * kWarp,
         kGemmSharedBytes, how, args);
}

}  // namespace pith::cuda
