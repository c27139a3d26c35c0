// Every family and switch against the reference's logits (golden/make_family_goldens.py): converted at 16 bits, then run as one
// prompt and token by token.
#include <fmt/ranges.h>

#include <catch2/catch.hpp>
#include <set>

#include "convert/checkpoint.h"
#include "convert/converter.h"
#include "convert/divergence.h"
#include "convert/forward.h"
#include "convert/gpu/products.h"
#include "family_checkpoint.h"
#include "models/family.h"
#include "runtime/backend.h"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/cpu/kernels.h"
#include "runtime/decoder.h"
#include "runtime/gpu/cuda_backend.h"
#include "tensor_floats.h"

using namespace pith;
using namespace pith::test;

namespace {

// Of the logits' spread (largest less smallest). Keys and values are rounded to fp16 in the cache, 2^-11 of each.
constexpr double kMaxError = 2e-3;

class Converted {
 public:
  Converted(const FamilyCase& c, const nlohmann::json& config, double bits = 16, bool calibrate = false)
      : case_(c) {
    write_family_checkpoint(c, config, folder_ / "model");
    ConvertOptions options;
    options.output = folder_ / "m.pith";
    options.bits = bits;
    options.n_threads = 1;
    options.calibrate = calibrate;
    options.calibration_tokens = 512;
    options.device = "cpu";
    convert(folder_ / "model", options);
    model_ = Model::open(folder_ / "m.pith");
  }
  const std::shared_ptr<const Model>& model() const { return model_; }

  std::unique_ptr<Backend> open(const BackendKind& kind, const char* kernels, uint32_t n_threads = 1) const {
    SessionOptions options;
    options.n_ctx = static_cast<uint32_t>(case_.ids.size());
    options.prefill_chunk = options.n_ctx;
    options.n_threads = n_threads;
    options.small_step = 0;
    options.kernels = kernels;
    options.device = kind.device;
    return kind.create(model_, options, all_layers(model_->spec()));
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

// A container for the converter's forward pass.
class ForwardModel {
 public:
  ForwardModel(const Model& model, uint32_t window, const Products& products = 1)
      : spec_(model.spec()), forward_(spec_, window, products), layers_(spec_.n_layers) {
    const Container& container = model.container();
    embed_ = tensor_floats(container, "embed");
    norm_ = tensor_floats(container, "norm");
    head_ = spec_.tied_embeddings ? embed_ : tensor_floats(container, "head");
    for (const TensorPlan& plan : plan_tensors(spec_)) {
      uint32_t layer = 0;
      Step step;
      if (find_step(plan.name, layer, step))
        layers_[layer].weights.push_back(tensor_floats(container, plan.name));
      else if (const int32_t of = tensor_layer(plan.name); of >= 0)
        layers_[static_cast<size_t>(of)]
            .vectors[plan.name.substr(layer_tensor(static_cast<uint32_t>(of), "").size())] =
            tensor_floats(container, plan.name);
    }
  }

  const Forward& forward() const { return forward_; }

  // Logits after each of ids, the stream's tokens.
  std::vector<float> run(const std::vector<int32_t>& ids, Stream& stream) {
    stream.residual.clear();
    for (const int32_t id : ids)
      for (uint32_t c = 0; c < spec_.dim; ++c)
        stream.residual.push_back(embed_[static_cast<size_t>(id) * spec_.dim + c] * spec_.embedding_scale);
    const std::vector<Step> steps = layer_steps(spec_);
    for (uint32_t layer = 0; layer < spec_.n_layers; ++layer) {
      forward_.begin_layer(layer, layers_[layer].vectors);
      forward_.prepare(stream);
      REQUIRE(layers_[layer].weights.size() == steps.size());
      for (size_t i = 0; i < steps.size(); ++i) forward_.apply(steps[i], stream, layers_[layer].weights[i]);
    }
    std::vector<float> logits;
    forward_.logits(stream.residual.data(), static_cast<uint32_t>(ids.size()), norm_, head_, logits);
    return logits;
  }

 private:
  struct Layer {
    LayerVectors vectors;
    std::vector<std::vector<float>> weights;
  };
  const ModelSpec& spec_;
  Forward forward_;
  std::vector<Layer> layers_;
  std::vector<float> embed_, norm_, head_;
};

// As one window.
std::vector<float> forward_logits(const Model& model, const std::vector<int32_t>& ids,
                                  const Products& products = 1) {
  Stream stream;
  return ForwardModel(model, static_cast<uint32_t>(ids.size()), products).run(ids, stream);
}

// Every instruction set gives the same bits (the test of batches below), so one is enough where all are slow.
std::vector<const cpu::Kernels*> kernels_for_logits() {
#ifdef __SANITIZE_ADDRESS__
  return {&cpu::select_kernels("auto")};
#else
  return cpu::supported_kernels();
#endif
}

}  // namespace

TEST_CASE("logits equal the reference's for every family and switch, prompt and token by token") {
  for (const std::string& name : family_case_names()) {
    DYNAMIC_SECTION(name) {
      const FamilyCase c = read_family_case(name);
      INFO(c.architecture() << ": " << c.switches);
      const Converted converted(c, c.config);
      for (const cpu::Kernels* const kernels : kernels_for_logits()) {
        INFO("cpu, " << kernels->name);
        const auto backend = converted.open(cpu::backend_kind(), kernels->name);
        CHECK(converted.error(converted.prefill(*backend)) < kMaxError);
        CHECK(converted.error(converted.run(*backend, 1, 1)) < kMaxError);
      }
    }
  }
}

// Of the CUDA backend, emulated here and real in gpu_families: up to 17 tokens at once and three alone.
static double cuda_error(FamilyCase c) {
  const Converted converted(c, c.config);
  const auto backend = converted.open(cuda_backend_kind(), "auto");
  const size_t n = std::min<size_t>(c.ids.size(), 20);
  c.logits.resize(n * c.vocab_size());
  c.ids.resize(n);
  return converted.error(converted.run(*backend, static_cast<uint32_t>(n) - 3, 1));
}

static std::vector<std::string> names_for_cuda() {
#ifdef __SANITIZE_ADDRESS__  // slow there: one case for each op that the kernels have
  return {"gemma-2", "gpt-oss", "mixtral", "olmo-2", "phi-3-long", "qwen3-moe"};
#else
  return family_case_names();
#endif
}

TEST_CASE("the CUDA backend equals the reference for every family and switch") {
  for (const std::string& name : names_for_cuda()) {
    INFO(name);
    CHECK(cuda_error(read_family_case(name)) < kMaxError);
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
        const bool is_last = kernels == cpu::supported_kernels().back();
        const auto backend = converted.open(cpu::backend_kind(), kernels->name, is_last ? 3 : 1);
        CHECK(converted.run(*backend, 1, 1) == expected);
        CHECK(converted.run(*backend, 7, 7) == expected);
      }
    }
  }
}

TEST_CASE("the forward pass of calibration gives every family's logits") {
  for (const std::string& name : family_case_names()) {
    DYNAMIC_SECTION(name) {
      const FamilyCase c = read_family_case(name);
      const Converted converted(c, c.config);
      CHECK(converted.error(forward_logits(*converted.model(), c.ids)) < kMaxError);
    }
  }
}

// What a model writes itself is sampled so: a text beside another that began one token later, after a text of one token.
TEST_CASE("texts that grow by a token side by side give the bits of whole windows") {
  for (const std::string& name : family_case_names()) {
    DYNAMIC_SECTION(name) {
      const FamilyCase c = read_family_case(name);
      const Converted converted(c, c.config);
      const std::vector<float> expected = forward_logits(*converted.model(), c.ids);
      ForwardModel model(*converted.model(), static_cast<uint32_t>(c.ids.size()), 3);
      const auto vocab = static_cast<ptrdiff_t>(expected.size() / c.ids.size());
      Stream stream;
      model.forward().begin_texts(2, stream);
      std::vector<float> first, second;
      for (uint32_t i = 0; i < c.ids.size(); ++i) {
        stream.positions = {i, i == 0 ? 0 : i - 1};
        const std::vector<float> logits = model.run({c.ids[i], c.ids[i == 0 ? 1 : i - 1]}, stream);
        first.insert(first.end(), logits.begin(), logits.begin() + vocab);
        if (i > 0) second.insert(second.end(), logits.begin() + vocab, logits.end());
      }
      CHECK(first == expected);
      CHECK(std::equal(second.begin(), second.end(), expected.begin()));
    }
  }
}

// Emulated here and real in gpu_families.
TEST_CASE("the forward pass of calibration gives every family's logits with its products on a GPU") {
  const Products products(1, gpu::make_products(cuda::list_devices().devices.front(), 1));
  for (const std::string& name : names_for_cuda()) {
    INFO(name);
    const FamilyCase c = read_family_case(name);
    const Converted converted(c, c.config);
    CHECK(converted.error(forward_logits(*converted.model(), c.ids, products)) < kMaxError);
  }
}

TEST_CASE("calibration lowers the divergence of every kind of block") {
  // Text like that of the calibration: character_tokenizer's ids of its letters.
  std::vector<int32_t> ids;
  for (const char letter : std::string_view(
           "Bread rises because yeast eats sugar and gives off gas. The baker folds the dough, lets it "
           "rest in a warm place and bakes it in a hot oven until the crust is brown and sounds hollow."))
    if (letter > ' ') ids.push_back(letter - '!' + 3);
  for (const char* const name : {"gpt-oss", "mixtral", "olmo-2", "qwen3-moe"}) {
    INFO(name);
    const FamilyCase c = read_family_case(name);
    const uint32_t vocab = static_cast<uint32_t>(c.vocab_size());
    std::vector<float> log_p = forward_logits(*Converted(c, c.config).model(), ids);
    log_probabilities(log_p, vocab, 1);
    const auto divergence = [&](bool calibrate) {
      const Converted converted(c, c.config, 4.5, calibrate);
      Divergence sums;
      add_divergence(log_p, forward_logits(*converted.model(), ids), vocab, ids.data() + 1, 1, sums);
      return sums.kl / static_cast<double>(sums.n_tokens);
    };
    CHECK(divergence(true) < 0.6 * divergence(false));
  }
}

// ---- make families: what is printed, and models/SUPPORTED.md ---------------------------------------------------------

namespace {

// The keys that a family's reader asks for, and those that it passes over.
struct Keys {
  std::set<std::string> used, ignored;
};

Keys keys_of(const Family& family) {
  Keys keys;
  for (const std::string& name : family_case_names()) {
    const FamilyCase c = read_family_case(name);
    if (family.architectures[0] != c.architecture()) continue;
    for (const nlohmann::json* const json : {&c.config, &c.saved_config}) {
      Config config(*json, "config.json");
      family.read_config(config);
      keys.used.insert(config.used_keys().begin(), config.used_keys().end());
      keys.ignored.insert(config.ignored_keys().begin(), config.ignored_keys().end());
    }
  }
  for (const std::string& key : keys.used) keys.ignored.erase(key);
  return keys;
}

std::set<std::string> without(const std::set<std::string>& keys, const std::set<std::string>& left_out) {
  std::set<std::string> rest;
  std::set_difference(keys.begin(), keys.end(), left_out.begin(), left_out.end(),
                      std::inserter(rest, rest.end()));
  return rest;
}

std::set<std::string> both(const std::set<std::string>& a, const std::set<std::string>& b) {
  std::set<std::string> shared;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::inserter(shared, shared.end()));
  return shared;
}

std::string supported_document() {
  std::vector<Keys> keys;
  Keys common;
  for (const Family& family : families()) {
    keys.push_back(keys_of(family));
    INFO(family.name << " has no golden case");
    REQUIRE(!keys.back().used.empty());
    if (keys.back().used.contains("text_config")) continue;
    if (common.used.empty()) common = keys.back();
    common = {both(common.used, keys.back().used), both(common.ignored, keys.back().ignored)};
  }
  std::string text =
      "# Supported families and their config keys\n\n"
      "Made from the family files by `build/tests/test_families \"[keys]\"`; a test holds the two together. "
      "A key of config.json "
      "that is in neither\ncolumn is an error at conversion (`--force` notes it instead).\n\n"
      "RoPE (`rope_scaling`, `rope_parameters`): `default`; `linear` (factor); `dynamic` (factor); `llama3` "
      "(factor, "
      "low_freq_factor,\nhigh_freq_factor, original_max_position_embeddings); `yarn` (factor, "
      "original_max_position_embeddings, beta_fast, beta_slow, truncate,\nmscale, mscale_all_dim, "
      "attention_factor); "
      "`longrope` (short_factor, long_factor, factor, attention_factor,\noriginal_max_position_embeddings). "
      "Any other key is an error.\n\n";
  text += fmt::format(
      "All families, and text_config of those that have one, use `{}`\n\nand know to be of no effect "
      "`{}`.\n\n",
      fmt::join(common.used, "` `"), fmt::join(common.ignored, "` `"));
  text += "| `architectures` | keys used besides | known to be of no effect |\n|---|---|---|\n";
  for (size_t i = 0; i < keys.size(); ++i)
    text += fmt::format("| {} | {} | {} |\n", fmt::join(families()[i].architectures, ", "),
                        fmt::join(without(keys[i].used, common.used), ", "),
                        fmt::join(without(keys[i].ignored, common.ignored), ", "));
  return text;
}

size_t count_strings(const char* file) {
  std::ifstream in(std::string(PITH_SOURCE_DIR "/tests/golden/") + file);
  const nlohmann::json json = nlohmann::json::parse(in);
  return json["strings"].size() * (json.contains("variants") ? json["variants"] : json["tokenizers"]).size();
}

}  // namespace

TEST_CASE("models/SUPPORTED.md lists the keys that the family files read") {
  const std::vector<uint8_t> bytes = read_file(PITH_SOURCE_DIR "/models/SUPPORTED.md");
  CHECK(std::string(bytes.begin(), bytes.end()) == supported_document());
}

TEST_CASE("print models/SUPPORTED.md", "[.][keys]") {
  fmt::print("{}", supported_document());
}

TEST_CASE("print the table of families", "[.][table]") {
  const cpu::Kernels& kernels = cpu::select_kernels("auto");
  fmt::print(
      "| case | `architectures` | switches | prompt | token by token | CUDA kernels "
      "|\n|---|---|---|---:|---:|---:|\n");
  double largest = 0;
  for (const std::string& name : family_case_names()) {
    const FamilyCase c = read_family_case(name);
    const Converted converted(c, c.config);
    const auto backend = converted.open(cpu::backend_kind(), kernels.name);
    const double prompt = converted.error(converted.prefill(*backend));
    const double decode = converted.error(converted.run(*backend, 1, 1));
    const double cuda = cuda_error(c);
    largest = std::max({largest, prompt, decode, cuda});
    fmt::print("| {} | {} | {} | {:.1e} | {:.1e} | {:.1e} |\n", name, c.architecture(), c.switches, prompt,
               decode, cuda);
    CHECK(std::max({prompt, decode, cuda}) < kMaxError);
  }
  std::ifstream in(PITH_SOURCE_DIR "/tests/golden/chat/renderings.json");
  const nlohmann::json chat = nlohmann::json::parse(in);
  fmt::print(
      "\nLargest |logit difference| over the spread of the reference's logits ({} kernels; CUDA's in the "
      "emulation, up to "
      "17 tokens at once and 3 alone): {:.1e}; {:.0e} is allowed.\n"
      "Tokenizers: {} strings compared with the reference libraries. Chat templates: {} templates, {} "
      "conversations each.\n",
      kernels.name, largest, kMaxError,
      count_strings("tokenizer/strings.json") + count_strings("tokenizer/variants.json"),
      chat["templates"].size(), chat["conversations"].size());
}
