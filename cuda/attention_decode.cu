// Kernels of attention_decode.cuh and their launch.
#include "cuda/attention_decode.cuh"
#include "cuda/launch.cuh"

namespace pith::cuda {
namespace {

template <uint32_t kHeads, bool kI8>
__global__ void __launch_bounds__(kDecodeWarps* kWarp, 1)
    attention_decode(const __grid_constant__ AttentionDecode args) {
  extern __shared__ __align__(128) uint8_t shared[];
  attention_decode_body<kHeads, kI8>(args, shared);
}

template <uint32_t kHeads>
void launch_heads(const AttentionDecode& args, uint32_t n_splits, const Launch& how) {
  launch("attention_decode", args.k_scale ? attention_decode<kHeads, true> : attention_decode<kHeads, false>,
         dim3(args.n_kv_heads, n_splits), kDecodeWarps * kWarp, attention_decode_shared_bytes(args), how,
         args);
}

}  // namespace

uint64_t attention_decode_shared_bytes(const AttentionLayer& layer) {
  return decode_shared_bytes(layer);
}

void launch_attention_decode(const AttentionDecode& args, uint32_t n_splits, const Launch& how) {
  switch (decode_heads(args)) {
    case 1:
      return launch_heads<1>(args, n_splits, how);
    case 2:
      return launch_heads<2>(args, n_splits, how);
    case 4:
      return launch_heads<4>(args, n_splits, how);
    default:
      return launch_heads<8>(args, n_splits, how);
  }
}

}  // namespace pith::cuda
