// What the tests of CUDA kernels share: device memory of exactly the size asked for, so that the sanitizers
// see the first byte too many; random Q24 matrices; the reference product, written from the formulas of
// format/q24.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "format/float16.h"
#include "format/q24.h"
#include "random_q24.h"

namespace pith::cuda {

inline std::mt19937& rng() {
  static std::mt19937 one(7);
  return one;
}
inline float normal() {
  return std::normal_distribution<float>()(rng());
}
inline uint32_t below(uint32_t n) {
  return std::uniform_int_distribution<uint32_t>(0, n - 1)(rng());
}

inline const Stream& stream() {
  static const Stream one;
  return one;
}
inline Launch how() {
  return {stream().handle(), false};
}

template <typename T>
DeviceBuffer to_device(const std::vector<T>& v, size_t n_extra_bytes = 0) {
  DeviceBuffer buffer(v.size() * sizeof(T) + n_extra_bytes);
  buffer.fill(0xa5);
  stream().copy_to_device(buffer.data(), v.data(), v.size() * sizeof(T));
  stream().wait();
  return buffer;
}
template <typename T>
std::vector<T> to_host(const DeviceBuffer& buffer, size_t n) {
  std::vector<T> v(n);
  stream().copy_to_host(v.data(), buffer.data(), n * sizeof(T));
  stream().wait();
  return v;
}
// Floats that are all NaN.
inline DeviceBuffer poisoned(size_t n) {
  DeviceBuffer buffer(n * 4);
  buffer.fill(0xff);
  return buffer;
}

struct Matrix {
  q24::Unpacked unpacked;
  q24::Layout layout;
  std::vector<uint8_t> packed;
  DeviceBuffer bytes;
  Q24Weights weights;
};

// `edit` changes what is packed.
inline Matrix random_matrix(const q24::Shape& shape, const std::function<void(q24::Unpacked&)>& edit = {}) {
  Matrix m;
  m.layout = q24::make_layout(shape);
  const auto number = [](float least, float step, uint32_t n) {
    return [=] { return least + step * static_cast<float>(below(n)); };
  };
  m.unpacked = test::random_q24(
      shape, rng(), {number(0.5f, 0.01f, 100), number(0.01f, 0.001f, 20), number(0.02f, 0.001f, 20), normal});
  if (edit) edit(m.unpacked);
  m.packed.resize(m.layout.size_bytes);
  q24::pack(m.unpacked, m.packed);
  m.bytes = to_device(m.packed, 1024);  // what must be readable after a tensor
  m.weights = q24_weights(m.layout, m.bytes.data());
  return m;
}

inline std::vector<float> random_vector(size_t n) {
  std::vector<float> v(n);
  for (float& x : v) x = normal();
  return v;
}

struct Reference {
  std::vector<double> y, magnitude;  // and the sum of the terms' absolute values
};

// The formula of matvec_q24.cuh in storage columns, exact integers, double sums.
inline Reference reference_matvec(const Matrix& m, const std::vector<float>& x) {
  const q24::Unpacked& u = m.unpacked;
  const uint32_t padded = m.layout.padded_cols, n_blocks = (padded + 127) / 128;
  std::vector<int> a(n_blocks * 128);
  std::vector<float> scale(n_blocks);
  for (uint32_t b = 0; b < n_blocks; ++b) {
    float v[128] = {}, largest = 0;
    for (uint32_t j = 0; j < 128; ++j) {
      const uint32_t c = b * 128 + j;
      if (c < padded && u.perm[c] != 0xffff) v[j] = x[u.perm[c]] * f16_to_float(u.col_scale[c / 16]);
      largest = std::max(largest, std::fabs(v[j]));
    }
    scale[b] = largest / 127.0f;
    for (uint32_t j = 0; j < 128; ++j)
      a[b * 128 + j] = largest > 0 ? static_cast<int>(std::nearbyint(v[j] * (127.0f / largest))) : 0;
  }
  Reference ref;
  const q24::Shape& s = u.shape;
  for (uint32_t r = 0; r < s.n_rows; ++r) {
    double y = 0, magnitude = 0;
    const double d = f16_to_float(u.d[r]), dmin = f16_to_float(u.dmin[r]);
    for (uint32_t b = 0; b < n_blocks; ++b) {
      int64_t t = 0, minimum = 0;
      for (uint32_t c = b * 128; c < std::min(padded, b * 128 + 128); ++c) {
        const uint32_t g = c / s.group;
        const int code = u.codes[r * padded + c] * (c < padded - s.n_fine ? 4 : 1);
        t += u.s[r * (padded / s.group) + g] * code * a[c];
        minimum += u.m[r * (padded / s.group) + g] * a[c];
      }
      y += scale[b] * (0.25 * d * static_cast<double>(t) - dmin * static_cast<double>(minimum));
      magnitude += scale[b] * (0.25 * d * std::fabs(static_cast<double>(t)) +
                               dmin * std::fabs(static_cast<double>(minimum)));
    }
    for (uint32_t i = 0; i < s.n_slots; ++i) {
      const uint32_t c = u.outlier_col[r * s.n_slots + i];
      const double term = double{f16_to_float(u.outlier_delta[r * s.n_slots + i])} * scale[c / 128] * a[c];
      y += term;
      magnitude += std::fabs(term);
    }
    ref.y.push_back(y);
    ref.magnitude.push_back(magnitude);
  }
  return ref;
}

// The formula of format/q24.h, without rounding; and the sum of the terms' absolute values, code and minimum apart.
inline Reference exact_matvec(const Matrix& m, const std::vector<float>& x) {
  const q24::Unpacked& u = m.unpacked;
  const q24::Shape& s = u.shape;
  const uint32_t padded = m.layout.padded_cols;
  Reference ref;
  for (uint32_t r = 0; r < s.n_rows; ++r) {
    double y = 0, magnitude = 0;
    const auto add = [&](uint32_t c, double w) {
      if (u.perm[c] == 0xffff) return;
      const double term = w * x[u.perm[c]] * f16_to_float(u.col_scale[c / 16]);
      y += term;
      magnitude += std::fabs(term);
    };
    for (uint32_t c = 0; c < padded; ++c) {
      const uint32_t g = r * (padded / s.group) + c / s.group;
      add(c, double{f16_to_float(u.d[r])} * u.s[g] * u.codes[r * padded + c] *
                 (c < padded - s.n_fine ? 1 : 0.25));
      add(c, -double{f16_to_float(u.dmin[r])} * u.m[g]);
    }
    for (uint32_t i = r * s.n_slots; i < (r + 1) * s.n_slots; ++i)
      add(u.outlier_col[i], f16_to_float(u.outlier_delta[i]));
    ref.y.push_back(y);
    ref.magnitude.push_back(magnitude);
  }
  return ref;
}

inline bool device_has_warpgroups() {
  const DeviceInfo device = list_devices().devices.front();
  return has_warpgroups(device.compute_major, device.compute_minor);
}

// Additions in any order and two roundings a term: at most (terms + 2) ulps of the sum of magnitudes.
inline double bound(const Matrix& m, const Reference& ref, size_t r) {
  return (m.layout.padded_cols / 128 + m.unpacked.shape.n_slots + 16) * 0x1p-23 * ref.magnitude[r] + 1e-30;
}
// Those that the device has.
inline std::vector<Pipeline> pipelines() {
  const int sm = list_devices().devices.front().sm();
  std::vector<Pipeline> found = {Pipeline::kRegisters};
  if (sm >= 80) found.push_back(Pipeline::kAsyncCopy);
  if (sm >= 90) found.push_back(Pipeline::kBulkCopy);
  return found;
}

}  // namespace pith::cuda
