// Which device, which kernels, and whether they can run a model.
#pragma once
#include <string>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "models/spec.h"

namespace pith::gpu {

// "cuda" or "cuda:N". Throws kUnsupported with the reason when there is none.
cuda::DeviceInfo find_device(const std::string& device);

struct Kernels {
  cuda::Pipeline pipeline;
  bool synchronous;
  bool warpgroups;  // prompts: products in warpgroups, with the bulk pipeline where the device has them
};
Kernels choose_kernels(const std::string& name, const cuda::DeviceInfo& device);

// Throws kUnsupported naming what the kernels lack. What depends on the matrices is checked by Weights::choose_shapes.
void check_supported(const ModelSpec& spec, const cuda::DeviceInfo& device);
// Throws kUnsupported unless a block of the device may have so much shared memory, which `what` takes.
void require_shared(uint64_t n_bytes, const std::string& what, const cuda::DeviceInfo& device);

}  // namespace pith::gpu
