// See gpu_plan.h. Scratch follows runtime/gpu/memory.cpp term by term, except for what is below a megabyte.
#include "runtime/gpu_plan.h"

#include <cmath>

namespace pith {

namespace {

struct Shape {
  const char* name;
  uint64_t dim, ffn_dim, n_layers, n_heads, n_kv_heads;
};
constexpr uint64_t kVocab = 32000, kHeadDim = 128;
constexpr Shape kShapes[] = {{"llama-2-7b", 4096, 11008, 32, 32, 32},
                             {"llama-2-13b", 5120, 13824, 40, 40, 40},
                             {"llama-2-70b", 8192, 28672, 80, 64, 8}};

uint64_t bytes(uint64_t n, double bits) {
  return static_cast<uint64_t>(std::llround(static_cast<double>(n) * bits / 8));
}

GpuPlan plan_one(const Shape& s, double bits) {
  const bool is_plain = bits == 16;
  const uint64_t q_rows = s.n_heads * kHeadDim, kv_rows = s.n_kv_heads * kHeadDim;
  const uint64_t linear =
      s.n_layers * (s.dim * (q_rows + 2 * kv_rows) + q_rows * s.dim + 3 * s.dim * s.ffn_dim);
  const uint64_t embedding = bytes(kVocab * s.dim, is_plain ? 16 : 4.5);
  GpuPlan plan{s.name, bits, 0, 0, 0, 0, {}};
  plan.weights_bytes = bytes(linear, bits) + 2 * embedding + (2 * s.n_layers + 1) * s.dim * 4;
  plan.kv_bytes = 2 * s.n_layers * s.n_kv_heads * kGpuPlanTokens * (is_plain ? kHeadDim * 2 : kHeadDim + 4);
  const uint64_t n = kGpuPlanChunk;
  plan.scratch_bytes =
      n * 4 * (s.dim + q_rows + 2 * kv_rows + q_rows + s.ffn_dim)  // residual, qkv, attention, hidden
      + n * (is_plain ? s.ffn_dim * 2 : s.ffn_dim * (4 + 1) + s.ffn_dim / 128 * 20)  // tokens in 16 or 8 bits
      + 16 * kVocab * 4 + kGpuPlanTokens * kHeadDim * 4;                             // logits, cos and sin
  plan.token_bytes = plan.weights_bytes - embedding + plan.kv_bytes;
  for (size_t i = 0; i < kGpuSizes.size(); ++i) {
    const uint64_t usable = kGpuSizes[i] - kGpuReserveBytes;
    plan.n_gpus[i] = static_cast<uint32_t>((plan.total_bytes() + usable - 1) / usable);
  }
  return plan;
}

}  // namespace

std::vector<GpuPlan> plan_gpus(double bits) {
  std::vector<GpuPlan> plans;
  for (const Shape& shape : kShapes)
    for (const double b : {16.0, bits}) plans.push_back(plan_one(shape, b));
  return plans;
}

}  // namespace pith
