// Kernels of experts.cuh and their launch.
#include "cuda/experts.cuh"
#include "cuda/launch.cuh"

namespace pith::cuda {

namespace {

constexpr uint32_t kWarps = 8, kMaxMatvecWarps = 12;  // the latter as in matvec_q24.cu

__global__ void __launch_bounds__(kWarp) choose_experts(const __grid_constant__ ChooseExperts args) {
  extern __shared__ __align__(128) uint8_t shared[];
  choose_experts_body(args, shared);
}
__global__ void __launch_bounds__(kWarps* kWarp) sort_slots(const __grid_constant__ SortSlots args) {
  sort_slots_body(args, nullptr);
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
__global__ void __launch_bounds__(kWarps* kWarp, 2)
    matvec_experts_plain(const __grid_constant__ MatvecExperts args) {
  extern __shared__ __align__(128) uint8_t shared[];
  matvec_experts_plain_body<kKind, kVector>(args, shared);
}
__global__ void __launch_bounds__(kGemmWarps* kWarp, 1)
    gemm_experts(const __grid_constant__ ProductExperts args) {
  extern __shared__ __align__(128) uint8_t shared[];
  gemm_experts_body(args, shared);
}
template <PlainKind kKind, bool kVector>
__global__ void __launch_bounds__(kWarps* kWarp, 2)
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
         dim3(args.shape.n_blocks, args.n_active), kWarps * kWarp,
         MatvecPlainShared(w.n_cols, kWarps, true).total, how, args);
}
template <PlainKind kKind>
void launch_plain(const ProductExperts& args, const Launch& how) {
  const PlainWeights& w = args.stack.like.plain;
  launch("product_experts",
         plain_rows_are_vectors(w, args.x_stride) ? product_experts_plain<kKind, true>
                                                  : product_experts_plain<kKind, false>,
         dim3(args.n_blocks, args.stack.n_experts), kWarps * kWarp,
         MatvecPlainShared(w.n_cols, kWarps, false).total, how, args);
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

}  // namespace

void launch_choose_experts(const ChooseExperts& args, const Launch& how) {
  launch("choose_experts", choose_experts, dim3(args.n_tokens), kWarp, choose_experts_shared_bytes(args), how,
         args);
}

void launch_sort_slots(const SortSlots& args, const Launch& how) {
  launch("sort_slots", sort_slots, dim3(1), kWarps * kWarp, 0, how, args);
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
  if (!args.stack.is_q24) return launch_kind(args, how);
  if (args.tokens.n_padded % kTokenTile != 0 || args.tokens.n_padded < args.slots.n_slots + kTokenTile)
    check(cudaErrorInvalidConfiguration, "product_experts");
  launch("quantize_slots", quantize_slots, dim3(args.slots.n_slots), kWarps * kWarp, 0, how, args);
  const uint32_t n_tiles = (args.n_tokens + kTokenTile - 1) / kTokenTile;
  launch("gemm_experts", gemm_experts,
         dim3((args.stack.like.q24.n_panels + kGemmPanels - 1) / kGemmPanels, args.stack.n_experts * n_tiles),
         kGemmWarps * kWarp, kGemmSharedBytes, how, args);
}

void launch_combine_experts(const CombineExperts& args, const Launch& how) {
  launch("combine_experts", combine_experts, dim3(args.n_tokens), kWarps * kWarp, 0, how, args);
}

}  // namespace pith::cuda
