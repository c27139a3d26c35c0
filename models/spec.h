// What a model is: one decoder block with switches covers every family pith knows.
//
// A family file (models/<family>.cpp) turns a Hugging Face config.json into a ModelSpec and says where each
// tensor comes from. The converter reads the checkpoint by it and stores the spec as metadata; the runtime
// reads the spec back and never sees a family name. So adding an architecture is one file here and a line in
// models/registry.cpp, plus an op in the decoder when a switch is new.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "format/metadata.h"

namespace pith {

constexpr uint32_t kMaxLayers = 1024, kMaxHeadDim = 1024;

// Of gate and up: act(gate) * up. kClampedSwiglu (gpt-oss): gate is cut at 7 from above, up to -7 .. 7, and
// gate * sigmoid(1.702 gate) * (up + 1).
enum class Activation : uint8_t { kSilu = 1, kGeluTanh = 2, kClampedSwiglu = 3 };

// Rotary embedding, baked at conversion: rotate pairs (i, i + n/2) of the first n = 2 * inv_freq.size()
// dimensions of a head by the angle position * inv_freq[i]; cos and sin are multiplied by `scale` (YaRN's
// attention factor).
//
// Two kinds turn at another speed where a timeline may outgrow the context that the model was trained for: LongRoPE has a second
// table, dynamic NTK a formula. The reference decides by the tokens so far, and keys that it has cached keep
// the old angles; here the session's context decides, once, so that all keys agree.
struct RopeSpec {
  std::vector<float> inv_freq = {};  // [rotary_dim / 2], radians per position
  float scale = 1;
  uint32_t original_context = 0;          // tokens that inv_freq serves; 0 = any number
  std::vector<float> long_inv_freq = {};  // LongRoPE: [rotary_dim / 2] beyond original_context
  float dynamic_factor = 0;  // dynamic NTK: the base grows with the context beyond original_context

  std::vector<float> frequencies(uint32_t n_ctx) const;  // of a session with room for n_ctx tokens
  // cos and sin of positions begin .. end - 1 at such frequencies, times scale; angles in double. Both
  // [end - begin, frequencies.size()]. Allocates nothing.
  void fill_tables(std::span<const float> frequencies, uint32_t begin, uint32_t end, float* cos,
                   float* sin) const noexcept;
  bool depends_on_context() const {
    return original_context != 0 && (!long_inv_freq.empty() || dynamic_factor != 0);
  }
};

struct LayerSpec {
  uint32_t window = 0;   // sliding window in tokens (a query sees itself and window-1 before it); 0 = all
  int32_t rope_idx = 0;  // into ModelSpec::ropes; -1 = no rotation in this layer
};

// Shapes below use the field's letters: dim = hidden_size, ffn_dim = intermediate_size.
struct ModelSpec {
  std::string family;  // informative ("llama", "qwen3"); nothing branches on it after conversion
  uint32_t vocab_size = 0, dim = 0, ffn_dim = 0, n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  uint32_t max_context = 0;  // tokens the model was trained (or RoPE-scaled) for
  float norm_eps = 0;
  Activation activation = Activation::kSilu;
  bool tied_embeddings = false;  // the head is the embedding, stored once
  bool qkv_bias = false, attn_out_bias = false, mlp_bias = false;
  bool qk_norm = false;        // RMSNorm over each head of q and k, before RoPE
  bool qk_norm_whole = false;  // instead: one over all heads of q, one over all of k
  bool pre_norms = true;       // RMSNorm before attention and before the feed-forward
  bool post_norms = false;     // RMSNorm after attention and after the feed-forward, before the residual
  bool attn_sinks = false;     // a logit per head that takes part in the softmax and carries no value
  float attn_scale = 0;        // factor on q.k, usually 1/sqrt(head_dim)
  float embedding_scale = 1, residual_scale = 1, logit_scale = 1;
  float attn_softcap = 0, logit_softcap = 0;  // cap * tanh(x / cap); 0 = none
  // Mixture of experts, when n_experts > 0: each token's feed-forward is the sum over its n_active_experts best experts by router
  // logit, weighted by the softmax over all experts, renormalized over the chosen where router_renormalize.
  // ffn_dim is one expert's.
  uint32_t n_experts = 0, n_active_experts = 0;
  bool router_renormalize = true, router_bias = false;
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;  // [n_layers]

  uint32_t q_rows() const { return n_heads * head_dim; }
  uint32_t kv_rows() const { return n_kv_heads * head_dim; }
  // Rows of the fused gate/up matrix: see RowOrder::kInterleave16.
  uint32_t ffn_padded() const { return (ffn_dim + 15) / 16 * 16; }
};

// Caps that a spec must keep, whatever a file says; check_spec throws Error(kFormat) naming the field.
void check_spec(const ModelSpec& spec, const std::string& where);
void store_spec(const ModelSpec& spec, Metadata& metadata);               // keys "model.*"
ModelSpec load_spec(const Metadata& metadata, const std::string& where);  // checked

// ---- Tensors of a container, in the order in which they lie in the file ----------------------------------
//
// They follow from the spec alone; a family only names where each comes from (family.h).
//
//   embed [vocab, dim]                       norm [dim]                        head [vocab, dim] unless tied
//   layers.N.attn_norm [dim]                 layers.N.attn_qkv [q + 2*kv rows, dim]    layers.N.attn_qkv_bias
//   layers.N.q_norm, k_norm [head_dim]       layers.N.attn_out [dim, q rows]           layers.N.attn_out_bias
//   layers.N.attn_post_norm [dim]            layers.N.ffn_norm [dim]
//   layers.N.ffn_gate_up [2*ffn_padded, dim] (+ _bias)      layers.N.ffn_down [dim, ffn_dim] (+ _bias)
//   layers.N.ffn_post_norm [dim]
// q_norm and k_norm are [q rows] and [kv rows] with qk_norm_whole; layers.N.sinks [n_heads] stands before attn_out. With experts,
// in place of ffn_gate_up and ffn_down:
//   layers.N.router [n_experts, dim] (+ _bias)
//   layers.N.experts.E.gate_up [2*ffn_padded, dim] (+ _bias)   layers.N.experts.E.down [dim, ffn_dim] (+ _bias)
//
// Matrices that share an input are one tensor: one matvec, one permutation, one Hessian.
// kBias: also sinks. kRouter stays at 16 bits: it is small, and a wrong choice of expert is no small error.
enum class TensorRole : uint8_t { kNorm, kBias, kEmbedding, kHead, kLinear, kRouter };

enum class RowOrder : uint8_t {
  kConcat,        // rows of the sources one after another
  kInterleave16,  // two sources (gate, up) of ffn_dim rows, each zero-padded to a multiple of 16: blocks of
                  // 16 rows of gate and 16 of up alternate, so that a 32-row panel holds both factors of
                  // act(gate) * up
};

// Rows of one checkpoint tensor: n_rows of them from row_begin, every row_step-th. For a vector, rows are
// elements. The sources of a plan that name one tensor take all of its rows.
struct TensorSource {
  std::string name;
  uint32_t row_begin = 0, n_rows = 0, row_step = 1;
  // One matrix of a stack: a tensor [n, cols, rows], or NAME_blocks and NAME_scales (MXFP4), [n, rows, cols];
  // of a stack of vectors, [n, rows], one vector. -1: no stack.
  int32_t stack_idx = -1;
};

struct TensorPlan {
  std::string name;  // in the container
  TensorRole role;
  uint32_t n_rows, n_cols;  // n_rows == 1 for norms and biases
  std::vector<TensorSource> sources;
  RowOrder order = RowOrder::kConcat;
  float add = 0;  // added to every element (Gemma stores norms as w - 1)
};

// The tensor that makes logits: the embedding where it is tied.
inline const char* head_tensor(const ModelSpec& spec) {
  return spec.tied_embeddings ? "embed" : "head";
}
int32_t tensor_layer(const std::string& name);               // 7 of "layers.7.attn_qkv", -1: none
std::string layer_tensor(uint32_t layer, const char* part);  // "layers.7.attn_qkv"
std::string expert_tensor(uint32_t layer, uint32_t expert, const char* part);  // "layers.7.experts.3.down"
}  // namespace pith
