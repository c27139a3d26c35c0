// See weights.h.
#include "runtime/gpu/weights.h"

#include <algorithm>

#include "runtime/gpu/choice.h"

namespace pith::gpu {

namespace {

constexpr uint64_t kReadableAfter = 1024;  // after a Q24 tensor, see matvec_q24.cuh

}  // namespace

Weights::Weights(const Model& model, const LayerRange& layer_range, DeviceArena& arena)
    : range(layer_range),
      tied_(model.spec().tied_embeddings),
      pre_norms_(model.spec().pre_norms),
      n_active_(model.spec().n_active_experts) {
  for (const Tensor& tensor : model.container().tensors())
    if (needs(tensor.name))
      places_[tensor.name] = arena.take<uint8_t>(checked_add(tensor.size_bytes, kReadableAfter));
  if (range.begin == 0 || tied_) embed = matrix(model, "embed");
  norm = vector("norm", true);
  head = tied_ ? embed : matrix(model, "head");
  for (uint32_t i = range.begin; i < range.end; ++i) layers.push_back(layer_weights(model, i, arena));
}

bool Weights::needs(const std::string& name) const {
  if (name == "embed") return range.begin == 0 || tied_;
  const int32_t layer = tensor_layer(name);
  return layer < 0 || layer >= static_cast<int32_t>(range.begin);
}

const float* Weights::vector(const std::string& name, bool present) const {
  return present ? reinterpret_cast<const float*>(places_.at(name)) : nullptr;
}

Linear Weights::matrix(const Model& model, const std::string& name) {
  const Tensor& tensor = model.container().get(name);
  Linear l;
  l.n_rows = tensor.n_rows;
  l.n_cols = tensor.n_cols;
  l.is_q24 = tensor.kind == TensorKind::kQ24;
  if (l.is_q24) {
    const q24::Layout layout = q24::make_layout(tensor.q24);
    l.q24 = cuda::q24_weights(layout, places_.at(name));
    max_padded_cols = std::max(max_padded_cols, layout.padded_cols);
    if (tensor.q24.n_slots != 0) max_outlier_cols = std::max(max_outlier_cols, layout.padded_cols);
  } else {
    l.plain = {places_.at(name), tensor.n_rows, tensor.n_cols, static_cast<cuda::PlainKind>(tensor.kind)};
    if (cuda::halves_weights(l.plain))
      max_half_cols = std::max(max_half_cols, l.n_cols);
    else
      has_f32 = true;
  }
  return l;
}

ExpertLinear Weights::experts(const Model& model, uint32_t layer, const char* part, const char* bias,
                              DeviceArena& arena) {
  const ModelSpec& spec = model.spec();
  ExpertLinear e;
  for (uint32_t i = 0; i < spec.n_experts; ++i) {
    const std::string name = expert_tensor(layer, i, part);
    const Linear m = matrix(model, name);
    e.table.push_back({m.q24, m.plain, vector(expert_tensor(layer, i, bias), spec.mlp_bias)});
    if (i == 0) {
      e.place = arena.take<cuda::ExpertMatrix>(spec.n_experts);
      e.stack = {e.place, e.table[0], spec.n_experts, m.is_q24};
    } else if (m.is_q24 != e.stack.is_q24 || m.plain.kind != e.stack.like.plain.kind) {
      throw_error(ErrorCode::kUnsupported,
                  "{}: {} is stored in another kind than expert 0's, which cuda needs equal",
                  model.container().path(), name);
    }
  }
  return e;
}

LayerWeights Weights::layer_weights(const Model& model, uint32_t i, DeviceArena& arena) {
  const ModelSpec& spec = model.spec();
  const bool has_experts = spec.n_experts != 0, has_qk_norm = spec.qk_norm || spec.qk_norm_whole;
  const auto v = [&](const char* part, bool present) { return vector(layer_tensor(i, part), present); };
  const auto m = [&](const char* part) { return matrix(model, layer_tensor(i, part)); };
  LayerWeights w{};
  w.attn_norm = v("attn_norm", spec.pre_norms);
  w.q_norm = v("q_norm", has_qk_norm);
  w.k_norm = v("k_norm", has_qk_norm);
  w.attn_post_norm = v("attn_post_norm", spec.post_norms);
  w.ffn_norm = v("ffn_norm", spec.pre_norms);
  w.ffn_post_norm = v("ffn_post_norm", spec.post_norms);
  w.qkv_bias = v("attn_qkv_bias", spec.qkv_bias);
  w.attn_out_bias = v("attn_out_bias", spec.attn_out_bias);
  w.sinks = v("sinks", spec.attn_sinks);
  w.qkv = m("attn_qkv");
  w.attn_out = m("attn_out");
  if (has_experts) {
    w.router = m("router");
    w.router_bias = v("router_bias", spec.router_bias);
    w.expert_gate_up = experts(model, i, "gate_up", "gate_up_bias", arena);
    w.expert_down = experts(model, i, "down", "down_bias", arena);
  } else {
    w.gate_up = m("ffn_gate_up");
    w.down = m("ffn_down");
    w.gate_up_bias = v("ffn_gate_up_bias", spec.mlp_bias);
    w.down_bias = v("ffn_down_bias", spec.mlp_bias);
  }
  return w;
}

void Weights::upload(const Model& model) const {
  cuda::Uploader uploader;
  const auto table = [&](const ExpertLinear& e) {
    if (!e.table.empty())
      uploader.upload(reinterpret_cast<uint8_t*>(e.place), reinterpret_cast<const uint8_t*>(e.table.data()),
                      e.table.size() * sizeof e.table[0]);
  };
  for (const Tensor& tensor : model.container().tensors())
    if (const auto place = places_.find(tensor.name); place != places_.end())
      uploader.upload(place->second, tensor.data, tensor.size_bytes);
  for (const LayerWeights& w : layers) {
    table(w.expert_gate_up);
    table(w.expert_down);
  }
  uploader.finish();
}

void Weights::sort_outliers(const cuda::Launch& how) const {
  const auto sort = [&](const cuda::Q24Weights& w) {
    if (w.n_slots != 0) cuda::launch_sort_outliers(w, how);
  };
  sort(head.q24);
  for (const LayerWeights& w : layers) {
    for (const Linear* m : {&w.qkv, &w.attn_out, &w.gate_up, &w.down, &w.router}) sort(m->q24);
    for (const ExpertLinear* m : {&w.expert_gate_up, &w.expert_down})
      for (const cuda::ExpertMatrix& e : m->table) sort(e.q24);
  }
}

void Weights::choose_shapes(cuda::Pipeline pipeline, bool synchronous, const cuda::DeviceInfo& device) {
  const auto choose = [&](bool is_q24, const cuda::Q24Weights& q24, const cuda::PlainWeights& plain,
                          bool shared_input, uint32_t n_multiprocessors) {
    cuda::MatvecShape shape{n_multiprocessors, 0, 0};
    if (is_q24)
      shape =
          cuda::choose_matvec_shape(pipeline, q24, synchronous, n_multiprocessors, device.max_shared_bytes);
    require_shared(is_q24 ? cuda::matvec_q24_shared_bytes(pipeline, q24.padded_cols, shape)
                          : cuda::matvec_plain_shared_bytes(plain.n_cols, shared_input),
                   fmt::format("a product over {} columns", is_q24 ? q24.n_cols : plain.n_cols), device);
    return shape;
  };
  const uint32_t n = static_cast<uint32_t>(device.n_multiprocessors);
  const auto linear = [&](Linear& m, bool has_norm) {
    m.shape = choose(m.is_q24, m.q24, m.plain, cuda::shares_input(1, m.n_cols, has_norm), n);
  };
  // The chosen experts share the device.
  const auto stack = [&](ExpertLinear& e) {
    const cuda::ExpertMatrix& like = e.stack.like;
    e.shape =
        choose(e.stack.is_q24, like.q24, like.plain, true, std::max((n + n_active_ - 1) / n_active_, 1u));
  };
  linear(head, true);
  for (LayerWeights& w : layers) {
    for (Linear* m : {&w.qkv, &w.gate_up, &w.router}) linear(*m, pre_norms_);
    for (Linear* m : {&w.attn_out, &w.down}) linear(*m, false);
    if (w.expert_down.stack.n_experts == 0) continue;
    stack(w.expert_gate_up);
    stack(w.expert_down);
  }
}

}  // namespace pith::gpu
