// Kernels of matvec_plain.cuh and their launch.
#include "cuda/launch.cuh"
#include "cuda/matvec_plain.cuh"

namespace pith::cuda {
namespace {

template <PlainKind kKind, bool kVector, bool kOneToken>
__global__ void __launch_bounds__(kPlainWarps* kWarp, 2)
    matvec_plain(const __grid_constant__ MatvecPlain args) {
  extern __shared__ __align__(128) uint8_t shared[];
  matvec_plain_body<kKind, kVector, kOneToken>(args.w, args.input, args.output, args.n_tokens, args.x_stride,
                                               args.out_stride, shared);
}

template <PlainKind kKind, bool kOneToken>
void launch_tokens(const MatvecPlain& args, const Launch& how) {
  launch("matvec_plain",
         plain_rows_are_vectors(args.w, args.x_stride) ? matvec_plain<kKind, true, kOneToken>
                                                       : matvec_plain<kKind, false, kOneToken>,
         dim3(args.n_blocks), kPlainWarps * kWarp, matvec_plain_shared_bytes(args.w.n_cols, kOneToken), how,
         args);
}
template <PlainKind kKind>
void launch_kind(const MatvecPlain& args, const Launch& how) {
  if (one_token_shared(args))
    launch_tokens<kKind, true>(args, how);
  else
    launch_tokens<kKind, false>(args, how);
}

}  // namespace

uint64_t matvec_plain_shared_bytes(uint32_t n_cols, bool shared_input) {
  return plain_shared_bytes(n_cols, shared_input);
}

void launch_matvec_plain(const MatvecPlain& args, const Launch& how) {
  switch (args.w.kind) {
    case PlainKind::kF32:
      return launch_kind<PlainKind::kF32>(args, how);
    case PlainKind::kF16:
      return launch_kind<PlainKind::kF16>(args, how);
    case PlainKind::kBF16:
      return launch_kind<PlainKind::kBF16>(args, how);
  }
}

}  // namespace pith::cuda
