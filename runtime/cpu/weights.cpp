// Looks up every tensor of a spec. Model::open has checked presence, kinds and shapes.
#include "runtime/cpu/weights.h"

#include <algorithm>

#include "format/float16.h"

namespace pith::cpu {

namespace {

class Loader {
 public:
  Loader(const Container& container, Arena& arena) : container_(container), arena_(arena) {}

  const float* vector(const std::string& name, bool present = true) const {
    return present ? reinterpret_cast<const float*>(container_.get(name).data) : nullptr;
  }

  Matrix matrix(const std::string& name) {
    const Tensor& tensor = container_.get(name);
    Matrix m;
    m.kind = tensor.kind;
    m.n_rows = tensor.n_rows;
    m.n_cols = tensor.n_cols;
    m.data = tensor.data;
    if (m.is_q24()) {
      m.view = tensor.q24_view();
      const q24::Layout& l = m.view.layout;
      uint16_t* const perm = arena_.take<uint16_t>(l.padded_cols);
      float* const col_scale = arena_.take<float>(l.n_lines);
      if (perm != nullptr) copy_indices(m.view, perm, col_scale);
      m.perm = perm;
      m.col_scale = col_scale;
    }
    return m;
  }

 private:
  // Kernels gather whole lines of x and then drop what the pads, 0xffff in the file, brought along: they read x[0].
  static void copy_indices(const q24::View& view, uint16_t* perm, float* col_scale) {
    const q24::Layout& l = view.layout;
    for (uint32_t c = 0; c < l.padded_cols; ++c) perm[c] = c < l.shape.n_cols ? view.perm[c] : uint16_t{0};
    for (uint32_t line = 0; line < l.n_lines; ++line) col_scale[line] = f16_to_float(view.col_scale[line]);
  }

  const Container& container_;
  Arena& arena_;
};

}  // namespace

Weights::Weights(const Model& model, uint32_t n_layers, Arena& arena) {
  const ModelSpec& spec = model.spec();
  Loader loader(model.container(), arena);
  const auto add = [&](const std::string& name) {
    Matrix m = loader.matrix(name);
    if (m.is_q24()) {
      max_padded_cols = std::max(max_padded_cols, m.view.layout.padded_cols);
      max_slots = std::max(max_slots, m.view.layout.shape.n_slots);
    } else {
      max_plain_cols = std::max(max_plain_cols, m.n_cols);
    }
    return m;
  };
  norm = loader.vector("norm");
  embed = add("embed");
  head = spec.tied_embeddings ? embed : add("head");
  const bool has_qk_norm = spec.qk_norm || spec.qk_norm_whole;
  for (uint32_t i = 0; i < n_layers; ++i) {
    const auto vector = [&](const char* part, bool present) {
      return loader.vector(layer_tensor(i, part), present);
    };
    const auto matrix = [&](const char* part) { return add(layer_tensor(i, part)); };
    LayerWeights w{};
    w.attn_norm = vector("attn_norm", spec.pre_norms);
    w.qkv = matrix("attn_qkv");
    w.qkv_bias = vector("attn_qkv_bias", spec.qkv_bias);
    w.q_norm = vector("q_norm", has_qk_norm);
    w.k_norm = vector("k_norm", has_qk_norm);
    w.attn_out = matrix("attn_out");
    w.attn_out_bias = vector("attn_out_bias", spec.attn_out_bias);
    w.attn_post_norm = vector("attn_post_norm", spec.post_norms);
    w.ffn_norm = vector("ffn_norm", spec.pre_norms);
    w.sinks = vector("sinks", spec.attn_sinks);
    w.router_bias = vector("router_bias", spec.router_bias);
    if (spec.n_experts == 0) {
      w.gate_up = matrix("ffn_gate_up");
      w.down = matrix("ffn_down");
    } else {
      w.router = matrix("router");
    }
    w.gate_up_bias = vector("ffn_gate_up_bias", spec.mlp_bias && spec.n_experts == 0);
    w.down_bias = vector("ffn_down_bias", spec.mlp_bias && spec.n_experts == 0);
    for (uint32_t e = 0; e < spec.n_experts; ++e)
      w.experts.push_back({loader.vector(expert_tensor(i, e, "gate_up_bias"), spec.mlp_bias),
                           loader.vector(expert_tensor(i, e, "down_bias"), spec.mlp_bias),
                           add(expert_tensor(i, e, "gate_up")), add(expert_tensor(i, e, "down"))});
    w.ffn_post_norm = vector("ffn_post_norm", spec.post_norms);
    layers.push_back(std::move(w));
  }
}

}  // namespace pith::cpu
