// What a conversion refuses: bad checkpoints, options, targets and outputs.
#include <cmath>

#include "tests/convert_cases.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

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
    CHECK_THAT(failure(checkpoint), Contains("'model.layers.0.self_attn.v_proj.weight': 31 rows, expected 32 "
                                             "for 'layers.0.attn_qkv'"));
  }
  SECTION("wrong rows that add up") {
    TinyCheckpoint checkpoint;
    checkpoint.add("model.layers.0.self_attn.q_proj.weight", {80, 64});
    checkpoint.add("model.layers.0.self_attn.k_proj.weight", {16, 64});
    CHECK_THAT(failure(checkpoint), Contains("q_proj.weight': 80 rows, expected 64"));
  }
  SECTION("gate and up of too few rows, the same after padding") {
    TinyCheckpoint checkpoint;
    checkpoint.add("model.layers.0.mlp.gate_proj.weight", {95, 64});
    checkpoint.add("model.layers.0.mlp.up_proj.weight", {95, 64});
    CHECK_THAT(failure(checkpoint), Contains("gate_proj.weight': 95 rows, expected 96"));
  }
  SECTION("gate and up of different rows") {
    TinyCheckpoint checkpoint;
    checkpoint.add("model.layers.0.mlp.up_proj.weight", {95, 64});
    CHECK_THAT(failure(checkpoint), Contains("up_proj.weight': 95 rows, expected 96"));
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
    CHECK(std::isnan(
        tensor_floats(Container::open(checkpoint.output()), "layers.0.attn_qkv")[(64 + 3) * 64 + 5]));
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
  SECTION("a field out of range that only the family reads") {
    TinyCheckpoint checkpoint;
    checkpoint.config["architectures"] = {"Gemma2ForCausalLM"};
    checkpoint.config["hidden_activation"] = "gelu_pytorch_tanh";
    checkpoint.config["attn_logit_softcapping"] = -50;
    CHECK_THAT(failure(checkpoint), Contains("config.json: model.attn_softcap is -50, expected 0 to"));
    checkpoint.config["architectures"] = {"Qwen3MoeForCausalLM"};
    for (const char* key : {"hidden_activation", "attn_logit_softcapping"}) checkpoint.config.erase(key);
    checkpoint.config["num_experts"] = 1u << 31;
    checkpoint.config["num_experts_per_tok"] = 1;
    checkpoint.config["moe_intermediate_size"] = 64;
    CHECK_THAT(failure(checkpoint),
               Contains("config.json: model.n_experts is 2147483648, expected 0 to 1024"));
    checkpoint.config["num_experts"] = 4;
    checkpoint.config["moe_intermediate_size"] = 1u << 31;
    CHECK_THAT(failure(checkpoint), Contains("config.json: model.ffn_dim is 2147483648, expected 1 to"));
  }
  SECTION("more layers and experts than there are tensors for") {
    TinyCheckpoint checkpoint;
    checkpoint.config["architectures"] = {"Qwen3MoeForCausalLM"};
    checkpoint.config["num_hidden_layers"] = checkpoint.config["num_experts"] = 1024;
    checkpoint.config["num_experts_per_tok"] = 1;
    checkpoint.config["moe_intermediate_size"] = 64;
    CHECK_THAT(failure(checkpoint), Contains("21 tensors, expected at least 2097152 for 1024 layers"));
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
                      Contains("does not exist"));
  }
}

TEST_CASE("weights that no scale could hold are refused below 16 bits") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.set("model.layers.0.mlp.down_proj.weight", 97, 1e17f);
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.calibrate = false;
  CHECK_THAT(failure(checkpoint, options), Contains("tensor 'layers.0.ffn_down': element [1, 1] is"));
}

TEST_CASE("options outside their range are refused") {
  TinyCheckpoint checkpoint(256, 256, 1);
  for (const double bits : {0.0, 2.29, 4.51, 8.0, -1.0, 1e300, static_cast<double>(NAN)})
    CHECK_THAT(failure(checkpoint, bits), Contains("expected 2.3 to 4.5, 16 or 32"));
  ConvertOptions options = options_for(checkpoint, 3);
  options.embed_bits = 8;
  CHECK_THAT(failure(checkpoint, options), Contains("--embed-bits 8: expected 4 or 16"));
  options = options_for(checkpoint, 16);
  options.n_threads = 1025;
  CHECK_THAT(failure(checkpoint, options), Contains("--threads 1025: expected at most 1024"));
  for (const double bits : {3.0, 16.0}) {  // also where nothing is multiplied
    options = options_for(checkpoint, bits);
    options.device = "gpu";
    CHECK_THAT(failure(checkpoint, options),
               Contains("device: 'gpu' is not available here, expected auto or "));
    options.device = "cpu:1";
    CHECK_THAT(failure(checkpoint, options), Contains("device: 'cpu:1', only cuda takes a number"));
  }
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

TEST_CASE("an output never takes the place of what is not a pith file") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 16);
  for (const char* const name : {"model.safetensors", "config.json", "tokenizer.json"}) {
    options.output = checkpoint.model_dir() + "/" + name;
    const std::string before = read_text_file(options.output);
    CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options),
                      Contains(std::string(name) + ": exists and is not a pith file"));
    CHECK(read_text_file(options.output) == before);
    CHECK(!std::filesystem::exists(options.output + ".part"));
  }
  options.output = checkpoint.model_dir() + "/model.pith";  // also beside the weights
  std::ofstream(options.output).close();
  convert(checkpoint.model_dir(), options);  // what is empty
  convert(checkpoint.model_dir(), options);  // what is one
  CHECK_NOTHROW(Container::open(options.output));
}
