// What the tables of gpu_bench share: a device, a stream, and how a launch is timed.
#pragma once
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace pith::cuda {

constexpr uint32_t kReplays = 9;
inline bool tiny = false;

struct Bench {
  DeviceInfo device = list_devices().devices.front();
  Stream stream;
  double copy_bytes_per_s = 0;
  std::mt19937_64 rng{1};

  // Seconds a call of `work`, which is recorded n_calls times in one graph.
  double seconds(uint32_t n_calls, const std::function<void(uint32_t)>& work) {
    if (tiny) n_calls = 1;
    Graph::begin(stream);
    for (uint32_t i = 0; i < n_calls; ++i) work(i);
    const Graph graph = Graph::end(stream);
    graph.launch(stream);
    stream.wait();
    std::vector<double> times;
    for (uint32_t i = 0; i < (tiny ? 1 : kReplays); ++i) {
      Event begin, end;
      begin.record(stream);
      graph.launch(stream);
      end.record(stream);
      end.wait();
      times.push_back(Event::milliseconds(begin, end) / 1e3 / n_calls);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
  Launch how(bool overlap = true) const { return {stream.handle(), overlap && device.sm() >= 90}; }

  DeviceBuffer random_bytes(size_t n) {
    std::vector<uint64_t> host(std::min<size_t>(n, 1 << 22) / 8 + 1);
    for (uint64_t& v : host) v = rng();
    DeviceBuffer buffer(n, "benchmark data");
    for (size_t at = 0; at < n; at += host.size() * 8)
      stream.copy_to_device(buffer.data() + at, host.data(), std::min(n - at, host.size() * 8));
    stream.wait();
    return buffer;
  }
  DeviceBuffer random_floats(size_t n) {
    std::vector<float> host(n);
    std::normal_distribution<float> normal;
    for (float& v : host) v = normal(rng);
    DeviceBuffer buffer(n * 4, "benchmark data");
    stream.copy_to_device(buffer.data(), host.data(), n * 4);
    stream.wait();
    return buffer;
  }
  std::string share(double bytes, double time) const {
    return fmt::format("{:.0f} %", 100 * bytes / time / copy_bytes_per_s);
  }
};

void table_float(Bench& b);  // gpu_bench_float.cpp

}  // namespace pith::cuda
