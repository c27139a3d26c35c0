// Kernels of gemm_half.cuh and their launch.
#include "cuda/gemm_half.cuh"
#include "cuda/launch.cuh"

namespace pith::cuda {
namespace {

constexpr uint32_t kWarps = 8;

// Warpgroups exist on sm_90a only: elsewhere such a kernel is never launched, and empty.
template <uint32_t kGroup>
__global__ void __launch_bounds__(kWarps* kWarp, 1) gemm_half_q24(const __grid_constant__ GemmHalf args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (kHasWarpgroups)
    gemm_half_q24_body<kGroup>(args.q24, args.tokens, args.output, args.out_stride,
                               block_index() * kTokenTile, block_index_y(), shared);
  else
    __trap();
}
template <PlainKind kKind, bool kWarpgroups>
__global__ void __launch_bounds__(kWarps* kWarp, 1) gemm_half_plain(const __grid_constant__ GemmHalf args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (kHasWarpgroups || !kWarpgroups)
    gemm_half_plain_body<kKind, kWarpgroups>(args.plain, args.tokens, args.output, args.out_stride,
                                             block_index() * kTokenTile, block_index_y(), shared);
  else
    __trap();
}

__global__ void __launch_bounds__(kWarps* kWarp) halve_tokens(const __grid_constant__ HalveTokens args) {
  __shared__ __align__(16) uint8_t shared[kWarps * 4];
  halve_tokens_body(args, shared);
}
__global__ void __launch_bounds__(kWarps* kWarp) sort_outliers(const __grid_constant__ Q24Weights w) {
  sort_outliers_body(w, nullptr);
}

using Kernel = void (*)(GemmHalf);

Kernel choose(const GemmHalf& args) {
  if (args.q24.n_rows != 0) return args.q24.group == 16 ? gemm_half_q24<16> : gemm_half_q24<32>;
  if (args.plain.kind == PlainKind::kF16)
    return args.warpgroups ? gemm_half_plain<PlainKind::kF16, true> : gemm_half_plain<PlainKind::kF16, false>;
  return args.warpgroups ? gemm_half_plain<PlainKind::kBF16, true> : gemm_half_plain<PlainKind::kBF16, false>;
}

}  // namespace

void launch_halve_tokens(const HalveTokens& args, const Launch& how) {
  launch("halve_tokens", halve_tokens, dim3(args.to.n_tokens), kWarps * kWarp, 0, how, args);
}

void launch_sort_outliers(const Q24Weights& w, const Launch& how) {
  if (w.n_slots < 2) return;
  launch("sort_outliers", sort_outliers, dim3((w.n_panels * kWarp + kWarps * kWarp - 1) / (kWarps * kWarp)),
         kWarps * kWarp, 0, how, w);
}

uint64_t gemm_half_shared_bytes(bool warpgroups, bool is_q24, uint32_t n_groups) {
  return half_shared_bytes(warpgroups, is_q24, n_groups);
}

void launch_gemm_half(const GemmHalf& args, const Launch& how) {
  const bool is_q24 = args.q24.n_rows != 0;
  if (args.tokens.n_padded % kTokenTile != 0 || args.n_groups < 1 || args.n_groups > 2 ||
      (is_q24 ? !args.warpgroups : !halves_weights(args.plain)))
    check(cudaErrorInvalidConfiguration, "gemm_half");
  const HalfGrid grid(is_q24 ? args.q24.n_rows : args.plain.n_rows, args.tokens.n_tokens, args.n_groups);
  launch("gemm_half", choose(args), dim3(grid.n_token_tiles, grid.n_row_tiles), args.n_groups * kGroupThreads,
         gemm_half_shared_bytes(args.warpgroups, is_q24, args.n_groups), how, args);
}

}  // namespace pith::cuda
