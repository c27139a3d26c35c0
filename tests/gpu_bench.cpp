// Times every CUDA kernel alone, on the shapes of real models, and prints Markdown tables. Part of tests/gpu_check.sh.
//
//   gpu_bench [--tiny] TABLE     one of the tables listed at the end; --tiny: sizes that the emulated device can run, to test this program
//
// Weights rotate through enough copies to pass the L2 several times over; each figure is the median of graph
// replays, so that launch gaps are those of a running model. "share": bytes a launch must read, over its
// time, over what a device-to-device copy moves.
#include "gpu_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>

#include "format/float16.h"

namespace pith::cuda {
namespace {

void measure_copy(Bench& b) {
  const size_t n = size_t{1} << (tiny ? 20 : 30);
  const DeviceBuffer from = b.random_bytes(n), to(n, "copy target");
  const double time = b.seconds(4, [&](uint32_t) { b.stream.copy_on_device(to.data(), from.data(), n); });
  b.copy_bytes_per_s = 2.0 * static_cast<double>(n) / time;
}

void table_device(Bench& b) {
  fmt::print(
      "{}: {} multiprocessors, compute capability {}.{}, L2 {} MB; a device-to-device copy moves {:.2f} TB/s "
      "(read + written)\n",
      b.device.name, b.device.n_multiprocessors, b.device.compute_major, b.device.compute_minor,
      b.device.l2_bytes >> 20, b.copy_bytes_per_s / 1e12);
  const std::vector<uint8_t> host(size_t{1} << (tiny ? 20 : 30), 1);
  const DeviceBuffer device(host.size(), "upload target");
  Uploader uploader;
  uploader.upload(device.data(), host.data(), size_t{1} << 20);  // pinned memory and driver are warm
  uploader.finish();
  const auto start = std::chrono::steady_clock::now();
  uploader.upload(device.data(), host.data(), host.size());
  uploader.finish();
  const double time = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("Upload through pinned double buffers: {:.1f} GB/s\n",
             static_cast<double>(host.size()) / time / 1e9);
}

// Copies of one random tensor, as many as pass the L2 four times.
struct RotatingQ24 {
  RotatingQ24(Bench& b, const q24::Shape& shape) : layout(q24::make_layout(shape)) {
    const size_t n_bytes = layout.size_bytes + 1024;
    const size_t n = std::clamp<size_t>(4 * b.device.l2_bytes / n_bytes + 1, 2, 64);
    std::vector<uint8_t> host(n_bytes);
    for (size_t i = 0; i + 8 <= n_bytes; i += 8) {
      const uint64_t v = b.rng();
      std::memcpy(host.data() + i, &v, 8);
    }
    const auto half = [&](uint64_t at, uint16_t v) { std::memcpy(host.data() + at, &v, 2); };
    std::vector<uint16_t> perm(layout.padded_cols);
    for (uint32_t c = 0; c < layout.padded_cols; ++c)
      perm[c] = static_cast<uint16_t>(c < shape.n_cols ? c : 0xffff);
    std::shuffle(perm.begin(), perm.begin() + shape.n_cols, b.rng);
    std::memcpy(host.data() + layout.perm, perm.data(), perm.size() * 2);
    for (uint32_t i = 0; i < layout.n_lines; ++i) half(layout.col_scale + i * 2, float_to_f16(1));
    for (uint64_t i = 0; i < uint64_t{layout.n_panels} * 64; ++i)
      half(layout.row_scale + i * 2, float_to_f16(0.001f));
    for (uint64_t i = 0; i < uint64_t{layout.n_panels} * shape.n_slots * 32; ++i) {
      half(layout.outliers + i * 4, static_cast<uint16_t>(b.rng() % (layout.padded_cols - shape.n_fine)));
      half(layout.outliers + i * 4 + 2, float_to_f16(0.01f));
    }
    for (size_t i = 0; i < n; ++i) {
      copies.emplace_back(n_bytes, "benchmark weights");
      b.stream.copy_to_device(copies.back().data(), host.data(), n_bytes);
      b.stream.wait();
      weights.push_back(q24_weights(layout, copies.back().data()));
    }
  }
  q24::Layout layout;
  std::vector<DeviceBuffer> copies;
  std::vector<Q24Weights> weights;
};

struct Shape {
  const char* name;
  uint32_t n_rows, n_cols;
};
using Shapes = std::vector<Shape>;
const Shapes kShapes = {
    {"7B qkv", 12288, 4096},  {"7B o", 4096, 4096},          {"7B gate/up", 22016, 4096},
    {"7B down", 4096, 11008}, {"8B gate/up", 28672, 4096},   {"8B down", 4096, 14336},
    {"1.1B qkv", 2560, 2048}, {"1.1B gate/up", 11264, 2048}, {"7B head, 4-bit", 32000, 4096}};

// The first n of them.
Shapes shapes(size_t n = kShapes.size()) {
  if (tiny) return {{"tiny", 96, 256}};
  return {kShapes.begin(), kShapes.begin() + static_cast<std::ptrdiff_t>(n)};
}

// About 2.85 bits: every eighth column 4-bit, 0.4 % outliers.
q24::Shape mixed(const Shape& s) {
  q24::Shape q{s.n_rows, s.n_cols, 16, s.n_cols / 8 / 16 * 16, (s.n_cols * 4 + 999) / 1000};
  if (std::strstr(s.name, "4-bit") != nullptr) q = {s.n_rows, s.n_cols, 16, s.n_cols, 0};
  return q;
}

double time_matvec(Bench& b, const RotatingQ24& m, Pipeline pipeline, const MatvecShape& cut,
                   bool overlap = true) {
  const DeviceBuffer x = b.random_floats(m.layout.shape.n_cols),
                     y(m.layout.shape.n_rows * size_t{4}, "output");
  return b.seconds(static_cast<uint32_t>(std::max<size_t>(m.weights.size(), 16)), [&](uint32_t i) {
    MatvecQ24 args{m.weights[i % m.weights.size()], {x.as<float>(), nullptr, 0}, {}, cut};
    args.output.out = y.as<float>();
    launch_matvec_q24(pipeline, args, b.how(overlap));
  });
}

MatvecShape default_cut(const Bench& b, const RotatingQ24& m, Pipeline pipeline, bool synchronous) {
  return choose_matvec_shape(pipeline, m.weights[0], synchronous,
                             static_cast<uint32_t>(b.device.n_multiprocessors), b.device.max_shared_bytes);
}

struct NamedPipeline {
  const char* name;
  Pipeline pipeline;
  int sm;
};
constexpr NamedPipeline kPipelines[] = {{"registers", Pipeline::kRegisters, 75},
                                        {"cp.async", Pipeline::kAsyncCopy, 80},
                                        {"bulk copy", Pipeline::kBulkCopy, 90}};

void table_matvec(Bench& b) {
  fmt::print(
      "## Q24 matrix-vector product, about 2.85 bits: us (share of copy bandwidth)\n\n| shape | MB | floor "
      "us |");
  for (const NamedPipeline& p : kPipelines)
    if (b.device.sm() >= p.sm) fmt::print(" {0} | {0}, synchronous |", p.name);
  fmt::print(" best without overlap of launches |\n|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Shape& shape : shapes()) {
    const RotatingQ24 m(b, mixed(shape));
    const double n_bytes = static_cast<double>(m.layout.size_bytes);
    fmt::print("| {} | {:.1f} | {:.1f} |", shape.name, n_bytes / 1e6, 1e6 * n_bytes / b.copy_bytes_per_s);
    double best = 1e9;
    Pipeline best_pipeline = Pipeline::kRegisters;
    for (const NamedPipeline& p : kPipelines) {
      if (b.device.sm() < p.sm) continue;
      for (const bool synchronous : {false, true}) {
        const double time = time_matvec(b, m, p.pipeline, default_cut(b, m, p.pipeline, synchronous));
        fmt::print(" {:.1f} ({}) |", 1e6 * time, b.share(n_bytes, time));
        if (time < best) best = time, best_pipeline = p.pipeline;
      }
    }
    const double alone = time_matvec(b, m, best_pipeline, default_cut(b, m, best_pipeline, false), false);
    fmt::print(" {:.1f} |\n", 1e6 * alone);
    std::fflush(stdout);
  }
}

void table_costs(Bench& b) {
  fmt::print(
      "\n## What 4-bit groups and outliers cost (7B gate/up, us, share)\n\n| 4-bit columns | slots a row | "
      "MB |");
  for (const NamedPipeline& p : kPipelines)
    if (b.device.sm() >= p.sm) fmt::print(" {} |", p.name);
  fmt::print("\n|---|---|---|---|---|---|\n");
  const std::pair<uint32_t, uint32_t> cases[] = {{0, 0},     {0, 16},    {512, 0}, {512, 16},
                                                 {1024, 16}, {2048, 16}, {4096, 0}};
  for (const auto& [n_fine, n_slots] : cases) {
    const RotatingQ24 m(b, tiny ? q24::Shape{96, 256, 16, n_fine / 16, std::min(n_slots, 2u)}
                                : q24::Shape{22016, 4096, 16, n_fine, n_slots});
    const double n_bytes = static_cast<double>(m.layout.size_bytes);
    fmt::print("| {:.1f} % | {} | {:.1f} |", n_fine / 40.96, n_slots, n_bytes / 1e6);
    for (const NamedPipeline& p : kPipelines) {
      if (b.device.sm() < p.sm) continue;
      const double time = time_matvec(b, m, p.pipeline, default_cut(b, m, p.pipeline, false));
      fmt::print(" {:.1f} ({}) |", 1e6 * time, b.share(n_bytes, time));
    }
    fmt::print("\n");
  }
}

void table_cuts(Bench& b) {
  fmt::print(
      "\n## Warps a block and stages a ring: us\n\n| shape | pipeline | stages | 4 warps | 6 | 8 | 12 "
      "|\n|---|---|---|---|---|---|---|\n");
  for (const Shape& shape : shapes(4)) {
    const RotatingQ24 m(b, mixed(shape));
    for (const NamedPipeline& p : kPipelines) {
      if (b.device.sm() < p.sm) continue;
      for (const uint32_t n_stages : {2u, 3u, 4u}) {
        if (p.pipeline == Pipeline::kRegisters && n_stages != 2) continue;
        fmt::print("| {} | {} | {} |", shape.name, p.name, n_stages);
        for (const uint32_t n_warps : {4u, 6u, 8u, 12u}) {
          const MatvecShape cut{static_cast<uint32_t>(b.device.n_multiprocessors), n_warps, n_stages};
          const bool fits =
              matvec_q24_shared_bytes(p.pipeline, m.layout.padded_cols, cut) <= b.device.max_shared_bytes;
          if (fits)
            fmt::print(" {:.1f} |", 1e6 * time_matvec(b, m, p.pipeline, cut));
          else
            fmt::print(" - |");
        }
        fmt::print("\n");
      }
    }
  }
}

void table_plain(Bench& b) {
  fmt::print(
      "\n## 16-bit matrix-vector product: us (share)\n\n| shape | MB | 1 block a multiprocessor | 2 | 4 "
      "|\n|---|---|---|---|---|\n");
  for (const Shape& shape : shapes()) {
    const size_t n_bytes = size_t{shape.n_rows} * shape.n_cols * 2;
    const size_t n = std::clamp<size_t>(4 * b.device.l2_bytes / n_bytes + 1, 2, 16);
    std::vector<DeviceBuffer> copies;
    for (size_t i = 0; i < n; ++i) copies.push_back(b.random_bytes(n_bytes));
    const DeviceBuffer x = b.random_floats(shape.n_cols), y(shape.n_rows * size_t{4}, "output");
    fmt::print("| {} | {:.1f} |", shape.name, static_cast<double>(n_bytes) / 1e6);
    for (const uint32_t per_sm : {1u, 2u, 4u}) {
      const double time = b.seconds(16, [&](uint32_t i) {
        MatvecPlain args;
        args.w = {copies[i % n].data(), shape.n_rows, shape.n_cols, PlainKind::kBF16};
        args.input.x = x.as<float>();
        args.output.out = y.as<float>();
        args.x_stride = shape.n_cols;
        args.out_stride = shape.n_rows;
        args.n_blocks = static_cast<uint32_t>(b.device.n_multiprocessors) * per_sm;
        launch_matvec_plain(args, b.how());
      });
      fmt::print(" {:.1f} ({}) |", 1e6 * time, b.share(static_cast<double>(n_bytes), time));
    }
    fmt::print("\n");
  }
}

struct AttentionData {
  AttentionData(Bench& b, uint32_t heads, uint32_t kv_heads, uint32_t ctx, bool i8, uint32_t n_tokens)
      : k(b.random_bytes(size_t{kv_heads} * ctx * 128 * (i8 ? 1 : 2))),
        v(b.random_bytes(k.size_bytes())),
        scales(b.random_floats(size_t{kv_heads} * ctx)),
        rope(b.random_floats(size_t{ctx} * 64)),
        qkv(b.random_floats(size_t{n_tokens} * (heads + 2 * kv_heads) * 128)),
        out(size_t{n_tokens} * heads * 128 * 4, "output"),
        parts(size_t{heads} * 64 * 130 * 4, "parts"),
        tickets(kv_heads * size_t{4}, "tickets"),
        position(4, "position") {
    tickets.fill(0);
    layer.norm_eps = 1e-5f;
    layer.rope = {rope.as<float>(), rope.as<float>(), 128};
    layer.k = k.data();
    layer.v = v.data();
    layer.k_scale = i8 ? scales.as<float>() : nullptr;
    layer.v_scale = i8 ? scales.as<float>() : nullptr;
    layer.n_heads = heads;
    layer.n_kv_heads = kv_heads;
    layer.head_dim = 128;
    layer.n_ctx = ctx;
    layer.scale = 0.088f;
    layer.position = position.as<int32_t>();
  }
  DeviceBuffer k, v, scales, rope, qkv, out, parts, tickets, position;
  AttentionLayer layer{};
};

void table_attention(Bench& b) {
  fmt::print(
      "\n## Attention, head_dim 128: us\n\n| heads | cache | tokens | position | splits | us | GB/s "
      "|\n|---|---|---|---|---|---|---|\n");
  const std::pair<uint32_t, uint32_t> cases[] = {{32, 32}, {32, 8}};
  const uint32_t n_prompt = tiny ? 16 : 512;
  const int32_t last = tiny ? 31 : 4095;
  for (const auto& [heads, kv_heads] : cases)
    for (const bool i8 : {false, true}) {
      AttentionData d(b, heads, kv_heads, static_cast<uint32_t>(last) + 129, i8, n_prompt);
      for (const int32_t position : {15, last / 8, last}) {
        b.stream.copy_to_device(d.position.data(), &position, 4);
        b.stream.wait();
        for (const uint32_t n_splits : {1u, 4u, 8u, 16u}) {
          AttentionDecode a{};
          static_cast<AttentionLayer&>(a) = d.layer;
          a.qkv = d.qkv.as<float>();
          a.out = d.out.as<float>();
          a.parts = d.parts.as<float>();
          a.tickets = d.tickets.as<uint32_t>();
          const double time = b.seconds(32, [&](uint32_t) { launch_attention_decode(a, n_splits, b.how()); });
          const double n_bytes = 2.0 * kv_heads * (position + 1) * (i8 ? 132 : 256);
          fmt::print("| {}/{} | {} | 1 | {} | {} | {:.1f} | {:.0f} |\n", heads, kv_heads,
                     i8 ? "int8" : "fp16", position, n_splits, 1e6 * time, n_bytes / time / 1e9);
        }
      }
      for (const int32_t position : {0, last + 1 - static_cast<int32_t>(n_prompt)}) {
        b.stream.copy_to_device(d.position.data(), &position, 4);
        b.stream.wait();
        AttentionPrefill a{};
        static_cast<AttentionLayer&>(a) = d.layer;
        a.qkv = d.qkv.as<float>();
        a.out = d.out.as<float>();
        a.n_tokens = n_prompt;
        const double append = b.seconds(8, [&](uint32_t) { launch_append_tokens(a, b.how()); });
        const double time = b.seconds(8, [&](uint32_t) { launch_attention_prefill(a, b.how()); });
        fmt::print("| {}/{} | {} | {} | {} | | {:.1f} (+ {:.1f} norm, RoPE, append) | |\n", heads, kv_heads,
                   i8 ? "int8" : "fp16", n_prompt, position, 1e6 * time, 1e6 * append);
      }
    }
}

// One matrix and 2048 tokens, in every form.
struct GemmData {
  GemmData(Bench& bench, const Shape& matrix)
      : b(bench),
        shape(matrix),
        n_tokens(tiny ? 130 : 2048),
        n_padded((n_tokens + kTokenTile - 1) / kTokenTile * kTokenTile),
        q24(bench, mixed(matrix)),
        plain(bench.random_bytes(size_t{matrix.n_rows} * matrix.n_cols * 2)),
        x(bench.random_floats(size_t{n_tokens} * matrix.n_cols)),
        y(size_t{n_tokens} * matrix.n_rows * 4, "output"),
        a(size_t{q24.layout.padded_cols + 128} * n_padded * 2, "tokens"),
        sums(size_t{q24.layout.padded_cols + 128} / 128 * n_padded * 16, "sums"),
        scale(size_t{q24.layout.padded_cols + 128} / 128 * n_padded * 4, "scales"),
        columns(size_t{q24.layout.padded_cols} * n_padded * 4, "columns") {
    for (const Q24Weights& w : q24.weights) launch_sort_outliers(w, bench.how(false));
  }
  QuantizedTokens int8(uint32_t n) const {
    return {a.data(), sums.data(), scale.as<float>(), columns.as<float>(), n, n_padded};
  }
  HalfTokens half(uint32_t n) const { return {a.data(), scale.as<float>(), n, n_padded}; }
  Input input() const { return {x.as<float>(), nullptr, 0}; }

  double time_int8(uint32_t n) const {
    launch_quantize_tokens({q24.weights[0], input(), shape.n_cols, int8(n)}, b.how(false));
    GemmQ24 args{q24.weights[0], int8(n), {}, shape.n_rows};
    args.output.out = y.as<float>();
    return b.seconds(4, [&](uint32_t) { launch_gemm_q24(args, b.how()); });
  }
  double time_half(uint32_t n, bool is_q24, PlainKind kind, bool warpgroups) const {
    GemmHalf args{};
    if (is_q24)
      args.q24 = q24.weights[0];
    else
      args.plain = {plain.data(), shape.n_rows, shape.n_cols, kind};
    args.tokens = half(n);
    args.output.out = y.as<float>();
    args.out_stride = shape.n_rows;
    args.warpgroups = warpgroups;
    args.n_groups =
        choose_half_groups(warpgroups, is_q24, shape.n_rows, n,
                           static_cast<uint32_t>(b.device.n_multiprocessors), b.device.max_shared_bytes);
    launch_halve_tokens({args.q24, is_q24 ? 0 : shape.n_cols, input(), shape.n_cols, args.tokens},
                        b.how(false));
    return b.seconds(4, [&](uint32_t) { launch_gemm_half(args, b.how()); });
  }
  Bench& b;
  Shape shape;
  uint32_t n_tokens, n_padded;
  RotatingQ24 q24;
  DeviceBuffer plain, x, y, a, sums, scale, columns;
};

void table_gemm(Bench& b) {
  const bool warpgroups = has_warpgroups(b.device.compute_major, b.device.compute_minor);
  fmt::print(
      "\n## Products of many tokens: us (TFLOP/s or int8 TOPS)\n\n| shape | tokens | Q24, int8, mma.sync | "
      "Q24, fp16, "
      "wgmma | fp16, wgmma | bf16, wgmma | fp16, mma.sync |\n|---|---|---|---|---|---|---|\n");
  for (const Shape& shape : shapes(4)) {
    const GemmData d(b, shape);
    for (const uint32_t n : {128u, 512u, 2048u}) {
      if (n > d.n_padded) continue;
      const auto cell = [&](double time) {
        return fmt::format("{:.0f} ({:.0f})", 1e6 * time, 2e-12 * n * shape.n_rows * shape.n_cols / time);
      };
      const auto half = [&](bool is_q24, PlainKind kind) {
        return warpgroups ? cell(d.time_half(n, is_q24, kind, true)) : "-";
      };
      fmt::print("| {} | {} | {} | {} | {} | {} | {} |\n", shape.name, n, cell(d.time_int8(n)),
                 half(true, PlainKind::kF16), half(false, PlainKind::kF16), half(false, PlainKind::kBF16),
                 cell(d.time_half(n, false, PlainKind::kF16, false)));
      std::fflush(stdout);
    }
    const Q24Weights& w = d.q24.weights[0];
    const double int8 = b.seconds(4, [&](uint32_t) {
      launch_quantize_tokens({w, d.input(), shape.n_cols, d.int8(d.n_tokens)}, b.how());
    });
    const double half = b.seconds(4, [&](uint32_t) {
      launch_halve_tokens({w, 0, d.input(), shape.n_cols, d.half(d.n_tokens)}, b.how());
    });
    fmt::print("| {}: tokens made ready | {} | {:.0f} | {:.0f} | | | |\n", shape.name, d.n_tokens, 1e6 * int8,
               1e6 * half);
    std::fflush(stdout);
  }
}

// What the kernels of a decode step cost beside their bytes: outliers on and off at prefill too.
void table_gemm_costs(Bench& b) {
  if (!has_warpgroups(b.device.compute_major, b.device.compute_minor)) return;
  fmt::print(
      "\n## What 4-bit groups and outliers cost a prompt (7B o, wgmma, us)\n\n| 4-bit columns | slots a row "
      "| us "
      "|\n|---|---|---|\n");
  const std::pair<uint32_t, uint32_t> cases[] = {{0, 0}, {0, 16}, {512, 0}, {512, 16}, {4096, 0}};
  for (const auto& [n_fine, n_slots] : cases) {
    const q24::Shape shape = tiny ? q24::Shape{96, 256, 16, n_fine / 16, std::min(n_slots, 2u)}
                                  : q24::Shape{4096, 4096, 16, n_fine, n_slots};
    const RotatingQ24 m(b, shape);
    const uint32_t n = tiny ? 16 : 2048, n_padded = tiny ? 128 : 2048;
    const DeviceBuffer x = b.random_floats(size_t{n} * shape.n_cols),
                       y(size_t{n} * shape.n_rows * 4, "output"),
                       a(size_t{n_padded} * shape.n_cols * 2, "tokens"),
                       scale(n_padded * size_t{4}, "scales");
    launch_sort_outliers(m.weights[0], b.how(false));
    GemmHalf args{m.weights[0], {}, {a.data(), scale.as<float>(), n, n_padded}, {}, shape.n_rows, 2, true};
    args.output.out = y.as<float>();
    launch_halve_tokens({m.weights[0], 0, {x.as<float>(), nullptr, 0}, shape.n_cols, args.tokens},
                        b.how(false));
    const double time = b.seconds(4, [&](uint32_t) { launch_gemm_half(args, b.how()); });
    fmt::print("| {} | {} | {:.1f} |\n", n_fine, n_slots, 1e6 * time);
  }
}

struct Table {
  const char* name;
  void (*print)(Bench&);
};
constexpr Table kTables[] = {
    {"device", table_device}, {"matvec", table_matvec},         {"costs", table_costs},
    {"plain", table_plain},   {"attention", table_attention},   {"gemm", table_gemm},
    {"cuts", table_cuts},     {"gemm-costs", table_gemm_costs}, {"float", table_float}};

int run(const std::vector<std::string>& words) {
  std::vector<Table> wanted;
  for (const std::string& word : words) {
    if (word == "--tiny") tiny = true;
    for (const Table& table : kTables)
      if (word == table.name) wanted.push_back(table);
  }
  if (wanted.size() + (tiny ? 1 : 0) != words.size() || wanted.empty()) {
    fmt::print(stderr, "usage: gpu_bench [--tiny] TABLE..., of");
    for (const Table& table : kTables) fmt::print(stderr, " {}", table.name);
    fmt::print(stderr, "\n");
    return 2;
  }
  const DeviceList list = list_devices();
  if (list.devices.empty()) {
    fmt::print("SKIP: {}\n", list.problem);
    return 77;
  }
  use_device(0);
  Bench b;
  measure_copy(b);
  for (const Table& table : wanted) table.print(b);
  return 0;
}

}  // namespace
}  // namespace pith::cuda

int main(int argc, char** argv) {
  return pith::cuda::run({argv + 1, argv + argc});
}
