// The CUDA kernels' bodies, run as C++ by cuda/simt_emulated.h (under ASan and UBSan in the sanitizer build), against
// references written here from the formulas of format/q24.h. Races and speed are for tests/gpu_check.sh.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cuda/attention_decode.cuh"
#include "cuda/attention_prefill.cuh"
#include "cuda/gemm_q24.cuh"
#include "cuda/matvec_plain.cuh"
#include "cuda/matvec_q24.cuh"
#include "cuda/token_ops.cuh"
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

// 128-byte aligned and exactly as long as asked for, so that ASan sees the first byte too many.
struct Aligned {
  explicit Aligned(size_t n) : size(n) {
    if (posix_memalign(reinterpret_cast<void**>(&data), 128, n) != 0) throw std::bad_alloc();
    std::memset(data, 0, n);
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  uint8_t* data = nullptr;
  size_t size;
};

struct Matrix {
  q24::Unpacked unpacked;
  q24::Layout layout;
  std::unique_ptr<Aligned> bytes;
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
  m.bytes = std::make_unique<Aligned>(m.layout.size_bytes + 1024);  // what may be read after a tensor
  std::memset(m.bytes->data + m.layout.size_bytes, 0xa5, 1024);
  q24::pack(u, {m.bytes->data, m.layout.size_bytes});
  m.weights = q24_weights(m.layout, m.bytes->data);
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

template <Pipeline kPipeline, bool kSynchronous = false>
void run_matvec(const MatvecQ24& args) {
  const MatvecQ24Shared shared(args.w.padded_cols, args.shape.n_warps, args.shape.n_stages,
                               kPipeline != Pipeline::kRegisters);
  emulation::run({args.shape.n_blocks, 1, args.shape.n_warps * 32}, shared.total, [&](uint8_t* bytes) {
    if (args.w.group == 16)
      matvec_q24_body<16, kPipeline, kSynchronous>(args, bytes);
    else
      matvec_q24_body<32, kPipeline, kSynchronous>(args, bytes);
  });
}

void run_matvec(Pipeline pipeline, const MatvecQ24& args) {
  if (pipeline == Pipeline::kRegisters && args.shape.n_stages == 1)
    run_matvec<Pipeline::kRegisters, true>(args);
  else if (pipeline == Pipeline::kRegisters)
    run_matvec<Pipeline::kRegisters>(args);
  else if (pipeline == Pipeline::kAsyncCopy)
    run_matvec<Pipeline::kAsyncCopy>(args);
  else
    run_matvec<Pipeline::kBulkCopy>(args);
}

void check_matvec(const q24::Shape& shape, Pipeline pipeline, const MatvecShape& cut) {
  INFO("rows " << shape.n_rows << " cols " << shape.n_cols << " group " << shape.group << " fine "
               << shape.n_fine << " slots " << shape.n_slots << " pipeline " << static_cast<int>(pipeline)
               << " blocks " << cut.n_blocks << " warps " << cut.n_warps << " stages " << cut.n_stages);
  const Matrix m = random_matrix(shape);
  const std::vector<float> x = random_vector(shape.n_cols);
  std::vector<float> y(shape.n_rows, NAN);
  MatvecQ24 args{m.weights, {}, {}, cut};
  args.input.x = x.data();
  args.output.out = y.data();
  run_matvec(pipeline, args);
  const Reference ref = reference_matvec(m, x);
  for (uint32_t r = 0; r < shape.n_rows; ++r) {
    INFO("row " << r);
    REQUIRE(std::fabs(y[r] - ref.y[r]) <= bound(m, ref, r));
  }
}

constexpr Pipeline kPipelines[] = {Pipeline::kRegisters, Pipeline::kAsyncCopy, Pipeline::kBulkCopy};

}  // namespace

TEST_CASE("matvec_q24 equals the reference for every fraction of 4-bit columns") {
  for (const Pipeline pipeline : kPipelines)
    for (const uint32_t group : {16u, 32u})
      for (const uint32_t eighths : {0u, 1u, 2u, 3u, 5u, 8u})
        check_matvec({64, 1024, group, 1024 / 8 * eighths / group * group, eighths == 8 ? 0u : 3u}, pipeline,
                     {1, 4, 2});
}

TEST_CASE("matvec_q24 equals the reference at awkward sizes") {
  for (const Pipeline pipeline : kPipelines)
    for (const uint32_t n_cols : {1u, 63u, 64u, 65u, 127u, 192u, 511u, 513u, 1100u}) {
      const uint32_t padded = (n_cols + 63) / 64 * 64;
      check_matvec({n_cols % 2 ? 33u : 31u, n_cols, 16, 48, 1}, pipeline, {2, 2, 2});
      check_matvec({1, n_cols, 32, padded / 2 / 32 * 32, 0}, pipeline, {1, 4, 1});
    }
}

TEST_CASE("matvec_q24 does not depend on how it is cut up, beyond rounding") {
  for (const Pipeline pipeline : kPipelines)
    for (const MatvecShape cut : {MatvecShape{1, 1, 1}, MatvecShape{1, 8, 3}, MatvecShape{3, 4, 4},
                                  MatvecShape{2, 8, 2}, MatvecShape{7, 2, 3}, MatvecShape{1, 16, 2}})
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

  MatvecQ24 args{m.weights, {x.data(), norm.data(), 1e-5f}, {}, {2, 4, 2}};
  args.output.bias = bias.data();
  SECTION("kAdd") {
    std::vector<float> out(96, 1.0f);
    args.output.epilogue = Epilogue::kAdd;
    args.output.scale = 0.5f;
    args.output.out = out.data();
    run_matvec<Pipeline::kBulkCopy>(args);
    for (uint32_t r = 0; r < 96; ++r) REQUIRE(close(out[r], 1 + 0.5 * (ref.y[r] + bias[r]), largest));
  }
  SECTION("kGlu") {
    std::vector<float> out(48, NAN);
    args.output.epilogue = Epilogue::kGlu;
    args.output.out = out.data();
    run_matvec<Pipeline::kRegisters>(args);
    for (uint32_t i = 0; i < 48; ++i) {
      const uint32_t r = i / 16 * 32 + i % 16;
      const double gate = ref.y[r] + bias[r], up = ref.y[r + 16] + bias[r + 16];
      REQUIRE(close(out[i], gate / (1 + std::exp(-gate)) * up, largest * largest));
    }
  }
  SECTION("kLogits") {
    std::vector<float> out(96, NAN), block_best(4);
    int32_t best = -1;
    uint32_t ticket = 0;
    args.output.epilogue = Epilogue::kLogits;
    args.output.scale = 2;
    args.output.softcap = 30;
    args.output.out = out.data();
    args.output.best = &best;
    args.output.block_best = block_best.data();
    args.output.ticket = &ticket;
    run_matvec<Pipeline::kAsyncCopy>(args);
    for (uint32_t r = 0; r < 96; ++r)
      REQUIRE(close(out[r], 30 * std::tanh((ref.y[r] + bias[r]) * 2 / 30), 2 * largest));
    REQUIRE(best == std::max_element(out.begin(), out.end()) - out.begin());
    REQUIRE(ticket == 0);
  }
}

namespace {

struct AttentionCase {
  uint32_t n_heads, n_kv_heads, head_dim, position, window;
  bool i8;
  uint32_t n_splits, n_warps;
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
  Aligned k, v;
  std::vector<float> k_scale, v_scale;

  Cache(uint32_t heads, uint32_t ctx, uint32_t dim, bool is_i8)
      : n_kv_heads(heads),
        n_ctx(ctx),
        head_dim(dim),
        i8(is_i8),
        k(size_t{heads} * ctx * dim * (is_i8 ? 1 : 2)),
        v(k.size),
        k_scale(heads * ctx),
        v_scale(heads * ctx) {}

  void set(Aligned& bytes, std::vector<float>& scales, uint32_t head, uint32_t position, const float* x) {
    const size_t row = size_t{head} * n_ctx + position;
    float largest = 0;
    for (uint32_t d = 0; d < head_dim; ++d) largest = std::max(largest, std::fabs(x[d]));
    scales[row] = largest / 127.0f;
    for (uint32_t d = 0; d < head_dim; ++d) {
      const size_t at = row * head_dim + d;
      if (i8) {
        bytes.data[at] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(x[d] * (127.0f / largest))));
      } else {
        const uint16_t h = float_to_f16(x[d]);
        std::memcpy(bytes.data + at * 2, &h, 2);
      }
    }
  }
  double get(const Aligned& bytes, const std::vector<float>& scales, uint32_t head, uint32_t position,
             uint32_t d) const {
    const size_t row = size_t{head} * n_ctx + position, at = row * head_dim + d;
    if (i8) return double{scales[row]} * static_cast<int8_t>(bytes.data[at]);
    uint16_t h;
    std::memcpy(&h, bytes.data + at * 2, 2);
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

void check_attention_decode(const AttentionCase& c) {
  INFO("heads " << c.n_heads << "/" << c.n_kv_heads << " x " << c.head_dim << " position " << c.position
                << " window " << c.window << " i8 " << c.i8 << " splits " << c.n_splits << " warps "
                << c.n_warps);
  const uint32_t n_ctx = c.position + 3, n_rotated = c.head_dim / 4 * 2, half = n_rotated / 2;
  const std::vector<float> qkv = random_vector((c.n_heads + 2 * c.n_kv_heads) * c.head_dim);
  const std::vector<float> norm = random_vector(c.head_dim);
  std::vector<float> cos(n_ctx * half), sin(n_ctx * half);
  for (uint32_t i = 0; i < cos.size(); ++i) {
    const double angle = (i / std::max(half, 1u)) * std::pow(0.7, i % std::max(half, 1u));
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
  Cache cache(c.n_kv_heads, n_ctx, c.head_dim, c.i8);
  for (uint32_t head = 0; head < c.n_kv_heads; ++head)
    for (uint32_t p = 0; p < c.position; ++p) {
      cache.set(cache.k, cache.k_scale, head, p, random_vector(c.head_dim).data());
      cache.set(cache.v, cache.v_scale, head, p, random_vector(c.head_dim).data());
    }

  AttentionDecode a{};
  a.q_norm = a.k_norm = c.norm ? norm.data() : nullptr;
  a.norm_eps = 1e-6f;
  a.rope = {cos.data(), sin.data(), n_rotated};
  a.k = cache.k.data;
  a.v = cache.v.data;
  a.k_scale = c.i8 ? cache.k_scale.data() : nullptr;
  a.v_scale = c.i8 ? cache.v_scale.data() : nullptr;
  a.n_heads = c.n_heads;
  a.n_kv_heads = c.n_kv_heads;
  a.head_dim = c.head_dim;
  a.n_ctx = n_ctx;
  a.window = c.window;
  a.scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
  a.softcap = c.softcap;
  const int32_t position = static_cast<int32_t>(c.position);
  a.position = &position;
  a.qkv = qkv.data();
  std::vector<float> out(c.n_heads * c.head_dim, NAN), parts(c.n_heads * c.n_splits * (c.head_dim + 2), NAN);
  std::vector<uint32_t> tickets(c.n_kv_heads);
  a.out = out.data();
  a.parts = parts.data();
  a.tickets = tickets.data();
  const uint32_t group = c.n_heads / c.n_kv_heads;
  const auto launch = [&](auto heads) {
    constexpr uint32_t kHeads = decltype(heads)::value;
    const AttentionDecodeShared shared(a, c.n_warps, kHeads);
    emulation::run({c.n_kv_heads, c.n_splits, c.n_warps * 32}, shared.total, [&](uint8_t* bytes) {
      if (c.i8)
        attention_decode_body<kHeads, true>(a, bytes);
      else
        attention_decode_body<kHeads, false>(a, bytes);
    });
  };
  if (group == 1)
    launch(std::integral_constant<uint32_t, 1>());
  else if (group <= 2)
    launch(std::integral_constant<uint32_t, 2>());
  else
    launch(std::integral_constant<uint32_t, 4>());

  for (uint32_t head = 0; head < c.n_kv_heads; ++head) {  // what was appended
    const float* const from = qkv.data() + (c.n_heads + head) * c.head_dim;
    const std::vector<float> k =
        rotated({from, from + c.head_dim}, c.norm ? &norm : nullptr, cos, sin, c.position, n_rotated);
    for (uint32_t d = 0; d < c.head_dim; ++d) {
      REQUIRE(cache.get(cache.k, cache.k_scale, head, c.position, d) ==
              Approx(k[d]).margin(c.i8 ? 0.05 : 2e-3));
      REQUIRE(cache.get(cache.v, cache.v_scale, head, c.position, d) ==
              Approx(qkv[(c.n_heads + c.n_kv_heads + head) * c.head_dim + d]).margin(c.i8 ? 0.05 : 2e-3));
    }
  }
  for (uint32_t head = 0; head < c.n_heads; ++head) {
    const float* const from = qkv.data() + head * c.head_dim;
    const std::vector<float> q =
        rotated({from, from + c.head_dim}, c.norm ? &norm : nullptr, cos, sin, c.position, n_rotated);
    const std::vector<double> ref = reference_attention(a, cache, q, head, c.position);
    for (uint32_t d = 0; d < c.head_dim; ++d)
      REQUIRE(out[head * c.head_dim + d] == Approx(ref[d]).margin(2e-5));
  }
  for (const uint32_t t : tickets) REQUIRE(t == 0);
}

}  // namespace

TEST_CASE("attention_decode equals the reference for groups, head sizes, windows and both caches") {
  for (const bool i8 : {false, true}) {
    check_attention_decode({1, 1, 8, 0, 0, i8, 1, 1, 0, false});
    check_attention_decode({4, 4, 64, 37, 0, i8, 1, 4, 0, true});
    check_attention_decode({4, 2, 128, 70, 0, i8, 3, 2, 0, false});
    check_attention_decode({6, 2, 48, 100, 33, i8, 4, 2, 0, true});
    check_attention_decode({10, 2, 32, 9, 4, i8, 8, 2, 20, false});
    check_attention_decode({2, 1, 256, 20, 0, i8, 2, 2, 5, false});
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
  Aligned a(size_t{n_blocks} * n_padded * 128), sums(size_t{n_blocks} * n_padded * 16),
      scale(size_t{n_blocks} * n_padded * 4), columns(size_t{m.layout.padded_cols} * n_padded * 4);
  const QuantizedTokens tokens{a.data,
                               sums.data,
                               reinterpret_cast<float*>(scale.data),
                               shape.n_slots ? reinterpret_cast<float*>(columns.data) : nullptr,
                               n_tokens,
                               n_padded};
  const QuantizeTokens quantize{m.weights, {x.data(), nullptr, 0}, stride, tokens};
  emulation::run({n_tokens, 1, 64}, 64, [&](uint8_t* shared) { quantize_tokens_body(quantize, shared); });

  std::vector<float> out(n_tokens * out_stride, NAN);
  GemmQ24 args{m.weights, tokens, {}, out_stride};
  args.output.out = out.data();
  emulation::run(
      {(m.layout.n_panels + kGemmPanels - 1) / kGemmPanels, n_padded / kTokenTile, kGemmWarps * 32},
      kGemmSharedBytes, [&](uint8_t* shared) {
        if (shape.group == 16)
          gemm_q24_body<16>(args, shared);
        else
          gemm_q24_body<32>(args, shared);
      });
  for (uint32_t t = 0; t < n_tokens; ++t) {
    const Reference ref =
        reference_matvec(m, {x.begin() + t * stride, x.begin() + t * stride + shape.n_cols});
    for (uint32_t r = 0; r < shape.n_rows; ++r) {
      INFO("token " << t << " row " << r);
      REQUIRE(std::fabs(out[t * out_stride + r] - ref.y[r]) <= bound(m, ref, r));
    }
    for (uint32_t r = shape.n_rows; r < out_stride; ++r) REQUIRE(std::isnan(out[t * out_stride + r]));
  }
}

void check_plain(PlainKind kind, uint32_t n_rows, uint32_t n_cols, uint32_t n_tokens, bool norm) {
  INFO("kind " << static_cast<int>(kind) << " rows " << n_rows << " cols " << n_cols << " tokens "
               << n_tokens);
  const uint32_t stride = (n_cols + 3) / 4 * 4, out_stride = n_rows + 1;
  const std::vector<float> w = random_vector(n_rows * n_cols), weights = random_vector(n_cols);
  Aligned bytes(size_t{n_rows} * n_cols * plain_bytes(kind)), xs(size_t{n_tokens} * stride * 4);
  std::vector<double> exact(w.size());
  for (size_t i = 0; i < w.size(); ++i) {
    const uint16_t half = kind == PlainKind::kF16 ? float_to_f16(w[i]) : float_to_bf16(w[i]);
    if (kind == PlainKind::kF32)
      std::memcpy(bytes.data + i * 4, &w[i], 4);
    else
      std::memcpy(bytes.data + i * 2, &half, 2);
    exact[i] = kind == PlainKind::kF32   ? w[i]
               : kind == PlainKind::kF16 ? f16_to_float(half)
                                         : bf16_to_float(half);
  }
  float* const x = reinterpret_cast<float*>(xs.data);
  for (uint32_t i = 0; i < n_tokens * stride; ++i) x[i] = normal();
  std::vector<float> out(n_tokens * out_stride, NAN);
  MatvecPlain args;
  args.w = {bytes.data, n_rows, n_cols, kind};
  args.input = {x, norm ? weights.data() : nullptr, 1e-5f};
  args.output.out = out.data();
  args.n_tokens = n_tokens;
  args.x_stride = stride;
  args.out_stride = out_stride;
  args.n_blocks = 2;
  const bool vector = n_cols * plain_bytes(kind) % 16 == 0;
  const auto run = [&](auto body) {
    emulation::run({2, 1, 64}, MatvecPlainShared(n_cols, 2, n_tokens == 1).total,
                   [&](uint8_t* shared) { body(args, shared); });
  };
  if (kind == PlainKind::kF32)
    vector ? run(matvec_plain_body<PlainKind::kF32, true>) : run(matvec_plain_body<PlainKind::kF32, false>);
  else if (kind == PlainKind::kF16)
    vector ? run(matvec_plain_body<PlainKind::kF16, true>) : run(matvec_plain_body<PlainKind::kF16, false>);
  else
    vector ? run(matvec_plain_body<PlainKind::kBF16, true>) : run(matvec_plain_body<PlainKind::kBF16, false>);
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
      REQUIRE(std::fabs(out[t * out_stride + r] - y) <= (n_cols / 32 + 20) * 0x1p-24 * magnitude);
    }
  }
}

void check_attention_prefill(const AttentionCase& c, uint32_t n_tokens) {
  INFO("heads " << c.n_heads << "/" << c.n_kv_heads << " x " << c.head_dim << " position " << c.position
                << " tokens " << n_tokens << " window " << c.window << " i8 " << c.i8);
  const uint32_t n_ctx = c.position + n_tokens, half = c.head_dim / 2,
                 row_floats = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim;
  std::vector<float> qkv = random_vector(n_tokens * row_floats);
  const std::vector<float> before = qkv, norm = random_vector(c.head_dim);
  std::vector<float> cos(n_ctx * half), sin(n_ctx * half);
  for (uint32_t i = 0; i < cos.size(); ++i) {
    const double angle = (i / half) * std::pow(0.8, i % half);
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
  Cache cache(c.n_kv_heads, n_ctx, c.head_dim, c.i8);
  for (uint32_t head = 0; head < c.n_kv_heads; ++head)
    for (uint32_t p = 0; p < c.position; ++p) {
      cache.set(cache.k, cache.k_scale, head, p, random_vector(c.head_dim).data());
      cache.set(cache.v, cache.v_scale, head, p, random_vector(c.head_dim).data());
    }
  AttentionPrefill a{};
  a.q_norm = a.k_norm = c.norm ? norm.data() : nullptr;
  a.norm_eps = 1e-6f;
  a.rope = {cos.data(), sin.data(), c.head_dim};
  a.k = cache.k.data;
  a.v = cache.v.data;
  a.k_scale = c.i8 ? cache.k_scale.data() : nullptr;
  a.v_scale = c.i8 ? cache.v_scale.data() : nullptr;
  a.n_heads = c.n_heads;
  a.n_kv_heads = c.n_kv_heads;
  a.head_dim = c.head_dim;
  a.n_ctx = n_ctx;
  a.window = c.window;
  a.scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
  a.softcap = c.softcap;
  const int32_t position = static_cast<int32_t>(c.position);
  a.position = &position;
  a.qkv = qkv.data();
  a.n_tokens = n_tokens;
  std::vector<float> out(n_tokens * c.n_heads * c.head_dim, NAN);
  a.out = out.data();
  emulation::run({n_tokens, (c.n_heads + 2 * c.n_kv_heads + 1) / 2, 64}, 2 * c.head_dim * 4,
                 [&](uint8_t* shared) { append_tokens_body(a, shared); });
  const auto launch = [&](auto dim) {
    constexpr uint32_t kDim = decltype(dim)::value;
    emulation::run({(n_tokens + kQueryTile - 1) / kQueryTile, c.n_heads, kPrefillWarps * 32},
                   AttentionPrefillShared<kDim>::kTotal, [&](uint8_t* shared) {
                     if (c.i8)
                       attention_prefill_body<kDim, true>(a, shared);
                     else
                       attention_prefill_body<kDim, false>(a, shared);
                   });
  };
  if (c.head_dim <= 64)
    launch(std::integral_constant<uint32_t, 64>());
  else
    launch(std::integral_constant<uint32_t, 128>());

  for (uint32_t t = 0; t < n_tokens; ++t)
    for (uint32_t head = 0; head < c.n_heads; ++head) {
      const float* const from = before.data() + t * row_floats + head * c.head_dim;
      const std::vector<float> q =
          rotated({from, from + c.head_dim}, c.norm ? &norm : nullptr, cos, sin, c.position + t, c.head_dim);
      const std::vector<double> ref = reference_attention(a, cache, q, head, c.position + t);
      for (uint32_t d = 0; d < c.head_dim; ++d) {
        INFO("token " << t << " head " << head << " d " << d);
        REQUIRE(out[(t * c.n_heads + head) * c.head_dim + d] == Approx(ref[d]).margin(8e-3));
      }
    }
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
    check_attention_prefill({2, 1, 64, 0, 0, i8, 0, 0, 0, true}, 70);
    check_attention_prefill({2, 2, 128, 30, 0, i8, 0, 0, 0, false}, 3);
    check_attention_prefill({1, 1, 48, 150, 40, i8, 0, 0, 10, false}, 65);
    check_attention_prefill({4, 2, 8, 5, 0, i8, 0, 0, 0, false}, 17);
  }
}

TEST_CASE("embed equals the scalar decode of a row") {
  const Matrix m = random_matrix({50, 300, 16, 96, 2});
  const std::vector<int32_t> ids = {49, 0, 31, 32};
  std::vector<float> x(ids.size() * 300, NAN);
  Embed args{};
  args.q24 = m.weights;
  args.ids = ids.data();
  args.x = x.data();
  args.scale = 1;
  args.n_tokens = static_cast<uint32_t>(ids.size());
  emulation::run({args.n_tokens, 1, 64}, 0, [&](uint8_t* shared) { embed_body(args, shared); });
  const q24::View view = q24::make_view(m.unpacked.shape, m.bytes->data);
  for (size_t t = 0; t < ids.size(); ++t) {
    std::vector<float> row(300);
    q24::dequantize_row(view, static_cast<uint32_t>(ids[t]), row.data());
    for (uint32_t c = 0; c < 300; ++c) REQUIRE(x[t * 300 + c] == Approx(row[c]).epsilon(1e-6).margin(1e-6));
  }
}

TEST_CASE("norm_tokens normalizes, scales and adds") {
  const std::vector<float> x = random_vector(2 * 100), norm = random_vector(100);
  std::vector<float> out(200, 2.0f);
  const NormTokens args{x.data(), norm.data(), 1e-5f, 0.5f, out.data(), true, 100, 2};
  emulation::run({2, 1, 64}, 64, [&](uint8_t* shared) { norm_tokens_body(args, shared); });
  for (uint32_t t = 0; t < 2; ++t) {
    double squares = 0;
    for (uint32_t c = 0; c < 100; ++c) squares += double{x[t * 100 + c]} * x[t * 100 + c];
    for (uint32_t c = 0; c < 100; ++c)
      REQUIRE(out[t * 100 + c] ==
              Approx(2 + 0.5 * x[t * 100 + c] / std::sqrt(squares / 100 + 1e-5) * norm[c]).margin(1e-5));
  }
}

TEST_CASE("the emulation notices divergent collectives, deadlocks and reads before a wait") {
  const auto fails = [](const std::function<void(uint8_t*)>& body) {
    REQUIRE_THROWS_AS(emulation::run({1, 1, 32}, 256, body), std::runtime_error);
  };
  fails([](uint8_t*) {
    if (thread_index() < 16)
      sync_warp();
    else
      shuffle(1, 0);
  });
  fails([](uint8_t*) {
    if (thread_index() != 3) sync_block();
  });
  alignas(16) static const uint8_t source[16] = {1};
  emulation::run({1, 1, 32}, 1024, [](uint8_t* shared) {
    uint8_t* const to = shared + thread_index() * 16;
    async_copy16(to, source);
    if (to[0] == 1) emulation::fail("the copy was there before the wait");
    async_commit();
    async_wait<0>();
    if (to[0] != 1) emulation::fail("the copy was not there after the wait");
  });
}

}  // namespace pith::cuda
