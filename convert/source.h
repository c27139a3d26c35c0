// A checkpoint as its family reads it: what is converted, checked as far as it can be without reading data.
#pragma once
#include <string>
#include <vector>

#include "convert/checkpoint.h"
#include "convert/forward.h"
#include "models/spec.h"

namespace pith {

struct Source {
  Checkpoint checkpoint;
  ModelSpec spec;
  std::vector<TensorPlan> plan;

  // A tensor of the plan as floats, [n_rows, n_cols]. Throws Error where one is not finite, naming it.
  std::vector<float> read(const TensorPlan& tensor) const;
  // What of a layer the forward pass needs besides its matrices.
  LayerVectors layer_vectors(uint32_t layer) const;
};

struct SourceOptions {
  bool force = false;            // unknown config keys and unused tensors are noted, not refused
  bool allow_nonfinite = false;  // NaN and Inf weights pass
};

// Throws Error: an architecture that pith does not have, a config or tensors that do not fit it.
Source open_source(const std::string& dir, const SourceOptions& options, std::vector<std::string>& notes);

}  // namespace pith
