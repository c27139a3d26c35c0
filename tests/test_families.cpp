// Every family and switch against the reference's logits (golden/make_family_goldens.py): converted at 16 bits, then run as one
// prompt and token by token.
#include <catch2/catch.hpp>

#include "convert/converter.h"
#include "family_checkpoint.h"
#include "models/family.h"
#include "runtime/backend.h"
#include "runtime/backend_cuda.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/cpu/kernels.h"
#include "runtime/decoder.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

namespace {

// Of the logits' spread (largest less smallest). Keys and values are rounded to fp16 in the cache, 2^-11 of each.
constexpr double kMaxError = 2e-3;

class Converted {
 public:
  Converted(const FamilyCase& c, const nlohmann::json& config, double bits = 16) : case_(c) {
    write_family_checkpoint(c, config, folder_ / "model");
    ConvertOptions options;
    options.output = folder_ / "m.pith";
    options.bits = bits;
    options.n_threads = 1;
    options.calibrate = false;
    convert(folder_ / "model", options);
    model_ = Model::open(folder_ / "m.pith");
  }
  const std::shared_ptr<const Model>& model() const { return model_; }

  std::unique_ptr<Backend> open(const BackendKind& kind, const char* kernels, uint32_t n_threads = 1) const {
    SessionOptions options;
    options.n_ctx = static_cast<uint32_t>(case_.ids.size());
    options.prefill_chunk = options.n_ctx;
    options.n_threads = n_threads;
    options.kernels = kernels;
    options.device = kind.device;
    return kind.create(model_, options);
  }
  // Logits after each id, [ids, vocab]: one batch of `first` ids, the others of `next`.
  std::vector<float> run(Backend& backend, uint32_t first, uint32_t next) const {
    std::atomic<bool> stop{false};
    std::vector<float> all;
    for (uint32_t at = 0, n = 0; at < case_.ids.size(); at += n) {
      n = std::min(at == 0 ? first : next, static_cast<uint32_t>(case_.ids.size()) - at);
      decode_batch(backend, model_->spec(), std::span(case_.ids).subspan(at, n), at, stop);
      for (uint32_t row = 0; row < n; row += kMaxLogitRows) {
        const std::span<const float> logits = backend.head(row, std::min(kMaxLogitRows, n - row));
        all.insert(all.end(), logits.begin(), logits.end());
      }
    }
    return all;
  }
  std::vector<float> prefill(Backend& backend) const {
    return run(backend, static_cast<uint32_t>(case_.ids.size()), 1);
  }
  double error(const std::vector<float>& logits) const {
    REQUIRE(logits.size() == case_.logits.size());
    const auto [low, high] = std::minmax_element(case_.logits.begin(), case_.logits.end());
    double largest = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double difference = std::abs(double{logits[i]} - double{case_.logits[i]});
      largest = difference <= largest ? largest : difference;  // also NaN
    }
    return largest / (double{*high} - double{*low});
  }

 private:
  const FamilyCase& case_;
  TempFolder folder_;
  std::shared_ptr<const Model> model_;
};

// The spec as stored, key by key.
Metadata spec_metadata(const ModelSpec& spec) {
  Metadata metadata;
  store_spec(spec, metadata);
  return metadata;
}

ModelSpec read_spec(const nlohmann::json& json) {
  Config config(json, "config.json");
  ModelSpec spec = family_for(json["architectures"][0], "config.json").read_config(config);
  CHECK(config.unconsumed() == std::vector<std::string>{});
  return spec;
}

}  // namespace

TEST_CASE("logits equal the reference's for every family and switch, prompt and token by token") {
  for (const std::string& name : family_case_names()) {
    DYNAMIC_SECTION(name) {
      const FamilyCase c = read_family_case(name);
      INFO(c.architecture() << ": " << c.switches);
      const Converted converted(c, c.config);
      for (const cpu::Kernels* const kernels : cpu::supported_kernels()) {
        INFO("cpu, " << kernels->name);
        const auto backend = converted.open(cpu::backend_kind(), kernels->name);
        CHECK(converted.error(converted.prefill(*backend)) < kMaxError);
        CHECK(converted.error(converted.run(*backend, 1, 1)) < kMaxError);
      }
    }
  }
}

// The emulation takes long: a case for each switch that the kernels have, 17 tokens at once and three alone.
TEST_CASE("the emulated CUDA backend equals the reference") {
  for (const char* const name : {"gemma-2", "gemma-3", "granite", "llama-3.2", "llama-bias", "mistral-0.1",
                                 "phi-3-long", "qwen3", "smollm3"}) {
    DYNAMIC_SECTION(name) {
      FamilyCase c = read_family_case(name);
      const Converted converted(c, c.config);
      const auto backend = converted.open(cuda_backend_kind(), "auto");
      c.ids.resize(20);
      c.logits.resize(c.ids.size() * c.vocab_size());
      CHECK(converted.error(converted.run(*backend, 17, 1)) < kMaxError);
    }
  }
}

TEST_CASE("the CUDA backend names the switches that it lacks") {
  for (const std::string& name : family_case_names()) {
    const FamilyCase c = read_family_case(name);
    const std::string lacks = unusual_switches(read_spec(c.config));
    if (lacks.empty()) continue;
    INFO(name);
    const Converted converted(c, c.config);
    CHECK_THROWS_WITH(converted.open(cuda_backend_kind(), "auto"),
                      Contains("cuda: this model needs " + lacks));
  }
}

TEST_CASE("a config as published and the same as the library saves it give one spec") {
  for (const std::string& name : family_case_names()) {
    DYNAMIC_SECTION(name) {
      const FamilyCase c = read_family_case(name);
      CHECK(spec_metadata(read_spec(c.config)).entries() ==
            spec_metadata(read_spec(c.saved_config)).entries());
    }
  }
}

// Also below 16 bits, where inputs are quantized for each expert.
TEST_CASE("every family gives the same bits in batches and alone, on any threads and kernels") {
  for (const std::string& name : family_case_names()) {
    DYNAMIC_SECTION(name) {
      const FamilyCase c = read_family_case(name);
      const Converted converted(c, c.config, 4);
      const std::vector<float> expected = converted.prefill(*converted.open(cpu::backend_kind(), "scalar"));
      for (const cpu::Kernels* const kernels : cpu::supported_kernels()) {
        INFO(kernels->name);
        const auto backend = converted.open(cpu::backend_kind(), kernels->name, 3);
        CHECK(converted.run(*backend, 1, 1) == expected);
        CHECK(converted.run(*backend, 7, 7) == expected);
      }
    }
  }
}
