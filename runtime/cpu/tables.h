// One table of kernels an instruction set; dispatch.cpp lists them. A new one is a file and a line here and there.
#pragma once
#include "runtime/cpu/kernels.h"

namespace pith::cpu {

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512PlainKernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAmxKernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

}  // namespace pith::cpu
