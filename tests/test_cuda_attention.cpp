// Attention of the CUDA backend, one token and many, against a reference in doubles.
//
// Built twice: linked with the emulated device (bodies as C++, under ASan and UBSan in the sanitizer build),
// and into gpu_kernels with the real one (tests/gpu_check.sh). Outputs are poisoned before every launch.
#include <catch2/catch.hpp>

#include "cuda_testing.h"

namespace pith::cuda {
namespace {

struct AttentionCase {
  uint32_t n_heads, n_kv_heads, head_dim, position, window;
  bool i8;
  uint32_t n_splits;
  float softcap;
  bool norm;
  bool sinks = false;
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
                                        const std::vector<float>& q, const float* sink, uint32_t head,
                                        uint32_t position) {
  const uint32_t kv_head = head / (a.n_heads / a.n_kv_heads);
  const uint32_t begin = a.window != 0 && position + 1 > a.window ? position + 1 - a.window : 0;
  std::vector<double> weights, out(a.head_dim);
  double sum = 0;
  if (sink != nullptr) sum += std::exp(double{*sink});
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
        norm(random_vector(c.head_dim)),
        sinks(random_vector(c.n_heads)) {
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
    device_sinks = to_device(sinks);
    device_position = to_device(std::vector<int32_t>{static_cast<int32_t>(c.position)});
    layer.q_norm = layer.k_norm = c.norm ? device_norm.as<float>() : nullptr;
    layer.sinks = c.sinks ? device_sinks.as<float>() : nullptr;
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
        const std::vector<double> ref = reference_attention(
            layer, cache, ready(t, head, c.norm), c.sinks ? &sinks[head] : nullptr, head, c.position + t);
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
  std::vector<float> qkv, norm, sinks, cos, sin;
  DeviceBuffer device_k, device_v, device_k_scale, device_v_scale, device_cos, device_sin, device_norm,
      device_sinks, device_position;
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

TEST_CASE("attention_decode equals the reference for groups, head sizes, windows and both caches") {
  for (const bool i8 : {false, true}) {
    check_attention_decode({1, 1, 8, 0, 0, i8, 1, 0, false, true});
    check_attention_decode({4, 4, 64, 37, 0, i8, 1, 0, true});
    check_attention_decode({4, 2, 128, 70, 0, i8, 3, 0, false});
    check_attention_decode({6, 2, 48, 100, 33, i8, 4, 0, true, true});
    check_attention_decode({10, 2, 32, 9, 4, i8, 8, 20, false});
    check_attention_decode({2, 1, 256, 20, 0, i8, 2, 5, false});
  }
}

TEST_CASE("attention_prefill equals the reference for groups, head sizes, windows and both caches") {
  for (const bool i8 : {false, true}) {
    check_attention_prefill({2, 1, 64, 0, 0, i8, 0, 0, true}, 70);
    check_attention_prefill({2, 2, 128, 30, 0, i8, 0, 0, false}, 3);
    check_attention_prefill({1, 1, 48, 150, 40, i8, 0, 10, false, true}, 65);
    check_attention_prefill({4, 2, 8, 5, 0, i8, 0, 0, false}, 17);
    check_attention_prefill({2, 1, 200, 40, 50, i8, 0, 0, false}, 35);
  }
}

}  // namespace pith::cuda
