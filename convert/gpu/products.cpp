// See products.h.
#include "convert/gpu/products.h"

#include <algorithm>
#include <cstring>

#include "convert/factor.h"
#include "convert/parallel_for.h"
#include "cuda/kernels.h"
#include "format/checked.h"
#include "format/error.h"

namespace pith::gpu {

using namespace cuda;

namespace {

constexpr uint32_t kLanes = 3;
// A pass of the kernel: chunks of tokens are multiples, so that their size does not change the sums.
constexpr uint32_t kPassTokens = 256;
constexpr uint32_t kRowsPerTask = 64;  // of a copy between the caller's memory and pinned memory

uint64_t up_to(uint64_t n, uint32_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
uint32_t whole_tiles(uint32_t n) {
  return static_cast<uint32_t>(up_to(n, kFloatTile));
}
uint64_t padded_bytes(uint32_t n_rows, uint32_t n_cols) {
  return checked_mul(sizeof(float), checked_mul(whole_tiles(n_rows), whole_tiles(n_cols)));
}

// w' [k, m], padded to whole tiles.
struct Transposed final : DeviceMatrix {
  Transposed(uint32_t n_rows, uint32_t n_cols)
      : m(n_rows), k(n_cols), values(padded_bytes(m, k), "a matrix of calibration") {}
  uint32_t m, k;
  DeviceBuffer values;
};

template <typename Buffer, typename... What>
void grow(Buffer& buffer, uint64_t n_bytes, What... what) {
  if (buffer.size_bytes() >= n_bytes) return;
  buffer = {};  // never two at a time
  buffer = Buffer(n_bytes, what...);
}

struct Lane {
  Stream stream;
  PinnedBuffer in, out;
  DeviceBuffer arrived, operand, product;  // rows as they come, as the kernel wants them, and the result
  uint32_t begin = 0, n_rows = 0;          // that are under way; n_rows 0: none

  float* make_room(uint64_t n_in, uint64_t n_operand, uint64_t n_out) {
    stream.wait();
    grow(in, n_in * sizeof(float));
    grow(arrived, n_in * sizeof(float), "rows of calibration");
    grow(operand, n_operand * sizeof(float), "rows of calibration");
    grow(product, n_out * sizeof(float), "rows of calibration");
    grow(out, n_out * sizeof(float));
    return in.as<float>();
  }
  Launch how() const { return {stream.handle(), false}; }
};

class GpuProducts final : public DeviceProducts {
 public:
  GpuProducts(const DeviceInfo& device, uint32_t n_threads, uint64_t chunk_bytes)
      : device_(device), n_threads_(n_threads), chunk_bytes_(chunk_bytes) {
    use_device(device_.idx);
    lanes_.resize(kLanes);
  }

  std::string name() const override { return device_.label(); }

  std::shared_ptr<const DeviceMatrix> upload(const float* w, uint32_t m, uint32_t k) override {
    start();
    auto matrix = std::make_shared<Transposed>(m, k);
    const uint32_t chunk = chunk_rows(k, kFloatTile, m);
    for (uint32_t begin = 0, i = 0; begin < m; begin += chunk, ++i) {
      Lane& lane = lanes_[i % kLanes];
      const uint32_t n = std::min(chunk, m - begin);
      fill(lane.make_room(uint64_t{n} * k, 0, 0), w + size_t{begin} * k, nullptr, n, k);
      lane.stream.copy_to_device(lane.arrived.data(), lane.in.data(), uint64_t{n} * k * sizeof(float));
      launch_lay_out({lane.arrived.as<float>(), matrix->values.as<float>() + begin, n, k, whole_tiles(k),
                      whole_tiles(n), whole_tiles(m), true},
                     lane.how());
    }
    for (const Lane& lane : lanes_) lane.stream.wait();
    return matrix;
  }

  void multiply_transposed(const float* x, const float* minus, uint32_t n, const ProductMatrix& w,
                           uint32_t multiple, const TakeRows& take) override {
    const std::shared_ptr<const DeviceMatrix> matrix =
        w.on_device ? w.on_device : upload(w.values, w.n_rows, w.n_cols);
    start();
    const Transposed& t = static_cast<const Transposed&>(*matrix);
    const uint32_t k_tiles = whole_tiles(t.k), m_tiles = whole_tiles(t.m),
                   chunk = chunk_rows(std::max(t.k, m_tiles), multiple, n);
    const auto finish = [&](Lane& lane) {
      if (lane.n_rows == 0) return;
      lane.stream.wait();
      float* const y = lane.out.as<float>();
      for (uint32_t r = 1; t.m < m_tiles && r < lane.n_rows; ++r)
        std::memmove(y + size_t{r} * t.m, y + size_t{r} * m_tiles, t.m * sizeof(float));
      take(lane.begin, lane.n_rows, y);
      lane.n_rows = 0;
    };
    uint32_t i = 0;
    for (uint32_t begin = 0; begin < n; begin += chunk, ++i) {
      Lane& lane = lanes_[i % kLanes];
      finish(lane);
      const uint32_t n_here = std::min(chunk, n - begin), n_tiles = whole_tiles(n_here);
      const uint64_t n_in = uint64_t{n_here} * t.k;
      fill(lane.make_room(n_in, uint64_t{k_tiles} * n_tiles, uint64_t{n_tiles} * m_tiles),
           x + size_t{begin} * t.k, minus ? minus + size_t{begin} * t.k : nullptr, n_here, t.k);
      lane.stream.copy_to_device(lane.arrived.data(), lane.in.data(), n_in * sizeof(float));
      launch_lay_out(
          {lane.arrived.as<float>(), lane.operand.as<float>(), n_here, t.k, k_tiles, n_tiles, n_tiles, true},
          lane.how());
      launch_gemm_float({lane.operand.as<float>(), t.values.as<float>(), lane.product.as<float>(), k_tiles,
                         n_tiles, m_tiles, false, false},
                        lane.how());
      lane.stream.copy_to_host(lane.out.data(), lane.product.data(),
                               uint64_t{n_here} * m_tiles * sizeof(float));
      lane.begin = begin;
      lane.n_rows = n_here;
    }
    for (uint32_t l = 0; l < kLanes; ++l) finish(lanes_[(i + l) % kLanes]);  // the oldest first
  }

  void mean_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t k, uint32_t m,
                     double scale, float* h) override {
    start();
    const bool is_symmetric = x == y && !minus && k == m;  // then what lies above the diagonal is mirrored
    const uint32_t k_tiles = whole_tiles(k), m_tiles = whole_tiles(m), n_in = is_symmetric ? k : k + m,
                   chunk = chunk_rows(n_in, kPassTokens, n);
    const DeviceBuffer sum(padded_bytes(k, m), "second moments of calibration");
    for (uint32_t begin = 0, i = 0; begin < n; begin += chunk, ++i) {
      Lane& lane = lanes_[i % kLanes];
      const uint32_t n_here = std::min(chunk, n - begin),
                     depth = static_cast<uint32_t>(up_to(n_here, kFloatDepth)),
                     depth_laid = static_cast<uint32_t>(up_to(n_here, 32));  // whole tiles of lay_out
      const uint64_t of_x = uint64_t{n_here} * k, of_a = uint64_t{depth_laid} * k_tiles;
      float* const in = lane.make_room(uint64_t{n_here} * n_in,
                                       of_a + (is_symmetric ? 0 : uint64_t{depth_laid} * m_tiles), 0);
      fill(in, x + size_t{begin} * k, minus ? minus + size_t{begin} * k : nullptr, n_here, k);
      if (!is_symmetric) fill(in + of_x, y + size_t{begin} * m, nullptr, n_here, m);
      lane.stream.copy_to_device(lane.arrived.data(), in, uint64_t{n_here} * n_in * sizeof(float));
      const float* const rows = lane.arrived.as<float>();
      float* const a = lane.operand.as<float>();
      float* const b = is_symmetric ? a : a + of_a;
      launch_lay_out({rows, a, n_here, k, depth_laid, k_tiles, k_tiles, false}, lane.how());
      if (!is_symmetric)
        launch_lay_out({rows + of_x, b, n_here, m, depth_laid, m_tiles, m_tiles, false}, lane.how());
      // Chunks are added in order: the sum belongs to the lane before until that is done. These rows are on their way by then.
      if (i > 0) lanes_[(i - 1) % kLanes].stream.wait();
      launch_gemm_float({a, b, sum.as<float>(), depth, k_tiles, m_tiles, i > 0, is_symmetric}, lane.how());
    }
    for (const Lane& lane : lanes_) lane.stream.wait();
    const double factor = scale / n;
    download(sum, k, m, [&](uint32_t row, const float* from) {
      for (uint32_t c = 0; c < m; ++c) h[size_t{row} * m + c] = static_cast<float>(double{from[c]} * factor);
    });
    if (is_symmetric) mirror(h, k, k, n_threads_);
  }

 private:
  // Lists of devices change the current one; and a call that threw may have left rows under way.
  void start() {
    use_device(device_.idx);
    for (Lane& lane : lanes_) {
      lane.stream.wait();
      lane.n_rows = 0;
    }
  }

  // Rows of a chunk, n_floats each on the wider side: a multiple of `multiple`, no more than there are.
  uint32_t chunk_rows(uint32_t n_floats, uint32_t multiple, uint32_t n_rows) const {
    const uint64_t fits = chunk_bytes_ / (sizeof(float) * uint64_t{n_floats});
    return static_cast<uint32_t>(
        std::min(std::max<uint64_t>(fits / multiple, 1) * multiple, up_to(std::max(n_rows, 1u), multiple)));
  }

  // to = x - minus, [n_rows, n_cols], on all threads: one alone is slower than the bus.
  void fill(float* to, const float* x, const float* minus, uint32_t n_rows, uint32_t n_cols) const {
    parallel_for((n_rows + kRowsPerTask - 1) / kRowsPerTask, n_threads_, [&](uint32_t task) {
      const size_t begin = size_t{task} * kRowsPerTask * n_cols,
                   end = std::min(n_rows, (task + 1) * kRowsPerTask) * size_t{n_cols};
      if (!minus) std::copy(x + begin, x + end, to + begin);
      for (size_t i = begin; minus && i < end; ++i) to[i] = x[i] - minus[i];
    });
  }

  // Calls take(row, values) for every row of a padded [k, m] on the device, from all threads; one lane is copied while another is read.
  template <typename Take>
  void download(const DeviceBuffer& from, uint32_t k, uint32_t m, Take&& take) {
    const uint32_t stride = whole_tiles(m), chunk = chunk_rows(stride, 1, k);
    const auto request = [&](uint32_t begin, Lane& lane) {
      const uint64_t n_here = std::min(chunk, k - begin);
      grow(lane.out, n_here * stride * sizeof(float));
      lane.stream.copy_to_host(lane.out.data(), from.as<float>() + uint64_t{begin} * stride,
                               n_here * stride * sizeof(float));
    };
    request(0, lanes_[0]);
    for (uint32_t begin = 0, i = 0; begin < k; begin += chunk, ++i) {
      const Lane& lane = lanes_[i % kLanes];
      if (k - begin > chunk) request(begin + chunk, lanes_[(i + 1) % kLanes]);
      lane.stream.wait();
      parallel_for(std::min(chunk, k - begin), n_threads_,
                   [&](uint32_t r) { take(begin + r, lane.out.as<float>() + size_t{r} * stride); });
    }
  }

  const DeviceInfo device_;
  const uint32_t n_threads_;
  const uint64_t chunk_bytes_;
  std::vector<Lane> lanes_;
};

}  // namespace

// While it measures, calibration keeps a layer's matrices on the device, and has products of up to 2048 tokens with each other; later
// the sum of second moments, or one matrix; at the end the two heads.
uint64_t products_bytes(const ModelSpec& spec) {
  const uint32_t gate_up_rows = 2 * spec.ffn_padded(), qkv_rows = spec.q_rows() + 2 * spec.kv_rows();
  const uint64_t attention = padded_bytes(qkv_rows, spec.dim) + padded_bytes(spec.dim, spec.q_rows()),
                 ffn = padded_bytes(gate_up_rows, spec.dim) + padded_bytes(spec.dim, spec.ffn_dim);
  const uint32_t widest_input = std::max({spec.dim, spec.q_rows(), spec.ffn_dim});
  const uint64_t whole =
      std::max({attention + ffn + padded_bytes(2048, widest_input), padded_bytes(widest_input, widest_input),
                2 * padded_bytes(spec.vocab_size, spec.dim)});
  const uint64_t widest = std::max({widest_input, qkv_rows, gate_up_rows});
  // Three buffers a lane, each a chunk or 256 rows; padding and what the driver needs may take a third more.
  return whole + kLanes * 3 * std::max(kChunkBytes, 256 * sizeof(float) * widest) * 4 / 3;
}

std::shared_ptr<DeviceProducts> make_products(const DeviceInfo& device, uint32_t n_threads,
                                              uint64_t chunk_bytes) {
  return std::make_shared<GpuProducts>(device, n_threads, chunk_bytes);
}

}  // namespace pith::gpu
