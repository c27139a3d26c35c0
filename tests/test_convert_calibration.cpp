// Calibration inside a conversion: what it is worth, its forward pass against the runtime's, efforts and ablations.
#include <cmath>
#include <set>

#include "convert/forward.h"
#include "models/spec.h"
#include "runtime/model.h"
#include "runtime/session.h"
#include "tests/convert_cases.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

TEST_CASE("calibration lowers the error that counts and needs a text that serves") {
  TinyCheckpoint checkpoint(64, 128, 2);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.calibration_tokens = 1024;
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

// The levers that a single matrix knows are held by test_quantizer; here those that the conversion itself obeys, and one that it
// hands on.
TEST_CASE("every effort and every lever of a conversion gives other tensors") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  std::set<std::vector<float>> tensors;
  const auto add = [&](const ConvertOptions& options) {
    CHECK(convert(checkpoint.model_dir(), options).linear_bits <= options.bits);
    const Container container = Container::open(checkpoint.output());
    std::vector<float> all;
    for (const char* name : {"embed", "head", "layers.0.attn_qkv", "layers.0.ffn_down"}) {
      const std::vector<float> values = decode(container, name);
      all.insert(all.end(), values.begin(), values.end());
    }
    CHECK(tensors.insert(all).second);
  };
  for (const Effort effort : {Effort::kFast, Effort::kNormal, Effort::kMax}) {
    INFO("effort " << static_cast<int>(effort));
    ConvertOptions options = options_for(checkpoint, 3.5);
    options.effort = effort;
    add(options);
  }
  for (const char* ablation : {"correct=off", "head=off", "budget=parts", "group=32", "fine=off"}) {
    INFO(ablation);
    ConvertOptions options = options_for(checkpoint, 3.5);
    apply_levers(ablation, options.levers);
    add(options);
  }
}
