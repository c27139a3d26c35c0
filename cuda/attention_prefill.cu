// Kernels of attention_prefill.cuh and their launch.
#include "cuda/attention_prefill.cuh"
#include "cuda/launch.cuh"

namespace pith::cuda {
namespace {

template <uint32_t kDim, bool kI8>
__global__ void __launch_bounds__(AttentionPrefillTile<kDim>::kWarps* kWarp, 1)
    attention_prefill(const __grid_constant__ AttentionPrefill args) {
  extern __shared__ __align__(128) uint8_t shared[];
  attention_prefill_body<kDim, kI8>(args, shared);
}

template <uint32_t kDim>
void launch_dim(const AttentionPrefill& args, const Launch& how) {
  launch(
      "attention_prefill", args.k_scale ? attention_prefill<kDim, true> : attention_prefill<kDim, false>,
      dim3((args.n_tokens + AttentionPrefillTile<kDim>::kQueries - 1) / AttentionPrefillTile<kDim>::kQueries,
           args.n_heads),
      AttentionPrefillTile<kDim>::kWarps * kWarp, AttentionPrefillTile<kDim>::kSharedBytes, how, args);
}

}  // namespace

void launch_attention_prefill(const AttentionPrefill& args, const Launch& how) {
  if (args.head_dim <= 64)
    launch_dim<64>(args, how);
  else if (args.head_dim <= 128)
    launch_dim<128>(args, how);
  else
    launch_dim<256>(args, how);
}

}  // namespace pith::cuda
