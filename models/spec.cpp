// Caps on a spec and its form as metadata.
#include "models/spec.h"

#include <charconv>
#include <cmath>

#include "format/q24.h"

namespace pith {

namespace {

constexpr uint32_t kMaxVocab = 1u << 22;
constexpr uint32_t kMaxHeads = 1024;
constexpr uint32_t kMaxContext = 1u << 24;
constexpr size_t kMaxRopes = 8;
constexpr uint32_t kMaxExperts = 1024;
constexpr float kMinScale = 1e-6f, kMaxScale = 1e6f;

// Every field that is one value, in the order of ModelSpec: its key after "model.", the member, its range. with: a key without
// which the field keeps its default, as files of before it lack both; "" = none.
template <typename Spec, typename Visit>
void for_each_field(Spec& spec, Visit&& visit) {
  visit("vocab_size", spec.vocab_size, 1, kMaxVocab);
  visit("dim", spec.dim, 1, q24::kMaxCols);
  visit("ffn_dim", spec.ffn_dim, 1, q24::kMaxCols);
  visit("n_layers", spec.n_layers, 1, kMaxLayers);
  visit("n_heads", spec.n_heads, 1, kMaxHeads);
  visit("n_kv_heads", spec.n_kv_heads, 1, spec.n_heads);
  visit("head_dim", spec.head_dim, 2, kMaxHeadDim);
  visit("max_context", spec.max_context, 1, kMaxContext);
  visit("activation", spec.activation);
  visit("tied_embeddings", spec.tied_embeddings);
  visit("qkv_bias", spec.qkv_bias);
  visit("attn_out_bias", spec.attn_out_bias);
  visit("mlp_bias", spec.mlp_bias);
  visit("qk_norm", spec.qk_norm);
  visit("qk_norm_whole", spec.qk_norm_whole, "model.qk_norm_whole");
  visit("pre_norms", spec.pre_norms, "model.pre_norms");
  visit("attn_sinks", spec.attn_sinks, "model.attn_sinks");
  visit("n_experts", spec.n_experts, 0, kMaxExperts, "model.n_experts");
  visit("n_active_experts", spec.n_active_experts, spec.n_experts == 0 ? 0 : 1, spec.n_experts,
        "model.n_experts");
  visit("router_renormalize", spec.router_renormalize, "model.n_experts");
  visit("router_bias", spec.router_bias, "model.n_experts");
  visit("post_norms", spec.post_norms);
  visit("norm_eps", spec.norm_eps, 0, 1);
  visit("attn_scale", spec.attn_scale, kMinScale, kMaxScale);
  visit("embedding_scale", spec.embedding_scale, kMinScale, kMaxScale);
  visit("residual_scale", spec.residual_scale, kMinScale, kMaxScale);
  visit("logit_scale", spec.logit_scale, kMinScale, kMaxScale);
  visit("attn_softcap", spec.attn_softcap, 0, kMaxScale);
  visit("logit_softcap", spec.logit_softcap, 0, kMaxScale);
}

std::string model_key(const char* field) {
  return fmt::format("model.{}", field);
}

struct Checker {
  const std::string& where;

  void range(const char* field, uint64_t value, uint64_t low, uint64_t high) const {
    if (value < low || value > high)
      throw_error(ErrorCode::kFormat, "{}: model.{} is {}, expected {} to {}", where, field, value, low,
                  high);
  }
  void real(const char* field, float value, float low, float high) const {
    if (!(value >= low && value <= high))  // also NaN
      throw_error(ErrorCode::kFormat, "{}: model.{} is {}, expected {} to {}", where, field, value, low,
                  high);
  }

  // Of for_each_field.
  void operator()(const char* field, uint32_t value, uint64_t low, uint64_t high, const char* = "") const {
    range(field, value, low, high);
  }
  void operator()(const char* field, float value, float low, float high) const {
    real(field, value, low, high);
  }
  void operator()(const char* field, Activation value) const {
    range(field, static_cast<uint64_t>(value), 1, 3);
  }
  void operator()(const char*, bool, const char* = "") const {}
};

// A u64 of the file that must fit 32 bits; its meaning is checked by check_spec.
uint32_t load_count(const Metadata& metadata, const std::string& key, const std::string& where) {
  const uint64_t value = metadata.get<uint64_t>(key);
  if (value > UINT32_MAX)
    throw_error(ErrorCode::kFormat, "{}: {} is {}, expected 32 bits", where, key, value);
  return static_cast<uint32_t>(value);
}

float load_real(const Metadata& metadata, const std::string& key) {
  return static_cast<float>(metadata.get<double>(key));
}

struct Storer {
  Metadata& metadata;

  void operator()(const char* field, uint32_t value, uint64_t, uint64_t, const char* = "") const {
    metadata.set(model_key(field), uint64_t{value});
  }
  void operator()(const char* field, float value, float, float) const {
    metadata.set(model_key(field), double{value});
  }
  void operator()(const char* field, Activation value) const {
    metadata.set(model_key(field), static_cast<uint64_t>(value));
  }
  void operator()(const char* field, bool value, const char* = "") const {
    metadata.set(model_key(field), value);
  }
};

struct Loader {
  const Metadata& metadata;
  const std::string& where;

  bool lacks(std::string_view key) const { return !key.empty() && !metadata.has(key); }
  void operator()(const char* field, uint32_t& value, uint64_t, uint64_t, const char* with = "") const {
    if (!lacks(with)) value = load_count(metadata, model_key(field), where);
  }
  void operator()(const char* field, float& value, float, float) const {
    value = load_real(metadata, model_key(field));
  }
  void operator()(const char* field, Activation& value) const {
    const uint32_t stored = load_count(metadata, model_key(field), where);
    value = stored > UINT8_MAX ? Activation{} : static_cast<Activation>(stored);  // 0 is refused
  }
  void operator()(const char* field, bool& value, const char* with = "") const {
    if (!lacks(with)) value = metadata.get<bool>(model_key(field));
  }
};

std::string rope_key(size_t index, const char* part) {
  return fmt::format("model.rope.{}.{}", index, part);
}

}  // namespace

void check_spec(const ModelSpec& spec, const std::string& where) {
  const Checker check{where};
  for_each_field(spec, check);
  check.range("n_heads * head_dim", spec.q_rows(), 1, q24::kMaxCols);
  if (spec.n_heads % spec.n_kv_heads != 0)
    throw_error(ErrorCode::kFormat, "{}: model.n_kv_heads is {}, expected a divisor of n_heads, {}", where,
                spec.n_kv_heads, spec.n_heads);
  if (spec.head_dim % 2 != 0)
    throw_error(ErrorCode::kFormat, "{}: model.head_dim is {}, expected an even number", where,
                spec.head_dim);
  if (spec.qk_norm && spec.qk_norm_whole)
    throw_error(ErrorCode::kFormat, "{}: model.qk_norm and model.qk_norm_whole, expected one of them", where);
  check.range("n_ropes", spec.ropes.size(), 0, kMaxRopes);
  for (const RopeSpec& rope : spec.ropes) {
    check.range("rope.inv_freq's size", rope.inv_freq.size(), 1, spec.head_dim / 2);
    check.real("rope.scale", rope.scale, 1e-3f, 1e3f);
    for (const float f : rope.inv_freq) check.real("rope.inv_freq", f, 0, 1e3f);
    if (!rope.long_inv_freq.empty())
      check.range("rope.long_inv_freq's size", rope.long_inv_freq.size(), rope.inv_freq.size(),
                  rope.inv_freq.size());
    for (const float f : rope.long_inv_freq) check.real("rope.long_inv_freq", f, 0, 1e3f);
    check.range("rope.original_context", rope.original_context,
                rope.long_inv_freq.empty() && rope.dynamic_factor == 0 ? 0 : 1, kMaxContext);
    check.real("rope.dynamic_factor", rope.dynamic_factor, 0, 1e3f);
    // The formula divides by the rotated dimensions less two.
    if (rope.dynamic_factor != 0) check.range("rope.inv_freq's size", rope.inv_freq.size(), 2, kMaxHeadDim);
  }
  check.range("layers' size", spec.layers.size(), spec.n_layers, spec.n_layers);
  for (const LayerSpec& layer : spec.layers)
    if (layer.rope_idx < -1 || layer.rope_idx >= static_cast<int64_t>(spec.ropes.size()))
      throw_error(ErrorCode::kFormat, "{}: model.layer_ropes names rope {}, expected one of {}", where,
                  layer.rope_idx, spec.ropes.size());
}

std::vector<float> RopeSpec::frequencies(uint32_t n_ctx) const {
  if (!depends_on_context() || n_ctx <= original_context) return inv_freq;
  if (!long_inv_freq.empty()) return long_inv_freq;
  const double n_dims = 2.0 * static_cast<double>(inv_freq.size()), factor = double{dynamic_factor};
  const double growth = factor * n_ctx / original_context - (factor - 1);
  std::vector<float> scaled;
  for (size_t i = 0; i < inv_freq.size(); ++i)
    scaled.push_back(static_cast<float>(double{inv_freq[i]} *
                                        std::pow(growth, -2.0 * static_cast<double>(i) / (n_dims - 2))));
  return scaled;
}

void RopeSpec::fill_tables(std::span<const float> frequencies, uint32_t begin, uint32_t end, float* cos,
                           float* sin) const noexcept {
  for (uint32_t p = begin; p < end; ++p)
    for (const float f : frequencies) {
      const double angle = double{f} * p;
      *cos++ = static_cast<float>(std::cos(angle) * double{scale});
      *sin++ = static_cast<float>(std::sin(angle) * double{scale});
    }
}

void store_spec(const ModelSpec& spec, Metadata& metadata) {
  metadata.set("model.family", spec.family);
  for_each_field(spec, Storer{metadata});
  metadata.set("model.n_ropes", uint64_t{spec.ropes.size()});
  for (size_t i = 0; i < spec.ropes.size(); ++i) {
    metadata.set(rope_key(i, "inv_freq"), spec.ropes[i].inv_freq);
    metadata.set(rope_key(i, "scale"), double{spec.ropes[i].scale});
    metadata.set(rope_key(i, "original_context"), uint64_t{spec.ropes[i].original_context});
    metadata.set(rope_key(i, "long_inv_freq"), spec.ropes[i].long_inv_freq);
    metadata.set(rope_key(i, "dynamic_factor"), double{spec.ropes[i].dynamic_factor});
  }
  std::vector<uint32_t> windows, ropes;
  for (const LayerSpec& layer : spec.layers) {
    windows.push_back(layer.window);
    ropes.push_back(static_cast<uint32_t>(layer.rope_idx + 1));
  }
  metadata.set("model.layer_windows", std::move(windows));
  metadata.set("model.layer_ropes", std::move(ropes));  // index + 1; 0 = no rotation
}

ModelSpec load_spec(const Metadata& metadata, const std::string& where) {
  ModelSpec spec;
  spec.family = metadata.get<std::string>("model.family");
  for_each_field(spec, Loader{metadata, where});
  const uint32_t n_ropes = load_count(metadata, "model.n_ropes", where);
  Checker{where}.range("n_ropes", n_ropes, 0, kMaxRopes);
  for (uint32_t i = 0; i < n_ropes; ++i) {
    RopeSpec rope;
    rope.inv_freq = metadata.get<std::vector<float>>(rope_key(i, "inv_freq"));
    rope.scale = load_real(metadata, rope_key(i, "scale"));
    if (metadata.has(rope_key(i, "original_context"))) {
      rope.original_context = load_count(metadata, rope_key(i, "original_context"), where);
      rope.long_inv_freq = metadata.get<std::vector<float>>(rope_key(i, "long_inv_freq"));
      rope.dynamic_factor = load_real(metadata, rope_key(i, "dynamic_factor"));
    }
    spec.ropes.push_back(std::move(rope));
  }
  const auto& windows = metadata.get<std::vector<uint32_t>>("model.layer_windows");
  const auto& ropes = metadata.get<std::vector<uint32_t>>("model.layer_ropes");
  if (windows.size() != ropes.size())
    throw_error(ErrorCode::kFormat, "{}: model.layer_windows has {} entries, model.layer_ropes {}", where,
                windows.size(), ropes.size());
  for (size_t i = 0; i < windows.size(); ++i) {
    Checker{where}.range("layer_ropes", ropes[i], 0, n_ropes);
    spec.layers.push_back({windows[i], static_cast<int32_t>(ropes[i]) - 1});
  }
  check_spec(spec, where);
  return spec;
}

std::string layer_tensor(uint32_t layer, const char* part) {
  return fmt::format("layers.{}.{}", layer, part);
}
int32_t tensor_layer(const std::string& name) {
  constexpr std::string_view kLayers = "layers.";
  int32_t layer = -1;
  if (name.starts_with(kLayers))
    std::from_chars(name.data() + kLayers.size(), name.data() + name.size(), layer);
  return layer;
}

std::string expert_tensor(uint32_t layer, uint32_t expert, const char* part) {
  return fmt::format("layers.{}.experts.{}.{}", layer, expert, part);
}

}  // namespace pith
