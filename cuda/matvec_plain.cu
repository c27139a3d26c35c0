// Kernels of matvec_plain.cuh and their launch.
#include "cuda/launch.cuh"
#include "cuda/matvec_plain.cuh"

namespace pith::cuda {
namespace {

constexpr uint32_t kWarps = 8;

template <PlainKind kKind, bool kVector>
__global__ void __launch_bounds__(kWarps* kWarp, 2) matvec_plain(const __grid_constant__ MatvecPlain args) {
  extern __shared__ __align__(128) uint8_t shared[];
  matvec_plain_body<kKind, kVector>(args, shared);
}

template <PlainKind kKind>
void launch_kind(const MatvecPlain& args, const Launch& how) {
  const bool vector = uint64_t{args.w.n_cols} * plain_bytes(kKind) % 16 == 0 && args.x_stride % 4 == 0;
  const MatvecPlainShared shared(args.w.n_cols, kWarps, args.n_tokens == 1);
  launch("matvec_plain", vector ? matvec_plain<kKind, true> : matvec_plain<kKind, false>, dim3(args.n_blocks),
         kWarps * kWarp, shared.total, how, args);
}

}  // namespace

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
