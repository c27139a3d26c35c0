// How much device memory known shapes need, and so how many GPUs: arithmetic alone, nothing is loaded (`pith plan --gpus`).
//
//   weights  linear layers at `bits`; embedding and head at 4.5 bits (4-bit codes, 4-bit scale and minimum for each 16) or, at 16
//            bits, at 16; norms as floats
//   cache    kGpuPlanTokens positions, int8 (a byte and 4 / head_dim) or, at 16 bits, fp16
//   scratch  what the CUDA backend takes for prompts in chunks of kGpuPlanChunk tokens
//   GPUs     total / (size - kGpuReserveBytes), rounded up
//
// Ratios, 16 bits over the other: hardware = GPUs of one size; running = bytes that one token at a full cache reads, which is the
// GPU time it takes where memory bandwidth bounds it (kernels at the same share of it), whatever the number of GPUs.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace pith {

constexpr uint32_t kGpuPlanTokens = 4096, kGpuPlanChunk = 512;
constexpr uint64_t kGpuReserveBytes = uint64_t{1} << 30;  // the driver's context and fragmentation
constexpr std::array<uint64_t, 3> kGpuSizes = {uint64_t{24} << 30, uint64_t{48} << 30, uint64_t{80} << 30};

struct GpuPlan {
  std::string shape;
  double bits;
  uint64_t weights_bytes, kv_bytes, scratch_bytes;
  uint64_t token_bytes;  // read for one token
  std::array<uint32_t, kGpuSizes.size()> n_gpus;
  uint64_t total_bytes() const { return weights_bytes + kv_bytes + scratch_bytes; }
};

struct GpuShape {
  const char* name;
  uint64_t vocab_size, dim, ffn_dim, n_layers, n_heads, n_kv_heads, head_dim;
};

GpuPlan plan_gpu(const GpuShape& shape, double bits);
// The 7B, 13B and 70B shapes of Llama 2, each at 16 bits and at `bits`.
std::vector<GpuPlan> plan_gpus(double bits);

}  // namespace pith
