// Kernels of gemm_float.cuh and their launch.
#include "cuda/gemm_float.cuh"
#include "cuda/launch.cuh"

namespace pith::cuda {
namespace {

// Two blocks a multiprocessor: 128 registers a thread, of which the sums are 64.
__global__ void __launch_bounds__(kFloatWarps* kWarp, 2) gemm_float(const __grid_constant__ GemmFloat args) {
  __shared__ __align__(128) uint8_t shared[kFloatSharedBytes];
  gemm_float_body(args, shared);
}

__global__ void __launch_bounds__(kFloatWarps* kWarp) lay_out(const __grid_constant__ LayOut args) {
  __shared__ __align__(16) uint8_t shared[kLayTile * (kLayTile + 1) * 4];
  lay_out_body(args, shared);
}

}  // namespace

void launch_gemm_float(const GemmFloat& args, const Launch& how) {
  if (args.depth % kFloatDepth != 0 || args.depth == 0 || args.n_rows % kFloatTile != 0 ||
      args.n_cols % kFloatTile != 0)
    check(cudaErrorInvalidConfiguration, "gemm_float");
  launch("gemm_float", gemm_float, dim3(args.n_cols / kFloatTile, args.n_rows / kFloatTile),
         kFloatWarps * kWarp, 0, how, args);
}

void launch_lay_out(const LayOut& args, const Launch& how) {
  launch("lay_out", lay_out, dim3(args.to_cols / kLayTile, args.to_rows / kLayTile), kFloatWarps * kWarp, 0,
         how, args);
}

}  // namespace pith::cuda
