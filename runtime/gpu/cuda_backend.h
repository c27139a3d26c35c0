// The CUDA backend: weights, cache and scratch on one GPU, one graph a token.
#pragma once
#include "runtime/backend.h"

namespace pith {

// "cuda" or "cuda:N". Not available without a driver and a GPU of compute capability 7.5 that this build has
// kernels for; describe() says what is missing.
// SessionOptions::kernels: "auto", "registers", "async" or "bulk" (cuda/kernels.h, Pipeline), "-sync" after it for the form
// without overlap.
//
// Results are the same bits from run to run on one kind of GPU, but not those of the CPU (another order of
// additions), and a token's differ between prefill and decode (attention in fp16 there).
BackendKind cuda_backend_kind();

}  // namespace pith
