// See gpu_plan.h. Scratch follows runtime/gpu/memory.cpp term by term, except for what is below a megabyte; with the tokens of
// GPUs without warpgroups, which take more (test_cuda_backend.cpp).
#include "runtime/gpu_plan.h"

#include <cmath>

namespace pith {

namespace {

constexpr GpuShape kShapes[] = {{"llama-2-7b", 32000, 4096, 11008, 32, 32, 32, 128},
                                {"llama-2-13b", 32000, 5120, 13824, 40, 40, 40, 128},
                                {"llama-2-70b", 32000, 8192, 28672, 80, 64, 8, 128}};

uint64_t bytes(uint64_t n, double bits) {
  return static_cast<uint64_t>(std::llround(static_cast<double>(n) * bits / 8));
}

}  // namespace

GpuPlan plan_gpu(const GpuShape& s, double bits) {
  const bool is_plain = bits == 16;
  const uint64_t q_rows = s.n_heads * s.head_dim, kv_rows = s.n_kv_heads * s.head_dim;
  const uint64_t linear =
      s.n_layers * (s.dim * (q_rows + 2 * kv_rows) + q_rows * s.dim + 3 * s.dim * s.ffn_dim);
  const uint64_t embedding = bytes(s.vocab_size * s.dim, is_plain ? 16 : 4.5);
  GpuPlan plan{s.name, bits, 0, 0, 0, 0, {}};
  plan.weights_bytes = bytes(linear, bits) + 2 * embedding + (2 * s.n_layers + 1) * s.dim * 4;
  plan.kv_bytes =
      2 * s.n_layers * s.n_kv_heads * kGpuPlanTokens * (is_plain ? s.head_dim * 2 : s.head_dim + 4);
  const uint64_t n = kGpuPlanChunk;
  plan.scratch_bytes =
      n * 4 * (s.dim + q_rows + 2 * kv_rows + q_rows + s.ffn_dim)  // residual, qkv, attention, hidden
      + n * (is_plain ? s.ffn_dim * 2 : s.ffn_dim * (4 + 1) + s.ffn_dim / 128 * 20)  // tokens in 16 or 8 bits
      + 16 * s.vocab_size * 4 + kGpuPlanTokens * s.head_dim * 4;                     // logits, cos and sin
  plan.token_bytes = plan.weights_bytes - embedding + plan.kv_bytes;
  for (size_t i = 0; i < kGpuSizes.size(); ++i) {
    const uint64_t usable = kGpuSizes[i] - kGpuReserveBytes;
    plan.n_gpus[i] = static_cast<uint32_t>((plan.total_bytes() + usable - 1) / usable);
  }
  return plan;
}

std::vector<GpuPlan> plan_gpus(double bits) {
  std::vector<GpuPlan> plans;
  for (const GpuShape& shape : kShapes)
    for (const double b : {16.0, bits}) plans.push_back(plan_gpu(shape, b));
  return plans;
}

}  // namespace pith
