// Matrix products of the CUDA backend, one token and many, against the reference product.
//
// Built twice: linked with the emulated device (bodies as C++, under ASan and UBSan in the sanitizer build),
// and into gpu_kernels with the real one (tests/gpu_check.sh). Outputs are poisoned before every launch.
#include <catch2/catch.hpp>

#include "cuda/experts.h"
#include "cuda_testing.h"
#include "skip.h"

namespace pith::cuda {
namespace {

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

// How far 16-bit products may be off: x is rounded to 2^-11 of itself and 2^-25 of the largest, weights in
// the minimum (twice), in each code plane's fma and by an outlier, each 2^-11 of what is rounded; float sums
// of n terms.
void check_gemm_half(const q24::Shape& shape, uint32_t n_tokens, uint32_t n_groups,
                     const std::function<void(q24::Unpacked&)>& edit = {}) {
  INFO("rows " << shape.n_rows << " cols " << shape.n_cols << " group " << shape.group << " fine "
               << shape.n_fine << " slots " << shape.n_slots << " tokens " << n_tokens << " groups "
               << n_groups);
  const Matrix m = random_matrix(shape, edit);
  const q24::Unpacked& u = m.unpacked;
  const uint32_t n_padded = (n_tokens + kTokenTile - 1) / kTokenTile * kTokenTile,
                 padded = m.layout.padded_cols;
  const uint32_t stride = shape.n_cols + 3, out_stride = shape.n_rows + 5;
  const std::vector<float> x = random_vector(n_tokens * stride);
  const DeviceBuffer input = to_device(x), out = poisoned(size_t{n_tokens} * out_stride),
                     a = poisoned(size_t{n_padded} * padded / 2), scale = poisoned(n_padded);
  const HalfTokens tokens{a.data(), scale.as<float>(), n_tokens, n_padded};
  launch_sort_outliers(m.weights, how());
  launch_halve_tokens({m.weights, 0, {input.as<float>(), nullptr, 0}, stride, tokens}, how());
  GemmHalf args{m.weights, {}, tokens, {}, out_stride, n_groups, true};
  args.output.out = out.as<float>();
  launch_gemm_half(args, how());
  const std::vector<float> found = to_host<float>(out, n_tokens * out_stride);
  for (uint32_t r = 0; r < shape.n_rows; ++r) {
    std::vector<double> w(padded), error(padded);
    const double d = f16_to_float(u.d[r]), dmin = f16_to_float(u.dmin[r]);
    for (uint32_t c = 0; c < padded; ++c) {
      const uint32_t g = r * (padded / shape.group) + c / shape.group;
      const double code = d * u.s[g] * u.codes[r * padded + c] * (c < padded - shape.n_fine ? 1 : 0.25);
      const double minimum = dmin * u.m[g];
      w[c] = code - minimum;
      error[c] = 0x1p-12 * (2 * std::fabs(minimum) + 2 * std::fabs(w[c]) + std::fabs(code));
    }
    for (uint32_t i = 0; i < shape.n_slots; ++i) {
      const double delta = f16_to_float(u.outlier_delta[r * shape.n_slots + i]);
      const uint32_t c = u.outlier_col[r * shape.n_slots + i];
      w[c] += delta;
      error[c] += 0x1p-12 * (std::fabs(delta) + std::fabs(w[c]));
    }
    for (uint32_t t = 0; t < n_tokens; ++t) {
      double y = 0, allowed = 1e-30, largest = 0;
      std::vector<double> v(padded);
      for (uint32_t c = 0; c < padded; ++c)
        if (u.perm[c] != 0xffff) v[c] = double{x[t * stride + u.perm[c]]} * f16_to_float(u.col_scale[c / 16]);
      for (const double value : v) largest = std::max(largest, std::fabs(value));
      for (uint32_t c = 0; c < padded; ++c) {
        y += w[c] * v[c];
        allowed += error[c] * std::fabs(v[c]) +
                   std::fabs(w[c]) * (0x1p-12 * std::fabs(v[c]) + 0x1p-25 * largest) +
                   padded * 0x1p-24 * std::fabs(w[c] * v[c]);
      }
      INFO("token " << t << " row " << r << " found " << found[t * out_stride + r] << " expected " << y);
      REQUIRE(std::fabs(found[t * out_stride + r] - y) <= allowed);
    }
  }
  for (uint32_t t = 0; t < n_tokens; ++t)
    for (uint32_t r = shape.n_rows; r < out_stride; ++r) REQUIRE(std::isnan(found[t * out_stride + r]));
}

void check_gemm_plain(PlainKind kind, uint32_t n_rows, uint32_t n_cols, uint32_t n_tokens, uint32_t n_groups,
                      bool warpgroups, bool norm) {
  INFO("kind " << static_cast<int>(kind) << " rows " << n_rows << " cols " << n_cols << " tokens " << n_tokens
               << " groups " << n_groups << " warpgroups " << warpgroups);
  const uint32_t n_padded = (n_tokens + kTokenTile - 1) / kTokenTile * kTokenTile, stride = n_cols + 1,
                 out_stride = n_rows + 1, n_blocks = (n_cols + 63) / 64;
  const std::vector<float> w = random_vector(n_rows * n_cols), weights = random_vector(n_cols);
  std::vector<float> x = random_vector(n_tokens * stride);
  for (uint32_t c = 0; c < stride; ++c) x[c] *= 1e6f;  // beyond fp16
  std::vector<uint16_t> halves;
  for (const float v : w) halves.push_back(kind == PlainKind::kF16 ? float_to_f16(v) : float_to_bf16(v));
  const auto weight = [&](size_t i) {
    return double{kind == PlainKind::kF16 ? f16_to_float(halves[i]) : bf16_to_float(halves[i])};
  };
  const DeviceBuffer matrix = to_device(halves), input = to_device(x), norm_weights = to_device(weights),
                     out = poisoned(n_tokens * out_stride), a = poisoned(size_t{n_padded} * n_blocks * 32),
                     scale = poisoned(n_padded);
  const HalfTokens tokens{a.data(), scale.as<float>(), n_tokens, n_padded};
  launch_halve_tokens(
      {{}, n_cols, {input.as<float>(), norm ? norm_weights.as<float>() : nullptr, 1e-5f}, stride, tokens},
      how());
  GemmHalf args{{}, {matrix.data(), n_rows, n_cols, kind}, tokens, {}, out_stride, n_groups, warpgroups};
  args.output.out = out.as<float>();
  launch_gemm_half(args, how());
  const std::vector<float> found = to_host<float>(out, n_tokens * out_stride);
  for (uint32_t t = 0; t < n_tokens; ++t) {
    double squares = 0, largest = 0;
    for (uint32_t c = 0; c < n_cols; ++c) squares += double{x[t * stride + c]} * x[t * stride + c];
    const double factor = norm ? 1 / std::sqrt(squares / n_cols + 1e-5) : 1;
    std::vector<double> v(n_cols);
    for (uint32_t c = 0; c < n_cols; ++c) {
      v[c] = x[t * stride + c] * factor * (norm ? weights[c] : 1);
      largest = std::max(largest, std::fabs(v[c]));
    }
    for (uint32_t r = 0; r < n_rows; ++r) {
      double y = 0, allowed = 1e-30;
      for (uint32_t c = 0; c < n_cols; ++c) {
        const double term = weight(r * n_cols + c) * v[c];
        y += term;
        allowed += std::fabs(term) * (0x1p-12 + 0x1p-20 + n_cols * 0x1p-24) +
                   0x1p-25 * (largest * std::fabs(weight(r * n_cols + c)) + std::fabs(v[c]));
      }
      INFO("token " << t << " row " << r << " found " << found[t * out_stride + r] << " expected " << y);
      REQUIRE(std::fabs(found[t * out_stride + r] - y) <= allowed);
    }
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
TEST_CASE("gemm_q24 equals the reference for every fraction of 4-bit columns and awkward sizes") {
  check_gemm({32, 128, 16, 0, 0}, 1);
  check_gemm({70, 320, 16, 80, 3}, 5);
  check_gemm({33, 192, 32, 96, 2}, 9);
  check_gemm({130, 1100, 16, 304, 1}, 66);
  check_gemm({40, 256, 32, 256, 0}, 130);
}

TEST_CASE(
    "the 16-bit product of Q24 weights equals the reference at every fraction of 4-bit columns and awkward "
    "sizes") {
  if (!device_has_warpgroups()) return test::skip("the device has no warpgroups");
  check_gemm_half({32, 64, 16, 0, 0}, 1, 1);
  check_gemm_half({70, 320, 16, 80, 3}, 5, 1);
  check_gemm_half({33, 192, 32, 96, 2}, 9, 2);
  check_gemm_half({300, 1100, 16, 304, 21}, 66, 2);
  check_gemm_half({40, 256, 32, 256, 0}, 130, 1);
}

TEST_CASE(
    "the 16-bit product of Q24 weights takes any scale of a row, unused slots and several on one column") {
  if (!device_has_warpgroups()) return test::skip("the device has no warpgroups");
  check_gemm_half({8, 128, 16, 32, 4}, 3, 1, [](q24::Unpacked& u) {
    const float d[8] = {0, 0, 0, 6e-8f, 60000, -0.02f, 0.02f, 1},
                dmin[8] = {0, 0.03f, 0, 1, 0.001f, 0.02f, -3, 0};
    for (uint32_t r = 0; r < 8; ++r) u.d[r] = float_to_f16(d[r]), u.dmin[r] = float_to_f16(dmin[r]);
    for (const uint32_t slot : {1u, 3u, 9u, 22u}) u.outlier_col[slot] = u.outlier_delta[slot] = 0;
    u.outlier_col[4] = u.outlier_col[5] = u.outlier_col[7] = 17;
    u.outlier_delta[8] = float_to_f16(50000);  // in a row of zeros
  });
}

TEST_CASE("blocks of 256 rows are chosen where they fit and leave no multiprocessor idle for longer") {
  constexpr uint64_t kH200 = 232448, kRtx4090 = 101376, kT4 = 65536;
  CHECK(choose_half_groups(true, true, 4096, 2048, 132, kH200) ==
        2);  // 512 tiles of 128 rows: 4 a multiprocessor either way
  CHECK(choose_half_groups(true, true, 4096, 512, 132, kH200) == 1);   // 128 tiles: one each
  CHECK(choose_half_groups(true, true, 12288, 512, 132, kH200) == 1);  // 384: 3, in pairs 4
  CHECK(choose_half_groups(true, false, 22016, 2048, 132, kH200) == 2);
  CHECK(choose_half_groups(false, false, 4096, 2048, 128, kRtx4090) == 2);
  CHECK(choose_half_groups(false, false, 4096, 2048, 40, kT4) == 1);
  CHECK(gemm_half_shared_bytes(false, false, 1) <= kT4);
  CHECK(gemm_half_shared_bytes(false, false, 2) <= kRtx4090);
  CHECK(2 * (gemm_half_shared_bytes(true, true, 1) + 1024) <=
        233472);  // two blocks of one group on a multiprocessor
  CHECK(2 * (gemm_half_shared_bytes(true, false, 1) + 1024) <= 233472);
}

TEST_CASE("what a block takes of shared memory grows with heads, experts and columns") {
  constexpr uint64_t kRtx4090 = 101376, kT4 = 65536;
  const auto attention = [](uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim) {
    AttentionLayer layer{};
    layer.n_heads = n_heads, layer.n_kv_heads = n_kv_heads, layer.head_dim = head_dim;
    return attention_decode_shared_bytes(layer);
  };
  CHECK(attention(8, 2, 256) <= kT4);
  CHECK(attention(5, 1, 256) == 4 * (5 * 256 + 2 * 256 + 8 * 8 * 258));
  CHECK(attention(64, 2, 256) <= kRtx4090);
  CHECK(attention(66, 2, 256) > kRtx4090);
  CHECK(sort_slots_shared_bytes(963) <= kT4);
  CHECK(sort_slots_shared_bytes(964) > kT4);
  CHECK(matvec_plain_shared_bytes(16352, true) <= kT4);
  CHECK(matvec_plain_shared_bytes(16353, true) > kT4);
  CHECK(matvec_plain_shared_bytes(65472, shares_input(1, 65472, false)) <= kT4);
  CHECK(matvec_q24_shared_bytes(Pipeline::kRegisters, 55424, {1, 1, 1}) <= kT4);
  CHECK(matvec_q24_shared_bytes(Pipeline::kRegisters, 55488, {1, 1, 1}) > kT4);
}

TEST_CASE("the 16-bit product of 16-bit weights equals the reference, by warpgroups and by warps") {
  for (const bool warpgroups : {true, false}) {
    if (warpgroups && !device_has_warpgroups()) continue;
    for (const PlainKind kind : {PlainKind::kF16, PlainKind::kBF16}) {
      check_gemm_plain(kind, 33, 72, 3, 1, warpgroups, true);
      check_gemm_plain(kind, 150, 392, 131, 2, warpgroups, false);
    }
  }
}

TEST_CASE("matvec_plain equals the reference in every type, vector and scalar") {
  for (const PlainKind kind : {PlainKind::kF32, PlainKind::kF16, PlainKind::kBF16})
    for (const uint32_t n_cols : {8u, 172u, 1160u}) {
      check_plain(kind, 17, n_cols, 1, true);
      check_plain(kind, 64, n_cols, 6, false);
    }
}

}  // namespace pith::cuda
