// Kernels of experts.cuh and their launch.
#include "cuda/experts.cuh"
#include "cuda/launch.cuh"

namespace pith::cuda {

namespace {

constexpr uint32_t kWarps = 8;

__global__ void __launch_bounds__(kWarp) choose_experts(const __grid_constant__ ChooseExperts args) {
  extern __shared__ __align__(128) uint8_t shared[];
  choose_experts_body(args, shared);
}
__global__ void __launch_bounds__(kSortWarps* kWarp) sort_slots(const __grid_constant__ SortSlots args) {
  extern __shared__ __align__(128) uint8_t shared[];
  sort_slots_body(args, shared);
}
__global__ void __launch_bounds__(kWarps* kWarp) quantize_slots(const __grid_constant__ ProductExperts args) {
  __shared__ __align__(16) uint8_t shared[kWarps * 4];
  quantize_slots_body(args, shared);
}
__global__ void __launch_bounds__(kWarps* kWarp)
    combine_experts(const __grid_constant__ CombineExperts args) {
  combine_experts_body(args, nullptr);
}

template <Pipeline kPipeline>
__global__ void __launch_bounds__(kMaxMatvecWarps* kWarp, 1)
    matvec_experts_q24(const __grid_constant__ MatvecExperts args) {
  extern __shared__ __align__(128) uint8_t shared[];
  matvec_experts_q24_body<kPipeline>(args, shared);
}
template <PlainKind kKind, bool kVector>
__global__ void __launch_bounds__(kPlainWarps* kWarp, 2)
    matvec_experts_plain(const __grid_constant__ MatvecExperts args) {
  extern __shared__ __align__(128) uint8_t shared[];
  matvec_experts_plain_body<kKind, kVector>(args, shared);
}
__global__ void __launch_bounds__(kGemmWarps* kWarp, 1)
    gemm_experts(const __grid_constant__ ProductExperts args) {
  extern __shared__ __align__(128) uint8_t shared[];
  gemm_experts_body(args, shared);
}
__global__ void __launch_bounds__(kWarps* kWarp) halve_slots(const __grid_constant__ ProductExperts args) {
  __shared__ __align__(16) uint8_t shared[kWarps * 4];
  halve_slots_body(args, shared);
}
__global__ void __launch_bounds__(2 * kGroupThreads, 1)
    gemm_experts_half_q24(const __grid_constant__ ProductExperts args) {
  extern __shared__ __align__(1024) uint8_t tiles[];
  if constexpr (kHasWarpgroups)
    gemm_experts_half_q24_body(args, tiles);
  else
    __trap();
}
template <PlainKind kKind, bool kWarpgroups>
__global__ void __launch_bounds__(2 * kGroupThreads, 1)
    gemm_experts_half_plain(const __grid_constant__ ProductExperts args) {
  extern __shared__ __align__(1024) uint8_t tiles[];
  if constexpr (kHasWarpgroups || !kWarpgroups)
    gemm_experts_half_plain_body<kKind, kWarpgroups>(args, tiles);
  else
    __trap();
}
void (*choose_half(const ProductExperts& args))(ProductExperts) {
  if (args.stack.is_q24) return gemm_experts_half_q24;
  if (args.stack.like.plain.kind == PlainKind::kF16)
    return args.warpgroups ? gemm_experts_half_plain<PlainKind::kF16, true>
                           : gemm_experts_half_plain<PlainKind::kF16, false>;
  return args.warpgroups ? gemm_experts_half_plain<PlainKind::kBF16, true>
                         : gemm_experts_half_plain<PlainKind::kBF16, false>;
}

template <PlainKind kKind, bool kVector>
__global__ void __launch_bounds__(kPlainWarps* kWarp, 2)
    product_experts_plain(const __grid_constant__ ProductExperts args) {
  extern __shared__ __align__(128) uint8_t shared[];
  product_experts_plain_body<kKind, kVector>(args, shared);
}

template <PlainKind kKind>
void launch_plain(const MatvecExperts& args, const Launch& how) {
  const PlainWeights& w = args.stack.like.plain;
  launch("matvec_experts",
         plain_rows_are_vectors(w, args.x_stride) ? matvec_experts_plain<kKind, true>
                                                  : matvec_experts_plain<kKind, false>,
         dim3(args.shape.n_blocks, args.n_active), kPlainWarps * kWarp,
         matvec_plain_shared_bytes(w.n_cols, true), how, args);
}
template <PlainKind kKind>
void launch_plain(const ProductExperts& args, const Launch& how) {
  const PlainWeights& w = args.stack.like.plain;
  launch("product_experts",
         plain_rows_are_vectors(w, args.x_stride) ? product_experts_plain<kKind, true>
                                                  : product_experts_plain<kKind, false>,
         dim3(args.n_blocks, args.stack.n_experts), kPlainWarps * kWarp,
         matvec_plain_shared_bytes(w.n_cols, false), how, args);
}

template <typename Args>
void launch_kind(const Args& args, const Launch& how) {
  switch (args.stack.like.plain.kind) {
    case PlainKind::kF32:
      return launch_plain<PlainKind::kF32>(args, how);
    case PlainKind::kF16:
      return launch_plain<PlainKind::kF16>(args, how);
    case PlainKind::kBF16:
      return launch_plain<PlainKind::kBF16>(args, how);
  }
}

void check_rows(const ProductExperts& args, uint32_t n_padded) {
  if (n_padded % kTokenTile != 0 || n_padded < args.slots.n_slots + kTokenTile)
    check(cudaErrorInvalidConfiguration, "product_experts");
}

}  // namespace

void launch_choose_experts(const ChooseExperts& args, const Launch& how) {
  launch("choose_experts", choose_experts, dim3(args.n_tokens), kWarp, choose_experts_shared_bytes(args), how,
         args);
}

uint64_t sort_slots_shared_bytes(uint32_t n_experts) {
  return slot_counts_bytes(n_experts);
}

void launch_sort_slots(const SortSlots& args, const Launch& how) {
  launch("sort_slots", sort_slots, dim3(1), kSortWarps * kWarp, sort_slots_shared_bytes(args.n_experts), how,
         args);
}

void launch_matvec_experts(Pipeline pipeline, const MatvecExperts& args, const Launch& how) {
  if (!args.stack.is_q24) return launch_kind(args, how);
  const auto kernel = pipeline == Pipeline::kRegisters   ? matvec_experts_q24<Pipeline::kRegisters>
                      : pipeline == Pipeline::kAsyncCopy ? matvec_experts_q24<Pipeline::kAsyncCopy>
                                                         : matvec_experts_q24<Pipeline::kBulkCopy>;
  launch("matvec_experts", kernel, dim3(args.shape.n_blocks, args.n_active), args.shape.n_warps * kWarp,
         matvec_q24_shared_bytes(pipeline, args.stack.like.q24.padded_cols, args.shape), how, args);
}

void launch_product_experts(const ProductExperts& args, const Launch& how) {
  const uint32_t n_tiles = args.stack.n_experts * ((args.n_tokens + kTokenTile - 1) / kTokenTile);
  if (multiplies_halves(args)) {
    check_rows(args, args.half.n_padded);
    const uint32_t n_rows = args.stack.is_q24 ? args.stack.like.q24.n_rows : args.stack.like.plain.n_rows;
    launch("halve_slots", halve_slots, dim3(args.slots.n_slots), kWarps * kWarp, 0, how, args);
    launch("gemm_experts_half", choose_half(args), dim3(n_tiles, (n_rows + kTileRows - 1) / kTileRows),
           kGroupThreads, half_shared_bytes(args.warpgroups, args.stack.is_q24, 1), how, args);
  } else if (args.stack.is_q24) {
    check_rows(args, args.tokens.n_padded);
    launch("quantize_slots", quantize_slots, dim3(args.slots.n_slots), kWarps * kWarp, 0, how, args);
    launch("gemm_experts", gemm_experts,
           dim3((args.stack.like.q24.n_panels + kGemmPanels - 1) / kGemmPanels, n_tiles), kGemmWarps * kWarp,
           kGemmSharedBytes, how, args);
  } else {
    launch_kind(args, how);
  }
}

void launch_combine_experts(const CombineExperts& args, const Launch& how) {
  launch("combine_experts", combine_experts, dim3(args.n_tokens), kWarps * kWarp, 0, how, args);
}

}  // namespace pith::cuda
