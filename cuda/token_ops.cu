// Kernels of token_ops.cuh and their launch.
#include "cuda/launch.cuh"
#include "cuda/token_ops.cuh"

namespace pith::cuda {
namespace {

constexpr uint32_t kWarps = 8;

__global__ void __launch_bounds__(kWarps* kWarp) embed(const __grid_constant__ Embed args) {
  embed_body(args, nullptr);
}

__global__ void __launch_bounds__(kWarps* kWarp) norm_tokens(const __grid_constant__ NormTokens args) {
  __shared__ __align__(16) uint8_t shared[kWarps * 4];
  norm_tokens_body(args, shared);
}

__global__ void __launch_bounds__(kWarps* kWarp)
    quantize_tokens(const __grid_constant__ QuantizeTokens args) {
  __shared__ __align__(16) uint8_t shared[kWarps * 4];
  quantize_tokens_body(args, shared);
}

__global__ void __launch_bounds__(kWarps* kWarp)
    append_tokens(const __grid_constant__ AttentionPrefill args) {
  extern __shared__ __align__(128) uint8_t shared[];
  append_tokens_body(args, shared);
}

}  // namespace

int load_a_kernel() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, embed);
}

void launch_embed(const Embed& args, const Launch& how) {
  launch("embed", embed, dim3(args.n_tokens), kWarps * kWarp, 0, how, args);
}
void launch_norm_tokens(const NormTokens& args, const Launch& how) {
  launch("norm_tokens", norm_tokens, dim3(args.n_tokens), kWarps * kWarp, 0, how, args);
}
void launch_quantize_tokens(const QuantizeTokens& args, const Launch& how) {
  launch("quantize_tokens", quantize_tokens, dim3(args.to.n_tokens), kWarps * kWarp, 0, how, args);
}
void launch_append_tokens(const AttentionPrefill& args, const Launch& how) {
  const uint32_t n_rows = args.n_heads + 2 * args.n_kv_heads;
  launch("append_tokens", append_tokens, dim3(args.n_tokens, (n_rows + kWarps - 1) / kWarps), kWarps * kWarp,
         kWarps * args.head_dim * 4, how, args);
}

}  // namespace pith::cuda
