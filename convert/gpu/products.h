// Calibration's products on a GPU, by cuda/gemm_float.cuh. The one place where the converter meets the GPU.
//
// Rows travel in chunks through three lanes in turn, each with a stream, pinned memory and device memory of
// its own: while one lane's rows are multiplied, the next one's are sent, and the caller takes those of the
// one before. Chunks have 64 MiB of rows, or 256 rows where those are more: up to 0.4 GB of pinned memory,
// beside what calibration takes anyway. The other operand, or the sum, is in device memory as a whole.
#pragma once
#include <memory>

#include "convert/products.h"
#include "cuda/device.h"

namespace pith::gpu {

constexpr uint64_t kChunkBytes = uint64_t{64} << 20;
// Device memory that a model's products take at most.
uint64_t products_bytes(const ModelSpec& spec);

// chunk_bytes: of rows; smaller for tests.
std::shared_ptr<DeviceProducts> make_products(const cuda::DeviceInfo& device, uint32_t n_threads,
                                              uint64_t chunk_bytes = kChunkBytes);

}  // namespace pith::gpu
