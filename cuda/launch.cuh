// How every kernel is launched: one argument struct, dynamic shared memory, optionally beside its predecessor's end.
#pragma once
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace pith::cuda {

// `overlap`: programmatic dependent launch. Every kernel body calls depend() before it reads what another kernel wrote.
template <typename Args>
void launch(const char* name, void (*kernel)(Args), dim3 grid, uint32_t n_threads, size_t shared_bytes,
            const Launch& how, const Args& args) {
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
  // One carve-out for all kernels: a switch between two waits for the multiprocessor to run empty.
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        name);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(n_threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = how.stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = how.overlap ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args), name);
}

}  // namespace pith::cuda
