// The CPU backend: kernels of the best instruction set, a thread pool, weights in place.
#pragma once
#include "runtime/backend.h"

namespace pith::cpu {

BackendKind backend_kind();

}  // namespace pith::cpu
