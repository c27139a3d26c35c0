// The CPU's products in blocks of rows, or the device's, whose failures get its name.
#include "convert/products.h"

#include <algorithm>

#include "convert/gemm.h"
#include "format/error.h"
#include "runtime/backend.h"
#ifdef PITH_HAS_CUDA
#include "convert/gpu/products.h"
#include "runtime/gpu/choice.h"
#endif

namespace pith {

namespace {

// A device's failure with the device's name. What it is for the conversion: something that may work the next time, as a disk's.
template <typename Body>
auto on(const DeviceProducts& device, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    const bool is_memory = error.code() == ErrorCode::kOutOfMemory;
    if (!is_memory && error.code() != ErrorCode::kUnsupported) throw;
    throw_error(is_memory ? ErrorCode::kOutOfMemory : ErrorCode::kIo, "{}: {}", device.name(), error.what());
  }
}

}  // namespace

#ifdef PITH_HAS_CUDA
Products Products::open(const std::string& device, uint32_t n_threads, const ModelSpec& spec,
                        std::vector<std::string>& notes) {
  if (backend_for(device).is_cpu()) return n_threads;
  const cuda::DeviceInfo found = gpu::find_device(device);
  const uint64_t needed = gpu::products_bytes(spec);
  // Before anything is made there: on a device that is full not even a stream can be.
  if (found.free_bytes >= needed) return {n_threads, gpu::make_products(found, n_threads)};
  const std::string problem =
      fmt::format("{} has {:.1f} GB free, calibration's products take {:.1f}", found.label(),
                  1e-9 * static_cast<double>(found.free_bytes), 1e-9 * static_cast<double>(needed));
  if (device != "auto") throw_error(ErrorCode::kOutOfMemory, "{}: --device cpu needs no GPU", problem);
  notes.push_back(problem + ": they run on the CPU");
  return n_threads;
}
#else
Products Products::open(const std::string& device, uint32_t n_threads, const ModelSpec&,
                        std::vector<std::string>&) {
  backend_for(device);
  return n_threads;
}
#endif

ProductMatrix Products::keep(const float* w, uint32_t m, uint32_t k) const {
  ProductMatrix matrix{w, m, k, nullptr};
  if (device_) matrix.on_device = on(*device_, [&] { return device_->upload(w, m, k); });
  return matrix;
}

void Products::multiply_transposed(const float* x, const float* minus, uint32_t n, const ProductMatrix& w,
                                   uint32_t multiple, const TakeRows& take) const {
  if (device_) return on(*device_, [&] { device_->multiply_transposed(x, minus, n, w, multiple, take); });
  const size_t k = w.n_cols;
  const uint32_t chunk = std::max(1u, rows_at_once(n_threads_) / multiple) * multiple;
  std::vector<float> difference, y;
  for (uint32_t begin = 0; begin < n; begin += chunk) {
    const uint32_t n_here = std::min(chunk, n - begin);
    const float* rows = x + begin * k;
    if (minus) {
      difference.resize(n_here * k);
      for (size_t i = 0; i < difference.size(); ++i) difference[i] = rows[i] - minus[begin * k + i];
      rows = difference.data();
    }
    y.resize(size_t{n_here} * w.n_rows);
    pith::multiply_transposed(rows, n_here, w.n_cols, w.values, w.n_rows, y.data(), n_threads_);
    take(begin, n_here, y.data());
  }
}

void Products::multiply_transposed(const float* x, uint32_t n, uint32_t k, const float* w, uint32_t m,
                                   float* y) const {
  if (!device_) return pith::multiply_transposed(x, n, k, w, m, y, n_threads_);
  multiply_transposed(x, nullptr, n, {w, m, k, nullptr}, 1,
                      [&](uint32_t begin, uint32_t n_rows, const float* rows) {
                        std::copy_n(rows, size_t{n_rows} * m, y + size_t{begin} * m);
                      });
}

void Products::mean_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t k,
                             uint32_t m, double scale, float* h) const {
  if (!device_) return pith::mean_products(x, minus, y, n, k, m, scale, h, n_threads_);
  on(*device_, [&] { device_->mean_products(x, minus, y, n, k, m, scale, h); });
}

}  // namespace pith
