// Configs as published by their authors, read into specs; specs through metadata and back; hostile specs.
#include <catch2/catch.hpp>
#include <cmath>
#include <map>
#include <set>

#include "models/experts.h"
#include "models/family.h"

using namespace pith;
using Catch::Matchers::Contains;

namespace {

const char* const kLlama2 = R"({"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
  "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0",
  "use_cache": true, "vocab_size": 32000})";

const char* const kLlama32 = R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false,
  "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
  "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
  "use_cache": true, "vocab_size": 128256})";

const char* const kMistral01 =
    R"({"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
  "use_cache": true, "vocab_size": 32000})";

const char* const kQwen25 = R"({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
  "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
  "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
  "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true,
  "use_sliding_window": false, "vocab_size": 151936})";

const char* const kQwen3 = R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
  "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
  "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
  "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null,
  "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})";

const char* const kGemma3Multimodal = R"({"architectures": ["Gemma3ForConditionalGeneration"],
  "boi_token_index": 255999, "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
  "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3", "text_config": {"hidden_size": 2560,
  "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0,
  "rope_type": "linear"}, "sliding_window": 1024}, "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
  "vision_config": {"hidden_size": 1152, "image_size": 896}})";

const char* const kGptOss = R"({"architectures": ["GptOssForCausalLM"], "attention_bias": true,
  "attention_dropout": 0.0, "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 2880, "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880,
  "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
  "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": false,
  "pad_token_id": 199999, "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
  "rms_norm_eps": 1e-05, "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
  "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false}, "rope_theta": 150000,
  "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": false,
  "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201088})";

nlohmann::json with(const char* base, const char* patch) {
  nlohmann::json json = nlohmann::json::parse(base);
  json.update(nlohmann::json::parse(patch));
  return json;
}

ModelSpec read(nlohmann::json json) {
  const std::string architecture = json["architectures"][0];
  Config config(std::move(json), "config.json");
  ModelSpec spec = family_for(architecture, "config.json").read_config(config);
  check_spec(spec, "config.json");
  CHECK(config.unconsumed() == std::vector<std::string>{});
  return spec;
}
ModelSpec read(const char* text) {
  return read(nlohmann::json::parse(text));
}

const TensorPlan* find(const std::vector<TensorPlan>& plan, const std::string& name) {
  for (const TensorPlan& tensor : plan)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

// A small spec with every field away from its default.
ModelSpec odd_spec() {
  ModelSpec spec;
  spec.family = "odd";
  spec.vocab_size = 77, spec.dim = 36, spec.ffn_dim = 50, spec.n_layers = 2, spec.n_heads = 4,
  spec.n_kv_heads = 2;
  spec.head_dim = 10, spec.max_context = 99, spec.norm_eps = 1e-3f, spec.activation = Activation::kGeluTanh;
  spec.tied_embeddings = spec.qkv_bias = spec.attn_out_bias = spec.mlp_bias = spec.qk_norm = spec.post_norms =
      true;
  spec.attn_scale = 0.3f, spec.embedding_scale = 6, spec.residual_scale = 0.5f, spec.logit_scale = 0.25f;
  spec.attn_softcap = 50, spec.logit_softcap = 30;
  spec.ropes = {{{1.0f, 0.1f}, 1.5f}, {{0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f}, 1}};
  spec.ropes[1].original_context = 50, spec.ropes[1].long_inv_freq = {0.4f, 0.2f, 0.1f, 0.05f, 0.02f};
  spec.layers = {{7, 1}, {0, -1}};
  spec.pre_norms = false, spec.attn_sinks = spec.router_bias = true, spec.router_renormalize = false;
  spec.n_experts = 4, spec.n_active_experts = 2;
  return spec;
}

}  // namespace

TEST_CASE("published configs are read into the shapes of their models") {
  const ModelSpec llama2 = read(kLlama2);
  CHECK(llama2.family == "llama");
  CHECK(llama2.head_dim == 128);
  CHECK(llama2.max_context == 4096);
  CHECK_FALSE(llama2.tied_embeddings);
  CHECK(llama2.attn_scale == Approx(1 / std::sqrt(128.0)));
  CHECK(llama2.ropes.at(0).inv_freq.size() == 64);
  CHECK(llama2.ropes[0].inv_freq[63] == Approx(std::pow(10000.0, -126.0 / 128)));

  const ModelSpec llama32 = read(kLlama32);
  CHECK(llama32.tied_embeddings);
  CHECK(llama32.kv_rows() == 512);

  const ModelSpec mistral = read(kMistral01);
  CHECK(mistral.layers.at(31).window == 4096);
  CHECK(read(with(kMistral01, R"({"sliding_window": null})")).layers.at(31).window == 0);

  const ModelSpec qwen25 = read(kQwen25);
  CHECK(qwen25.qkv_bias);
  CHECK_FALSE(qwen25.attn_out_bias);
  CHECK(qwen25.layers.at(23).window == 0);

  const ModelSpec qwen3 = read(kQwen3);
  CHECK(qwen3.qk_norm);
  CHECK(qwen3.q_rows() == 2048);
  CHECK_FALSE(qwen3.qkv_bias);
}

TEST_CASE("what a published config leaves to the reference's class is the class's default") {
  const ModelSpec gemma = read(kGemma3Multimodal);
  CHECK(gemma.vocab_size == 262208);
  CHECK(gemma.q_rows() == 8 * 256);
  CHECK(gemma.kv_rows() == 4 * 256);
  CHECK(gemma.max_context == 131072);
  CHECK(gemma.tied_embeddings);
  CHECK(gemma.embedding_scale == 50.5f);  // sqrt(2560) in bfloat16
  CHECK(gemma.attn_scale == Approx(1 / 16.0));
  CHECK(gemma.layers.at(4).window == 1024);
  CHECK(gemma.layers.at(5).window == 0);
  CHECK(gemma.ropes.at(0).inv_freq[1] == Approx(std::pow(1e6, -2.0 / 256) / 8));
  CHECK(gemma.ropes.at(1).inv_freq[1] == Approx(std::pow(1e4, -2.0 / 256)));

  const ModelSpec oss = read(kGptOss);
  CHECK(oss.layers.at(0).window == 128);
  CHECK(oss.layers.at(1).window == 0);
  CHECK(oss.ropes.at(0).scale == Approx(0.1 * std::log(32.0) + 1));
  CHECK(oss.n_experts == 32);
  const std::vector<TensorPlan> plan = family_for("GptOssForCausalLM", "").plan(oss);
  const TensorPlan* const gate_up = find(plan, "layers.1.experts.31.gate_up");
  REQUIRE(gate_up != nullptr);
  CHECK(gate_up->sources.at(1).name == "model.layers.1.mlp.experts.gate_up_proj");
  CHECK(gate_up->sources[1].row_begin == 1);
  CHECK(gate_up->sources[1].row_step == 2);
  CHECK(gate_up->sources[1].stack_idx == 31);
}

TEST_CASE("switches of the new families that pith lacks are refused with their names") {
  const auto refuse = [](const nlohmann::json& json, const char* part) {
    CHECK_THROWS_WITH(read(json), Contains(part));
  };
  refuse(with(kGptOss, R"({"swiglu_limit": 5.0})"), "swiglu_limit is 5, expected 7");
  refuse(with(kGptOss, R"({"num_experts_per_tok": 33})"), "num_experts_per_tok is 33, expected at most");
  refuse(with(kGptOss, R"({"quantization_config": {"quant_method": "awq"}})"), "quantized already");
  refuse(with(kGemma3Multimodal, R"({"text_config": null})"), "'text_config' is missing");
  nlohmann::json json = nlohmann::json::parse(kGemma3Multimodal);
  json["text_config"]["surprise"] = 1;
  refuse(json, "text_config: unknown key 'surprise'");
  json = nlohmann::json::parse(kGemma3Multimodal);
  json["text_config"]["use_bidirectional_attention"] = true;
  refuse(json, "use_bidirectional_attention");
  json =
      with(kQwen3, R"({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 768, "mlp_only_layers": [0]})");
  refuse(json, "layers without experts");
}

TEST_CASE(
    "the base of OLMo 3's layers that slide is that of all layers, wherever the config says it, unscaled") {
  const nlohmann::json yarn = {
      {"rope_type", "yarn"}, {"factor", 8.0}, {"original_max_position_embeddings", 512}};
  nlohmann::json older = with(kLlama2, R"({"architectures": ["Olmo3ForCausalLM"], "rope_theta": 7e5})");
  older["rope_scaling"] = yarn;
  nlohmann::json newer = with(kLlama2, R"({"architectures": ["Olmo3ForCausalLM"]})");
  newer.erase("rope_scaling");
  newer["rope_parameters"] = yarn;
  const auto base_of = [](const nlohmann::json& json) {
    const ModelSpec spec = read(json);
    CHECK(spec.layers.at(0).rope_idx == 1);
    CHECK(spec.layers.at(3).rope_idx == 0);
    CHECK(spec.ropes.at(0).scale > 1);
    CHECK(spec.ropes.at(1).scale == 1);
    CHECK(spec.ropes.at(0).inv_freq.at(1) ==
          Approx(spec.ropes.at(1).inv_freq.at(1)));  // turns often: not scaled
    return std::pow(spec.ropes.at(1).inv_freq.at(1), -64);
  };
  CHECK(base_of(older) == Approx(7e5).epsilon(1e-4));
  CHECK(base_of(newer) == Approx(5e5).epsilon(1e-4));  // the class's default
  newer["rope_parameters"]["rope_theta"] = 6e5;
  CHECK(base_of(newer) == Approx(6e5).epsilon(1e-4));
}

TEST_CASE("qwen windows follow use_sliding_window, max_window_layers and layer_types") {
  const ModelSpec spec = read(with(kQwen25, R"({"use_sliding_window": true, "sliding_window": 512})"));
  CHECK(spec.layers.at(20).window == 0);
  CHECK(spec.layers.at(21).window == 512);
  nlohmann::json json = with(kQwen25, R"({"use_sliding_window": true, "sliding_window": 512})");
  for (int i = 0; i < 24; ++i) json["layer_types"].push_back(i % 2 ? "full_attention" : "sliding_attention");
  CHECK(read(json).layers.at(0).window == 512);
  CHECK(read(json).layers.at(21).window == 0);
}

// Figures from an independent evaluation of the published formulas in numpy (float64).
TEST_CASE("rope scalings match independently computed frequencies") {
  const RopeSpec llama3 = read(kLlama32).ropes.at(0);
  CHECK(llama3.inv_freq[0] == Approx(1.0).epsilon(1e-6));
  CHECK(llama3.inv_freq[14] == Approx(0.003211445994752591).epsilon(1e-6));
  CHECK(llama3.inv_freq[16] == Approx(0.00042955679655936815).epsilon(1e-6));
  CHECK(llama3.inv_freq[31] == Approx(9.41830672543491e-08).epsilon(1e-6));
  CHECK(llama3.scale == 1);

  const RopeSpec linear =
      read(with(kLlama2, R"({"rope_scaling": {"type": "linear", "factor": 4.0}})")).ropes.at(0);
  CHECK(linear.inv_freq[1] == Approx(std::pow(10000.0, -2.0 / 128) / 4));

  const ModelSpec yarn = read(with(kQwen3, R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
    "original_max_position_embeddings": 32768}})"));
  CHECK(yarn.max_context == 131072);
  CHECK(yarn.ropes.at(0).scale == Approx(0.1 * std::log(4.0) + 1));
  CHECK(yarn.ropes[0].inv_freq[20] == Approx(0.01333521432163324).epsilon(1e-6));
  CHECK(yarn.ropes[0].inv_freq[30] == Approx(0.0010643609812470017).epsilon(1e-6));
  CHECK(yarn.ropes[0].inv_freq[63] == Approx(3.102344401879299e-07).epsilon(1e-6));
}

TEST_CASE("rope_parameters of newer configs mean what rope_theta and rope_scaling meant") {
  nlohmann::json json = nlohmann::json::parse(kLlama32);
  json["rope_parameters"] = json["rope_scaling"];
  json["rope_parameters"]["rope_theta"] = json["rope_theta"];
  json.erase("rope_scaling");
  json.erase("rope_theta");
  CHECK(read(json).ropes.at(0).inv_freq == read(kLlama32).ropes.at(0).inv_freq);
}

TEST_CASE("what pith lacks is refused with its name") {
  const auto refuse = [](const nlohmann::json& json, const char* part) {
    CHECK_THROWS_WITH(read(json), Contains(part));
  };
  refuse(with(kLlama2, R"({"rope_scaling": {"type": "spiral", "factor": 2.0}})"), "'spiral'");
  refuse(with(kLlama2, R"({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}})"),
         "'long_factor' has 1 entries, expected 64");
  refuse(with(kLlama2, R"({"rope_scaling": {"type": "linear", "factor": 2.0, "foo": 1}})"), "'foo'");
  refuse(with(kLlama2, R"({"hidden_act": "relu"})"), "'relu'");
  refuse(with(kLlama2, R"({"quantization_config": {"bits": 4}})"), "quantization_config");
  refuse(with(kLlama2, R"({"architectures": ["MambaForCausalLM"]})"), "MambaForCausalLM");
  refuse(with(kLlama2, R"({"rope_interleaved": true})"), "rope_interleaved");
  refuse(with(kLlama2, R"({"hidden_size": "big"})"), "'hidden_size' is string, expected a count");
  refuse(with(kLlama2, R"({"hidden_size": -4})"), "expected a whole number");
  refuse(with(kLlama2, R"({"hidden_size": 1.5})"), "expected a whole number");
  refuse(with(kLlama2, R"({"num_hidden_layers": 2000000000})"), "at most 1024");
  refuse(with(kLlama2, R"({"num_attention_heads": 33})"), "not a multiple");
  refuse(with(kLlama2, R"({"num_key_value_heads": 5})"), "divisor");
  refuse(with(kQwen25, R"({"layer_types": ["full_attention"]})"), "1 entries");
  refuse(with(kQwen25, R"({"use_mrope": true})"), "use_mrope");
  refuse(with(kLlama2, R"({"rope_theta": 0})"), "rope_theta");
}

TEST_CASE("a head of any length that a config claims is refused before its rope is made") {
  CHECK_THROWS_WITH(read(with(kLlama32, R"({"head_dim": 2147483648})")),
                    Contains("head_dim is 2147483648, expected at most 1024"));
  CHECK_THROWS_WITH(read(with(kLlama2, R"({"hidden_size": 2147483648, "num_attention_heads": 1})")),
                    Contains("head_dim is 2147483648, expected at most 1024"));
}

TEST_CASE("an unknown config key stays unconsumed") {
  Config config(with(kLlama2, R"({"surprise": 1})"), "config.json");
  family_for("LlamaForCausalLM", "config.json").read_config(config);
  CHECK(config.unconsumed() == std::vector<std::string>{"surprise"});
}

TEST_CASE("a plan names every tensor once and fuses matrices of one input") {
  const ModelSpec spec = read(kQwen25);
  const std::vector<TensorPlan> plan = family_for("Qwen2ForCausalLM", "").plan(spec);
  std::set<std::string> names, sources;
  for (const TensorPlan& tensor : plan) {
    CHECK(names.insert(tensor.name).second);
    for (const TensorSource& source : tensor.sources) CHECK(sources.insert(source.name).second);
  }
  CHECK(plan.size() == 2 + 24 * 7);
  CHECK(find(plan, "head") == nullptr);  // tied
  const TensorPlan* const qkv = find(plan, "layers.3.attn_qkv");
  REQUIRE(qkv != nullptr);
  CHECK(qkv->n_rows == 896 + 2 * 128);
  CHECK(qkv->sources.at(2).name == "model.layers.3.self_attn.v_proj.weight");
  const TensorPlan* const gate_up = find(plan, "layers.23.ffn_gate_up");
  REQUIRE(gate_up != nullptr);
  CHECK(gate_up->n_rows == 2 * 4864);
  CHECK(gate_up->order == RowOrder::kInterleave16);
  CHECK(find(family_for("LlamaForCausalLM", "").plan(read(kLlama2)), "head") != nullptr);
}

TEST_CASE("a tensor's name says its role") {
  ModelSpec spec;
  spec.vocab_size = 9, spec.dim = spec.ffn_dim = 8, spec.n_layers = 1, spec.n_heads = spec.n_kv_heads = 1,
  spec.head_dim = 8;
  spec.qkv_bias = spec.attn_out_bias = spec.mlp_bias = spec.qk_norm = spec.post_norms = spec.attn_sinks =
      spec.router_bias = true;
  std::map<TensorRole, std::set<std::string>> names;
  for (const uint32_t n_experts : {0u, 1u}) {
    spec.n_experts = spec.n_active_experts = n_experts;
    for (const TensorPlan& plan : plan_tensors(spec)) names[plan.role].insert(plan.name);
  }
  const std::string e = "layers.0.experts.0.";
  CHECK(names[TensorRole::kEmbedding] == std::set<std::string>{"embed"});
  CHECK(names[TensorRole::kHead] == std::set<std::string>{"head"});
  CHECK(names[TensorRole::kRouter] == std::set<std::string>{"layers.0.router"});
  CHECK(names[TensorRole::kLinear] == std::set<std::string>{"layers.0.attn_qkv", "layers.0.attn_out",
                                                            "layers.0.ffn_gate_up", "layers.0.ffn_down",
                                                            e + "gate_up", e + "down"});
  CHECK(names[TensorRole::kNorm] == std::set<std::string>{"norm", "layers.0.attn_norm", "layers.0.q_norm",
                                                          "layers.0.k_norm", "layers.0.attn_post_norm",
                                                          "layers.0.ffn_norm", "layers.0.ffn_post_norm"});
  CHECK(names[TensorRole::kBias] ==
        std::set<std::string>{"layers.0.attn_qkv_bias", "layers.0.sinks", "layers.0.attn_out_bias",
                              "layers.0.ffn_gate_up_bias", "layers.0.ffn_down_bias", "layers.0.router_bias",
                              e + "gate_up_bias", e + "down_bias"});
}

TEST_CASE("a spec survives metadata and its bytes") {
  const ModelSpec spec = odd_spec();
  Metadata metadata;
  store_spec(spec, metadata);
  const ModelSpec back = load_spec(Metadata::parse(metadata.serialize()), "memory");
  Metadata again;
  store_spec(back, again);
  CHECK(again.entries() == metadata.entries());
  CHECK(back.layers.at(1).rope_idx == -1);
  CHECK(back.ropes.at(1).inv_freq == spec.ropes[1].inv_freq);
  CHECK(back.activation == Activation::kGeluTanh);
  CHECK(back.post_norms);
  CHECK(back.n_active_experts == 2);
  CHECK_FALSE(back.router_renormalize);
  CHECK(back.ropes[1].frequencies(50) == spec.ropes[1].inv_freq);
  CHECK(back.ropes[1].frequencies(51) == spec.ropes[1].long_inv_freq);
}

TEST_CASE(
    "experts are the largest logits, the lower one where equal, and different ones whatever the logits are") {
  ModelSpec spec;
  spec.n_experts = 4;
  ExpertShare chosen[2];
  float logits[] = {1, 3, 2, 3};
  spec.n_active_experts = 1;
  choose_experts(spec, logits, chosen);
  CHECK(chosen[0].expert == 1);
  CHECK(chosen[0].share == 1);

  spec.n_active_experts = 2;
  spec.router_renormalize = false;
  float rising[] = {0, 1, 2, 3};
  choose_experts(spec, rising, chosen);
  CHECK(chosen[0].expert == 2);
  CHECK(chosen[1].expert == 3);
  CHECK(chosen[1].share == Approx(1 / (1 + std::exp(-1.0) + std::exp(-2.0) + std::exp(-3.0))));

  float nothing[] = {NAN, -INFINITY, NAN, NAN};
  choose_experts(spec, nothing, chosen);
  CHECK(chosen[0].expert == 0);
  CHECK(chosen[1].expert == 1);
  CHECK(chosen[1].share == 0.25f);
}

TEST_CASE("a spec outside the caps is refused with the field's name") {
  const auto refuse = [](auto&& change, const char* part) {
    ModelSpec spec = odd_spec();
    change(spec);
    CHECK_THROWS_WITH(check_spec(spec, "memory"), Contains(part));
    Metadata metadata;
    store_spec(spec, metadata);
    CHECK_THROWS_WITH(load_spec(metadata, "memory"), Contains(part));
  };
  refuse([](ModelSpec& s) { s.vocab_size = 0; }, "vocab_size");
  refuse([](ModelSpec& s) { s.dim = 65473; }, "dim");
  refuse([](ModelSpec& s) { s.ffn_dim = 0; }, "ffn_dim");
  refuse([](ModelSpec& s) { s.n_layers = 0, s.layers.clear(); }, "n_layers");
  refuse([](ModelSpec& s) { s.layers.pop_back(); }, "layers");
  refuse([](ModelSpec& s) { s.n_heads = 5; }, "divisor");
  refuse([](ModelSpec& s) { s.n_kv_heads = 0; }, "n_kv_heads");
  refuse([](ModelSpec& s) { s.head_dim = 11; }, "even");
  refuse([](ModelSpec& s) { s.head_dim = 1024, s.n_heads = 1000; }, "n_heads * head_dim");
  refuse([](ModelSpec& s) { s.max_context = 0; }, "max_context");
  refuse([](ModelSpec& s) { s.attn_scale = 0; }, "attn_scale");
  refuse([](ModelSpec& s) { s.norm_eps = -1; }, "norm_eps");
  refuse([](ModelSpec& s) { s.ropes[0].inv_freq.resize(6); }, "inv_freq");
  refuse([](ModelSpec& s) { s.ropes[1].scale = 0; }, "rope.scale");
  refuse([](ModelSpec& s) { s.layers[0].rope_idx = 2; }, "rope");
  refuse([](ModelSpec& s) { s.activation = static_cast<Activation>(4); }, "activation");
  refuse([](ModelSpec& s) { s.n_active_experts = 5; }, "n_active_experts");
  refuse([](ModelSpec& s) { s.n_active_experts = 0; }, "n_active_experts");
  refuse([](ModelSpec& s) { s.n_experts = 1025; }, "n_experts");
  refuse([](ModelSpec& s) { s.qk_norm_whole = true; }, "qk_norm_whole");
  refuse([](ModelSpec& s) { s.ropes[1].long_inv_freq.pop_back(); }, "long_inv_freq");
  refuse([](ModelSpec& s) { s.ropes[1].original_context = 0; }, "model.rope.original_context");
  refuse([](ModelSpec& s) { s.ropes[0].dynamic_factor = -1, s.ropes[0].original_context = 9; },
         "dynamic_factor");
}
