// The tensors of a container, and where a family's checkpoint has them.
#include "models/family.h"
#include "models/weight_count.h"

namespace pith {

namespace {

class Planner {
 public:
  Planner(const ModelSpec& spec, const CheckpointNames& names) : spec_(spec), names_(names) {}

  std::vector<TensorPlan> run() {
    const std::string prefix = names_.prefix;
    matrix("embed", spec_.vocab_size, spec_.dim, prefix + "embed_tokens.weight");
    norm("norm", spec_.dim, prefix + "norm.weight");
    if (!spec_.tied_embeddings) matrix("head", spec_.vocab_size, spec_.dim, names_.head);
    for (layer_ = 0; layer_ < spec_.n_layers; ++layer_) {
      source_ = fmt::format("{}layers.{}.", prefix, layer_);
      attention();
      if (spec_.n_experts == 0)
        feed_forward();
      else
        experts();
      if (spec_.post_norms)
        norm(here("ffn_post_norm"), spec_.dim, source_ + names_.ffn_post_norm + ".weight");
    }
    return std::move(plan_);
  }

 private:
  std::string here(const char* part) const { return layer_tensor(layer_, part); }

  TensorPlan& add(std::string name, uint32_t n_rows, uint32_t n_cols, std::vector<TensorSource> sources,
                  RowOrder order = RowOrder::kConcat) {
    const TensorRole role = tensor_role(name);
    plan_.push_back({std::move(name), role, n_rows, n_cols, std::move(sources), order, 0});
    return plan_.back();
  }
  static TensorSource whole(std::string name, uint32_t n_rows) { return {std::move(name), 0, n_rows, 1, -1}; }
  void norm(std::string name, uint32_t n, std::string source) {
    add(std::move(name), 1, n, {whole(std::move(source), n)}).add = names_.norm_add;
  }
  void bias(std::string name, uint32_t n, std::string source) {
    add(std::move(name), 1, n, {whole(std::move(source), n)});
  }
  void matrix(std::string name, uint32_t n_rows, uint32_t n_cols, std::string source) {
    add(std::move(name), n_rows, n_cols, {whole(std::move(source), n_rows)});
  }

  void attention() {
    const std::string attn = source_ + "self_attn.";
    const uint32_t n_qkv = spec_.q_rows() + 2 * spec_.kv_rows();
    const auto qkv = [&](const char* suffix) -> std::vector<TensorSource> {
      if (names_.fused_qkv) return {whole(attn + "qkv_proj" + suffix, n_qkv)};
      return {whole(attn + "q_proj" + suffix, spec_.q_rows()),
              whole(attn + "k_proj" + suffix, spec_.kv_rows()),
              whole(attn + "v_proj" + suffix, spec_.kv_rows())};
    };
    if (spec_.pre_norms) norm(here("attn_norm"), spec_.dim, source_ + names_.attn_norm + ".weight");
    add(here("attn_qkv"), n_qkv, spec_.dim, qkv(".weight"));
    if (spec_.qkv_bias) add(here("attn_qkv_bias"), 1, n_qkv, qkv(".bias"));
    if (spec_.qk_norm || spec_.qk_norm_whole) {
      norm(here("q_norm"), spec_.qk_norm ? spec_.head_dim : spec_.q_rows(), attn + "q_norm.weight");
      norm(here("k_norm"), spec_.qk_norm ? spec_.head_dim : spec_.kv_rows(), attn + "k_norm.weight");
    }
    if (spec_.attn_sinks) bias(here("sinks"), spec_.n_heads, attn + "sinks");
    matrix(here("attn_out"), spec_.dim, spec_.q_rows(), attn + "o_proj.weight");
    if (spec_.attn_out_bias) bias(here("attn_out_bias"), spec_.dim, attn + "o_proj.bias");
    if (spec_.post_norms)
      norm(here("attn_post_norm"), spec_.dim, source_ + names_.attn_post_norm + ".weight");
    if (spec_.pre_norms) norm(here("ffn_norm"), spec_.dim, source_ + names_.ffn_norm + ".weight");
  }

  // gate and up, interleaved.
  void gate_up(std::string name, uint32_t n_cols, std::vector<TensorSource> sources) {
    const uint32_t n = 2 * spec_.ffn_padded();
    const bool is_matrix = tensor_role(name) == TensorRole::kLinear;
    add(std::move(name), is_matrix ? n : 1, is_matrix ? n_cols : n, std::move(sources),
        RowOrder::kInterleave16);
  }

  void feed_forward() {
    const std::string mlp = source_ + "mlp.";
    const auto sources = [&](const char* suffix) -> std::vector<TensorSource> {
      if (!names_.fused_gate_up)
        return {whole(mlp + "gate_proj" + suffix, spec_.ffn_dim),
                whole(mlp + "up_proj" + suffix, spec_.ffn_dim)};
      const std::string name = mlp + "gate_up_proj" + suffix;
      return {{name, 0, spec_.ffn_dim, 1, -1}, {name, spec_.ffn_dim, spec_.ffn_dim, 1, -1}};
    };
    gate_up(here("ffn_gate_up"), spec_.dim, sources(".weight"));
    if (spec_.mlp_bias) gate_up(here("ffn_gate_up_bias"), 1, sources(".bias"));
    matrix(here("ffn_down"), spec_.dim, spec_.ffn_dim, mlp + "down_proj.weight");
    if (spec_.mlp_bias) bias(here("ffn_down_bias"), spec_.dim, mlp + "down_proj.bias");
  }

  void experts() {
    const std::string router = source_ + names_.router;
    matrix(here("router"), spec_.n_experts, spec_.dim, router + ".weight");
    if (spec_.router_bias) bias(here("router_bias"), spec_.n_experts, router + ".bias");
    for (uint32_t e = 0; e < spec_.n_experts; ++e) {
      const auto expert = [&](const char* part) { return expert_tensor(layer_, e, part); };
      const std::string own = source_ + names_.experts + std::to_string(e) + ".";
      // Stacked: gate and up are the even and the odd rows of one tensor.
      const auto both = [&](const char* suffix, const char* stacked_suffix) -> std::vector<TensorSource> {
        if (!names_.stacked_experts)
          return {whole(own + names_.gate + suffix, spec_.ffn_dim),
                  whole(own + names_.up + suffix, spec_.ffn_dim)};
        const std::string name = source_ + names_.experts + "gate_up_proj" + stacked_suffix;
        const int32_t idx = static_cast<int32_t>(e);
        return {{name, 0, spec_.ffn_dim, 2, idx}, {name, 1, spec_.ffn_dim, 2, idx}};
      };
      const auto down = [&](const char* suffix, const char* stacked_suffix) -> std::vector<TensorSource> {
        if (!names_.stacked_experts) return {whole(own + names_.down + suffix, spec_.dim)};
        return {{source_ + names_.experts + "down_proj" + stacked_suffix, 0, spec_.dim, 1,
                 static_cast<int32_t>(e)}};
      };
      gate_up(expert("gate_up"), spec_.dim, both(".weight", ""));
      if (spec_.mlp_bias) gate_up(expert("gate_up_bias"), 1, both(".bias", "_bias"));
      add(expert("down"), spec_.dim, spec_.ffn_dim, down(".weight", ""));
      if (spec_.mlp_bias) add(expert("down_bias"), 1, spec_.dim, down(".bias", "_bias"));
    }
  }

  const ModelSpec& spec_;
  const CheckpointNames& names_;
  std::vector<TensorPlan> plan_;
  uint32_t layer_ = 0;
  std::string source_;  // "model.layers.7."
};

}  // namespace

std::vector<TensorPlan> plan_tensors(const ModelSpec& spec, const CheckpointNames& names) {
  return Planner(spec, names).run();
}

void check_n_tensors(const ModelSpec& spec, uint64_t n_tensors, const std::string& where,
                     const CheckpointNames& names) {
  const uint64_t n_of_layer = spec.n_experts > 0 && !names.stacked_experts ? 2 * uint64_t{spec.n_experts} : 1;
  const uint64_t n_least = n_of_layer * spec.n_layers;
  if (n_tensors < n_least)
    throw_error(ErrorCode::kFormat,
                "{}: {} tensors, expected at least {} for {} layers and {} experts in each", where, n_tensors,
                n_least, spec.n_layers, spec.n_experts);
}

std::vector<TensorPlan> Family::plan(const ModelSpec& spec) const {
  return plan_tensors(spec, names);
}

}  // namespace pith
