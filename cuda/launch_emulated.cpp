// The launchers of kernels.h over the emulation: the same bodies and the same choices as in the *.cu files.
#include "cuda/launch_emulated.h"

#include <type_traits>

#include "cuda/attention_decode.cuh"
#include "cuda/attention_prefill.cuh"
#include "cuda/experts.cuh"
#include "cuda/gemm_float.cuh"
#include "cuda/gemm_half.cuh"
#include "cuda/gemm_q24.cuh"
#include "cuda/matvec_plain.cuh"
#include "cuda/matvec_q24.cuh"
#include "cuda/token_ops.cuh"
#include "format/error.h"

namespace pith::cuda {

namespace {

// Of kernels that work with any number: fibers are slow. Where the number decides about shared memory, it is the GPU's.
constexpr uint32_t kWarps = 2;

template <typename Args>
void launch(void (*body)(const Args&, uint8_t*), const emulation::Grid& grid, size_t shared_bytes,
            const Launch& how, const Args& args) {
  if (const uint64_t limit = list_devices().devices.at(0).max_shared_bytes; shared_bytes > limit)
    throw_error(ErrorCode::kUnsupported,
                "cuda: a launch with {} bytes of shared memory a block, there are {}", shared_bytes, limit);
  submit(how.stream,
         [=] { emulation::run(grid, shared_bytes, [&](uint8_t* shared) { body(args, shared); }); });
}

template <uint32_t kGroup, Pipeline kPipeline, bool kSynchronous>
void matvec_q24(const MatvecQ24& args, uint8_t* shared) {
  matvec_q24_body<kGroup, kPipeline, kSynchronous>(args.w, args.input, args.output, args.shape.n_stages,
                                                   shared);
}
template <uint32_t kGroup>
auto choose_matvec(Pipeline pipeline, bool synchronous) {
  switch (pipeline) {
    case Pipeline::kRegisters:
      return synchronous ? matvec_q24<kGroup, Pipeline::kRegisters, true>
                         : matvec_q24<kGroup, Pipeline::kRegisters, false>;
    case Pipeline::kAsyncCopy:
      return matvec_q24<kGroup, Pipeline::kAsyncCopy, false>;
    case Pipeline::kBulkCopy:
      break;
  }
  return matvec_q24<kGroup, Pipeline::kBulkCopy, false>;
}

template <uint32_t kGroup>
void gemm_q24(const GemmQ24& args, uint8_t* shared) {
  gemm_q24_body<kGroup>(args.w, args.tokens, args.output, args.out_stride, block_index_y() * kTokenTile,
                        shared);
}

template <uint32_t kGroup>
void gemm_half_q24(const GemmHalf& args, uint8_t* shared) {
  gemm_half_q24_body<kGroup>(args.q24, args.tokens, args.output, args.out_stride, block_index() * kTokenTile,
                             block_index_y(), shared);
}
template <PlainKind kKind, bool kWarpgroups>
void gemm_half_plain(const GemmHalf& args, uint8_t* shared) {
  gemm_half_plain_body<kKind, kWarpgroups>(args.plain, args.tokens, args.output, args.out_stride,
                                           block_index() * kTokenTile, block_index_y(), shared);
}
auto choose_half(const GemmHalf& args) {
  if (args.q24.n_rows != 0) return args.q24.group == 16 ? gemm_half_q24<16> : gemm_half_q24<32>;
  if (args.plain.kind == PlainKind::kF16)
    return args.warpgroups ? gemm_half_plain<PlainKind::kF16, true> : gemm_half_plain<PlainKind::kF16, false>;
  return args.warpgroups ? gemm_half_plain<PlainKind::kBF16, true> : gemm_half_plain<PlainKind::kBF16, false>;
}

auto choose_half(const ProductExperts& args) {
  if (args.stack.is_q24) return gemm_experts_half_q24_body;
  if (args.stack.like.plain.kind == PlainKind::kF16)
    return args.warpgroups ? gemm_experts_half_plain_body<PlainKind::kF16, true>
                           : gemm_experts_half_plain_body<PlainKind::kF16, false>;
  return args.warpgroups ? gemm_experts_half_plain_body<PlainKind::kBF16, true>
                         : gemm_experts_half_plain_body<PlainKind::kBF16, false>;
}

template <PlainKind kKind, bool kVector, bool kOneToken>
void matvec_plain(const MatvecPlain& args, uint8_t* shared) {
  matvec_plain_body<kKind, kVector, kOneToken>(args.w, args.input, args.output, args.n_tokens, args.x_stride,
                                               args.out_stride, shared);
}

// Calls f with the kind as a compile-time constant.
template <typename F>
void for_kind(PlainKind kind, F&& f) {
  switch (kind) {
    case PlainKind::kF32:
      return f(std::integral_constant<PlainKind, PlainKind::kF32>());
    case PlainKind::kF16:
      return f(std::integral_constant<PlainKind, PlainKind::kF16>());
    case PlainKind::kBF16:
      return f(std::integral_constant<PlainKind, PlainKind::kBF16>());
  }
}

template <uint32_t kHeads>
void launch_decode(const AttentionDecode& args, uint32_t n_splits, const Launch& how) {
  launch<AttentionDecode>(
      args.k_scale ? attention_decode_body<kHeads, true> : attention_decode_body<kHeads, false>,
      {args.n_kv_heads, n_splits, kDecodeWarps * kWarp}, attention_decode_shared_bytes(args), how, args);
}

template <uint32_t kDim>
void launch_prefill(const AttentionPrefill& args, const Launch& how) {
  launch<AttentionPrefill>(
      args.k_scale ? attention_prefill_body<kDim, true> : attention_prefill_body<kDim, false>,
      {(args.n_tokens + AttentionPrefillTile<kDim>::kQueries - 1) / AttentionPrefillTile<kDim>::kQueries,
       args.n_heads, AttentionPrefillTile<kDim>::kWarps * kWarp},
      AttentionPrefillTile<kDim>::kSharedBytes, how, args);
}

}  // namespace

uint64_t matvec_q24_shared_bytes(Pipeline pipeline, uint32_t padded_cols, const MatvecShape& shape) {
  return MatvecQ24Shared(padded_cols, shape.n_warps, shape.n_stages, pipeline != Pipeline::kRegisters).total;
}

void launch_matvec_q24(Pipeline pipeline, const MatvecQ24& args, const Launch& how) {
  const bool synchronous = args.shape.n_stages == 1;
  launch<MatvecQ24>(args.w.group == 16 ? choose_matvec<16>(pipeline, synchronous)
                                       : choose_matvec<32>(pipeline, synchronous),
                    {args.shape.n_blocks, 1, args.shape.n_warps * kWarp},
                    matvec_q24_shared_bytes(pipeline, args.w.padded_cols, args.shape), how, args);
}

uint64_t matvec_plain_shared_bytes(uint32_t n_cols, bool shared_input) {
  return plain_shared_bytes(n_cols, shared_input);
}

void launch_matvec_plain(const MatvecPlain& args, const Launch& how) {
  const bool vector = plain_rows_are_vectors(args.w, args.x_stride), one = one_token_shared(args);
  for_kind(args.w.kind, [&](auto kind) {
    launch<MatvecPlain>(one      ? vector ? matvec_plain<kind, true, true> : matvec_plain<kind, false, true>
                             : vector ? matvec_plain<kind, true, false>
                                 : matvec_plain<kind, false, false>,
                        {args.n_blocks, 1, kPlainWarps * kWarp},
                        matvec_plain_shared_bytes(args.w.n_cols, one), how, args);
  });
}

void launch_quantize_tokens(const QuantizeTokens& args, const Launch& how) {
  launch<QuantizeTokens>(quantize_tokens_body, {args.to.n_tokens, 1, kWarps * kWarp}, kWarps * 4, how, args);
}

void launch_gemm_q24(const GemmQ24& args, const Launch& how) {
  const uint32_t n_tiles = (args.tokens.n_tokens + kTokenTile - 1) / kTokenTile;
  launch<GemmQ24>(args.w.group == 16 ? gemm_q24<16> : gemm_q24<32>,
                  {(args.w.n_panels + kGemmPanels - 1) / kGemmPanels, n_tiles, kGemmWarps * kWarp},
                  kGemmSharedBytes, how, args);
}

void launch_halve_tokens(const HalveTokens& args, const Launch& how) {
  launch<HalveTokens>(halve_tokens_body, {args.to.n_tokens, 1, kWarps * kWarp}, kWarps * 4, how, args);
}

void launch_sort_outliers(const Q24Weights& w, const Launch& how) {
  if (w.n_slots >= 2) launch<Q24Weights>(sort_outliers_body, {w.n_panels, 1, kWarp}, 0, how, w);
}

uint64_t gemm_half_shared_bytes(bool warpgroups, bool is_q24, uint32_t n_groups) {
  return half_shared_bytes(warpgroups, is_q24, n_groups);
}

void launch_gemm_half(const GemmHalf& args, const Launch& how) {
  const bool is_q24 = args.q24.n_rows != 0;
  const HalfGrid grid(is_q24 ? args.q24.n_rows : args.plain.n_rows, args.tokens.n_tokens, args.n_groups);
  launch<GemmHalf>(choose_half(args), {grid.n_token_tiles, grid.n_row_tiles, args.n_groups * kGroupThreads},
                   gemm_half_shared_bytes(args.warpgroups, is_q24, args.n_groups), how, args);
}

void launch_embed(const Embed& args, const Launch& how) {
  launch<Embed>(embed_body, {args.n_tokens, 1, kWarps * kWarp}, 0, how, args);
}

void launch_norm_tokens(const NormTokens& args, const Launch& how) {
  launch<NormTokens>(norm_tokens_body, {args.n_tokens, 1, kWarps * kWarp}, kWarps * 4, how, args);
}

void launch_append_tokens(const AttentionPrefill& args, const Launch& how) {
  const uint32_t n_rows = args.n_heads + 2 * args.n_kv_heads;
  launch<AttentionPrefill>(append_tokens_body,
                           {args.n_tokens, (n_rows + kWarps - 1) / kWarps, kWarps * kWarp},
                           kWarps * args.head_dim * 4, how, args);
}

void launch_attention_prefill(const AttentionPrefill& args, const Launch& how) {
  if (args.head_dim <= 64)
    launch_prefill<64>(args, how);
  else if (args.head_dim <= 128)
    launch_prefill<128>(args, how);
  else
    launch_prefill<256>(args, how);
}

uint64_t attention_decode_shared_bytes(const AttentionLayer& layer) {
  return decode_shared_bytes(layer);
}

void launch_attention_decode(const AttentionDecode& args, uint32_t n_splits, const Launch& how) {
  switch (decode_heads(args)) {
    case 1:
      return launch_decode<1>(args, n_splits, how);
    case 2:
      return launch_decode<2>(args, n_splits, how);
    case 4:
      return launch_decode<4>(args, n_splits, how);
    default:
      return launch_decode<8>(args, n_splits, how);
  }
}

void launch_choose_experts(const ChooseExperts& args, const Launch& how) {
  launch<ChooseExperts>(choose_experts_body, {args.n_tokens, 1, kWarp}, choose_experts_shared_bytes(args),
                        how, args);
}

uint64_t sort_slots_shared_bytes(uint32_t n_experts) {
  return slot_counts_bytes(n_experts);
}

void launch_sort_slots(const SortSlots& args, const Launch& how) {
  launch<SortSlots>(sort_slots_body, {1, 1, kSortWarps * kWarp}, sort_slots_shared_bytes(args.n_experts), how,
                    args);
}

void launch_matvec_experts(Pipeline pipeline, const MatvecExperts& args, const Launch& how) {
  const ExpertMatrix& like = args.stack.like;
  if (args.stack.is_q24)
    return launch<MatvecExperts>(
        pipeline == Pipeline::kRegisters   ? matvec_experts_q24_body<Pipeline::kRegisters>
        : pipeline == Pipeline::kAsyncCopy ? matvec_experts_q24_body<Pipeline::kAsyncCopy>
                                           : matvec_experts_q24_body<Pipeline::kBulkCopy>,
        {args.shape.n_blocks, args.n_active, args.shape.n_warps * kWarp},
        matvec_q24_shared_bytes(pipeline, like.q24.padded_cols, args.shape), how, args);
  const bool vector = plain_rows_are_vectors(like.plain, args.x_stride);
  for_kind(like.plain.kind, [&](auto kind) {
    launch<MatvecExperts>(
        vector ? matvec_experts_plain_body<kind, true> : matvec_experts_plain_body<kind, false>,
        {args.shape.n_blocks, args.n_active, kPlainWarps * kWarp},
        matvec_plain_shared_bytes(like.plain.n_cols, true), how, args);
  });
}

void launch_product_experts(const ProductExperts& args, const Launch& how) {
  const ExpertMatrix& like = args.stack.like;
  const uint32_t n_tiles = args.stack.n_experts * ((args.n_tokens + kTokenTile - 1) / kTokenTile);
  if (multiplies_halves(args)) {
    const uint32_t n_rows = args.stack.is_q24 ? like.q24.n_rows : like.plain.n_rows;
    launch<ProductExperts>(halve_slots_body, {args.slots.n_slots, 1, kWarps * kWarp}, kWarps * 4, how, args);
    return launch<ProductExperts>(choose_half(args),
                                  {n_tiles, (n_rows + kTileRows - 1) / kTileRows, kGroupThreads},
                                  half_shared_bytes(args.warpgroups, args.stack.is_q24, 1), how, args);
  }
  if (args.stack.is_q24) {
    launch<ProductExperts>(quantize_slots_body, {args.slots.n_slots, 1, kWarps * kWarp}, kWarps * 4, how,
                           args);
    return launch<ProductExperts>(
        gemm_experts_body, {(like.q24.n_panels + kGemmPanels - 1) / kGemmPanels, n_tiles, kGemmWarps * kWarp},
        kGemmSharedBytes, how, args);
  }
  const bool vector = plain_rows_are_vectors(like.plain, args.x_stride);
  for_kind(like.plain.kind, [&](auto kind) {
    launch<ProductExperts>(
        vector ? product_experts_plain_body<kind, true> : product_experts_plain_body<kind, false>,
        {args.n_blocks, args.stack.n_experts, kPlainWarps * kWarp},
        matvec_plain_shared_bytes(like.plain.n_cols, false), how, args);
  });
}

void launch_gemm_float(const GemmFloat& args, const Launch& how) {
  launch<GemmFloat>(gemm_float_body,
                    {args.n_cols / kFloatTile, args.n_rows / kFloatTile, kFloatWarps * kWarp},
                    kFloatSharedBytes, how, args);
}

void launch_lay_out(const LayOut& args, const Launch& how) {
  launch<LayOut>(lay_out_body, {args.to_cols / kLayTile, args.to_rows / kLayTile, kWarps * kWarp},
                 kLayTile * (kLayTile + 1) * 4, how, args);
}

void launch_combine_experts(const CombineExperts& args, const Launch& how) {
  launch<CombineExperts>(combine_experts_body, {args.n_tokens, 1, kWarps * kWarp}, 0, how, args);
}

}  // namespace pith::cuda
