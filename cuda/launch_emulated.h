// What the emulated device and the emulated launchers share.
#pragma once
#include <functional>

#include "cuda/kernels.h"

namespace pith::cuda {

// Runs `work` now, or records it when the stream is being captured.
void submit(StreamHandle stream, std::function<void()> work);

}  // namespace pith::cuda
