// From a checkpoint folder to a file: what comes out. See also test_convert_calibration, _refusals, _resume.
#include <cmath>

#include "convert/synth.h"
#include "models/spec.h"
#include "runtime/golden.h"
#include "runtime/model.h"
#include "skip.h"
#include "tests/convert_cases.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

namespace {

std::vector<float> source(const TinyCheckpoint& checkpoint, const std::string& name) {
  const std::string& data = checkpoint.tensors.at(name).data;
  std::vector<float> values(data.size() / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, data.data() + 2 * i, 2);
    values[i] = bf16_to_float(bits);
  }
  return values;
}

// False, with a warning, when the shared models are not there.
bool has_shared(const std::string& model) {
  if (file_exists(std::string(PITH_SHARED_DIR "/models/") + model + "/config.json")) return true;
  skip("shared model " + model + " is absent");
  return false;
}

}  // namespace

TEST_CASE("a 16-bit conversion keeps bf16 weights bit for bit, fused in the spec's order") {
  TinyCheckpoint checkpoint(64, 40, 2);  // 40: gate and up are padded to 48 rows each
  checkpoint.write();
  const ConvertReport report = convert(checkpoint.model_dir(), options_for(checkpoint, 16));
  CHECK(report.linear_bits == 16);
  const Container container = Container::open(checkpoint.output());
  CHECK(load_spec(container.metadata(), "out").ffn_dim == 40);
  CHECK(container.get("embed").kind == TensorKind::kBF16);
  CHECK(container.get("norm").kind == TensorKind::kF32);
  CHECK(tensor_floats(container, "embed") == source(checkpoint, "model.embed_tokens.weight"));
  CHECK(tensor_floats(container, "layers.1.attn_norm") ==
        source(checkpoint, "model.layers.1.input_layernorm.weight"));

  std::vector<float> qkv;
  for (const char* part : {"q", "k", "v"}) {
    const std::vector<float> rows =
        source(checkpoint, std::string("model.layers.1.self_attn.") + part + "_proj.weight");
    qkv.insert(qkv.end(), rows.begin(), rows.end());
  }
  CHECK(tensor_floats(container, "layers.1.attn_qkv") == qkv);

  const std::vector<float> gate = source(checkpoint, "model.layers.0.mlp.gate_proj.weight");
  const std::vector<float> up = source(checkpoint, "model.layers.0.mlp.up_proj.weight");
  const std::vector<float> gate_up = tensor_floats(container, "layers.0.ffn_gate_up");
  REQUIRE(gate_up.size() == 96 * 64);
  for (uint32_t r = 0; r < 96; ++r) {
    const std::vector<float>& from = r / 16 % 2 == 0 ? gate : up;
    const uint32_t row = r / 32 * 16 + r % 16;
    for (uint32_t c = 0; c < 64; ++c) CHECK(gate_up[r * 64 + c] == (row < 40 ? from[row * 64 + c] : 0));
  }
}

TEST_CASE("f32 weights become fp16, or bf16 where fp16 cannot hold them, and f16 stays") {
  TinyCheckpoint checkpoint;
  const auto set_type = [&](const std::string& name, const std::string& dtype, float value) {
    test::TinyTensor& tensor = checkpoint.tensors.at(name);
    const size_t n = tensor.data.size() / 2;
    const size_t size = dtype == "F32" ? 4 : 2;
    tensor.dtype = dtype;
    tensor.data.assign(n * size, '\0');
    const uint16_t half = float_to_f16(value);
    for (size_t i = 0; i < n; ++i)
      std::memcpy(tensor.data.data() + i * size, size == 4 ? static_cast<const void*>(&value) : &half, size);
  };
  set_type("model.embed_tokens.weight", "F32", 0.1f);
  set_type("lm_head.weight", "F32", 1e6f);
  set_type("model.layers.0.mlp.down_proj.weight", "F16", 0.1f);
  checkpoint.write();
  const ConvertReport report = convert(checkpoint.model_dir(), options_for(checkpoint, 16));
  const Container container = Container::open(checkpoint.output());
  CHECK(container.get("embed").kind == TensorKind::kF16);
  CHECK(tensor_floats(container, "embed")[7] == f16_to_float(float_to_f16(0.1f)));
  CHECK(container.get("head").kind == TensorKind::kBF16);
  CHECK(tensor_floats(container, "head")[7] == bf16_to_float(float_to_bf16(1e6f)));
  CHECK(container.get("layers.0.ffn_down").kind == TensorKind::kF16);
  CHECK(report.notes.size() == 1);
  CHECK_THAT(report.notes.at(0), Contains("'head'"));
}

TEST_CASE("a quantized conversion stores bits and error of every tensor") {
  TinyCheckpoint checkpoint(128, 128, 1);
  checkpoint.write();
  for (const bool is_paper : {false, true}) {
    ConvertOptions options = options_for(checkpoint, 3.4);
    options.calibration_tokens = 1024;  // of which one window is held out
    if (is_paper) options.levers = Levers::paper();
    const ConvertReport report = convert(checkpoint.model_dir(), options);
    const Container container = Container::open(checkpoint.output());
    double bits = 0, weights = 0;
    for (const Tensor& tensor : container.tensors()) {
      if (tensor.n_rows == 1) continue;
      CHECK(tensor.kind == TensorKind::kQ24);
      if (tensor.name == "embed" || tensor.name == "head") {
        CHECK(tensor.q24.n_fine == 128);
        continue;
      }
      bits += 8.0 * static_cast<double>(tensor.size_bytes);
      weights += double{1} * tensor.n_rows * tensor.n_cols;
    }
    CHECK(report.linear_bits == Approx(bits / weights));
    CHECK(report.linear_bits <= 3.4);
    CHECK(report.linear_bits > 3.35);
    const auto& metadata = container.metadata();
    CHECK(metadata.get<double>("quality.linear_bits") == report.linear_bits);
    REQUIRE(metadata.get<std::vector<std::string>>("quality.tensors").size() == report.tensors.size());
    for (const TensorQuality& tensor : report.tensors) {
      INFO(tensor.name);
      CHECK(tensor.relative_error > 0);
      CHECK(tensor.relative_error < (is_paper ? 0.2 : 0.08));
    }
    CHECK(tensor_floats(container, "layers.0.ffn_down").size() == 128 * 128);
    const std::shared_ptr<const Model> model = Model::open(checkpoint.output());
    CHECK(metadata.has("golden.top_logits"));
    CHECK_NOTHROW(check_golden(model));
    CHECK(metadata.get<double>("quality.ppl_ratio") == report.ppl_ratio);
    CHECK(report.ppl_ratio > 0.9);
    CHECK(report.ppl_ratio < 1.5);
    CHECK(report.kl > 0);
    CHECK(report.kl < (is_paper ? 2 : 0.5));
  }
}

TEST_CASE("a file says what folder it was made from, by any name that the folder has") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  const auto source_of = [&](const std::string& dir) {
    convert(dir, options_for(checkpoint, 16));
    return Container::open(checkpoint.output()).metadata().get<std::string>("provenance.source");
  };
  CHECK(source_of(checkpoint.model_dir()) == "model");
  CHECK(source_of(checkpoint.model_dir() + "/.//") == "model");
  const std::string latin1 = (checkpoint.dir / "mod\xe8le").string();
  std::filesystem::rename(checkpoint.model_dir(), latin1);
  CHECK(source_of(latin1) == "mod\\xe8le");
}

TEST_CASE("embedding and head keep 16 bits on demand") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.embed_bits = 16;
  convert(checkpoint.model_dir(), options);
  const Container container = Container::open(checkpoint.output());
  CHECK(container.get("embed").kind == TensorKind::kBF16);
  CHECK(container.get("head").kind == TensorKind::kBF16);
  CHECK(container.get("layers.0.attn_qkv").kind == TensorKind::kQ24);
}

TEST_CASE("the number of threads does not change a byte") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  convert(checkpoint.model_dir(), options);
  const std::string one = read_text_file(checkpoint.output());
  options.n_threads = 5;
  convert(checkpoint.model_dir(), options);
  CHECK(read_text_file(checkpoint.output()) == one);
}

#ifndef __SANITIZE_ADDRESS__  // whose own memory would be counted
TEST_CASE("peak memory is at most two of the largest tensors in float32 plus 64 MiB") {
  constexpr uint32_t kDim = 256, kFfn = 4096;
  TinyCheckpoint checkpoint(kDim, kFfn, 12);  // 82 MB of bf16; the largest tensor is gate and up
  checkpoint.write();
  checkpoint.tensors.clear();
  constexpr uint64_t kBound = 2 * (uint64_t{2} * kFfn * kDim * 4) + (64 << 20);
  for (const double bits : {16.0, 3.0}) {
    const int code = in_child([&] {
      // A fresh address space would be better still; what the parent had is measured and taken off.
      const auto resident = [](const char* field) {
        std::ifstream status("/proc/self/status");
        std::string line;
        while (std::getline(status, line))
          if (line.starts_with(field)) return std::stoull(line.substr(line.find(':') + 1)) * 1024;
        return 0ull;
      };
      std::ofstream("/proc/self/clear_refs") << 5;  // resets the peak
      const uint64_t before = resident("VmRSS");
      ConvertOptions options = options_for(checkpoint, bits);
      options.levers = Levers::paper();
      options.calibrate = false;  // which needs more
      // The check at the end maps the file: pages that the system may drop again are no memory in use.
      uint64_t peak = 0;
      options.progress = [&](const ConvertProgress& progress) {
        if (std::string_view(progress.stage) == "check") peak = resident("VmHWM") - before;
      };
      convert(checkpoint.model_dir(), options);
      return peak == 0 || peak > kBound ? 1 : 0;
    });
    CHECK(code == 0);
  }
}
#endif

TEST_CASE("a trained model of 64 columns converts to the lowest figure that it can reach") {
  if (!has_shared("stories260k")) return;
  TinyCheckpoint scratch;
  const ConvertReport report = convert(PITH_SHARED_DIR "/models/stories260k", options_for(scratch, 2.85));
  const Container container = Container::open(scratch.output());
  for (const Tensor& tensor : container.tensors()) container.verify_tensor(tensor);
  CHECK(report.linear_bits > 2.85);
  CHECK(report.linear_bits < 3.2);
}

TEST_CASE("a tied model stores its matrix once, whichever name the checkpoint uses") {
  if (!has_shared("tinystories-656k")) return;
  TinyCheckpoint scratch;
  convert(PITH_SHARED_DIR "/models/tinystories-656k", options_for(scratch, 16));
  const Container container = Container::open(scratch.output());
  CHECK(container.find("embed") != nullptr);
  CHECK(container.find("head") == nullptr);
}

TEST_CASE("synth writes containers that are valid to the last tensor") {
  TinyCheckpoint scratch;
  for (const double bits : {2.85, 4.25, 16.0, 32.0}) {
    SynthOptions options;
    options.shape = "demo";
    options.bits = bits;
    options.output = scratch.output();
    synth(options);
    const Container container = Container::open(scratch.output());
    const ModelSpec spec = load_spec(container.metadata(), "synth");
    CHECK(container.tensors().size() == 2 + 6 * spec.n_layers);
    for (const Tensor& tensor : container.tensors()) container.verify_tensor(tensor);
  }
  SynthOptions options;
  options.output = scratch.output();
  options.shape = "gpt-9";
  CHECK_THROWS_WITH(synth(options), Contains("expected one of llama-2-7b"));
  options.shape = "demo";
  options.bits = 5;
  CHECK_THROWS_WITH(synth(options), Contains("--bits 5"));
}
