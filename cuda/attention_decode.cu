// Kernels of attention_decode.cuh and their launch.
#include "cuda/attention_decode.cuh"
#include "cuda/launch.cuh"

namespace pith::cuda {
namespace {

constexpr uint32_t kWarps = 8;

template <uint32_t kHeads, bool kI8>
__global__ void __launch_bounds__(kWarps* kWarp, 1)
    attention_decode(const __grid_constant__ AttentionDecode args) {
  extern __shared__ __align__(128) uint8_t shared[];
  attention_decode_body<kHeads, kI8>(args, shared);
}

template <uint32_t kHeads>
void launch_heads(const AttentionDecode& args, uint32_t n_splits, const Launch& how) {
  const AttentionDecodeShared shared(args, kWarps, kHeads);
  launch("attention_decode", args.k_scale ? attention_decode<kHeads, true> : attention_decode<kHeads, false>,
         dim3(args.n_kv_heads, n_splits), kWarps * kWarp, shared.total, how, args);
}

}  // namespace

void launch_attention_decode(const AttentionDecode& args, uint32_t n_splits, const Launch& how) {
  const uint32_t group = args.n_heads / args.n_kv_heads;
  if (group == 1)
    launch_heads<1>(args, n_splits, how);
  else if (group == 2)
    launch_heads<2>(args, n_splits, how);
  else if (group <= 4)
    launch_heads<4>(args, n_splits, how);
  else
    launch_heads<8>(args, n_splits, how);
}

}  // namespace pith::cuda
