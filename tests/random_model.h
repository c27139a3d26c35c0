// Random tensors and tiny random models for tests of the run time.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "format/float16.h"
#include "format/writer.h"
#include "format_samples.h"
#include "models/family.h"
#include "random_q24.h"

namespace pith::test {

inline std::vector<float> random_floats(size_t n, double deviation, std::mt19937_64& rng) {
  std::normal_distribution<double> normal(0, deviation);
  std::vector<float> values(n);
  for (float& v : values) v = static_cast<float>(normal(rng));
  return values;
}

// What the tensors of a random model are made of.
struct RandomModelOptions {
  TensorKind kind = TensorKind::kF32;  // of matrices
  uint32_t group = 16, n_slots = 1;
  double fine_fraction = 0.25;
  uint64_t seed = 1;
  bool q24_router = false;  // as no reader takes it
};

// Writes a random model of `spec` to `path` and returns every tensor as floats, as the run time should see it
// (dequantized, rows as stored).
inline std::map<std::string, std::vector<float>> write_random_model(const std::string& path,
                                                                    const ModelSpec& spec,
                                                                    const RandomModelOptions& options) {
  std::mt19937_64 rng(options.seed);
  std::map<std::string, std::vector<float>> tensors;
  Writer writer(path, options.seed);
  const auto bytes = [](const auto& v) {
    return std::span<const uint8_t>(reinterpret_cast<const uint8_t*>(v.data()), v.size() * sizeof(v[0]));
  };
  for (const TensorPlan& plan : plan_tensors(spec)) {
    const size_t n = size_t{plan.n_rows} * plan.n_cols;
    std::vector<float>& values = tensors[plan.name];
    const bool floats_only = plan.role == TensorRole::kRouter && !options.q24_router;
    const TensorKind kind =
        floats_only && options.kind == TensorKind::kQ24 ? TensorKind::kBF16 : options.kind;
    const double deviation = plan.role == TensorRole::kEmbedding ? 1 : 1.2 / std::sqrt(plan.n_cols);
    if (plan.role == TensorRole::kNorm || plan.role == TensorRole::kBias) {
      values = random_floats(n, 0.2, rng);
      if (plan.role == TensorRole::kNorm)
        for (float& v : values) v += 1;
      writer.add(plan.name, TensorKind::kF32, 1, plan.n_cols, bytes(values));
    } else if (kind == TensorKind::kQ24) {
      q24::Shape shape{plan.n_rows, plan.n_cols, options.group, 0, options.n_slots};
      const uint32_t groups = (plan.n_cols + 63) / 64 * 64 / options.group;
      shape.n_fine = static_cast<uint32_t>(groups * options.fine_fraction) * options.group;
      const q24::Unpacked u = random_q24(shape, deviation, rng);
      writer.add(plan.name, u);
      std::vector<uint8_t> packed(q24::make_layout(shape).size_bytes + 64);
      uint8_t* const aligned = packed.data() + (64 - reinterpret_cast<uintptr_t>(packed.data()) % 64) % 64;
      q24::pack(u, {aligned, q24::make_layout(shape).size_bytes});
      const q24::View view = q24::make_view(shape, aligned);
      values.resize(n);
      for (uint32_t r = 0; r < plan.n_rows; ++r)
        q24::dequantize_row(view, r, values.data() + size_t{r} * plan.n_cols);
    } else {
      values = random_floats(n, deviation, rng);
      std::vector<uint16_t> halves(n);
      for (size_t i = 0; i < n; ++i) {
        if (kind == TensorKind::kF16) values[i] = f16_to_float(halves[i] = float_to_f16(values[i]));
        if (kind == TensorKind::kBF16) values[i] = bf16_to_float(halves[i] = float_to_bf16(values[i]));
      }
      writer.add(plan.name, kind, plan.n_rows, plan.n_cols,
                 kind == TensorKind::kF32 ? bytes(values) : bytes(halves));
    }
  }
  Metadata metadata;
  store_spec(spec, metadata);
  writer.finish(metadata);
  return tensors;
}

}  // namespace pith::test
