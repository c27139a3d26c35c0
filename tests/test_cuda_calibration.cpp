// Calibration with its products on a GPU: the products beside the CPU's, and whole conversions.
//
// Built twice: over the emulated device (PITH_EMULATED_DEVICE; with what only that can do: run out of memory at will), and as
// gpu_calibration for tests/gpu_check.sh.
#include <cmath>
#include <random>

#include "convert/gpu/products.h"
#include "cuda/device.h"
#include "cuda/launch_emulated.h"
#include "tests/convert_cases.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

namespace {

std::vector<float> random_floats(size_t n) {
  static std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(rng);
  return values;
}

// With chunks of so many bytes.
Products on_gpu(uint64_t chunk_bytes = gpu::kChunkBytes, uint32_t n_threads = 1) {
  return {n_threads, gpu::make_products(cuda::list_devices().devices.front(), n_threads, chunk_bytes)};
}

// Sums of n products in any order are at most n ulps of their magnitudes apart, 24 bits each.
void check_close(const std::vector<float>& found, const std::vector<float>& expected,
                 const std::vector<float>& magnitude, uint32_t n) {
  REQUIRE(found.size() == expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    INFO("element " << i);
    REQUIRE(std::abs(double{found[i]} - double{expected[i]}) <= n * 0x1p-23 * double{magnitude[i]} + 1e-30);
  }
}

std::vector<float> absolute(std::vector<float> values) {
  for (float& value : values) value = std::abs(value);
  return values;
}

std::vector<float> means(const Products& products, const std::vector<float>& x, const float* minus,
                         const std::vector<float>& y, uint32_t n, double scale = 1) {
  const uint32_t k = static_cast<uint32_t>(x.size() / n), m = static_cast<uint32_t>(y.size() / n);
  std::vector<float> h(size_t{k} * m, NAN);
  products.mean_products(x.data(), minus, y.data(), n, k, m, scale, h.data());
  return h;
}

ConvertOptions options_on(const TinyCheckpoint& checkpoint, const std::string& device) {
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.calibration_tokens = 1024;  // of which one window is held out
  options.device = device;
  return options;
}

std::string converted(const TinyCheckpoint& checkpoint, const ConvertOptions& options,
                      ConvertReport* report = nullptr) {
  const ConvertReport made = convert(checkpoint.model_dir(), options);
  if (report) *report = made;
  return read_text_file(checkpoint.output());
}

std::string options_noted(const TinyCheckpoint& checkpoint) {
  return Container::open(checkpoint.output()).metadata().get<std::string>("provenance.options");
}

}  // namespace

TEST_CASE("products on a GPU are the CPU's but for rounding, whatever their shape, and the same in chunks") {
  struct Case {
    uint32_t n, k, m;
  };
  for (const Case& c :
       {Case{1, 1, 1}, Case{1, 300, 5}, Case{129, 70, 129}, Case{300, 128, 256}, Case{700, 33, 40}}) {
    INFO("n " << c.n << " k " << c.k << " m " << c.m);
    const std::vector<float> x = random_floats(size_t{c.n} * c.k), minus = random_floats(x.size()),
                             w = random_floats(size_t{c.m} * c.k), z = random_floats(size_t{c.n} * c.m);
    const Products cpu(1), gpu = on_gpu(), chunked = on_gpu(9000, 3);

    std::vector<float> expected(size_t{c.n} * c.m), magnitude(expected.size()), found(expected.size(), NAN);
    cpu.multiply_transposed(x.data(), c.n, c.k, w.data(), c.m, expected.data());
    cpu.multiply_transposed(absolute(x).data(), c.n, c.k, absolute(w).data(), c.m, magnitude.data());
    gpu.multiply_transposed(x.data(), c.n, c.k, w.data(), c.m, found.data());
    check_close(found, expected, magnitude, c.k + 2);
    const ProductMatrix kept = chunked.keep(w.data(), c.m, c.k);
    for (uint32_t times = 0; times < 2; ++times) {
      uint32_t next = 0;
      chunked.multiply_transposed(
          x.data(), nullptr, c.n, kept, 7, [&](uint32_t begin, uint32_t n_rows, float* y) {
            REQUIRE(begin == next);
            next = begin + n_rows;
            REQUIRE((n_rows % 7 == 0 || next == c.n));
            CHECK(std::equal(y, y + size_t{n_rows} * c.m, found.begin() + size_t{begin} * c.m));
            std::fill_n(y, size_t{n_rows} * c.m, NAN);  // it is the taker's
          });
      CHECK(next == c.n);
    }
    std::vector<float> difference = x;
    for (size_t i = 0; i < x.size(); ++i) difference[i] -= minus[i];
    for (const Products* const products : {&cpu, &gpu}) {
      std::vector<float> of_difference(found.size());
      products->multiply_transposed(difference.data(), c.n, c.k, w.data(), c.m, of_difference.data());
      products->multiply_transposed(
          x.data(), minus.data(), c.n, {w.data(), c.m, c.k, nullptr}, 1,
          [&](uint32_t begin, uint32_t n_rows, const float* y) {
            CHECK(std::equal(y, y + size_t{n_rows} * c.m, of_difference.begin() + size_t{begin} * c.m));
          });
    }

    check_close(means(gpu, x, minus.data(), z, c.n, 1.5), means(cpu, x, minus.data(), z, c.n, 1.5),
                means(cpu, absolute(difference), nullptr, absolute(z), c.n, 1.5), c.n + 4);
    CHECK(means(chunked, x, minus.data(), z, c.n) == means(gpu, difference, nullptr, z, c.n));
    const std::vector<float> square = means(gpu, x, nullptr, x, c.n);
    check_close(square, means(cpu, x, nullptr, x, c.n), means(cpu, absolute(x), nullptr, absolute(x), c.n),
                c.n + 4);
    CHECK(means(chunked, x, nullptr, x, c.n) == square);
    for (size_t i = 0; i < c.k; ++i)
      for (size_t j = 0; j < i; ++j) REQUIRE(square[i * c.k + j] == square[j * c.k + i]);
  }
}

TEST_CASE("no rows give no products") {
  const std::vector<float> w(6);
  on_gpu().multiply_transposed(nullptr, nullptr, 0, {w.data(), 2, 3, nullptr}, 1,
                               [](uint32_t, uint32_t, float*) { FAIL("there is nothing to take"); });
}

TEST_CASE("a device that fails is named, as what may work the next time") {
  struct Broken final : DeviceProducts {
    std::string name() const override { return "cuda:3 Broken"; }
    std::shared_ptr<const DeviceMatrix> upload(const float*, uint32_t, uint32_t) override {
      throw_error(ErrorCode::kOutOfMemory, "cuda: no memory");
    }
    void multiply_transposed(const float*, const float*, uint32_t, const ProductMatrix&, uint32_t,
                             const TakeRows&) override {
      throw_error(ErrorCode::kUnsupported, "cuda: lost");
    }
    void mean_products(const float*, const float*, const float*, uint32_t, uint32_t, uint32_t, double,
                       float*) override {
      throw_error(ErrorCode::kInternal, "a defect");
    }
  };
  const Products products(1, std::make_shared<Broken>());
  const auto failure_of = [](auto&& body) -> std::pair<ErrorCode, std::string> {
    try {
      body();
    } catch (const Error& error) {
      return {error.code(), error.what()};
    }
    return {};
  };
  float one = 1;
  using Failure = std::pair<ErrorCode, std::string>;
  CHECK(failure_of([&] { products.keep(&one, 1, 1); }) ==
        Failure{ErrorCode::kOutOfMemory, "cuda:3 Broken: cuda: no memory"});
  CHECK(failure_of([&] { products.multiply_transposed(&one, 1, 1, &one, 1, &one); }) ==
        Failure{ErrorCode::kIo, "cuda:3 Broken: cuda: lost"});
  CHECK(failure_of([&] { products.mean_products(&one, nullptr, &one, 1, 1, 1, 1, &one); }) ==
        Failure{ErrorCode::kInternal, "a defect"});
}

TEST_CASE("a conversion on a GPU is as good as on the CPU, says where it was made, and repeats to the byte") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  ConvertReport cpu, gpu;
  const std::string by_cpu = converted(checkpoint, options_on(checkpoint, "cpu"), &cpu);
  CHECK_THAT(options_noted(checkpoint), !Contains("device"));
  CHECK(cpu.products_on.empty());
  ConvertOptions options = options_on(checkpoint, "cuda");
  const std::string by_gpu = converted(checkpoint, options, &gpu);
  CHECK_THAT(options_noted(checkpoint), Contains(" device=cuda"));
  CHECK_THAT(gpu.products_on, Contains("cuda:0 "));
  CHECK(gpu.linear_bits == cpu.linear_bits);
  // A sum's last bit may turn a code, and what follows with it: other codes, of the same worth. (The
  // perplexity of one window says less.)
  INFO("divergence on the CPU " << cpu.kl << ", on the GPU " << gpu.kl);
  CHECK(gpu.kl == Approx(cpu.kl).epsilon(0.1));
  REQUIRE(gpu.tensors.size() == cpu.tensors.size());
  for (size_t i = 0; i < cpu.tensors.size(); ++i) {
    INFO(cpu.tensors[i].name);
    CHECK(gpu.tensors[i].relative_error == Approx(cpu.tensors[i].relative_error).epsilon(0.05));
  }
  options.device = "auto";
  options.n_threads = 3;
  CHECK((converted(checkpoint, options) == by_gpu));
}

TEST_CASE(
    "an interrupted conversion goes on on the kind of device that it began on, and is refused on the "
    "other") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  ConvertOptions options = options_on(checkpoint, "cuda");
  options.effort = Effort::kFast;
  const std::string whole = converted(checkpoint, options);
  const auto interrupt = [&] {
    options.progress = [](const ConvertProgress& at) {
      if (at.tensor == "layers.0.ffn_gate_up") throw_error(ErrorCode::kInterrupted, "stopped");
    };
    CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options), "stopped");
    options.progress = nullptr;
  };
  ConvertReport report;
  interrupt();
  CHECK((converted(checkpoint, options, &report) == whole));
  CHECK(report.n_resumed > 0);
  for (const auto& [began_on, other] : {std::pair("cuda", "cpu"), std::pair("cpu", "cuda")}) {
    options.device = began_on;
    interrupt();
    options.device = other;
    CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options), Contains("of an interrupted run"));
    options.device = began_on;
    converted(checkpoint, options, &report);
    CHECK(report.n_resumed > 0);
  }
}

#ifdef PITH_EMULATED_DEVICE
TEST_CASE("a GPU without room is refused by name, and passed over where none was named") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  ConvertOptions options = options_on(checkpoint, "cpu");
  options.effort = Effort::kFast;
  const std::string by_cpu = converted(checkpoint, options);
  std::filesystem::remove(checkpoint.output());
  cuda::emulate_memory(uint64_t{100} << 20);
  options.device = "auto";
  ConvertReport report;
  CHECK((converted(checkpoint, options, &report) == by_cpu));
  REQUIRE(report.notes.size() == 1);
  CHECK_THAT(
      report.notes[0],
      Contains("cuda:0 emulated has 0.1 GB free, calibration's products take 0.8: they run on the CPU"));
  std::filesystem::remove(checkpoint.output());
  options.device = "cuda";
  CHECK_THAT(failure(checkpoint, options),
             Contains("calibration's products take 0.8: --device cpu needs no GPU"));
  cuda::emulate_memory(0);
  options.device = "auto";
  CHECK((converted(checkpoint, options, &report) == by_cpu));
  REQUIRE(report.notes.size() == 1);
  CHECK_THAT(report.notes[0], Contains("cuda:0 emulated has 0.0 GB free, calibration's products take 0.8"));
  cuda::emulate_memory(uint64_t{1} << 30);
}

TEST_CASE("device memory that runs out on the way is an error, and the same command goes on") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  ConvertOptions options = options_on(checkpoint, "cuda");
  options.effort = Effort::kFast;
  const std::string whole = converted(checkpoint, options);
  std::filesystem::remove(checkpoint.output());
  options.progress = [](const ConvertProgress& at) {
    if (at.tensor == "layers.0.ffn_gate_up") cuda::emulate_memory(0);  // another program took it
  };
  try {
    convert(checkpoint.model_dir(), options);
    FAIL("the conversion succeeded");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kOutOfMemory);
    CHECK_THAT(error.what(), Contains("cuda:0 emulated: cuda: ") &&
                                 Contains(" 0 of 0 MB are free; what is done is kept, the same "
                                          "command goes on from there"));
  }
  CHECK(!std::filesystem::exists(checkpoint.output()));
  cuda::emulate_memory(uint64_t{1} << 30);
  options.progress = nullptr;
  ConvertReport report;
  CHECK((converted(checkpoint, options, &report) == whole));
  CHECK(report.n_resumed > 0);
}
#endif
