// The CUDA backend as it is, over the emulated device (cuda/device_emulated.cpp): every phase, the recorded
// graphs and the cache's common form, against the CPU backend.
//
// Built twice: over that device (PITH_EMULATED_DEVICE; with what only it can do: be another device), and as gpu_backend for
// tests/gpu_check.sh.
#include <catch2/catch.hpp>
#include <numeric>

#include "cuda/launch_emulated.h"
#include "models/weight_count.h"
#include "random_model.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/decoder.h"
#include "runtime/gpu/cuda_backend.h"
#include "runtime/gpu_plan.h"
#include "runtime/placement.h"
#include "sample_specs.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;
using Catch::Matchers::EndsWith;
using Catch::Matchers::Matches;

namespace {

constexpr uint32_t kHeadDim = 16;  // what the kernels take

ModelSpec experts_spec() {
  ModelSpec spec = everything_spec(kHeadDim);
  spec.n_experts = 5, spec.n_active_experts = 2, spec.router_bias = true, spec.router_renormalize = false;
  spec.attn_sinks = spec.qk_norm_whole = true;
  spec.qk_norm = spec.pre_norms = false;
  spec.activation = Activation::kClampedSwiglu;
  return spec;
}

struct Fixture {
  Fixture(const ModelSpec& spec, const RandomModelOptions& options) {
    write_random_model(folder / "m.pith", spec, options);
    model = Model::open(folder / "m.pith");
  }
  std::unique_ptr<Backend> open(const BackendKind& kind, SessionOptions options = {}) const {
    options.n_ctx = 100;
    options.prefill_chunk = 32;
    options.n_threads = 1;
    return kind.create(model, options, all_layers(model->spec()));
  }
  // Logits after each of the batches, which begin at `position`.
  std::vector<float> run(Backend& backend, std::span<const int32_t> ids, const std::vector<uint32_t>& batches,
                         uint32_t position = 0) const {
    std::atomic<bool> stop{false};
    std::vector<float> all;
    for (const uint32_t n : batches) {
      decode_batch(backend, model->spec(), ids.first(n), position, stop);
      const std::span<const float> logits = backend.head(n - 1, 1);
      all.insert(all.end(), logits.begin(), logits.end());
      ids = ids.subspan(n);
      position += n;
    }
    return all;
  }
  TempFolder folder;
  std::shared_ptr<const Model> model;
};

double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  REQUIRE(found.size() == expected.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += std::pow(double{found[i]} - expected[i], 2);
    size += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(error / size);
}

const BackendKind kCuda = cuda_backend_kind();

}  // namespace

// Prefill attention rounds q and the weights to fp16: 2^-11 of each, so well under 2^-8 after two layers.
// With Q24 tensors a value near the middle between two int8 codes may fall on either side: one code of 127 in
// one of 48 columns, now and then. Products in warpgroups keep 11 bits of a prompt's tokens, where the CPU's
// have 8 of the largest in 128: half a code, 2^-8 of it, in every column of the prompt, so twice as far.
// `async` has the int8 products of GPUs without warpgroups.
TEST_CASE("cuda logits equal the CPU's, prefill and decode, for every switch and kind of tensor") {
  const std::vector<int32_t> ids = random_ids(40, 131);
  const std::vector<uint32_t> batches = {21, 1, 1, 5, 1};
  struct Case {
    ModelSpec spec;
    TensorKind kind;
    KvType kv;
  };
  for (const Case& c : {Case{plain_spec(kHeadDim), TensorKind::kF32, KvType::kF16},
                        {plain_spec(kHeadDim), TensorKind::kQ24, KvType::kI8},
                        {everything_spec(kHeadDim), TensorKind::kBF16, KvType::kF16},
                        {everything_spec(kHeadDim), TensorKind::kF32, KvType::kI8},
                        {everything_spec(kHeadDim), TensorKind::kQ24, KvType::kF16},
                        {experts_spec(), TensorKind::kF16, KvType::kF16},
                        {experts_spec(), TensorKind::kQ24, KvType::kI8}}) {
    INFO("kind " << to_string(c.kind) << " kv " << static_cast<int>(c.kv) << " post norms "
                 << c.spec.post_norms << " experts " << c.spec.n_experts);
    const Fixture f(c.spec, {c.kind});
    SessionOptions options;
    options.kv = c.kv;
    const bool exact = c.kind != TensorKind::kQ24 && c.kv == KvType::kF16;
    const std::vector<float> expected = f.run(*f.open(cpu::backend_kind(), options), ids, batches);
    for (const char* const kernels : {"auto", "async"}) {
      INFO("kernels " << kernels);
      options.kernels = kernels;
      const bool other_tokens = c.kind == TensorKind::kQ24 && options.kernels == "auto";
      CHECK(relative_error(f.run(*f.open(kCuda, options), ids, batches), expected) < (exact          ? 4e-3
                                                                                      : other_tokens ? 6e-2
                                                                                                     : 3e-2));
    }
  }
}

TEST_CASE("cuda kernels of every pipeline agree") {
  const std::vector<int32_t> ids = random_ids(4, 131);
  const Fixture f(plain_spec(kHeadDim), {TensorKind::kQ24, 32, 2, 0.5});
  SessionOptions options;
  options.kernels = "registers";
  const std::vector<float> expected = f.run(*f.open(kCuda, options), ids, {1, 1, 1, 1});
  for (const char* const kernels : {"registers-sync", "async", "async-sync", "bulk", "bulk-sync", "auto"}) {
    INFO(kernels);
    options.kernels = kernels;
    CHECK(relative_error(f.run(*f.open(kCuda, options), ids, {1, 1, 1, 1}), expected) < 1e-6);
  }
  options.kernels = "avx2";
  CHECK_THROWS_WITH(f.open(kCuda, options),
                    Contains("kernels: 'avx2', expected auto, registers, async or bulk"));
}

TEST_CASE("a token without head() still reaches the cache, and logits of several rows equal those of one") {
  const std::vector<int32_t> ids = random_ids(6, 131);
  const Fixture f(plain_spec(kHeadDim), {TensorKind::kF32});
  const auto a = f.open(kCuda), b = f.open(kCuda);
  std::atomic<bool> stop{false};
  for (uint32_t i = 0; i < 3; ++i) decode_batch(*a, f.model->spec(), {&ids[i], 1}, i, stop);
  const std::vector<float> last = f.run(*a, std::span(ids).subspan(3), {1}, 3);
  const std::vector<float> expected = f.run(*b, ids, {1, 1, 1, 1});
  CHECK(relative_error(last, {expected.end() - 131, expected.end()}) == 0);

  decode_batch(*a, f.model->spec(), ids, 0, stop);
  const std::span<const float> rows = a->head(1, 3);
  const std::vector<float> three(rows.begin(), rows.end());
  for (uint32_t i = 0; i < 3; ++i) {
    const std::span<const float> row = a->head(1 + i, 1);
    CHECK(relative_error({row.begin(), row.end()}, {three.begin() + i * 131, three.begin() + (i + 1) * 131}) <
          1e-6);
  }
}

TEST_CASE("the cache goes from cuda to the CPU and back in its common form") {
  const std::vector<int32_t> ids = random_ids(9, 131);
  for (const KvType kv : {KvType::kF16, KvType::kI8}) {
    const Fixture f(plain_spec(kHeadDim), {TensorKind::kF32});
    SessionOptions options;
    options.kv = kv;
    const auto cuda = f.open(kCuda, options), cpu = f.open(cpu::backend_kind(), options),
               again = f.open(kCuda, options);
    f.run(*cuda, ids, {7, 1});
    for (uint32_t layer = 0; layer < 2; ++layer) {
      std::vector<uint8_t> bytes(kv_layer_bytes(f.model->spec(), kv, 8)), back(bytes.size());
      cuda->read_kv(layer, 8, bytes.data());
      cpu->write_kv(layer, 8, bytes.data());
      cpu->read_kv(layer, 8, back.data());
      CHECK(bytes == back);
      again->write_kv(layer, 8, back.data());
    }
    const std::vector<float> expected = f.run(*cuda, std::span(ids).subspan(8), {1}, 8);
    CHECK(relative_error(f.run(*again, std::span(ids).subspan(8), {1}, 8), expected) == 0);
    CHECK(relative_error(f.run(*cpu, std::span(ids).subspan(8), {1}, 8), expected) < 1e-5);
  }
}

namespace {

// A file of zeros of a Llama's shape. `bits`: 16, or 4-bit codes throughout with an outlier a row in the linear layers.
std::shared_ptr<const Model> zeros_of(const GpuShape& shape, bool is_plain, const TempFolder& folder) {
  ModelSpec spec;
  const auto n = [](uint64_t v) { return static_cast<uint32_t>(v); };
  spec.family = "test";
  spec.vocab_size = n(shape.vocab_size), spec.dim = n(shape.dim), spec.ffn_dim = n(shape.ffn_dim);
  spec.n_layers = n(shape.n_layers), spec.n_heads = n(shape.n_heads), spec.n_kv_heads = n(shape.n_kv_heads);
  spec.head_dim = n(shape.head_dim), spec.max_context = kGpuPlanTokens, spec.attn_scale = 1;
  spec.ropes = {{std::vector<float>(shape.head_dim / 2, 1.0f), 1}};
  spec.layers.assign(spec.n_layers, LayerSpec{});
  Writer writer(folder / "zeros", 1);
  for (const TensorPlan& plan : plan_tensors(spec)) {
    const size_t n_weights = size_t{plan.n_rows} * plan.n_cols;
    if (plan.n_rows == 1) {
      writer.add(plan.name, TensorKind::kF32, 1, plan.n_cols, Bytes(4 * n_weights));
    } else if (is_plain) {
      writer.add(plan.name, TensorKind::kF16, plan.n_rows, plan.n_cols, Bytes(2 * n_weights));
    } else {
      const uint32_t n_slots = plan.role == TensorRole::kLinear ? 1 : 0;
      q24::Unpacked u;
      u.shape = {plan.n_rows, plan.n_cols, 16, plan.n_cols - 16 * n_slots, n_slots};
      u.perm.resize(plan.n_cols);
      std::iota(u.perm.begin(), u.perm.end(), uint16_t{0});
      u.col_scale.resize(plan.n_cols / 16);
      u.codes.resize(n_weights);
      u.s.resize(n_weights / 16);
      u.m.resize(n_weights / 16);
      u.d.resize(plan.n_rows);
      u.dmin.resize(plan.n_rows);
      u.outlier_col.resize(size_t{plan.n_rows} * n_slots);
      u.outlier_delta.resize(size_t{plan.n_rows} * n_slots);
      writer.add(plan.name, u);
    }
  }
  Metadata metadata;
  store_spec(spec, metadata);
  writer.finish(metadata);
  return Model::open(folder / "zeros");
}

}  // namespace

// What the plan leaves out: alignment, permutations and row scales of the embedding, parts of attention, counters.
TEST_CASE("the memory that pith plan --gpus counts for a shape is what the cuda backend takes") {
  const GpuShape shape{"small", 8000, 1024, 3072, 2, 16, 4, 64};
  for (const bool is_plain : {true, false}) {
    const TempFolder folder;
    const auto model = zeros_of(shape, is_plain, folder);
    const GpuPlan expected = plan_gpu(shape, count_weights(model->container()).linear_bits());
    SessionOptions options;
    options.n_ctx = kGpuPlanTokens;
    options.prefill_chunk = kGpuPlanChunk;
    options.kv = is_plain ? KvType::kF16 : KvType::kI8;
    options.kernels = "async";
    const MemoryPlan found = kCuda.plan(*model, options, all_layers(model->spec()));
    INFO("16 bits: " << is_plain);
    const auto near = [](uint64_t value) { return Approx(static_cast<double>(value)).epsilon(0.01); };
    CHECK(static_cast<double>(found.weights_bytes) == near(expected.weights_bytes));
    CHECK(static_cast<double>(found.kv_bytes) == near(expected.kv_bytes));
    CHECK(static_cast<double>(found.scratch_bytes) == near(expected.scratch_bytes));
    options.kernels = "auto";
    const uint64_t with_warpgroups = kCuda.plan(*model, options, all_layers(model->spec())).total();
    CHECK(with_warpgroups <= expected.total_bytes() + expected.total_bytes() / 100);
  }
}

namespace {

// cuda, with as much memory as the test says, and the CPU.
uint64_t free_bytes = 0;
std::vector<BackendKind> both_kinds() {
  BackendKind cuda = kCuda;
  cuda.free_bytes = [](const std::string&) { return free_bytes; };
  return {cuda, cpu::backend_kind()};
}

SessionOptions split_options(const char* device, int32_t gpu_layers) {
  SessionOptions options;
  options.n_ctx = 64;
  options.prefill_chunk = 16;
  options.n_threads = 1;
  options.device = device;
  options.gpu_layers = gpu_layers;
  return options;
}

ModelSpec three_layers() {
  ModelSpec spec = everything_spec(kHeadDim);
  spec.n_layers = 3;
  spec.layers.push_back({});
  return spec;
}

}  // namespace

TEST_CASE("the first layers on the CPU and the last N on cuda give the CPU's logits, for every N") {
  const std::vector<int32_t> ids = random_ids(24, 131);
  const Fixture f(three_layers(), {TensorKind::kF32});
  std::vector<float> expected;
  std::vector<uint8_t> cache(kv_layer_bytes(f.model->spec(), KvType::kF16, 20));
  for (const int32_t n : {0, 1, 2, 3}) {
    INFO("layers on cuda: " << n);
    const SessionOptions options = split_options("cuda", n);
    const Placement placement = place(*f.model, options, both_kinds());
    CHECK(placement.n_gpu_layers == static_cast<uint32_t>(n));
    CHECK((placement.memory.gpu_bytes == 0) == (n == 0));
    CHECK((placement.memory.gpu_weights_bytes == 0) == (n == 0));
    CHECK((placement.memory.gpu_weights_bytes == placement.memory.weights_bytes) == (n == 3));
    const auto backend = open_placed(f.model, options, placement, both_kinds());
    const std::vector<float> found = f.run(*backend, ids, {15, 1, 1, 3, 1});
    if (n == 0) expected = found;
    CHECK(relative_error(found, expected) < 4e-3);
    // Its cache goes into another placement's, layer by layer.
    const auto other = open_placed(f.model, options,
                                   place(*f.model, split_options("cuda", 3 - n), both_kinds()), both_kinds());
    for (uint32_t layer = 0; layer < 3; ++layer) {
      backend->read_kv(layer, 20, cache.data());
      other->write_kv(layer, 20, cache.data());
    }
    const auto next = std::span(ids).subspan(20);
    CHECK(relative_error(f.run(*other, next, {1}, 20), f.run(*backend, next, {1}, 20)) < 4e-3);
  }
}

TEST_CASE("which layers lie where is said in words") {
  CHECK(describe_layers(32, 0) == "all 32 on the CPU");
  CHECK(describe_layers(32, 32) == "all 32 on the GPU");
  CHECK(describe_layers(32, 20) == "0 to 11 on the CPU, 12 to 31 on the GPU");
  CHECK(describe_layers(2, 1) == "0 on the CPU, 1 on the GPU");
}

TEST_CASE("gpu_layers auto takes as many layers as fit and says why not all") {
  const Fixture f(three_layers(), {TensorKind::kF32});
  const uint64_t reserve = uint64_t{256} << 20;
  const auto need = [&](int32_t n) {
    return place(*f.model, split_options("cuda", n), both_kinds()).memory.gpu_bytes + reserve;
  };
  const SessionOptions open = split_options("auto", kGpuLayersDefault);
  for (const uint32_t n : {0u, 1u, 2u, 3u})
    for (const bool is_least : {true, false}) {
      if (is_least)
        free_bytes = n == 0 ? reserve : need(static_cast<int32_t>(n));
      else
        free_bytes = n == 3 ? uint64_t{1} << 40 : need(static_cast<int32_t>(n) + 1) - 1;
      const Placement placement = place(*f.model, open, both_kinds());
      CHECK(placement.n_gpu_layers == n);
      CHECK(placement.device == (n == 0 ? "cpu" : "cuda"));
      CHECK(placement.note.empty() == (n == 3));
      if (n < 3) CHECK_THAT(placement.note, Contains(fmt::format("{} of 3 layers on cuda", n)));
    }
  CHECK(place(*f.model, split_options("cuda", 99), both_kinds()).n_gpu_layers == 3);  // as much as all
  CHECK_THROWS_WITH(place(*f.model, split_options("cpu", 1), both_kinds()),
                    "gpu_layers: 1 on the CPU, expected a GPU");
}

TEST_CASE("the plan is what is taken, and what cuda cannot do is said") {
  const Fixture f(plain_spec(kHeadDim), {TensorKind::kQ24});
  SessionOptions options;
  options.n_ctx = 100;
  options.device = "cuda";
  const MemoryPlan plan = kCuda.plan(*f.model, options, all_layers(f.model->spec()));
  uint64_t tensors = 0;
  for (const Tensor& t : f.model->container().tensors()) tensors += t.size_bytes;
  CHECK(plan.weights_bytes >= tensors);
  CHECK(plan.weights_bytes <= tensors + f.model->container().tensors().size() * 1280);
  CHECK(plan.kv_bytes >= kv_layer_bytes(f.model->spec(), KvType::kF16, 100) * 2);

  options.device = "cuda:7";
  CHECK_THROWS_WITH(kCuda.plan(*f.model, options, all_layers(f.model->spec())),
                    "device: 'cuda:7', expected cuda:0");
  ModelSpec odd = plain_spec(kHeadDim);
  odd.head_dim = 12;
  odd.ropes = {{{1.0f, 0.4f}, 1}};
  const Fixture g(odd, {TensorKind::kF32});
  const char* const lacks = "cuda: head_dim of 12, expected a multiple of 8 up to 256";
  CHECK_THROWS_WITH(g.open(kCuda), lacks);
  CHECK_THROWS_WITH(place(*g.model, split_options("cuda", kGpuLayersDefault), both_kinds()), lacks);
  const Placement fallback = place(*g.model, split_options("auto", kGpuLayersDefault), both_kinds());
  CHECK(fallback.device == "cpu");
  CHECK_THAT(fallback.note, Contains(lacks));
}

#ifdef PITH_EMULATED_DEVICE
namespace {

// The devices are these until the end of the scope.
struct OtherDevices {
  explicit OtherDevices(cuda::DeviceList devices) { cuda::emulate_devices(std::move(devices)); }
  ~OtherDevices() { cuda::emulate_devices(before); }
  const cuda::DeviceList before = cuda::list_devices();
};

}  // namespace

TEST_CASE(
    "a model that takes more shared memory than the device has is refused, and auto runs it on the CPU") {
  const cuda::DeviceInfo t4{0, "T4", 7, 5, 2, 0, 0, 1 << 20, 65536, 1000};
  ModelSpec spec = plain_spec(kHeadDim);
  spec.n_layers = 1, spec.layers.resize(1);
  spec.n_kv_heads = 1;
  const auto attention = [&](uint32_t n_heads) {
    ModelSpec s = spec;
    s.n_heads = n_heads, s.head_dim = 256;
    return s;
  };
  const auto experts = [&](uint32_t n, uint32_t ffn_dim) {
    ModelSpec s = spec;
    s.n_experts = n, s.n_active_experts = 1, s.dim = 8, s.ffn_dim = ffn_dim;
    return s;
  };
  const auto wide = [&](uint32_t dim) {
    ModelSpec s = spec;
    s.dim = dim;
    s.vocab_size = 8, s.ffn_dim = 16, s.n_heads = 1;
    return s;
  };
  const auto deep = [&](uint32_t ffn_dim) {
    ModelSpec s = spec;
    s.dim = 16, s.ffn_dim = ffn_dim;
    return s;
  };
  struct Case {
    ModelSpec spec;
    TensorKind kind;
    std::string refused;  // what, or empty: it runs
  };
  for (const Case& c :
       {Case{attention(4), TensorKind::kF16, ""},
        {attention(5), TensorKind::kF16, "attention of 5 heads of 256 for each KV head takes 73216"},
        {experts(963, 16), TensorKind::kF16, ""},
        {experts(964, 16), TensorKind::kF16, "a choice of 964 experts takes 65552"},
        {experts(2, 16354), TensorKind::kF16, "a product over 16354 columns takes 65600"},
        {wide(16352), TensorKind::kF32, ""},
        {wide(16354), TensorKind::kF32, "a product over 16354 columns takes 65600"},
        {deep(16354), TensorKind::kF32, ""},  // its input has no norm
        {wide(55424), TensorKind::kQ24, ""},
        {wide(55425), TensorKind::kQ24, "a product over 55425 columns takes 65664"}}) {
    INFO("dim " << c.spec.dim << " ffn_dim " << c.spec.ffn_dim << " experts " << c.spec.n_experts);
    const Fixture f(c.spec, {c.kind});
    const OtherDevices other({{t4}, ""});
    const SessionOptions options = split_options("auto", kGpuLayersDefault);
    free_bytes = uint64_t{1} << 40;
    const Placement placement = place(*f.model, options, both_kinds());
    if (c.refused.empty()) {
      CHECK(placement.note == "");
      CHECK(placement.device == "cuda");
      const auto backend = open_placed(f.model, options, placement, both_kinds());
      // Each launch fits. Prompts have kernels of their own that grow with the model only where there are experts.
      const bool prompt = c.spec.n_experts != 0;
      f.run(*backend, random_ids(3, c.spec.vocab_size),
            prompt ? std::vector<uint32_t>{2, 1} : std::vector<uint32_t>{1});
    } else {
      CHECK(placement.device == "cpu");
      CHECK_THAT(placement.note,
                 Contains(c.refused) && EndsWith(" bytes of shared memory a block, T4 has 65536"));
      CHECK_THROWS_WITH(f.open(kCuda), Contains(c.refused));
    }
  }
}

TEST_CASE("a device that was left out is passed over where none was named, and the reason is said") {
  const std::string reason = "cuda:0 Old: compute capability 6.0, pith needs 7.5";
  const std::vector<BackendKind> kinds = both_kinds();
  cuda::DeviceList list{{}, reason};
  {
    const OtherDevices none(list);
    CHECK(backend_for("auto", kinds).device == std::string("cpu"));
    CHECK_THROWS_WITH(backend_for("cuda", kinds),
                      "device: 'cuda' is not available here (" + reason + "), expected auto or cpu");
  }
  list.devices = cuda::list_devices().devices;
  list.devices[0].idx = 1;
  list.devices.push_back(list.devices[0]);
  list.devices[1].idx = 2;
  const OtherDevices two(list);
  CHECK(backend_for("auto", kinds).device == std::string("cuda"));
  CHECK_THROWS_WITH(kCuda.free_bytes("cuda:0"),
                    "device: 'cuda:0', expected cuda:1 or cuda:2 (" + reason + ")");
  CHECK_THAT(kCuda.describe(), Matches("cuda:1 emulated, compute capability 9.0, .* MB free; " + reason));
}
#endif
