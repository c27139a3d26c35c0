// See experts.h.
#include "models/experts.h"

#include <algorithm>
#include <cmath>

namespace pith {

namespace {

constexpr float kLowestLogit = -3e38f;

}  // namespace

void choose_experts(const ModelSpec& spec, float* logits, ExpertShare* chosen) {
  float* const end = logits + spec.n_experts;
  ExpertShare* const chosen_end = chosen + spec.n_active_experts;
  for (float* logit = logits; logit != end; ++logit)
    if (!(*logit > kLowestLogit)) *logit = kLowestLogit;
  const float top = *std::max_element(logits, end);
  float all = 0, sum = 0;
  for (const float* logit = logits; logit != end; ++logit) all += std::exp(*logit - top);
  for (ExpertShare* next = chosen; next != chosen_end; ++next) {
    float* const best = std::max_element(logits, end);
    *next = {static_cast<uint32_t>(best - logits), std::exp(*best - top)};
    sum += next->share;
    *best = -INFINITY;  // below all that are left
  }
  const float total = spec.router_renormalize ? sum : all;
  for (ExpertShare* next = chosen; next != chosen_end; ++next) next->share /= total;
  std::sort(chosen, chosen_end,
            [](const ExpertShare& a, const ExpertShare& b) { return a.expert < b.expert; });
}

}  // namespace pith
