// From a checkpoint folder to a file: what comes out, what is refused, what an interruption leaves.
#include <malloc.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <set>

#include "convert/converter.h"
#include "convert/forward.h"
#include "convert/json_file.h"
#include "convert/synth.h"
#include "format/container.h"
#include "format/error.h"
#include "models/spec.h"
#include "runtime/golden.h"
#include "runtime/model.h"
#include "runtime/session.h"
#include "tests/tiny_checkpoint.h"

using namespace pith;
using Catch::Matchers::Contains;
using pith::test::TinyCheckpoint;

namespace {

ConvertOptions options_for(const TinyCheckpoint& checkpoint, double bits) {
  ConvertOptions options;
  options.output = checkpoint.output();
  options.bits = bits;
  options.n_threads = 2;
  options.calibration_tokens = 2048;
  return options;
}

// The message of a conversion that must fail, and that it left nothing.
std::string failure(const TinyCheckpoint& checkpoint, ConvertOptions options) {
  checkpoint.write();
  try {
    convert(checkpoint.model_dir(), options);
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message.find('\n') == std::string::npos);
    CHECK(checkpoint.leftovers().empty());
    return message;
  }
  FAIL("the conversion succeeded");
  return "";
}
std::string failure(const TinyCheckpoint& checkpoint, double bits = 16) {
  return failure(checkpoint, options_for(checkpoint, bits));
}

std::vector<float> decode(const Container& container, const std::string& name) {
  const Tensor& tensor = container.get(name);
  container.verify_tensor(tensor);
  std::vector<float> values(size_t{tensor.n_rows} * tensor.n_cols);
  if (tensor.kind == TensorKind::kQ24) {
    for (uint32_t r = 0; r < tensor.n_rows; ++r)
      q24::dequantize_row(tensor.q24_view(), r, values.data() + size_t{r} * tensor.n_cols);
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    if (tensor.kind == TensorKind::kF32) {
      std::memcpy(&values[i], tensor.data + 4 * i, 4);
    } else {
      std::memcpy(&bits, tensor.data + 2 * i, 2);
      values[i] = tensor.kind == TensorKind::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
    }
  }
  return values;
}

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

// Runs body in a child; its exit code, or -signal.
template <typename Body>
int in_child(Body&& body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

// False, with a warning, when the shared models are not there.
bool has_shared(const std::string& model) {
  if (file_exists(std::string(PITH_SHARED_DIR "/models/") + model + "/config.json")) return true;
  if (std::getenv("PITH_NO_SKIP")) FAIL("shared model " << model << " is absent");
  WARN("SKIP: shared model " << model << " is absent");
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
  CHECK(decode(container, "embed") == source(checkpoint, "model.embed_tokens.weight"));
  CHECK(decode(container, "layers.1.attn_norm") ==
        source(checkpoint, "model.layers.1.input_layernorm.weight"));

  std::vector<float> qkv;
  for (const char* part : {"q", "k", "v"}) {
    const std::vector<float> rows =
        source(checkpoint, std::string("model.layers.1.self_attn.") + part + "_proj.weight");
    qkv.insert(qkv.end(), rows.begin(), rows.end());
  }
  CHECK(decode(container, "layers.1.attn_qkv") == qkv);

  const std::vector<float> gate = source(checkpoint, "model.layers.0.mlp.gate_proj.weight");
  const std::vector<float> up = source(checkpoint, "model.layers.0.mlp.up_proj.weight");
  const std::vector<float> gate_up = decode(container, "layers.0.ffn_gate_up");
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
  CHECK(decode(container, "embed")[7] == f16_to_float(float_to_f16(0.1f)));
  CHECK(container.get("head").kind == TensorKind::kBF16);
  CHECK(decode(container, "head")[7] == bf16_to_float(float_to_bf16(1e6f)));
  CHECK(container.get("layers.0.ffn_down").kind == TensorKind::kF16);
  CHECK(report.notes.size() == 1);
  CHECK_THAT(report.notes.at(0), Contains("'head'"));
}

TEST_CASE("a quantized conversion stores bits and error of every tensor") {
  TinyCheckpoint checkpoint(256, 512, 2);
  checkpoint.write();
  for (const bool is_paper : {false, true}) {
    ConvertOptions options = options_for(checkpoint, 3.2);
    if (is_paper) options.levers = Levers::paper();
    const ConvertReport report = convert(checkpoint.model_dir(), options);
    const Container container = Container::open(checkpoint.output());
    double bits = 0, weights = 0;
    for (const Tensor& tensor : container.tensors()) {
      if (tensor.n_rows == 1) continue;
      CHECK(tensor.kind == TensorKind::kQ24);
      if (tensor.name == "embed" || tensor.name == "head") {
        CHECK(tensor.q24.n_fine == 256);
        continue;
      }
      bits += 8.0 * static_cast<double>(tensor.size_bytes);
      weights += double{1} * tensor.n_rows * tensor.n_cols;
    }
    CHECK(report.linear_bits == Approx(bits / weights));
    CHECK(report.linear_bits <= 3.2);
    CHECK(report.linear_bits > 3.19);
    const auto& metadata = container.metadata();
    CHECK(metadata.get<double>("quality.linear_bits") == report.linear_bits);
    REQUIRE(metadata.get<std::vector<std::string>>("quality.tensors").size() == report.tensors.size());
    for (const TensorQuality& tensor : report.tensors) {
      INFO(tensor.name);
      CHECK(tensor.relative_error > 0);
      CHECK(tensor.relative_error < (is_paper ? 0.2 : 0.08));
    }
    CHECK(decode(container, "layers.0.ffn_down").size() == 256 * 512);
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

TEST_CASE("embedding and head keep 16 bits on demand") {
  TinyCheckpoint checkpoint(256, 512, 1);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.2);
  options.embed_bits = 16;
  convert(checkpoint.model_dir(), options);
  const Container container = Container::open(checkpoint.output());
  CHECK(container.get("embed").kind == TensorKind::kBF16);
  CHECK(container.get("head").kind == TensorKind::kBF16);
  CHECK(container.get("layers.0.attn_qkv").kind == TensorKind::kQ24);
}

TEST_CASE("a bad checkpoint is refused in one line and leaves nothing") {
  SECTION("truncated shard") {
    TinyCheckpoint checkpoint;
    checkpoint.write();
    const auto path = checkpoint.dir / "model" / "model.safetensors";
    std::filesystem::resize_file(path, std::filesystem::file_size(path) - 10);
    CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options_for(checkpoint, 16)), Contains("(truncated?)"));
    CHECK(checkpoint.leftovers().empty());
  }
  SECTION("wrong dtype") {
    TinyCheckpoint checkpoint;
    checkpoint.tensors.at("model.layers.1.mlp.down_proj.weight").dtype = "I16";
    CHECK_THAT(failure(checkpoint), Contains("'model.layers.1.mlp.down_proj.weight': dtype I16"));
  }
  SECTION("missing tensor") {
    TinyCheckpoint checkpoint;
    checkpoint.tensors.erase("model.layers.1.self_attn.k_proj.weight");
    CHECK_THAT(failure(checkpoint), Contains("tensor 'model.layers.1.self_attn.k_proj.weight' is missing"));
  }
  SECTION("missing head of an untied model") {
    TinyCheckpoint checkpoint;
    checkpoint.tensors.erase("lm_head.weight");
    CHECK_THAT(failure(checkpoint), Contains("tensor 'lm_head.weight' is missing"));
  }
  SECTION("wrong columns") {
    TinyCheckpoint checkpoint;
    checkpoint.add("model.layers.0.mlp.up_proj.weight", {96, 63});
    CHECK_THAT(failure(checkpoint),
               Contains("'model.layers.0.mlp.up_proj.weight': shape [96, 63], expected 64 columns"));
  }
  SECTION("wrong rows") {
    TinyCheckpoint checkpoint;
    checkpoint.add("model.layers.0.self_attn.v_proj.weight", {31, 64});
    CHECK_THAT(failure(checkpoint), Contains("127 rows for 'layers.0.attn_qkv', expected 128"));
  }
  SECTION("gate and up of different rows") {
    TinyCheckpoint checkpoint;
    checkpoint.add("model.layers.0.mlp.up_proj.weight", {95, 64});
    CHECK_THAT(failure(checkpoint), Contains("differ in rows"));
  }
  SECTION("a matrix for a norm") {
    TinyCheckpoint checkpoint;
    checkpoint.add("model.norm.weight", {2, 64});
    CHECK_THAT(failure(checkpoint), Contains("'model.norm.weight': shape [2, 64], expected a vector"));
  }
  SECTION("a tensor without a place") {
    TinyCheckpoint checkpoint;
    checkpoint.add("model.layers.0.mlp.extra.weight", {4, 4});
    CHECK_THAT(failure(checkpoint),
               Contains("have no place in this architecture: 'model.layers.0.mlp.extra.weight'"));
    ConvertOptions options = options_for(checkpoint, 16);
    options.force = true;
    CHECK_THAT(convert(checkpoint.model_dir(), options).notes.at(0), Contains("extra"));
  }
  SECTION("NaN and Inf") {
    TinyCheckpoint checkpoint;
    checkpoint.set("model.layers.0.self_attn.k_proj.weight", 3 * 64 + 5, NAN);
    CHECK_THAT(failure(checkpoint),
               Contains("'model.layers.0.self_attn.k_proj.weight': element [3, 5] is nan"));
    CHECK_THAT(failure(checkpoint, 3.5), Contains("element [3, 5] is nan"));
    ConvertOptions options = options_for(checkpoint, 16);
    options.allow_nonfinite = true;
    convert(checkpoint.model_dir(), options);
    CHECK(std::isnan(decode(Container::open(checkpoint.output()), "layers.0.attn_qkv")[(64 + 3) * 64 + 5]));
    std::filesystem::remove(checkpoint.output());
    checkpoint.set("model.layers.0.self_attn.k_proj.weight", 3 * 64 + 5, 0);
    checkpoint.set("model.norm.weight", 9, -INFINITY);
    CHECK_THAT(failure(checkpoint), Contains("'model.norm.weight': element [9] is -inf"));
  }
  SECTION("unknown config key") {
    TinyCheckpoint checkpoint;
    checkpoint.config["use_magic"] = true;
    CHECK_THAT(failure(checkpoint), Contains("config.json: unknown keys 'use_magic'"));
    ConvertOptions options = options_for(checkpoint, 16);
    options.force = true;
    CHECK_NOTHROW(convert(checkpoint.model_dir(), options));
  }
  SECTION("unknown architecture") {
    TinyCheckpoint checkpoint;
    checkpoint.config["architectures"] = {"Mamba9ForCausalLM"};
    CHECK_THAT(failure(checkpoint), Contains("architecture 'Mamba9ForCausalLM' is not supported"));
    checkpoint.config.erase("architectures");
    CHECK_THAT(failure(checkpoint), Contains("'architectures' is not a list of one name"));
  }
  SECTION("a tokenizer with more tokens than the vocabulary") {
    TinyCheckpoint checkpoint;
    for (int i = 259; i < 301; ++i) checkpoint.tokenizer["model"]["vocab"][fmt::format("t{}", i)] = i;
    CHECK_THAT(failure(checkpoint), Contains("300"));
  }
  SECTION("no weights") {
    TinyCheckpoint checkpoint;
    checkpoint.write();
    std::filesystem::remove(checkpoint.dir / "model" / "model.safetensors");
    CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options_for(checkpoint, 16)), Contains("neither"));
    CHECK_THROWS_WITH(convert((checkpoint.dir / "none").string(), options_for(checkpoint, 16)),
                      Contains("cannot open"));
  }
}

TEST_CASE("calibration lowers the error that counts and needs a text that serves") {
  TinyCheckpoint checkpoint(64, 128, 2);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  const ConvertReport calibrated = convert(checkpoint.model_dir(), options);
  options.calibrate = false;
  const ConvertReport plain = convert(checkpoint.model_dir(), options);
  REQUIRE(calibrated.tensors.size() == plain.tensors.size());
  for (size_t i = 0; i < plain.tensors.size(); ++i) {
    const std::string& name = plain.tensors[i].name;
    INFO(name);
    if (name == "embed")  // seen by no other input than itself
      CHECK(calibrated.tensors[i].relative_error == plain.tensors[i].relative_error);
    else
      CHECK(calibrated.tensors[i].relative_error < plain.tensors[i].relative_error);
  }
  std::filesystem::remove(checkpoint.output());
  options.calibrate = true;
  const std::string text = (checkpoint.dir / "model" / "text").string();
  options.calibration_files = {text};
  CHECK_THAT(failure(checkpoint, options), Contains("cannot open"));
  for (const auto& [content, message] :
       {std::pair<std::string, const char*>{"", "0 tokens, expected at least 512"},
        {"too short", "9 tokens, expected at least 512"},
        {std::string(5000, '\xff'), "not UTF-8"}}) {
    std::ofstream(text, std::ios::binary) << content;
    CHECK_THAT(failure(checkpoint, options), Contains(message));
  }
}

TEST_CASE("the forward pass of calibration gives the runtime's logits") {
  TinyCheckpoint checkpoint(64, 40, 2);
  checkpoint.write();
  convert(checkpoint.model_dir(), options_for(checkpoint, 32));
  const std::shared_ptr<const Model> model = Model::open(checkpoint.output());
  const Container& container = model->container();
  const ModelSpec& spec = model->spec();
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 64; ++i) ids.push_back(3 + i * 37 % 256);

  Stream stream;
  const std::vector<float> embed = decode(container, "embed");
  for (const int32_t id : ids)
    stream.residual.insert(stream.residual.end(), embed.begin() + id * 64, embed.begin() + (id + 1) * 64);
  Forward forward(spec, 64, 2);
  for (uint32_t layer = 0; layer < spec.n_layers; ++layer) {
    const auto get = [&](const char* part) { return decode(container, layer_tensor(layer, part)); };
    LayerVectors vectors;
    vectors.attn_norm = get("attn_norm");
    vectors.ffn_norm = get("ffn_norm");
    forward.begin_layer(layer, vectors);
    forward.prepare(stream);
    forward.apply(Part::kQkv, stream, get("attn_qkv"));
    forward.apply(Part::kAttnOut, stream, get("attn_out"));
    forward.apply(Part::kGateUp, stream, get("ffn_gate_up"));
    forward.apply(Part::kDown, stream, get("ffn_down"));
  }
  std::vector<float> logits;
  forward.logits(stream.residual.data(), 64, decode(container, "norm"), decode(container, "head"), logits);

  SessionOptions session_options;
  session_options.n_ctx = 64;
  Session session(model, session_options);
  double worst = 0, largest = 0;
  session.logits_of_all(ids, [&](uint32_t position, std::span<const float> row) {
    for (size_t i = 0; i < row.size(); ++i) {
      worst = std::max(worst, std::abs(double{row[i]} - logits[position * row.size() + i]));
      largest = std::max(largest, std::abs(double{row[i]}));
    }
  });
  CHECK(largest > 1);
  CHECK(worst < 0.01 * largest);  // the runtime's cache rounds keys and values
}

TEST_CASE("a family that calibration does not know is converted without it, and says so") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  convert(checkpoint.model_dir(), options_for(checkpoint, 16));
  const ModelSpec spec = load_spec(Container::open(checkpoint.output()).metadata(), "out");
  std::vector<TensorPlan> plan;
  for (const char* name : {"attn_norm", "attn_qkv", "attn_out", "ffn_norm", "ffn_gate_up", "ffn_down"}) {
    const bool is_norm = std::string_view(name).ends_with("norm");
    plan.push_back({layer_tensor(0, name),
                    is_norm ? TensorRole::kNorm : TensorRole::kLinear,
                    is_norm ? 1u : 64u,
                    64,
                    {},
                    RowOrder::kConcat,
                    0});
  }
  CHECK(why_not_calibrated(spec, plan).empty());
  std::vector<TensorPlan> with_router = plan, without_norm = plan, with_whole_norm = plan, twice = plan;
  with_router.push_back({"layers.0.router", TensorRole::kLinear, 8, 64, {}, RowOrder::kConcat, 0});
  CHECK_THAT(why_not_calibrated(spec, with_router), Contains("no place for tensor 'layers.0.router'"));
  without_norm.erase(without_norm.begin());
  CHECK_THAT(why_not_calibrated(spec, without_norm), Contains("layer 0 has 4 and 1"));
  with_whole_norm.push_back({"layers.0.q_norm", TensorRole::kNorm, 1, 64, {}, RowOrder::kConcat, 0});
  CHECK_THAT(why_not_calibrated(spec, with_whole_norm), Contains("'layers.0.q_norm' is of 64 elements"));
  twice.push_back(plan.back());
  CHECK_FALSE(why_not_calibrated(spec, twice).empty());
}

TEST_CASE("weights that no scale could hold are refused below 16 bits") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.set("model.layers.0.mlp.down_proj.weight", 97, 1e17f);
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.calibrate = false;
  CHECK_THAT(failure(checkpoint, options), Contains("tensor 'layers.0.ffn_down': element [1, 1] is"));
}

TEST_CASE("every effort and every ablation converts, and each is another file") {
  TinyCheckpoint checkpoint(256, 256, 1);
  checkpoint.write();
  std::set<std::string> files;
  for (const Effort effort : {Effort::kFast, Effort::kNormal, Effort::kMax}) {
    ConvertOptions options = options_for(checkpoint, 3);
    options.effort = effort;
    CHECK(convert(checkpoint.model_dir(), options).linear_bits <= 3);
    files.insert(read_text_file(checkpoint.output()));
  }
  const char* const ablations[] = {"search=off",
                                   "minimum=integer",
                                   "compensate=off",
                                   "sort=off",
                                   "correct=off",
                                   "head=off",
                                   "sensitivity=random",
                                   "sensitivity=range",
                                   "sensitivity=diagonal",
                                   "outliers=coarse",
                                   "outliers=everywhere,outlier-by=size",
                                   "descent=0",
                                   "budget=parts",
                                   "budget=even",
                                   "group=32",
                                   "fine=off"};
  for (const char* ablation : ablations) {
    INFO(ablation);
    ConvertOptions options = options_for(checkpoint, 3);
    options.calibration_tokens = 1024;
    apply_levers(ablation, options.levers);
    CHECK(convert(checkpoint.model_dir(), options).linear_bits <= 3);
    files.insert(read_text_file(checkpoint.output()));
  }
  CHECK(files.size() == 3 + std::size(ablations));
}

TEST_CASE("options outside their range are refused") {
  TinyCheckpoint checkpoint(256, 256, 1);
  for (const double bits : {0.0, 2.29, 4.51, 8.0, -1.0, 1e300, static_cast<double>(NAN)})
    CHECK_THAT(failure(checkpoint, bits), Contains("expected 16, 32 or 2.3 to 4.5"));
  ConvertOptions options = options_for(checkpoint, 3);
  options.embed_bits = 8;
  CHECK_THAT(failure(checkpoint, options), Contains("--embed-bits 8: expected 4 or 16"));
}

TEST_CASE("a target below what a model's layers can reach names the lowest figure") {
  TinyCheckpoint wide(256, 256, 1);
  CHECK_THAT(failure(wide, 2.3), Contains("is the lowest figure that this model's layers can reach"));
  TinyCheckpoint narrow(64, 96, 1);
  narrow.write();
  const ConvertReport report = convert(narrow.model_dir(), options_for(narrow, 2.85));
  CHECK(report.linear_bits > 2.85);
  CHECK_THAT(report.notes.at(0), Contains("is the lowest figure"));
}

TEST_CASE("an output that cannot be written is an error, and nothing is left") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 16);
  options.output = (checkpoint.dir / "no" / "such" / "folder.pith").string();
  CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options), Contains("folder.pith"));
  options.output = checkpoint.model_dir();
  CHECK_THROWS_AS(convert(checkpoint.model_dir(), options), Error);
  CHECK(checkpoint.leftovers().empty());
}

TEST_CASE("a disk that fills up is an error, and the same command goes on from what is done") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  const int code = in_child([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{50'000, 50'000};
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      convert(checkpoint.model_dir(), options_for(checkpoint, 16));
    } catch (const Error& error) {
      if (!std::string(error.what()).ends_with("what is done is kept, the same command goes on from there"))
        return 6;
      return error.code() == ErrorCode::kIo ? 7 : 8;
    }
    return 9;
  });
  CHECK(code == 7);
  CHECK(!std::filesystem::exists(checkpoint.output()));
  CHECK(convert(checkpoint.model_dir(), options_for(checkpoint, 16)).n_resumed > 0);
  const std::string resumed = read_text_file(checkpoint.output());
  std::filesystem::remove(checkpoint.output());
  convert(checkpoint.model_dir(), options_for(checkpoint, 16));
  CHECK(read_text_file(checkpoint.output()) == resumed);
  CHECK(checkpoint.leftovers() == std::vector<std::string>{"out.pith"});
}

#ifndef __SANITIZE_ADDRESS__  // which needs more address space than any limit leaves
TEST_CASE("memory that runs out is an error, and the same command goes on from what is done") {
  TinyCheckpoint checkpoint(256, 4096, 2);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.2);
  options.n_threads = 1;
  options.calibrate = false;
  const int code = in_child([&] {
    options.progress = [](const ConvertProgress& at) {
      if (at.tensor != "layers.1.ffn_gate_up") return;
      const rlimit limit{1 << 20, 1 << 20};  // less than what is in use: no more from now on
      setrlimit(RLIMIT_AS, &limit);
      mallopt(M_MMAP_THRESHOLD, 4096);
    };
    try {
      convert(checkpoint.model_dir(), options);
    } catch (const Error& error) {
      const std::string message =
          error.what();  // "cannot map: Cannot allocate memory" where the heap had room left
      return message.find("memory") != message.npos && message.ends_with("goes on from there") ? 7 : 8;
    }
    return 9;
  });
  CHECK(code == 7);
  options.progress = nullptr;
  CHECK(convert(checkpoint.model_dir(), options).n_resumed > 5);
  CHECK(checkpoint.leftovers() == std::vector<std::string>{"out.pith"});
}
#endif

TEST_CASE("a conversion killed at any tensor resumes to the same bytes") {
  TinyCheckpoint checkpoint(64, 96, 2);
  checkpoint.write();
  for (const double bits : {16.0, 3.5}) {
    ConvertOptions options = options_for(checkpoint, bits);
    convert(checkpoint.model_dir(), options);
    const std::string whole = read_text_file(checkpoint.output());
    std::filesystem::remove(checkpoint.output());
    size_t n_resumed = 0;
    for (int kill_at = 1; kill_at < 60; kill_at += 3) {
      const int code = in_child([&] {
        int n = 0;
        options.progress = [&](const ConvertProgress&) {
          if (++n == kill_at) kill(getpid(), SIGKILL);
        };
        convert(checkpoint.model_dir(), options);
        return 0;
      });
      CHECK((code == 0 || code == -SIGKILL));
      CHECK(std::filesystem::exists(checkpoint.output()) == (code == 0));
      options.progress = nullptr;
      n_resumed += convert(checkpoint.model_dir(), options).n_resumed;
      CHECK(read_text_file(checkpoint.output()) == whole);
      CHECK(checkpoint.leftovers() == std::vector<std::string>{"out.pith"});
      std::filesystem::remove(checkpoint.output());
    }
    CHECK(n_resumed > 30);
  }
}

TEST_CASE("an interrupted conversion neither measures nor quantizes again what is done") {
  TinyCheckpoint checkpoint(64, 96, 2);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.progress = [](const ConvertProgress& at) {
    if (std::string_view(at.stage) == "check") throw_error(ErrorCode::kInterrupted, "stopped");
  };
  CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options), "stopped");
  options.progress = nullptr;
  const ConvertReport report = convert(checkpoint.model_dir(), options);
  CHECK(report.n_resumed == Container::open(checkpoint.output()).tensors().size());
  for (const StageTime& stage : report.stages) {
    CHECK(std::string_view(stage.stage) != "measure");
    CHECK(std::string_view(stage.stage) != "statistics");
    CHECK(std::string_view(stage.stage) != "quantize");
  }
  CHECK(report.kl > 0);  // the streams went through what was there
}

TEST_CASE("an interruption keeps what is done, a changed source or option starts over") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 16);
  const auto interrupt = [&] {
    int n = 0;
    options.progress = [&](const ConvertProgress&) {
      if (++n == 12) throw_error(ErrorCode::kInterrupted, "stopped");
    };
    CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options), "stopped");
    options.progress = nullptr;
    CHECK(std::filesystem::exists(checkpoint.output() + ".part"));
    CHECK(std::filesystem::exists(checkpoint.output() + ".part.journal"));
  };
  interrupt();
  CHECK(convert(checkpoint.model_dir(), options).n_resumed > 0);
  interrupt();
  options.bits = 32;
  CHECK(convert(checkpoint.model_dir(), options).n_resumed == 0);
  options.bits = 16;
  interrupt();
  checkpoint.set("lm_head.weight", 0, 1);
  checkpoint.write();
  CHECK(convert(checkpoint.model_dir(), options).n_resumed == 0);
  interrupt();
  options.resume = false;
  CHECK(convert(checkpoint.model_dir(), options).n_resumed == 0);
}

TEST_CASE("the number of threads does not change a byte") {
  TinyCheckpoint checkpoint(256, 256, 1);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3);
  options.n_threads = 1;
  convert(checkpoint.model_dir(), options);
  const std::string one = read_text_file(checkpoint.output());
  options.n_threads = 5;
  convert(checkpoint.model_dir(), options);
  CHECK(read_text_file(checkpoint.output()) == one);
}

#ifndef __SANITIZE_ADDRESS__  // whose own memory would be counted
TEST_CASE("peak memory is at most two of the largest tensors in float32 plus 64 MiB") {
  constexpr uint32_t kDim = 512, kFfn = 4096;
  TinyCheckpoint checkpoint(kDim, kFfn, 12);  // 176 MB of bf16; the largest tensor is gate and up
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

TEST_CASE("the shared models convert at every kind of target") {
  for (const std::string model : {"stories260k", "tinystories-656k"}) {
    if (!has_shared(model)) continue;
    const std::string dir = std::string(PITH_SHARED_DIR "/models/") + model;
    TinyCheckpoint scratch;
    for (const double bits : {2.85, 4.25, 16.0, 32.0}) {
      INFO(model << " at " << bits);
      const ConvertReport report = convert(dir, options_for(scratch, bits));
      const Container container = Container::open(scratch.output());
      for (const Tensor& tensor : container.tensors()) container.verify_tensor(tensor);
      const bool is_narrow = model == "stories260k";  // 64 columns: 3.17 bits is its lowest
      if (bits >= 16)
        CHECK(report.linear_bits == bits);
      else if (!is_narrow || bits > 4)
        CHECK(report.linear_bits <= bits);
      else
        CHECK(report.linear_bits < 3.2);
    }
  }
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
