// The CUDA kernels through their launchers, against references written here from the formulas of format/q24.h.
//
// Built twice: test_cuda_kernels links the emulated device (bodies as C++, under ASan and UBSan in the sanitizer build),
// gpu_kernels the real one (tests/gpu_check.sh). Outputs are poisoned before every launch.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "format/float16.h"
#include "format/q24.h"

namespace pith::cuda {
namespace {

std::mt19937 rng(7);
float normal() {
  return std::normal_distribution<float>()(rng);
}
uint32_t below(uint32_t n) {
  return std::uniform_int_distribution<uint32_t>(0, n - 1)(rng);
}

// ---- Device memory of exactly the size asked for, so that the sanitizers see the first byte too many ----

const Stream& stream() {
  static const Stream one;
  return one;
}
Launch how() {
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
DeviceBuffer poisoned(size_t n) {
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

Matrix random_matrix(const q24::Shape& shape) {
  Matrix m;
  m.layout = q24::make_layout(shape);
  q24::Unpacked& u = m.unpacked;
  u.shape = shape;
  const uint32_t padded = m.layout.padded_cols, groups = padded / shape.group;
  u.perm.assign(padded, 0xffff);
  for (uint32_t c = 0; c < shape.n_cols; ++c) u.perm[c] = static_cast<uint16_t>(c);
  std::shuffle(u.perm.begin(), u.perm.begin() + shape.n_cols, rng);
  for (uint32_t i = 0; i < m.layout.n_lines; ++i)
    u.col_scale.push_back(float_to_f16(0.5f + 0.01f * static_cast<float>(below(100))));
  const uint32_t first_fine = padded - shape.n_fine;
  for (uint32_t r = 0; r < shape.n_rows; ++r) {
    u.d.push_back(float_to_f16(0.01f + 0.001f * static_cast<float>(below(20))));
    u.dmin.push_back(float_to_f16(0.02f + 0.001f * static_cast<float>(below(20))));
    for (uint32_t c = 0; c < padded; ++c)
      u.codes.push_back(static_cast<uint8_t>(below(c < first_fine ? 4 : 16)));
    for (uint32_t g = 0; g < groups; ++g) {
      u.s.push_back(static_cast<uint8_t>(below(16)));
      u.m.push_back(static_cast<uint8_t>(below(16)));
    }
    for (uint32_t i = 0; i < shape.n_slots; ++i) {
      u.outlier_col.push_back(static_cast<uint16_t>(below(std::min(shape.n_cols, first_fine))));
      u.outlier_delta.push_back(float_to_f16(normal()));
    }
  }
  m.packed.resize(m.layout.size_bytes);
  q24::pack(u, m.packed);
  m.bytes = to_device(m.packed, 1024);  // what must be readable after a tensor
  m.weights = q24_weights(m.layout, m.bytes.data());
  return m;
}

std::vector<float> random_vector(size_t n) {
  std::vector<float> v(n);
  for (float& x : v) x = normal();
  return v;
}

struct Reference {
  std::vector<double> y, magnitude;  // and the sum of the terms' absolute values
};

// The formula of matvec_q24.cuh in storage columns, exact integers, double sums.
Reference reference_matvec(const Matrix& m, const std::vector<float>& x) {
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

// Additions in any order and two roundings a term: at most (terms + 2) ulps of the sum of magnitudes.
double bound(const Matrix& m, const Reference& ref, size_t r) {
  return (m.layout.padded_cols / 128 + m.unpacked.shape.n_slots + 16) * 0x1p-23 * ref.magnitude[r] + 1e-30;
}

void check_matvec(const q24::Shape& shape, Pipeline pipeline, const MatvecShape& cut) {
  INFO("rows " << shape.n_rows << " cols " << shape.n_cols << " group " << shape.group << " fine "
               << shape.n_fine << " slots " << shape.n_slots << " pipeline " << static_cast<int>(pipeline)
               << " blocks " << cut.n_blocks << " warps " << cut.n_warps << " stages " << cut.n_stages);
  const Matrix m = random_matrix(shape);
  const std::vector<float> x = random_vector(shape.n_cols);
  const DeviceBuffer input = to_device(x), output = poisoned(shape.n_rows);
  MatvecQ24 args{m.weights, {}, {}, cut};
  args.input.x = input.as<float>();
  args.output.out = output.as<float>();
  launch_matvec_q24(pipeline, args, how());
  const std::vector<float> y = to_host<float>(output, shape.n_rows);
  const Reference ref = reference_matvec(m, x);
  for (uint32_t r = 0; r < shape.n_rows; ++r) {
    INFO("row " << r);
    REQUIRE(std::fabs(y[r] - ref.y[r]) <= bound(m, ref, r));
  }
}

// Those that the device has.
std::vector<Pipeline> pipelines() {
  const int sm = list_devices().devices.front().sm();
  std::vector<Pipeline> found = {Pipeline::kRegisters};
  if (sm >= 80) found.push_back(Pipeline::kAsyncCopy);
  if (sm >= 90) found.push_back(Pipeline::kBulkCopy);
  return found;
}

}  // namespace

TEST_CASE("matvec_q24 equals the reference for every fraction of 4-bit columns") {
  for (const Pipeline pipeline : pipelines())
    for (const uint32_t group : {16u, 32u})
      for (const uint32_t eighths : {0u, 1u, 2u, 3u, 5u, 8u})
        check_matvec({64, 1024, group, 1024 / 8 * eighths / group * group, eighths == 8 ? 0u : 3u}, pipeline,
                     {1, 4, 2});
}

TEST_CASE("matvec_q24 equals the reference at awkward sizes") {
  for (const Pipeline pipeline : pipelines())
    for (const uint32_t n_cols : {1u, 63u, 64u, 65u, 127u, 192u, 511u, 513u, 1100u}) {
      const uint32_t padded = (n_cols + 63) / 64 * 64;
      check_matvec({n_cols % 2 ? 33u : 31u, n_cols, 16, 48, 1}, pipeline, {2, 2, 2});
      check_matvec({1, n_cols, 32, padded / 2 / 32 * 32, 0}, pipeline, {1, 4, 1});
    }
}

TEST_CASE("matvec_q24 does not depend on how it is cut up, beyond rounding") {
  for (const Pipeline pipeline : pipelines())
    for (const MatvecShape cut : {MatvecShape{1, 1, 1}, MatvecShape{1, 8, 3}, MatvecShape{3, 4, 4},
                                  MatvecShape{2, 8, 2}, MatvecShape{7, 2, 3}, MatvecShape{1, 12, 2}})
      check_matvec({300, 1344, 16, 272, 21}, pipeline, cut);
}

TEST_CASE("matvec_q24 adds to the residual, gates interleaved rows and finds the largest logit") {
  const Matrix m = random_matrix({96, 320, 16, 64, 2});
  const std::vector<float> x = random_vector(320), norm = random_vector(320), bias = random_vector(96);
  double squares = 0;
  for (const float v : x) squares += double{v} * v;
  const float inverse = static_cast<float>(1 / std::sqrt(squares / 320 + 1e-5));
  std::vector<float> normed(320);
  for (uint32_t i = 0; i < 320; ++i) normed[i] = x[i] * inverse * norm[i];
  const Reference ref = reference_matvec(m, normed);
  // The norm's own rounding may turn a code by one step: a step of the block's scale on one column.
  const auto close = [&](double found, double expected, double scale) {
    return std::fabs(found - expected) <= 2e-2 * scale;
  };
  double largest = 0;
  for (const double y : ref.y) largest = std::max(largest, std::fabs(y));

  const DeviceBuffer device_x = to_device(x), device_norm = to_device(norm), device_bias = to_device(bias);
  MatvecQ24 args{m.weights, {device_x.as<float>(), device_norm.as<float>(), 1e-5f}, {}, {2, 4, 2}};
  args.output.bias = device_bias.as<float>();
  SECTION("kAdd") {
    const DeviceBuffer out = to_device(std::vector<float>(96, 1.0f));
    args.output.epilogue = Epilogue::kAdd;
    args.output.scale = 0.5f;
    args.output.out = out.as<float>();
    launch_matvec_q24(pipelines().back(), args, how());
    const std::vector<float> found = to_host<float>(out, 96);
    for (uint32_t r = 0; r < 96; ++r) REQUIRE(close(found[r], 1 + 0.5 * (ref.y[r] + bias[r]), largest));
  }
  SECTION("kGlu") {
    const DeviceBuffer out = poisoned(48);
    args.output.epilogue = Epilogue::kGlu;
    args.output.out = out.as<float>();
    launch_matvec_q24(Pipeline::kRegisters, args, how());
    const std::vector<float> found = to_host<float>(out, 48);
    for (uint32_t i = 0; i < 48; ++i) {
      const uint32_t r = i / 16 * 32 + i % 16;
      const double gate = ref.y[r] + bias[r], up = ref.y[r + 16] + bias[r + 16];
      REQUIRE(close(found[i], gate / (1 + std::exp(-gate)) * up, largest * largest));
    }
  }
  SECTION("kLogits") {
    const DeviceBuffer out = poisoned(96), block_best = poisoned(4), best = poisoned(1);
    const DeviceBuffer ticket = to_device(std::vector<uint32_t>{0});
    args.output.epilogue = Epilogue::kLogits;
    args.output.scale = 2;
    args.output.softcap = 30;
    args.output.out = out.as<float>();
    args.output.best = best.as<int32_t>();
    args.output.block_best = block_best.as<float>();
    args.output.ticket = ticket.as<uint32_t>();
    launch_matvec_q24(pipelines().front(), args, how());
    const std::vector<float> found = to_host<float>(out, 96);
    for (uint32_t r = 0; r < 96; ++r)
      REQUIRE(close(found[r], 30 * std::tanh((ref.y[r] + bias[r]) * 2 / 30), 2 * largest));
    REQUIRE(to_host<int32_t>(best, 1)[0] == std::max_element(found.begin(), found.end()) - found.begin());
    REQUIRE(to_host<uint32_t>(ticket, 1)[0] == 0);
  }
}

namespace {

struct AttentionCase {
  uint32_t n_heads, n_kv_heads, head_dim, position, window;
  bool i8;
  uint32_t n_splits;
  float softcap;
  bool norm;
};

std::vector<float> rotated(std::vector<float> x, const std::vector<float>* norm,
                           const std::vector<float>& cos, const std::vector<float>& sin, uint32_t position,
                           uint32_t n_rotated) {
  if (norm != nullptr) {
    double squares = 0;
    for (const float v : x) squares += double{v} * v;
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(x.size()) + 1e-6);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(x[i] * inverse * (*norm)[i]);
  }
  const std::vector<float> in = x;
  const uint32_t half = n_rotated / 2;
  for (uint32_t i = 0; i < half; ++i) {
    const float c = cos[position * half + i], s = sin[position * half + i];
    x[i] = in[i] * c - in[i + half] * s;
    x[i + half] = in[i + half] * c + in[i] * s;
  }
  return x;
}

// A cache with known content, and its values as the kernels see them.
struct Cache {
  uint32_t n_kv_heads, n_ctx, head_dim;
  bool i8;
  std::vector<uint8_t> k, v;  // on the host
  std::vector<float> k_scale, v_scale;

  Cache(uint32_t heads, uint32_t ctx, uint32_t dim, bool is_i8)
      : n_kv_heads(heads),
        n_ctx(ctx),
        head_dim(dim),
        i8(is_i8),
        k(size_t{heads} * ctx * dim * (is_i8 ? 1 : 2)),
        v(k.size()),
        k_scale(heads * ctx),
        v_scale(heads * ctx) {}

  void set(std::vector<uint8_t>& bytes, std::vector<float>& scales, uint32_t head, uint32_t position,
           const float* x) {
    const size_t row = size_t{head} * n_ctx + position;
    float largest = 0;
    for (uint32_t d = 0; d < head_dim; ++d) largest = std::max(largest, std::fabs(x[d]));
    scales[row] = largest / 127.0f;
    for (uint32_t d = 0; d < head_dim; ++d) {
      const size_t at = row * head_dim + d;
      if (i8) {
        bytes[at] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(x[d] * (127.0f / largest))));
      } else {
        const uint16_t h = float_to_f16(x[d]);
        std::memcpy(bytes.data() + at * 2, &h, 2);
      }
    }
  }
  void download(const DeviceBuffer& device_k, const DeviceBuffer& device_v,
                const DeviceBuffer& device_k_scale, const DeviceBuffer& device_v_scale) {
    k = to_host<uint8_t>(device_k, k.size());
    v = to_host<uint8_t>(device_v, v.size());
    k_scale = to_host<float>(device_k_scale, k_scale.size());
    v_scale = to_host<float>(device_v_scale, v_scale.size());
  }
  double get(const std::vector<uint8_t>& bytes, const std::vector<float>& scales, uint32_t head,
             uint32_t position, uint32_t d) const {
    const size_t row = size_t{head} * n_ctx + position, at = row * head_dim + d;
    if (i8) return double{scales[row]} * static_cast<int8_t>(bytes[at]);
    uint16_t h;
    std::memcpy(&h, bytes.data() + at * 2, 2);
    return f16_to_float(h);
  }
};

std::vector<double> reference_attention(const AttentionLayer& a, const Cache& cache,
                                        const std::vector<float>& q, uint32_t head, uint32_t position) {
  const uint32_t kv_head = head / (a.n_heads / a.n_kv_heads);
  const uint32_t begin = a.window != 0 && position + 1 > a.window ? position + 1 - a.window : 0;
  std::vector<double> weights, out(a.head_dim);
  double sum = 0;
  for (uint32_t p = begin; p <= position; ++p) {
    double dot = 0;
    for (uint32_t d = 0; d < a.head_dim; ++d) dot += q[d] * cache.get(cache.k, cache.k_scale, kv_head, p, d);
    dot *= a.scale;
    if (a.softcap > 0) dot = a.softcap * std::tanh(dot / a.softcap);
    weights.push_back(std::exp(dot));
    sum += weights.back();
  }
  for (uint32_t d = 0; d < a.head_dim; ++d) {
    for (uint32_t p = begin; p <= position; ++p)
      out[d] += weights[p - begin] / sum * cache.get(cache.v, cache.v_scale, kv_head, p, d);
  }
  return out;
}

// A cache with a past, tables of the rotation, random q, k and v for n_tokens at c.position; what the kernels must make of them.
struct AttentionSetup {
  AttentionSetup(const AttentionCase& attention_case, uint32_t tokens)
      : c(attention_case),
        n_tokens(tokens),
        n_ctx(c.position + tokens + 2),
        n_rotated(c.head_dim / 4 * 2),
        cache(c.n_kv_heads, n_ctx, c.head_dim, c.i8),
        row_floats((c.n_heads + 2 * c.n_kv_heads) * c.head_dim),
        qkv(random_vector(size_t{tokens} * row_floats)),
        norm(random_vector(c.head_dim)) {
    const uint32_t half = n_rotated / 2;
    for (uint32_t p = 0; p < n_ctx; ++p)
      for (uint32_t i = 0; i < half; ++i) {
        cos.push_back(static_cast<float>(std::cos(p * std::pow(0.7, i))));
        sin.push_back(static_cast<float>(std::sin(p * std::pow(0.7, i))));
      }
    for (uint32_t head = 0; head < c.n_kv_heads; ++head)
      for (uint32_t p = 0; p < c.position; ++p) {
        cache.set(cache.k, cache.k_scale, head, p, random_vector(c.head_dim).data());
        cache.set(cache.v, cache.v_scale, head, p, random_vector(c.head_dim).data());
      }
    device_k = to_device(cache.k), device_v = to_device(cache.v);
    device_k_scale = to_device(cache.k_scale), device_v_scale = to_device(cache.v_scale);
    device_cos = to_device(cos), device_sin = to_device(sin), device_norm = to_device(norm);
    device_position = to_device(std::vector<int32_t>{static_cast<int32_t>(c.position)});
    layer.q_norm = layer.k_norm = c.norm ? device_norm.as<float>() : nullptr;
    layer.norm_eps = 1e-6f;
    layer.rope = {device_cos.as<float>(), device_sin.as<float>(), n_rotated};
    layer.k = device_k.data();
    layer.v = device_v.data();
    layer.k_scale = c.i8 ? device_k_scale.as<float>() : nullptr;
    layer.v_scale = c.i8 ? device_v_scale.as<float>() : nullptr;
    layer.n_heads = c.n_heads;
    layer.n_kv_heads = c.n_kv_heads;
    layer.head_dim = c.head_dim;
    layer.n_ctx = n_ctx;
    layer.window = c.window;
    layer.scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
    layer.softcap = c.softcap;
    layer.position = device_position.as<int32_t>();
  }

  std::vector<float> ready(uint32_t token, uint32_t row, bool normed) const {
    const float* const from = qkv.data() + size_t{token} * row_floats + row * c.head_dim;
    return rotated({from, from + c.head_dim}, normed ? &norm : nullptr, cos, sin, c.position + token,
                   n_rotated);
  }

  // After the launches, with the cache back on the host: what was appended, and out [n_tokens, n_heads, head_dim].
  void check(const std::vector<float>& out, double margin) const {
    // Half a step of a row's int8 scale, or of fp16, at its largest element; and the float norm's own error.
    const auto rounding = [&](const float* row) {
      double largest = 0;
      for (uint32_t d = 0; d < c.head_dim; ++d) largest = std::max(largest, std::fabs(double{row[d]}));
      return largest / (c.i8 ? 250 : 2000) + 1e-5;
    };
    for (uint32_t t = 0; t < n_tokens; ++t)
      for (uint32_t head = 0; head < c.n_kv_heads; ++head) {
        const std::vector<float> k = ready(t, c.n_heads + head, c.norm);
        const float* const v =
            qkv.data() + size_t{t} * row_floats + (c.n_heads + c.n_kv_heads + head) * c.head_dim;
        const double k_margin = rounding(k.data()), v_margin = rounding(v);
        for (uint32_t d = 0; d < c.head_dim; ++d) {
          REQUIRE(cache.get(cache.k, cache.k_scale, head, c.position + t, d) ==
                  Approx(k[d]).margin(k_margin));
          REQUIRE(cache.get(cache.v, cache.v_scale, head, c.position + t, d) ==
                  Approx(v[d]).margin(v_margin));
        }
      }
    for (uint32_t t = 0; t < n_tokens; ++t)
      for (uint32_t head = 0; head < c.n_heads; ++head) {
        const std::vector<double> ref =
            reference_attention(layer, cache, ready(t, head, c.norm), head, c.position + t);
        for (uint32_t d = 0; d < c.head_dim; ++d) {
          INFO("token " << t << " head " << head << " d " << d);
          REQUIRE(out[(size_t{t} * c.n_heads + head) * c.head_dim + d] == Approx(ref[d]).margin(margin));
        }
      }
  }

  AttentionCase c;
  uint32_t n_tokens, n_ctx, n_rotated;
  Cache cache;
  uint32_t row_floats;
  std::vector<float> qkv, norm, cos, sin;
  DeviceBuffer device_k, device_v, device_k_scale, device_v_scale, device_cos, device_sin, device_norm,
      device_position;
  AttentionLayer layer{};
};

void check_attention_decode(const AttentionCase& c) {
  INFO("heads " << c.n_heads << "/" << c.n_kv_heads << " x " << c.head_dim << " position " << c.position
                << " window " << c.window << " i8 " << c.i8 << " splits " << c.n_splits);
  AttentionSetup setup(c, 1);
  const DeviceBuffer qkv = to_device(setup.qkv), out = poisoned(c.n_heads * c.head_dim),
                     parts = poisoned(c.n_heads * c.n_splits * (c.head_dim + 2)),
                     tickets = to_device(std::vector<uint32_t>(c.n_kv_heads));
  AttentionDecode a{};
  static_cast<AttentionLayer&>(a) = setup.layer;
  a.qkv = qkv.as<float>();
  a.out = out.as<float>();
  a.parts = parts.as<float>();
  a.tickets = tickets.as<uint32_t>();
  launch_attention_decode(a, c.n_splits, how());
  setup.cache.download(setup.device_k, setup.device_v, setup.device_k_scale, setup.device_v_scale);
  setup.check(to_host<float>(out, c.n_heads * c.head_dim), 1e-4);
  for (const uint32_t t : to_host<uint32_t>(tickets, c.n_kv_heads)) REQUIRE(t == 0);
}

}  // namespace

TEST_CASE("attention_decode equals the reference for groups, head sizes, windows and both caches") {
  for (const bool i8 : {false, true}) {
    check_attention_decode({1, 1, 8, 0, 0, i8, 1, 0, false});
    check_attention_decode({4, 4, 64, 37, 0, i8, 1, 0, true});
    check_attention_decode({4, 2, 128, 70, 0, i8, 3, 0, false});
    check_attention_decode({6, 2, 48, 100, 33, i8, 4, 0, true});
    check_attention_decode({10, 2, 32, 9, 4, i8, 8, 20, false});
    check_attention_decode({2, 1, 256, 20, 0, i8, 2, 5, false});
  }
}

namespace {

void check_gemm(const q24::Shape& shape, uint32_t n_tokens) {
  INFO("rows " << shape.n_rows << " cols " << shape.n_cols << " group " << shape.group << " fine "
               << shape.n_fine << " slots " << shape.n_slots << " tokens " << n_tokens);
  const Matrix m = random_matrix(shape);
  const uint32_t n_padded = (n_tokens + kTokenTile - 1) / kTokenTile * kTokenTile;
  const uint32_t n_blocks = (m.layout.padded_cols + 127) / 128, stride = shape.n_cols + 3,
                 out_stride = shape.n_rows + 5;
  const std::vector<float> x = random_vector(n_tokens * stride);
  const DeviceBuffer input = to_device(x), out = poisoned(size_t{n_tokens} * out_stride);
  const DeviceBuffer a = poisoned(size_t{n_blocks} * n_padded * 32),
                     sums = poisoned(size_t{n_blocks} * n_padded * 4),
                     scale = poisoned(size_t{n_blocks} * n_padded),
                     columns = poisoned(size_t{m.layout.padded_cols} * n_padded);
  const QuantizedTokens tokens{a.data(),          sums.data(),
                               scale.as<float>(), shape.n_slots ? columns.as<float>() : nullptr,
                               n_tokens,          n_padded};
  launch_quantize_tokens({m.weights, {input.as<float>(), nullptr, 0}, stride, tokens}, how());
  GemmQ24 args{m.weights, tokens, {}, out_stride};
  args.output.out = out.as<float>();
  launch_gemm_q24(args, how());
  const std::vector<float> found = to_host<float>(out, n_tokens * out_stride);
  for (uint32_t t = 0; t < n_tokens; ++t) {
    const Reference ref =
        reference_matvec(m, {x.begin() + t * stride, x.begin() + t * stride + shape.n_cols});
    for (uint32_t r = 0; r < shape.n_rows; ++r) {
      INFO("token " << t << " row " << r);
      REQUIRE(std::fabs(found[t * out_stride + r] - ref.y[r]) <= bound(m, ref, r));
    }
    for (uint32_t r = shape.n_rows; r < out_stride; ++r) REQUIRE(std::isnan(found[t * out_stride + r]));
  }
}

void check_plain(PlainKind kind, uint32_t n_rows, uint32_t n_cols, uint32_t n_tokens, bool norm) {
  INFO("kind " << static_cast<int>(kind) << " rows " << n_rows << " cols " << n_cols << " tokens "
               << n_tokens);
  const uint32_t stride = (n_cols + 3) / 4 * 4, out_stride = n_rows + 1;
  const std::vector<float> w = random_vector(n_rows * n_cols), weights = random_vector(n_cols),
                           x = random_vector(n_tokens * stride);
  std::vector<uint16_t> halves;
  std::vector<double> exact;
  for (const float v : w) {
    halves.push_back(kind == PlainKind::kF16 ? float_to_f16(v) : float_to_bf16(v));
    exact.push_back(kind == PlainKind::kF32   ? v
                    : kind == PlainKind::kF16 ? f16_to_float(halves.back())
                                              : bf16_to_float(halves.back()));
  }
  const DeviceBuffer matrix = kind == PlainKind::kF32 ? to_device(w) : to_device(halves),
                     input = to_device(x), norm_weights = to_device(weights),
                     out = poisoned(n_tokens * out_stride);
  MatvecPlain args;
  args.w = {matrix.data(), n_rows, n_cols, kind};
  args.input = {input.as<float>(), norm ? norm_weights.as<float>() : nullptr, 1e-5f};
  args.output.out = out.as<float>();
  args.n_tokens = n_tokens;
  args.x_stride = stride;
  args.out_stride = out_stride;
  args.n_blocks = 2;
  launch_matvec_plain(args, how());
  const std::vector<float> found = to_host<float>(out, n_tokens * out_stride);
  for (uint32_t t = 0; t < n_tokens; ++t) {
    double squares = 0;
    for (uint32_t c = 0; c < n_cols; ++c) squares += double{x[t * stride + c]} * x[t * stride + c];
    const double scale = norm ? 1 / std::sqrt(squares / n_cols + 1e-5) : 1;
    for (uint32_t r = 0; r < n_rows; ++r) {
      double y = 0, magnitude = 0;
      for (uint32_t c = 0; c < n_cols; ++c) {
        const double term = exact[r * n_cols + c] * x[t * stride + c] * scale * (norm ? weights[c] : 1);
        y += term;
        magnitude += std::fabs(term);
      }
      REQUIRE(std::fabs(found[t * out_stride + r] - y) <= (n_cols / 32 + 20) * 0x1p-24 * magnitude);
    }
  }
}

// Rounding q, k and the weights to fp16 moves a result by about 2^-11 of the values, which are a few units large.
void check_attention_prefill(const AttentionCase& c, uint32_t n_tokens) {
  INFO("heads " << c.n_heads << "/" << c.n_kv_heads << " x " << c.head_dim << " position " << c.position
                << " tokens " << n_tokens << " window " << c.window << " i8 " << c.i8);
  AttentionSetup setup(c, n_tokens);
  const DeviceBuffer qkv = to_device(setup.qkv), out = poisoned(size_t{n_tokens} * c.n_heads * c.head_dim);
  AttentionPrefill a{};
  static_cast<AttentionLayer&>(a) = setup.layer;
  a.qkv = qkv.as<float>();
  a.out = out.as<float>();
  a.n_tokens = n_tokens;
  launch_append_tokens(a, how());
  launch_attention_prefill(a, how());
  setup.cache.download(setup.device_k, setup.device_v, setup.device_k_scale, setup.device_v_scale);
  setup.check(to_host<float>(out, size_t{n_tokens} * c.n_heads * c.head_dim), 2e-2);
}

}  // namespace

TEST_CASE("gemm_q24 equals the reference for every fraction of 4-bit columns and awkward sizes") {
  check_gemm({32, 128, 16, 0, 0}, 1);
  check_gemm({70, 320, 16, 80, 3}, 5);
  check_gemm({33, 192, 32, 96, 2}, 9);
  check_gemm({130, 1100, 16, 304, 1}, 66);
  check_gemm({40, 256, 32, 256, 0}, 130);
}

TEST_CASE("matvec_plain equals the reference in every type, vector and scalar") {
  for (const PlainKind kind : {PlainKind::kF32, PlainKind::kF16, PlainKind::kBF16})
    for (const uint32_t n_cols : {8u, 172u, 1160u}) {
      check_plain(kind, 17, n_cols, 1, true);
      check_plain(kind, 64, n_cols, 6, false);
    }
}

TEST_CASE("attention_prefill equals the reference for groups, head sizes, windows and both caches") {
  for (const bool i8 : {false, true}) {
    check_attention_prefill({2, 1, 64, 0, 0, i8, 0, 0, true}, 70);
    check_attention_prefill({2, 2, 128, 30, 0, i8, 0, 0, false}, 3);
    check_attention_prefill({1, 1, 48, 150, 40, i8, 0, 10, false}, 65);
    check_attention_prefill({4, 2, 8, 5, 0, i8, 0, 0, false}, 17);
  }
}

TEST_CASE("embed equals the scalar decode of a row") {
  const Matrix m = random_matrix({50, 300, 16, 96, 2});
  const std::vector<int32_t> ids = {49, 0, 31, 32};
  const DeviceBuffer device_ids = to_device(ids), x = poisoned(ids.size() * 300);
  Embed args{};
  args.q24 = m.weights;
  args.ids = device_ids.as<int32_t>();
  args.x = x.as<float>();
  args.scale = 1;
  args.n_tokens = static_cast<uint32_t>(ids.size());
  launch_embed(args, how());
  const std::vector<float> found = to_host<float>(x, ids.size() * 300);
  std::vector<uint8_t> aligned(m.packed.size() + 128);
  uint8_t* const packed = aligned.data() + (128 - reinterpret_cast<uintptr_t>(aligned.data()) % 128);
  std::copy(m.packed.begin(), m.packed.end(), packed);
  const q24::View view = q24::make_view(m.unpacked.shape, packed);
  for (size_t t = 0; t < ids.size(); ++t) {
    std::vector<float> row(300);
    q24::dequantize_row(view, static_cast<uint32_t>(ids[t]), row.data());
    for (uint32_t c = 0; c < 300; ++c)
      REQUIRE(found[t * 300 + c] == Approx(row[c]).epsilon(1e-6).margin(1e-6));
  }
}

TEST_CASE("norm_tokens normalizes, scales and adds") {
  const std::vector<float> x = random_vector(2 * 100), norm = random_vector(100);
  const DeviceBuffer input = to_device(x), weights = to_device(norm),
                     out = to_device(std::vector<float>(200, 2.0f));
  launch_norm_tokens({input.as<float>(), weights.as<float>(), 1e-5f, 0.5f, out.as<float>(), true, 100, 2},
                     how());
  const std::vector<float> found = to_host<float>(out, 200);
  for (uint32_t t = 0; t < 2; ++t) {
    double squares = 0;
    for (uint32_t c = 0; c < 100; ++c) squares += double{x[t * 100 + c]} * x[t * 100 + c];
    for (uint32_t c = 0; c < 100; ++c)
      REQUIRE(found[t * 100 + c] ==
              Approx(2 + 0.5 * x[t * 100 + c] / std::sqrt(squares / 100 + 1e-5) * norm[c]).margin(1e-5));
  }
}

}  // namespace pith::cuda
