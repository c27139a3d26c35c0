// Where the two matrix products of calibration run: on the CPU's cores (gemm.h) or on a GPU (gpu/products.h).
// They are nearly all that calibration costs; whoever multiplies asks an object of this class, all else stays
// on the CPU.
//
// Either kind gives the same bits every time, whatever the number of threads, the GPU and its free memory. A
// GPU's are not the CPU's: additions come in another order. A GPU that fails throws Error, kOutOfMemory or
// kIo, naming it: nothing goes on on the CPU unasked, as the file's bytes would then depend on when that was.
// Cheap to copy; not thread safe.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/spec.h"

namespace pith {

// A matrix in a device's memory.
struct DeviceMatrix {
  virtual ~DeviceMatrix() = default;
};

// w [n_rows, n_cols], row-major, that rows are multiplied with. Borrowed.
struct ProductMatrix {
  const float* values = nullptr;
  uint32_t n_rows = 0, n_cols = 0;
  std::shared_ptr<const DeviceMatrix>
      on_device;  // where Products::keep has put it; null: it is sent with every product
};

// Gets rows [begin, begin + n_rows) of a product, [n_rows, m], to read and to change; from the caller's thread, in order.
using TakeRows = std::function<void(uint32_t begin, uint32_t n_rows, float* y)>;

// A device that multiplies: what Products does there.
class DeviceProducts {
 public:
  virtual ~DeviceProducts() = default;
  virtual std::string name() const = 0;  // "cuda:0 NVIDIA H200"
  virtual std::shared_ptr<const DeviceMatrix> upload(const float* w, uint32_t m, uint32_t k) = 0;
  virtual void multiply_transposed(const float* x, const float* minus, uint32_t n, const ProductMatrix& w,
                                   uint32_t multiple, const TakeRows& take) = 0;
  virtual void mean_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t k,
                             uint32_t m, double scale, float* h) = 0;
};

class Products {
 public:
  Products(uint32_t n_threads) : n_threads_(n_threads) {}  // on the CPU; implicit: it is a number of threads
  // n_threads: of what stays on the CPU, the copies among it.
  Products(uint32_t n_threads, std::shared_ptr<DeviceProducts> device)
      : n_threads_(n_threads), device_(std::move(device)) {}
  // device: "auto" (a GPU where there is one with room for `spec`; where it lacks the room a note says so),
  // "cpu", "cuda", "cuda:N". Throws as backend_for does (runtime/backend.h), and kOutOfMemory.
  static Products open(const std::string& device, uint32_t n_threads, const ModelSpec& spec,
                       std::vector<std::string>& notes);

  uint32_t n_threads() const { return n_threads_; }
  bool on_device() const { return device_ != nullptr; }
  std::string device_name() const { return device_ ? device_->name() : ""; }

  // w with a copy on the device, for as long as the result lives: for several products with it. It must not change meanwhile.
  ProductMatrix keep(const float* w, uint32_t m, uint32_t k) const;

  // (x - minus) [n, k] times w', a few rows at a time, each but the last a multiple of `multiple`. minus: null for none.
  void multiply_transposed(const float* x, const float* minus, uint32_t n, const ProductMatrix& w,
                           uint32_t multiple, const TakeRows& take) const;
  // As in gemm.h.
  void multiply_transposed(const float* x, uint32_t n, uint32_t k, const float* w, uint32_t m,
                           float* y) const;
  void mean_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t k, uint32_t m,
                     double scale, float* h) const;

 private:
  uint32_t n_threads_;
  std::shared_ptr<DeviceProducts> device_;  // null: the CPU
};

}  // namespace pith
