// What the emulated device and the emulated launchers share.
#pragma once
#include <functional>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace pith::cuda {

// Runs `work` now, or records it when the stream is being captured.
void submit(StreamHandle stream, std::function<void()> work);

// From now on the device has so much memory, 1 GiB before: what is there stays, what does not fit is refused as a GPU would. Where
// nothing is free, no stream can be made.
void emulate_memory(uint64_t n_bytes);

// From now on list_devices() finds these, of the memory above: one of compute capability 9.0 before.
void emulate_devices(DeviceList devices);

}  // namespace pith::cuda
