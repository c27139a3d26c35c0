// The decoder block in float32 over the windows of a text, one matrix at a time: what calibration runs a checkpoint with.
// Attention is in forward_attention.cpp.
//
// The runtime's decoder runs a finished container; here a layer's matrices come one after another, some of them still
// floats and some already quantized, several streams of activations go through the same layer side by side, and the
// inputs of every matrix are wanted. Both follow the same ModelSpec and know nothing else of an architecture; a test runs
// every family through this one too (tests/test_families.cpp).
// Results do not depend on the number of threads. Not thread safe.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "convert/products.h"
#include "models/spec.h"

namespace pith {

// The matrices of a layer in the order in which they are applied; the last two once for each expert where it has some.
enum class Part : uint8_t { kQkv, kAttnOut, kGateUp, kDown };
struct Step {
  Part part = Part::kQkv;
  uint32_t expert = 0;

  bool is_expert(const ModelSpec& spec) const {
    return spec.n_experts > 0 && (part == Part::kGateUp || part == Part::kDown);
  }
  bool operator==(const Step&) const = default;
};
std::vector<Step> layer_steps(const ModelSpec& spec);
// "layers.7.experts.3.down" -> 7, {kDown, 3}. False for what is no matrix of a layer.
bool find_step(const std::string& name, uint32_t& layer, Step& step);

// What of a layer stays as it is, by its name in the layer: "attn_norm", "router", "experts.3.down_bias".
using LayerVectors = std::map<std::string, std::vector<float>>;

// Activations of n_tokens tokens: whole windows, or the last token of each of some texts that grow.
struct Stream {
  std::vector<float> residual;  // [n_tokens, dim]
  std::vector<float>
      input;  // [n_rows, n_inputs] of the next matrix; a row is a token, of an expert one of `routed`

  // With experts, from attn_out to the last expert:
  struct Routed {
    uint32_t token;
    float share;
  };
  std::vector<std::vector<Routed>> routed;  // [n_experts], tokens ascending
  std::vector<float> normed;                // [n_tokens, dim] that the router and the experts see
  std::vector<float> branch;                // [n_tokens, dim] sum over the experts so far

  // Of texts that grow: where in its text each token stands (below window), and the keys and values of the texts so far,
  // [n_layers][n_tokens, 2, kv rows, window]. Before a text's next token its position is set; at 0 it begins anew.
  std::vector<uint32_t> positions;  // [n_tokens]; empty: whole windows
  std::vector<std::vector<float>> past;
};

class Forward {
 public:
  Forward(const ModelSpec& spec, uint32_t window, Products products);

  uint32_t n_inputs(Part part) const;
  uint32_t n_outputs(Part part) const;
  // Makes room for texts that grow. Throws std::bad_alloc.
  void begin_texts(uint32_t n_texts, Stream& stream) const;
  // True when what the step puts out goes to the residual stream as it is: no norm between, no other experts.
  bool is_added(Step step) const;

  void begin_layer(uint32_t layer, LayerVectors vectors);
  void prepare(Stream& stream) const;  // input of kQkv
  // weights: [n_outputs, n_inputs] as in the container's plan (fused, interleaved). Steps in the order of layer_steps.
  void apply(Step step, Stream& stream, const ProductMatrix& weights) const;
  void apply(Step step, Stream& stream, const std::vector<float>& weights) const {
    apply(step, stream, {weights.data(), n_outputs(step.part), n_inputs(step.part), nullptr});
  }

  // residual: [n_tokens, dim]. norm: the final one. head: [vocab, dim]. logits: [n_tokens, vocab].
  void normalize(const float* residual, uint32_t n_tokens, const std::vector<float>& norm, float* out) const;
  void logits(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
              const ProductMatrix& head, std::vector<float>& logits) const;
  void logits(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
              const std::vector<float>& head, std::vector<float>& out) const {
    logits(residual, n_tokens, norm, {head.data(), spec_.vocab_size, spec_.dim, nullptr}, out);
  }

 private:
  const std::vector<float>& vector(const std::string& name) const;  // empty: the layer has none
  const std::vector<float>& bias_of(Step step) const;
  void finish_heads(float* qkv, uint32_t position) const;
  void attend(float* qkv, uint32_t n_tokens, float* out) const;
  void attend_past(float* qkv, uint32_t first, uint32_t n_tokens, Stream& stream, float* out) const;
  void attend_one(const float* q, uint32_t head, uint32_t position, const float* k_columns, const float* v,
                  size_t v_stride, std::vector<float>& scores, float* out) const;
  void normalize_heads(float* qkv) const;  // of one token: q and k, [q + 2 kv rows]
  void gate(const float* gate_up, uint32_t n_rows, float* out) const;
  void add_to_residual(float* residual, uint32_t n_tokens, float* branch,
                       const std::vector<float>& post_norm) const;
  void enter_feed_forward(Stream& stream) const;
  void route(Stream& stream) const;
  void gather(Stream& stream, uint32_t expert) const;
  void leave_feed_forward(Stream& stream) const;

  const ModelSpec& spec_;
  Products products_;
  uint32_t window_, n_threads_, layer_ = 0;
  LayerVectors vectors_;
  std::vector<std::vector<float>> cos_, sin_;  // per rope: [window, rotary_dim / 2]
};

}  // namespace pith
