// A checkpoint as its family reads it: what is converted, checked as far as it can be without reading data.
#pragma once
#include <string>
#include <vector>

#include "convert/checkpoint.h"
#include "models/spec.h"

namespace pith {

struct Source {
  Checkpoint checkpoint;
  ModelSpec spec;
  std::vector<TensorPlan> plan;
};

struct SourceOptions {
  bool force = false;            // unknown config keys and unused tensors are noted, not refused
  bool allow_nonfinite = false;  // NaN and Inf weights pass
};

// Throws Error: an architecture that pith does not have, a config or tensors that do not fit it.
Source open_source(const std::string& dir, const SourceOptions& options, std::vector<std::string>& notes);

}  // namespace pith
