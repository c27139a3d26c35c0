// Roles by name, and sums over them.
#include "models/weight_count.h"

namespace pith {

TensorRole tensor_role(std::string_view name) {
  if (name == "embed") return TensorRole::kEmbedding;
  if (name == "head") return TensorRole::kHead;
  if (name.ends_with("norm")) return TensorRole::kNorm;
  if (name.ends_with("_bias") || name.ends_with(".sinks")) return TensorRole::kBias;
  return name.ends_with(".router") ? TensorRole::kRouter : TensorRole::kLinear;
}

void WeightCount::add(TensorRole role, uint64_t n_weights, uint64_t size_bytes) {
  weights += n_weights;
  if (role != TensorRole::kLinear) return;
  linear_weights += n_weights;
  linear_bytes += size_bytes;
}

double WeightCount::linear_bits() const {
  return linear_weights > 0 ? 8 * static_cast<double>(linear_bytes) / static_cast<double>(linear_weights) : 0;
}

double WeightCount::file_bits(uint64_t file_bytes) const {
  return weights > 0 ? 8 * static_cast<double>(file_bytes) / static_cast<double>(weights) : 0;
}

WeightCount count_weights(const Container& container) {
  WeightCount count;
  for (const Tensor& tensor : container.tensors())
    count.add(tensor_role(tensor.name), uint64_t{tensor.n_rows} * tensor.n_cols, tensor.size_bytes);
  return count;
}

}  // namespace pith
