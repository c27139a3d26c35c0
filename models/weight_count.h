// How many weights a model's tensors hold and what its linear layers take of a file: the one definition of "bits of the linear
// layers". Linear layers are the matrices between the embedding and the head, without the routers of experts, which stay at 16
// bits. Every byte of them counts: codes, scales, permutations, outliers, padding.
#pragma once
#include <cstdint>
#include <string_view>

#include "format/container.h"
#include "models/spec.h"

namespace pith {

// What a tensor of a container is, by its name (spec.h); that of a plan's tensors is the plan's.
TensorRole tensor_role(std::string_view name);

struct WeightCount {
  uint64_t weights = 0, linear_weights = 0, linear_bytes = 0;

  void add(TensorRole role, uint64_t n_weights, uint64_t size_bytes);
  double linear_bits() const;                   // per weight; 0 without a linear layer
  double file_bits(uint64_t file_bytes) const;  // per weight
};

WeightCount count_weights(const Container& container);

}  // namespace pith
