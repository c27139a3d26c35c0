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

namespace pith::test {

inline std::vector<float> random_floats(size_t n, double deviation, std::mt19937_64& rng) {
  std::normal_distribution<double> normal(0, deviation);
  std::vector<float> values(n);
  for (float& v : values) v = static_cast<float>(normal(rng));
  return values;
}

// Any valid Q24 content: every code, scale, minimum and slot is used.
inline q24::Unpacked random_q24(const q24::Shape& shape, double deviation, std::mt19937_64& rng) {
  const q24::Layout l = q24::make_layout(shape);
  q24::Unpacked u;
  u.shape = shape;
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(rng() % n); };
  u.perm.assign(l.padded_cols, 0xffff);
  for (uint32_t c = 0; c < shape.n_cols; ++c) u.perm[c] = static_cast<uint16_t>(c);
  std::shuffle(u.perm.begin(), u.perm.begin() + shape.n_cols, rng);
  u.col_scale.assign(l.n_lines, 0);
  for (uint32_t i = 0; i < (shape.n_cols + 15) / 16; ++i)
    u.col_scale[i] = float_to_f16(0.5f + static_cast<float>(below(100)) / 100);
  const uint32_t groups = l.padded_cols / shape.group, first_fine = l.padded_cols - shape.n_fine;
  for (uint32_t r = 0; r < shape.n_rows; ++r) {
    // W = d * s * code - dmin * m has about the wanted deviation and little mean.
    u.d.push_back(float_to_f16(static_cast<float>(deviation / 9 * (0.8 + below(40) / 100.0))));
    u.dmin.push_back(float_to_f16(static_cast<float>(deviation / 6 * (0.8 + below(40) / 100.0))));
    for (uint32_t c = 0; c < l.padded_cols; ++c)
      u.codes.push_back(static_cast<uint8_t>(c >= shape.n_cols ? 0 : below(c < first_fine ? 4 : 16)));
    for (uint32_t g = 0; g < groups; ++g) {
      const bool real = g * shape.group < shape.n_cols;
      u.s.push_back(static_cast<uint8_t>(real ? below(16) : 0));
      u.m.push_back(static_cast<uint8_t>(real ? below(16) : 0));
    }
    for (uint32_t i = 0; i < shape.n_slots; ++i) {
      u.outlier_col.push_back(static_cast<uint16_t>(below(std::min(std::max(first_fine, 1u), shape.n_cols))));
      u.outlier_delta.push_back(float_to_f16(static_cast<float>(deviation * (below(9) - 4.0))));
    }
  }
  return u;
}

// What the tensors of a random model are made of.
struct RandomModelOptions {
  TensorKind kind = TensorKind::kF32;  // of matrices
  uint32_t group = 16, n_slots = 1;
  double fine_fraction = 0.25;
  uint64_t seed = 1;
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
    const double deviation = plan.role == TensorRole::kEmbedding ? 1 : 1.2 / std::sqrt(plan.n_cols);
    if (plan.role == TensorRole::kNorm || plan.role == TensorRole::kBias) {
      values = random_floats(n, 0.2, rng);
      if (plan.role == TensorRole::kNorm)
        for (float& v : values) v += 1;
      writer.add(plan.name, TensorKind::kF32, 1, plan.n_cols, bytes(values));
    } else if (options.kind == TensorKind::kQ24) {
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
        if (options.kind == TensorKind::kF16) values[i] = f16_to_float(halves[i] = float_to_f16(values[i]));
        if (options.kind == TensorKind::kBF16)
          values[i] = bf16_to_float(halves[i] = float_to_bf16(values[i]));
      }
      writer.add(plan.name, options.kind, plan.n_rows, plan.n_cols,
                 options.kind == TensorKind::kF32 ? bytes(values) : bytes(halves));
    }
  }
  Metadata metadata;
  store_spec(spec, metadata);
  writer.finish(metadata);
  return tensors;
}

}  // namespace pith::test
