// device.h over host memory, for tests: a device of two multiprocessors whose streams run at once. A capture records what would have
// run. Fresh memory holds garbage.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>

#include "cuda/device.h"
#include "cuda/launch_emulated.h"
#include "format/error.h"

struct CUstream_st {
  std::vector<std::function<void()>>* capture = nullptr;
};
struct CUevent_st {};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

namespace pith::cuda {

namespace {

uint64_t total_bytes = uint64_t{1} << 30, used_bytes = 0;
DeviceList listed{{{0, "emulated", 9, 0, 2, 0, 0, 1 << 20, 227 * 1024, 1000}}, ""};

uint8_t* allocate(size_t n_bytes) {
  if (n_bytes == 0) return nullptr;
  void* p = nullptr;
  if (posix_memalign(&p, 256, n_bytes) != 0) throw std::bad_alloc();
  std::memset(p, 0xa5, n_bytes);
  return static_cast<uint8_t*>(p);
}

}  // namespace

void submit(StreamHandle stream, std::function<void()> work) {
  if (stream->capture != nullptr)
    stream->capture->push_back(std::move(work));
  else
    work();
}

void emulate_memory(uint64_t n_bytes) {
  total_bytes = n_bytes;
}

void check(int, const char*) {}

void emulate_devices(DeviceList devices) {
  listed = std::move(devices);
}

DeviceList list_devices() {
  DeviceList found = listed;
  for (DeviceInfo& device : found.devices) std::tie(device.free_bytes, device.total_bytes) = free_memory();
  return found;
}
void use_device(int) {}
std::pair<uint64_t, uint64_t> free_memory() {
  return {total_bytes - std::min(total_bytes, used_bytes), total_bytes};
}

DeviceBuffer::DeviceBuffer(size_t n_bytes, const char* what) : n_bytes_(n_bytes) {
  if (const auto [free_bytes, total] = free_memory(); n_bytes > free_bytes)
    throw_error(ErrorCode::kOutOfMemory, "cuda: {} needs {} MB, {} of {} MB are free", what, n_bytes >> 20,
                free_bytes >> 20, total >> 20);
  data_ = allocate(n_bytes);
  used_bytes += n_bytes;
}
DeviceBuffer::~DeviceBuffer() {
  std::free(data_);
  used_bytes -= n_bytes_;
}
void DeviceBuffer::fill(int byte) {
  if (n_bytes_ != 0) std::memset(data_, byte, n_bytes_);
}

PinnedBuffer::PinnedBuffer(size_t n_bytes) : data_(allocate(n_bytes)), n_bytes_(n_bytes) {}
PinnedBuffer::~PinnedBuffer() {
  std::free(data_);
}

Stream::Stream() {
  if (free_memory().first == 0) throw_error(ErrorCode::kOutOfMemory, "cuda: cudaStreamCreate: out of memory");
  handle_ = new CUstream_st;
}
Stream::~Stream() {
  delete handle_;
}
void Stream::wait() const {}
void Stream::copy_to_device(void* to, const void* from, size_t n_bytes) const {
  submit(handle_, [=] { std::memcpy(to, from, n_bytes); });
}
void Stream::copy_to_host(void* to, const void* from, size_t n_bytes) const {
  submit(handle_, [=] { std::memcpy(to, from, n_bytes); });
}
void Stream::copy_on_device(void* to, const void* from, size_t n_bytes) const {
  submit(handle_, [=] { std::memcpy(to, from, n_bytes); });
}

Event::Event() : handle_(new CUevent_st) {}
Event::~Event() {
  delete handle_;
}
void Event::record(const Stream&) {}
void Event::wait() const {}
double Event::milliseconds(const Event&, const Event&) {
  return 1;
}

Graph::~Graph() {
  delete handle_;
}
void Graph::begin(const Stream& stream) {
  stream.handle()->capture = new std::vector<std::function<void()>>;
}
Graph Graph::end(const Stream& stream) {
  Graph graph;
  graph.handle_ = new CUgraphExec_st{std::move(*stream.handle()->capture)};
  delete stream.handle()->capture;
  stream.handle()->capture = nullptr;
  return graph;
}
void Graph::launch(const Stream&) const {
  for (const std::function<void()>& work : handle_->work) work();
}

Uploader::Uploader(size_t half_bytes) {
  for (PinnedBuffer& half : halves_) half = PinnedBuffer(half_bytes);
}
void Uploader::upload(uint8_t* to, const uint8_t* from, size_t n_bytes) {
  std::memcpy(to, from, n_bytes);
}
void Uploader::finish() {}

}  // namespace pith::cuda
