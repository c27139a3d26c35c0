// A container's tensor as floats: what every reader must make of its bytes.
#pragma once
#include <cstring>
#include <string>
#include <vector>

#include "format/container.h"
#include "format/float16.h"

namespace pith::test {

// Rows as stored, columns in input order. Verified first.
inline std::vector<float> tensor_floats(const Container& container, const std::string& name) {
  const Tensor& tensor = container.get(name);
  container.verify_tensor(tensor);
  std::vector<float> values(size_t{tensor.n_rows} * tensor.n_cols);
  if (tensor.kind == TensorKind::kQ24) {
    for (uint32_t r = 0; r < tensor.n_rows; ++r)
      q24::dequantize_row(tensor.q24_view(), r, values.data() + size_t{r} * tensor.n_cols);
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    if (tensor.kind == TensorKind::kF32) {
      std::memcpy(&values[i], tensor.data + 4 * i, 4);
    } else {
      std::memcpy(&bits, tensor.data + 2 * i, 2);
      values[i] = tensor.kind == TensorKind::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
    }
  }
  return values;
}

}  // namespace pith::test
