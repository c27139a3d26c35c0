// What a model is: one pre-norm decoder block with switches covers every family pith knows.
//
// A family file (models/<family>.cpp) turns a Hugging Face config.json into a ModelSpec and says where each
// tensor comes from. The converter reads the checkpoint by it and stores the spec as metadata; the runtime
// reads the spec back and never sees a family name. So adding an architecture is one file here and a line in
// models/registry.cpp, plus an op in the decoder when a switch is new.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "format/metadata.h"

namespace pith {

constexpr uint32_t kMaxLayers = 1024;

enum class Activation : uint8_t { kSilu = 1, kGeluTanh = 2 };

// Rotary embedding, baked at conversion: rotate pairs (i, i + n/2) of the first n = 2 * inv_freq.size()
// dimensions of a head by the angle position * inv_freq[i]; cos and sin are multiplied by `scale` (YaRN's
// attention factor).
struct RopeSpec {
  std::vector<float> inv_freq;  // [rotary_dim / 2], radians per position
  float scale = 1;
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
  bool qk_norm = false;  // RMSNorm over each head of q and k, before RoPE
  bool post_norms =
      false;             // a second RMSNorm after attention and after the feed-forward, before the residual
  float attn_scale = 0;  // factor on q.k, usually 1/sqrt(head_dim)
  float embedding_scale = 1, residual_scale = 1, logit_scale = 1;
  float attn_softcap = 0, logit_softcap = 0;  // cap * tanh(x / cap); 0 = none
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

// ---- Tensors of a container, in the order in which they lie in the file
// ------------------------------------------
//
//   embed [vocab, dim]                       norm [dim]                        head [vocab, dim] unless tied
//   layers.N.attn_norm [dim]                 layers.N.attn_qkv [q + 2*kv rows, dim]    layers.N.attn_qkv_bias
//   layers.N.q_norm, k_norm [head_dim]       layers.N.attn_out [dim, q rows]           layers.N.attn_out_bias
//   layers.N.attn_post_norm [dim]            layers.N.ffn_norm [dim]
//   layers.N.ffn_gate_up [2*ffn_padded, dim] (+ _bias)      layers.N.ffn_down [dim, ffn_dim] (+ _bias)
//   layers.N.ffn_post_norm [dim]
//
// Matrices that share an input are one tensor: one matvec, one permutation, one Hessian.
enum class TensorRole : uint8_t { kNorm, kBias, kEmbedding, kHead, kLinear };

enum class RowOrder : uint8_t {
  kConcat,        // rows of the sources one after another
  kInterleave16,  // two sources (gate, up) of ffn_dim rows, each zero-padded to a multiple of 16: blocks of
                  // 16 rows of gate and 16 of up alternate, so that a 32-row panel holds both factors of
                  // act(gate) * up
};

// A contiguous range of rows of one checkpoint tensor (all of it when n_rows == 0).
struct TensorSource {
  std::string name;
  uint32_t row_begin = 0, n_rows = 0;
};

struct TensorPlan {
  std::string name;  // in the container
  TensorRole role;
  uint32_t n_rows, n_cols;  // n_rows == 1 for norms and biases
  std::vector<TensorSource> sources;
  RowOrder order = RowOrder::kConcat;
  float add = 0;  // added to every element (Gemma stores norms as w - 1)
};

std::string layer_tensor(uint32_t layer, const char* part);  // "layers.7.attn_qkv"
}  // namespace pith
