// Device memory, streams, events and graphs, as owners that cannot leak. Plain C++: no CUDA header is needed to use it.
//
// Every failure of the CUDA runtime becomes Error(kOutOfMemory) when memory is what is missing, naming need and free, and
// Error(kUnsupported) otherwise, naming the call. Objects are move-only and belong to the device that was current when
// they were made; use them from one thread at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cuda/stream_handle.h"

struct CUevent_st;
struct CUgraphExec_st;

namespace pith::cuda {

struct DeviceInfo {
  int idx;
  std::string name;
  int compute_major, compute_minor, n_multiprocessors;
  uint64_t total_bytes, free_bytes, l2_bytes, max_shared_bytes;  // of a block, opted in
  int clock_mhz;                                                 // the highest
  int sm() const { return compute_major * 10 + compute_minor; }
  std::string label() const { return "cuda:" + std::to_string(idx) + " " + name; }  // "cuda:0 NVIDIA H200"
};

// The devices that can be used: those of compute capability 7.5 or later that this build's kernels run on. Never throws.
struct DeviceList {
  std::vector<DeviceInfo> devices;
  // Why there are none (no driver, one that is too old, no device), or which were left out and why.
  std::string problem;
};
DeviceList list_devices();
void use_device(int idx);
// Free and total bytes of the current device.
std::pair<uint64_t, uint64_t> free_memory();

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t n_bytes, const char* what = "buffer");
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept { return swap(other), *this; }

  uint8_t* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t size_bytes() const { return n_bytes_; }
  void fill(int byte);  // done when it returns, whatever stream goes on

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_bytes_, other.n_bytes_);
  }
  uint8_t* data_ = nullptr;
  size_t n_bytes_ = 0;
};

// Page-locked host memory.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(size_t n_bytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept { swap(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept { return swap(other), *this; }
  uint8_t* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t size_bytes() const { return n_bytes_; }

 private:
  void swap(PinnedBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_bytes_, other.n_bytes_);
  }
  uint8_t* data_ = nullptr;
  size_t n_bytes_ = 0;
};

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(Stream&& other) noexcept { std::swap(handle_, other.handle_); }
  Stream& operator=(Stream&& other) noexcept { return std::swap(handle_, other.handle_), *this; }
  StreamHandle handle() const { return handle_; }
  void wait() const;  // until everything on it is done
  void copy_to_device(void* to, const void* from, size_t n_bytes) const;
  void copy_to_host(void* to, const void* from, size_t n_bytes) const;
  void copy_on_device(void* to, const void* from, size_t n_bytes) const;

 private:
  StreamHandle handle_ = nullptr;
};

class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept { std::swap(handle_, other.handle_); }
  Event& operator=(Event&& other) noexcept { return std::swap(handle_, other.handle_), *this; }
  void record(const Stream& stream);
  void wait() const;
  static double milliseconds(const Event& begin, const Event& end);  // both recorded and done

 private:
  CUevent_st* handle_ = nullptr;
};

// What was launched on a stream between begin() and end(), to be launched again as one.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept { std::swap(handle_, other.handle_); }
  Graph& operator=(Graph&& other) noexcept { return std::swap(handle_, other.handle_), *this; }
  static void begin(const Stream& stream);
  static Graph end(const Stream& stream);
  void launch(const Stream& stream) const;
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  CUgraphExec_st* handle_ = nullptr;
};

// Host memory to the device through two pinned halves: one is filled while the other is sent.
class Uploader {
 public:
  explicit Uploader(size_t half_bytes = size_t{32} << 20);
  void upload(uint8_t* to, const uint8_t* from, size_t n_bytes);
  void finish();

 private:
  Stream stream_;
  PinnedBuffer halves_[2];
  Event sent_[2];
  uint32_t turn_ = 0;
};

// For launchers (*.cu): throws what `cuda_error` (a cudaError_t) means. `what` is the call or the kernel.
void check(int cuda_error, const char* what);
// In token_ops.cu: the cudaError_t of loading a kernel on the current device. One stands for all, as all are compiled for the same targets.
int load_a_kernel();

}  // namespace pith::cuda
