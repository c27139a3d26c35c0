// Every instruction set against the scalar reference, bit for bit, over awkward shapes; and the reference against
// plain arithmetic in double.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <optional>

#include "random_model.h"
#include "runtime/backend.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/kv_cache.h"

using namespace pith;
using namespace pith::cpu;
using namespace pith::test;

namespace {

const Kernels& scalar() {
  return select_kernels("scalar");
}

// One matrix with everything that its pointers need.
struct OwnedMatrix {
  Matrix m;
  std::vector<uint8_t> storage;
  std::vector<uint16_t> perm;
  std::vector<float> col_scale;
};

uint8_t* aligned_to_128(std::vector<uint8_t>& storage, size_t size) {
  storage.resize(size + 128);
  return storage.data() + (128 - reinterpret_cast<uintptr_t>(storage.data()) % 128) % 128;
}

OwnedMatrix make_q24(const q24::Shape& shape, std::mt19937_64& rng) {
  OwnedMatrix o;
  const q24::Layout l = q24::make_layout(shape);
  uint8_t* const data = aligned_to_128(o.storage, l.size_bytes);
  q24::pack(random_q24(shape, 0.05, rng), {data, l.size_bytes});
  o.m.kind = TensorKind::kQ24;
  o.m.n_rows = shape.n_rows;
  o.m.n_cols = shape.n_cols;
  o.m.view = q24::make_view(shape, data);
  for (uint32_t c = 0; c < l.padded_cols; ++c)
    o.perm.push_back(c < shape.n_cols ? o.m.view.perm[c] : uint16_t{0});
  for (uint32_t i = 0; i < l.n_lines; ++i) o.col_scale.push_back(f16_to_float(o.m.view.col_scale[i]));
  o.m.perm = o.perm.data();
  o.m.col_scale = o.col_scale.data();
  return o;
}

OwnedMatrix make_plain(TensorKind kind, uint32_t n_rows, uint32_t n_cols, std::mt19937_64& rng) {
  OwnedMatrix o;
  const std::vector<float> values = random_floats(size_t{n_rows} * n_cols, 0.05, rng);
  uint8_t* const data = aligned_to_128(o.storage, values.size() * 4);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = kind == TensorKind::kF16 ? float_to_f16(values[i]) : float_to_bf16(values[i]);
    if (kind == TensorKind::kF32)
      std::memcpy(data + i * 4, &values[i], 4);
    else
      std::memcpy(data + i * 2, &half, 2);
  }
  o.m.kind = kind;
  o.m.n_rows = n_rows;
  o.m.n_cols = n_cols;
  o.m.data = data;
  return o;
}

// The product by one instruction set: [n_tokens, n_rows].
std::vector<float> multiply(const Kernels& k, const Matrix& m, const std::vector<float>& x,
                            uint32_t n_tokens) {
  Input in;
  in.n_tokens = n_tokens;
  in.n_lanes = lanes_for(n_tokens);
  in.x = x.data();
  in.x_stride = m.n_cols;
  const uint32_t padded = m.is_q24() ? m.view.layout.padded_cols : 64;
  std::vector<int8_t> a(size_t{padded} * in.n_lanes);
  const size_t n_lines = (padded / 16 + 63) / 64 * 64;
  std::vector<int16_t> sums(n_lines * in.n_lanes);
  std::vector<float> line_sums(n_lines), sum_steps(in.n_lanes);
  std::vector<float> scales(size_t{padded + 127} / 128 * in.n_lanes), x_hat(padded);
  in.a = a.data();
  in.sums = sums.data();
  in.line_sums = line_sums.data();
  in.sum_steps = sum_steps.data();
  in.scales = scales.data();
  in.x_hat = x_hat.data();
  std::vector<uint8_t> storage;
  uint8_t* const scratch = aligned_to_128(
      storage, panel_scratch_bytes(m.is_q24() ? padded : 0, m.is_q24() ? m.view.layout.shape.n_slots : 0,
                                   m.is_q24() ? 0 : m.n_cols, in.n_lanes));
  if (m.is_q24() && n_tokens == 1) {
    k.quantize(m, x.data(), 0, m.n_blocks(), in);
    k.quantize_sums(m, in);
  }
  if (m.is_q24() && n_tokens != 1)
    for (uint32_t t = 0; t < n_tokens; t += kLanes)
      k.quantize_tile(m, x.data() + size_t{t} * m.n_cols, m.n_cols, std::min(n_tokens - t, kLanes), t, in,
                      reinterpret_cast<float*>(scratch));
  std::vector<float> y(size_t{kPanelRows} * in.n_lanes), out(size_t{n_tokens} * m.n_rows);
  for (uint32_t p = 0; p < m.n_panels(); ++p) {
    k.panel(m, p, in, scratch, y.data());
    for (uint32_t r = 0; r < kPanelRows && p * kPanelRows + r < m.n_rows; ++r)
      for (uint32_t t = 0; t < n_tokens; ++t)
        out[size_t{t} * m.n_rows + p * kPanelRows + r] = y[size_t{r} * in.n_lanes + t];
  }
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> row_of(const std::vector<float>& all, uint32_t row, uint32_t n) {
  return {all.begin() + row * std::ptrdiff_t{n}, all.begin() + (row + 1) * std::ptrdiff_t{n}};
}

// Calls f(shape) for shapes at and around every boundary of the layout.
template <typename F>
void for_each_shape(F&& f) {
  for (const uint32_t n_rows : {1u, 31u, 33u, 64u})
    for (const uint32_t n_cols : {1u, 64u, 128u, 172u, 320u})
      for (const uint32_t group : {16u, 32u})
        for (const uint32_t fine_quarters : {0u, 1u, 2u, 4u})
          for (const uint32_t n_slots : {0u, 1u, 3u}) {
            const uint32_t groups = (n_cols + 63) / 64 * 64 / group;
            const uint32_t n_fine = groups * fine_quarters / 4 * group;
            if (n_slots > 0 && fine_quarters == 4) continue;  // no 2-bit column is left for outliers
            f(q24::Shape{n_rows, n_cols, group, n_fine, n_slots});
          }
  for (const uint32_t group : {16u, 32u})  // more blocks than the minimums of any kernel are summed at a time
    f(q24::Shape{33, 2240, group, 320, 5});
}

}  // namespace

TEST_CASE("q24 products are the same bits on every instruction set, for one token or many") {
  std::mt19937_64 rng(1);
  for_each_shape([&](const q24::Shape& shape) {
    const OwnedMatrix o = make_q24(shape, rng);
    for (const uint32_t n_tokens : {1u, 2u, 17u, 50u, 100u}) {
      if (n_tokens > 17 && (shape.n_rows != 33 || shape.n_slots == 1))
        continue;  // enough of the slow reference
      const std::vector<float> x = random_floats(size_t{n_tokens} * shape.n_cols, 1, rng);
      const std::vector<float> reference = multiply(scalar(), o.m, x, n_tokens);
      CAPTURE(shape.n_rows, shape.n_cols, shape.group, shape.n_fine, shape.n_slots, n_tokens);
      for (const Kernels* k : supported_kernels()) {
        CAPTURE(k->name);
        REQUIRE(same_bits(multiply(*k, o.m, x, n_tokens), reference));
        const uint32_t last = n_tokens - 1;
        REQUIRE(same_bits(multiply(*k, o.m, row_of(x, last, shape.n_cols), 1),
                          row_of(reference, last, shape.n_rows)));
      }
    }
  });
}

// Quantizing x costs at most half a step, scale / 2 = max|x'| / 254, for each column, and rounding a line's sum, at most 16
// times 127 scales, half of a 32512th of that for each minimum; float rounding is far below.
TEST_CASE("q24 products are those of the dequantized rows within the rounding of activations") {
  std::mt19937_64 rng(2);
  for_each_shape([&](const q24::Shape& shape) {
    const OwnedMatrix o = make_q24(shape, rng);
    const std::vector<float> x = random_floats(shape.n_cols, 1, rng);
    const std::vector<float> y = multiply(scalar(), o.m, x, 1);
    float largest = 0;
    for (uint32_t c = 0; c < shape.n_cols; ++c)
      largest = std::max(largest, std::fabs(x[o.perm[c]] * o.col_scale[c / 16]));
    std::vector<float> row(shape.n_cols);
    for (uint32_t r = 0; r < shape.n_rows; ++r) {
      q24::dequantize_row(o.m.view, r, row.data());
      double exact = 0, weight_sum = 0;
      for (uint32_t c = 0; c < shape.n_cols; ++c) {
        exact += double{row[o.perm[c]]} * double{x[o.perm[c]]};
        weight_sum += std::fabs(double{row[o.perm[c]]} / double{o.col_scale[c / 16]});
      }
      const double bound = weight_sum * double{largest} / 254 + 1e-5;
      CAPTURE(shape.n_rows, shape.n_cols, shape.group, shape.n_fine, shape.n_slots, r, exact, y[r]);
      REQUIRE(std::fabs(double{y[r]} - exact) <= bound);
    }
  });
}

TEST_CASE("an outlier column outside the matrix is ignored by every instruction set") {
  std::mt19937_64 rng(3);
  for (const uint32_t n_cols : {128u, 172u})  // 172 are padded to 192, one block and a half
    for (const uint32_t n_tokens : {1u, 3u}) {
      const q24::Shape shape{33, n_cols, 16, 32, 2};
      OwnedMatrix o = make_q24(shape, rng);
      const uint32_t padded = o.m.view.layout.padded_cols;
      const std::vector<float> x = random_floats(size_t{n_tokens} * n_cols, 1, rng);
      uint16_t* const slots = const_cast<uint16_t*>(o.m.view.outliers);  // our own bytes
      for (uint32_t w = 0; w < 128; ++w) slots[w * 2] = static_cast<uint16_t>(w % 2 ? padded + w : 0xffff);
      const std::vector<float> reference = multiply(scalar(), o.m, x, n_tokens);
      CAPTURE(n_cols, n_tokens);
      for (const Kernels* k : supported_kernels())
        CHECK(same_bits(multiply(*k, o.m, x, n_tokens), reference));
      for (uint32_t w = 0; w < 128; ++w) slots[w * 2 + 1] = 0, slots[w * 2] = 0;
      CHECK(same_bits(multiply(scalar(), o.m, x, n_tokens), reference));
    }
}

TEST_CASE("lines whose sums are far apart are the same bits on every instruction set") {
  std::mt19937_64 rng(11);
  const q24::Shape shape{32, 320, 16, 64, 2};
  const OwnedMatrix o = make_q24(shape, rng);
  std::vector<float> x = random_floats(size_t{17} * shape.n_cols, 1, rng);
  // In each token one line has the largest sum there is, of either sign, and the next one nearly that.
  for (uint32_t t = 0; t < 17; ++t)
    for (uint32_t c = 0; c < shape.n_cols; ++c) {
      float& value = x[t * shape.n_cols + o.perm[c]];
      if (c / 16 == t) value = (t % 2 ? -1000.0f : 1000.0f) / o.col_scale[c / 16];
      if (c / 16 == t + 1) value = 999.0f / o.col_scale[c / 16];
    }
  const std::vector<float> reference = multiply(scalar(), o.m, x, 17);
  for (const Kernels* k : supported_kernels()) {
    CAPTURE(k->name);
    CHECK(same_bits(multiply(*k, o.m, x, 17), reference));
    CHECK(same_bits(multiply(*k, o.m, row_of(x, 16, shape.n_cols), 1), row_of(reference, 16, shape.n_rows)));
  }
}

TEST_CASE("plain products are the same bits on every instruction set and right to float accuracy") {
  std::mt19937_64 rng(4);
  for (const TensorKind kind : {TensorKind::kF32, TensorKind::kF16, TensorKind::kBF16})
    for (const uint32_t n_rows : {1u, 6u, 31u, 33u})
      for (const uint32_t n_cols : {1u, 15u, 16u, 172u, 1064u})        // 1064: more than is summed at a time
        for (const uint32_t n_tokens : {1u, 2u, 7u, 21u, 24u, 37u}) {  // from 24 on rows are widened
          const OwnedMatrix o = make_plain(kind, n_rows, n_cols, rng);
          const std::vector<float> x = random_floats(size_t{n_tokens} * n_cols, 1, rng);
          const std::vector<float> reference = multiply(scalar(), o.m, x, n_tokens);
          CAPTURE(static_cast<int>(kind), n_rows, n_cols, n_tokens);
          for (const Kernels* k : supported_kernels()) {
            CAPTURE(k->name);
            REQUIRE(same_bits(multiply(*k, o.m, x, n_tokens), reference));
          }
          for (uint32_t t = 0; t < n_tokens; ++t)  // one by one: another kernel
            REQUIRE(
                same_bits(multiply(scalar(), o.m, row_of(x, t, n_cols), 1), row_of(reference, t, n_rows)));
          std::vector<float> row(n_cols);
          for (uint32_t r = 0; r < n_rows; ++r) {
            embedding_row(o.m, r, 1, row.data());
            double exact = 0, size = 0;
            for (uint32_t c = 0; c < n_cols; ++c) {
              exact += double{row[c]} * double{x[c]};
              size += std::fabs(double{row[c]} * double{x[c]});
            }
            REQUIRE(double{reference[r]} == Approx(exact).margin(size * 1e-6));
          }
        }
}

TEST_CASE("embedding rows of a q24 tensor are the dequantized rows") {
  std::mt19937_64 rng(5);
  for_each_shape([&](const q24::Shape& shape) {
    const OwnedMatrix o = make_q24(shape, rng);
    std::vector<float> row(shape.n_cols), expected(shape.n_cols);
    for (uint32_t r = 0; r < shape.n_rows; ++r) {
      q24::dequantize_row(o.m.view, r, expected.data());
      embedding_row(o.m, r, 1, row.data());
      REQUIRE(same_bits(row, expected));
      for (float& value : expected) value *= 4;  // a power of two, so that no bit is lost
      embedding_row(o.m, r, 4, row.data());
      REQUIRE(same_bits(row, expected));
    }
  });
}

TEST_CASE(
    "norm, gate, softcap and rope are the same bits on every instruction set and right to float accuracy") {
  std::mt19937_64 rng(6);
  for (const uint32_t n : {2u, 8u, 16u, 30u, 64u, 172u}) {
    const std::vector<float> x = random_floats(n, 3, rng), w = random_floats(n, 1, rng);
    std::vector<float> norm(n), silu(n), gelu(n), capped = x, rotated = x, cos(n), sin(n);
    for (uint32_t i = 0; i < n; ++i) cos[i] = std::cos(w[i]), sin[i] = std::sin(w[i]);
    scalar().rms_norm(x.data(), w.data(), n, 1e-5f, norm.data());
    scalar().gate(Activation::kSilu, x.data(), w.data(), n, silu.data());
    scalar().gate(Activation::kGeluTanh, x.data(), w.data(), n, gelu.data());
    scalar().softcap(capped.data(), n, 5);
    scalar().rope(rotated.data(), n, cos.data(), sin.data());

    double squares = 0;
    for (const float v : x) squares += double{v} * double{v};
    for (uint32_t i = 0; i < n; ++i) {
      const double v = double{x[i]}, u = double{w[i]};
      CHECK(double{norm[i]} == Approx(v / std::sqrt(squares / n + 1e-5) * u).margin(1e-6));
      CHECK(double{silu[i]} == Approx(v / (1 + std::exp(-v)) * u).margin(1e-6));
      const double inner = std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
      CHECK(double{gelu[i]} == Approx(0.5 * v * (1 + std::tanh(inner)) * u).margin(2e-6));
      CHECK(double{capped[i]} == Approx(5 * std::tanh(v / 5)).margin(1e-5));
    }
    for (uint32_t i = 0; i < n / 2; ++i) {
      CHECK(rotated[i] == Approx(x[i] * cos[i] - x[i + n / 2] * sin[i]).margin(1e-5));
      CHECK(rotated[i + n / 2] == Approx(x[i + n / 2] * cos[i] + x[i] * sin[i]).margin(1e-5));
    }

    for (const Kernels* k : supported_kernels()) {
      CAPTURE(k->name, n);
      std::vector<float> out(n);
      k->rms_norm(x.data(), w.data(), n, 1e-5f, out.data());
      CHECK(same_bits(out, norm));
      k->gate(Activation::kSilu, x.data(), w.data(), n, out.data());
      CHECK(same_bits(out, silu));
      k->gate(Activation::kGeluTanh, x.data(), w.data(), n, out.data());
      CHECK(same_bits(out, gelu));
      out = x;
      k->softcap(out.data(), n, 5);
      CHECK(same_bits(out, capped));
      out = x;
      k->rope(out.data(), n, cos.data(), sin.data());
      CHECK(same_bits(out, rotated));
    }
  }
}

TEST_CASE("a panel's rows become rows of tokens, scaled, in place of or added to what is there") {
  std::mt19937_64 rng(8);
  for (const uint32_t n_tokens : {1u, 2u, 16u, 35u})
    for (const uint32_t n_rows : {1u, 15u, 16u, 31u, 32u})
      for (const bool add : {false, true}) {
        const uint32_t lanes = lanes_for(n_tokens), stride = n_rows + 3;
        const std::vector<float> y = random_floats(size_t{kPanelRows} * lanes, 1, rng),
                                 before = random_floats(size_t{n_tokens} * stride, 1, rng);
        std::vector<float> expected = before;
        for (uint32_t t = 0; t < n_tokens; ++t)
          for (uint32_t r = 0; r < n_rows; ++r) {
            float& out = expected[size_t{t} * stride + r];
            const float value = 0.3f * y[size_t{r} * lanes + t];
            out = add ? out + value : value;
          }
        for (const Kernels* k : supported_kernels()) {
          CAPTURE(k->name, n_tokens, n_rows, add);
          std::vector<float> out = before;
          k->store(y.data(), lanes, n_rows, n_tokens, 0.3f, add, out.data(), stride);
          REQUIRE(same_bits(out, expected));
        }
      }
}

TEST_CASE("gates survive the extremes without NaN") {
  for (const Kernels* k : supported_kernels())
    for (const float extreme : {-1e30f, -200.0f, -88.0f, 0.0f, 88.0f, 200.0f, 1e30f}) {
      const float one = 1;
      float silu, gelu;
      k->gate(Activation::kSilu, &extreme, &one, 1, &silu);
      k->gate(Activation::kGeluTanh, &extreme, &one, 1, &gelu);
      CAPTURE(k->name, extreme);
      CHECK(silu == Approx(std::max(extreme, 0.0f)).margin(1e-6));
      if (std::fabs(extreme) < 1e10f) CHECK(gelu == Approx(std::max(extreme, 0.0f)).margin(1e-6));
    }
}

namespace {

// A cache of one head with n positions, filled by one instruction set.
struct OneHead {
  OneHead(const Kernels& kernels, KvType type, uint32_t head_dim, uint32_t n, const std::vector<float>& k,
          const std::vector<float>& v) {
    ModelSpec spec;
    spec.n_layers = spec.n_heads = spec.n_kv_heads = 1;
    spec.head_dim = head_dim;
    Arena sizer;
    KvCache(spec, type, n, 1, sizer);
    arena = Arena(sizer.size_bytes());
    cache.emplace(spec, type, n, 1, arena);
    for (uint32_t p = 0; p < n; ++p)
      kernels.append(cache->head(0, 0), p, k.data() + size_t{p} * head_dim, v.data() + size_t{p} * head_dim);
    stored.resize(kv_layer_bytes(spec, type, n));
    cache->read(0, n, stored.data());
  }
  Arena arena;
  std::optional<KvCache> cache;
  std::vector<uint8_t> stored;
};

// Attention of n_queries over positions [begin + i, end) by one instruction set: [n_queries, head_dim].
std::vector<float> attend(const Kernels& kernels, const KvHead& kv, const std::vector<float>& q,
                          uint32_t n_queries, uint32_t begin, uint32_t end, float softcap) {
  const uint32_t dim = kv.head_dim, padded = kv.padded_head_dim;
  std::vector<float> out(size_t{n_queries} * dim), scratch(attend_scratch(padded));
  std::vector<float> sums(size_t{n_queries} * (padded + 2)), parts = sums;
  bool first = true;
  for (uint32_t segment = begin / kSegment; segment * kSegment < end; ++segment, first = false) {
    std::vector<Query> queries;
    for (uint32_t i = 0; i < n_queries; ++i)
      queries.push_back({q.data() + size_t{i} * dim, std::max(begin, segment * kSegment),
                         std::min(end, (segment + 1) * kSegment),
                         (first ? sums : parts).data() + i * (padded + 2)});
    kernels.attend(kv, segment, queries.data(), n_queries, 0.3f, softcap, scratch.data());
    if (!first)
      for (uint32_t i = 0; i < n_queries; ++i)
        kernels.combine(sums.data() + i * (padded + 2), parts.data() + i * (padded + 2), padded);
  }
  for (uint32_t i = 0; i < n_queries; ++i)
    kernels.finish(sums.data() + i * (padded + 2), dim, padded, out.data() + size_t{i} * dim);
  return out;
}

}  // namespace

TEST_CASE("attention is the same bits on every instruction set, for one query or many, and right") {
  std::mt19937_64 rng(7);
  const uint32_t n_queries = 21;  // five times four that share what is widened, and one; 6 share nothing
  for (const KvType type : {KvType::kF16, KvType::kI8})
    for (const uint32_t dim : {2u, 8u, 20u, 64u, 80u, 128u})
      for (const uint32_t n : {1u, 15u, 17u, 256u, 600u}) {
        const std::vector<float> k = random_floats(size_t{n} * dim, 1, rng),
                                 v = random_floats(size_t{n} * dim, 1, rng);
        const std::vector<float> q = random_floats(size_t{n_queries} * dim, 1, rng);
        const OneHead reference(scalar(), type, dim, n, k, v);
        for (const float softcap : {0.0f, 2.0f})
          for (const uint32_t begin : {0u, n / 2}) {
            CAPTURE(static_cast<int>(type), dim, n, softcap, begin);
            const std::vector<float> out =
                attend(scalar(), reference.cache->head(0, 0), q, n_queries, begin, n, softcap);
            for (const Kernels* kernels : supported_kernels()) {
              CAPTURE(kernels->name);
              const OneHead head(*kernels, type, dim, n, k, v);
              REQUIRE(head.stored == reference.stored);
              const KvHead kv = head.cache->head(0, 0);
              REQUIRE(same_bits(attend(*kernels, kv, q, n_queries, begin, n, softcap), out));
              REQUIRE(same_bits(attend(*kernels, kv, q, 6, begin, n, softcap),
                                {out.begin(), out.begin() + 6 * dim}));
              REQUIRE(same_bits(attend(*kernels, kv, row_of(q, 6, dim), 1, begin, n, softcap),
                                row_of(out, 6, dim)));
            }
            // In double, from the unrounded keys and values.
            for (uint32_t i = 0; i < n_queries; ++i) {
              std::vector<double> score, exact(dim);
              double max = -1e300, sum = 0;
              for (uint32_t p = begin; p < n; ++p) {
                double s = 0;
                for (uint32_t d = 0; d < dim; ++d) s += double{q[i * dim + d]} * double{k[p * dim + d]};
                s *= double{0.3f};
                if (softcap != 0) s = double{softcap} * std::tanh(s / double{softcap});
                score.push_back(s);
                max = std::max(max, s);
              }
              for (double& s : score) sum += s = std::exp(s - max);
              for (uint32_t p = begin; p < n; ++p)
                for (uint32_t d = 0; d < dim; ++d)
                  exact[d] += score[p - begin] / sum * double{v[p * dim + d]};
              // fp16 keeps 11 bits; int8 steps are max / 127, about 3.5 / 127 of a deviation, for k and v.
              const double margin = type == KvType::kF16 ? 0.01 : 0.15;
              for (uint32_t d = 0; d < dim; ++d)
                REQUIRE(double{out[i * dim + d]} == Approx(exact[d]).margin(margin));
            }
          }
      }
}

TEST_CASE("kernels are chosen by name and refused when unknown") {
  CHECK(select_kernels("auto").name == supported_kernels().back()->name);
  CHECK_THROWS_WITH(select_kernels("sse"), Catch::Contains("'sse'"));
}
