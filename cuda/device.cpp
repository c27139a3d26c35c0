// device.h over the CUDA runtime.
#include "cuda/device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "format/error.h"

namespace pith::cuda {

void check(int cuda_error, const char* what) {
  if (cuda_error == cudaSuccess) return;
  const auto error = static_cast<cudaError_t>(cuda_error);
  cudaGetLastError();  // so that the next check does not report it again
  const ErrorCode code =
      error == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kUnsupported;
  throw_error(code, "cuda: {}: {}", what, cudaGetErrorString(error));
}

DeviceList list_devices() {
  DeviceList list;
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  if (error != cudaSuccess || n == 0) {
    cudaGetLastError();
    if (error == cudaErrorInsufficientDriver) {
      int driver = 0;
      cudaDriverGetVersion(&driver);
      list.problem = driver == 0
                         ? std::string("no CUDA driver")
                         : fmt::format("the CUDA driver is for {}.{}, pith needs {}.{}", driver / 1000,
                                       driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    } else {
      list.problem = error == cudaSuccess ? "no CUDA device" : cudaGetErrorString(error);
    }
    return list;
  }
  const auto leave_out = [&](const std::string& label, const std::string& why) {
    list.problem += fmt::format("{}{}: {}", list.problem.empty() ? "" : "; ", label, why);
  };
  for (int i = 0; i < n; ++i) {
    cudaDeviceProp p;
    if (const cudaError_t unknown = cudaGetDeviceProperties(&p, i); unknown != cudaSuccess) {
      cudaGetLastError();
      leave_out(fmt::format("cuda:{}", i), cudaGetErrorString(unknown));
      continue;
    }
    DeviceInfo info{i,
                    p.name,
                    p.major,
                    p.minor,
                    p.multiProcessorCount,
                    p.totalGlobalMem,
                    0,
                    static_cast<uint64_t>(p.l2CacheSize),
                    p.sharedMemPerBlockOptin,
                    0};
    if (info.sm() < 75) {
      leave_out(info.label(), fmt::format("compute capability {}.{}, pith needs 7.5", p.major, p.minor));
      continue;
    }
    // A build has kernels for the targets it was made for. A device that is merely full stays: its free memory says so.
    size_t free_bytes = 0, total = 0;
    cudaError_t failure = cudaSetDevice(i);
    if (failure == cudaSuccess) failure = static_cast<cudaError_t>(load_a_kernel());
    if (failure == cudaSuccess) failure = cudaMemGetInfo(&free_bytes, &total);
    if (failure != cudaSuccess) cudaGetLastError();
    if (failure != cudaSuccess && failure != cudaErrorMemoryAllocation) {
      leave_out(info.label(), fmt::format("{} (compute capability {}.{}, this build has kernels for {})",
                                          cudaGetErrorString(failure), p.major, p.minor, PITH_CUDA_TARGETS));
      continue;
    }
    info.free_bytes = free_bytes;
    if (int khz = 0; cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, i) == cudaSuccess)
      info.clock_mhz = khz / 1000;
    list.devices.push_back(std::move(info));
  }
  if (list.devices.empty()) list.problem = "no CUDA device can be used: " + list.problem;
  return list;
}

void use_device(int idx) {
  check(cudaSetDevice(idx), "cudaSetDevice");
}

std::pair<uint64_t, uint64_t> free_memory() {
  size_t free_bytes = 0, total = 0;
  check(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
  return {free_bytes, total};
}

DeviceBuffer::DeviceBuffer(size_t n_bytes, const char* what) : n_bytes_(n_bytes) {
  if (n_bytes == 0) return;
  void* p = nullptr;
  if (cudaMalloc(&p, n_bytes) != cudaSuccess) {
    cudaGetLastError();
    const auto [free_bytes, total] = free_memory();
    throw_error(ErrorCode::kOutOfMemory, "cuda: {} needs {} MB, {} of {} MB are free", what, n_bytes >> 20,
                free_bytes >> 20, total >> 20);
  }
  data_ = static_cast<uint8_t*>(p);
}
DeviceBuffer::~DeviceBuffer() {
  cudaFree(data_);
}
void DeviceBuffer::fill(int byte) {
  if (n_bytes_ == 0) return;
  check(cudaMemset(data_, byte, n_bytes_), "cudaMemset");
  // It may return before it is done, and a Stream does not wait for the default stream, where it runs.
  check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
}

PinnedBuffer::PinnedBuffer(size_t n_bytes) : n_bytes_(n_bytes) {
  if (n_bytes == 0) return;
  void* p = nullptr;
  check(cudaMallocHost(&p, n_bytes), "cudaMallocHost");
  data_ = static_cast<uint8_t*>(p);
}
PinnedBuffer::~PinnedBuffer() {
  cudaFreeHost(data_);
}

Stream::Stream() {
  check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreate");
}
Stream::~Stream() {
  if (handle_) cudaStreamDestroy(handle_);
}
void Stream::wait() const {
  check(cudaStreamSynchronize(handle_), "cudaStreamSynchronize");
}
void Stream::copy_to_device(void* to, const void* from, size_t n_bytes) const {
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, handle_), "cudaMemcpyAsync to the device");
}
void Stream::copy_to_host(void* to, const void* from, size_t n_bytes) const {
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToHost, handle_), "cudaMemcpyAsync to the host");
}
void Stream::copy_on_device(void* to, const void* from, size_t n_bytes) const {
  check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, handle_),
        "cudaMemcpyAsync on the device");
}

Event::Event() {
  check(cudaEventCreate(&handle_), "cudaEventCreate");
}
Event::~Event() {
  if (handle_) cudaEventDestroy(handle_);
}
void Event::record(const Stream& stream) {
  check(cudaEventRecord(handle_, stream.handle()), "cudaEventRecord");
}
void Event::wait() const {
  check(cudaEventSynchronize(handle_), "cudaEventSynchronize");
}
double Event::milliseconds(const Event& begin, const Event& end) {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin.handle_, end.handle_), "cudaEventElapsedTime");
  return ms;
}

Graph::~Graph() {
  if (handle_) cudaGraphExecDestroy(handle_);
}
void Graph::begin(const Stream& stream) {
  // Relaxed: a kernel may be loaded when it is first launched, and that may be now.
  check(cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
}
Graph Graph::end(const Stream& stream) {
  cudaGraph_t recorded = nullptr;
  check(cudaStreamEndCapture(stream.handle(), &recorded), "cudaStreamEndCapture");
  Graph graph;
  const cudaError_t error = cudaGraphInstantiate(&graph.handle_, recorded, 0);
  cudaGraphDestroy(recorded);
  check(error, "cudaGraphInstantiate");
  return graph;
}
void Graph::launch(const Stream& stream) const {
  check(cudaGraphLaunch(handle_, stream.handle()), "cudaGraphLaunch");
}

Uploader::Uploader(size_t half_bytes) {
  for (PinnedBuffer& half : halves_) half = PinnedBuffer(half_bytes);
}
void Uploader::upload(uint8_t* to, const uint8_t* from, size_t n_bytes) {
  for (size_t at = 0; at < n_bytes; turn_ ^= 1) {
    const size_t n = std::min(n_bytes - at, halves_[0].size_bytes());
    sent_[turn_].wait();  // done at once when it was never recorded
    std::memcpy(halves_[turn_].data(), from + at, n);
    stream_.copy_to_device(to + at, halves_[turn_].data(), n);
    sent_[turn_].record(stream_);
    at += n;
  }
}
void Uploader::finish() {
  stream_.wait();
}

}  // namespace pith::cuda
