// Mixture of experts: which of a layer's experts a token goes to, and how much each counts. One rule for the runtime on the CPU
// and for calibration; cuda/experts.cuh follows it.
#pragma once
#include <cstdint>

#include "models/spec.h"

namespace pith {

struct ExpertShare {
  uint32_t expert;
  float share;
};

// The n_active_experts largest logits of a token (the lower index where equal) with their shares, experts ascending: n_active
// different ones whatever the logits hold, as what is no number counts as the smallest one.
// logits: [n_experts], overwritten. chosen: [n_active_experts].
void choose_experts(const ModelSpec& spec, float* logits, ExpertShare* chosen);

}  // namespace pith
