// Kernels of matvec_q24.cuh and their launch.
#include "cuda/launch.cuh"
#include "cuda/matvec_q24.cuh"

namespace pith::cuda {
namespace {

template <uint32_t kGroup, Pipeline kPipeline, bool kSynchronous>
__global__ void __launch_bounds__(kMaxMatvecWarps* kWarp, 1)
    matvec_q24(const __grid_constant__ MatvecQ24 args) {
  extern __shared__ __align__(128) uint8_t shared[];
  matvec_q24_body<kGroup, kPipeline, kSynchronous>(args.w, args.input, args.output, args.shape.n_stages,
                                                   shared);
}

using Kernel = void (*)(MatvecQ24);

template <uint32_t kGroup>
Kernel choose(Pipeline pipeline, bool synchronous) {
  switch (pipeline) {
    case Pipeline::kRegisters:
      return synchronous ? matvec_q24<kGroup, Pipeline::kRegisters, true>
                         : matvec_q24<kGroup, Pipeline::kRegisters, false>;
    case Pipeline::kAsyncCopy:
      return matvec_q24<kGroup, Pipeline::kAsyncCopy, false>;
    case Pipeline::kBulkCopy:
      return matvec_q24<kGroup, Pipeline::kBulkCopy, false>;
  }
  return nullptr;
}

}  // namespace

uint64_t matvec_q24_shared_bytes(Pipeline pipeline, uint32_t padded_cols, const MatvecShape& shape) {
  return MatvecQ24Shared(padded_cols, shape.n_warps, shape.n_stages, pipeline != Pipeline::kRegisters).total;
}

void launch_matvec_q24(Pipeline pipeline, const MatvecQ24& args, const Launch& how) {
  const MatvecShape& s = args.shape;
  if (s.n_warps < 1 || s.n_warps > kMaxMatvecWarps || s.n_stages < 1 || s.n_stages > 4)
    check(cudaErrorInvalidConfiguration, "matvec_q24");
  const Kernel kernel =
      args.w.group == 16 ? choose<16>(pipeline, s.n_stages == 1) : choose<32>(pipeline, s.n_stages == 1);
  launch("matvec_q24", kernel, dim3(s.n_blocks), s.n_warps * kWarp,
         matvec_q24_shared_bytes(pipeline, args.w.padded_cols, s), how, args);
}

}  // namespace pith::cuda
