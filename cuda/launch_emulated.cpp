// The launchers of kernels.h over the emulation: the same bodies and the same choices as in the *.cu files.
#include "cuda/launch_emulated.h"

#include "cuda/attention_decode.cuh"
#include "cuda/attention_prefill.cuh"
#include "cuda/gemm_q24.cuh"
#include "cuda/matvec_plain.cuh"
#include "cuda/matvec_q24.cuh"
#include "cuda/token_ops.cuh"

namespace pith::cuda {

namespace {

constexpr uint32_t kWarps = 2;  // of kernels that work with any number: fibers are slow

template <typename Args>
void launch(void (*body)(const Args&, uint8_t*), const emulation::Grid& grid, size_t shared_bytes,
            const Launch& how, const Args& args) {
  submit(how.stream,
         [=] { emulation::run(grid, shared_bytes, [&](uint8_t* shared) { body(args, shared); }); });
}

template <uint32_t kGroup>
auto choose_matvec(Pipeline pipeline, bool synchronous) {
  switch (pipeline) {
    case Pipeline::kRegisters:
      return synchronous ? matvec_q24_body<kGroup, Pipeline::kRegisters, true>
                         : matvec_q24_body<kGroup, Pipeline::kRegisters, false>;
    case Pipeline::kAsyncCopy:
      return matvec_q24_body<kGroup, Pipeline::kAsyncCopy, false>;
    case Pipeline::kBulkCopy:
      break;
  }
  return matvec_q24_body<kGroup, Pipeline::kBulkCopy, false>;
}

template <PlainKind kKind>
void launch_plain(const MatvecPlain& args, const Launch& how) {
  const bool vector = uint64_t{args.w.n_cols} * plain_bytes(kKind) % 16 == 0 && args.x_stride % 4 == 0;
  launch<MatvecPlain>(vector ? matvec_plain_body<kKind, true> : matvec_plain_body<kKind, false>,
                      {args.n_blocks, 1, kWarps * kWarp},
                      MatvecPlainShared(args.w.n_cols, kWarps, args.n_tokens == 1).total, how, args);
}

template <uint32_t kHeads>
void launch_decode(const AttentionDecode& args, uint32_t n_splits, const Launch& how) {
  launch<AttentionDecode>(
      args.k_scale ? attention_decode_body<kHeads, true> : attention_decode_body<kHeads, false>,
      {args.n_kv_heads, n_splits, kWarps * kWarp}, AttentionDecodeShared(args, kWarps, kHeads).total, how,
      args);
}

template <uint32_t kDim>
void launch_prefill(const AttentionPrefill& args, const Launch& how) {
  launch<AttentionPrefill>(
      args.k_scale ? attention_prefill_body<kDim, true> : attention_prefill_body<kDim, false>,
      {(args.n_tokens + kQueryTile - 1) / kQueryTile, args.n_heads, kPrefillWarps * kWarp},
      AttentionPrefillShared<kDim>::kTotal, how, args);
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

void launch_matvec_plain(const MatvecPlain& args, const Launch& how) {
  switch (args.w.kind) {
    case PlainKind::kF32:
      return launch_plain<PlainKind::kF32>(args, how);
    case PlainKind::kF16:
      return launch_plain<PlainKind::kF16>(args, how);
    case PlainKind::kBF16:
      return launch_plain<PlainKind::kBF16>(args, how);
  }
}

void launch_quantize_tokens(const QuantizeTokens& args, const Launch& how) {
  launch<QuantizeTokens>(quantize_tokens_body, {args.to.n_tokens, 1, kWarps * kWarp}, kWarps * 4, how, args);
}

void launch_gemm_q24(const GemmQ24& args, const Launch& how) {
  const uint32_t n_tiles = (args.tokens.n_tokens + kTokenTile - 1) / kTokenTile;
  launch<GemmQ24>(args.w.group == 16 ? gemm_q24_body<16> : gemm_q24_body<32>,
                  {(args.w.n_panels + kGemmPanels - 1) / kGemmPanels, n_tiles, kGemmWarps * kWarp},
                  kGemmSharedBytes, how, args);
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

void launch_attention_decode(const AttentionDecode& args, uint32_t n_splits, const Launch& how) {
  const uint32_t group = args.n_heads / args.n_kv_heads;
  if (group == 1)
    launch_decode<1>(args, n_splits, how);
  else if (group == 2)
    launch_decode<2>(args, n_splits, how);
  else if (group <= 4)
    launch_decode<4>(args, n_splits, how);
  else
    launch_decode<8>(args, n_splits, how);
}

}  // namespace pith::cuda
