// The decoder block in float32 over the windows of a text, one matrix at a time: what calibration runs a checkpoint with.
//
// The runtime's decoder runs a finished container; here a layer's matrices come one after another, some of them still
// floats and some already quantized, several streams of activations go through the same layer side by side, and the
// inputs of every matrix are wanted. Both follow the same ModelSpec, and a test holds one to the other.
// Results do not depend on the number of threads. Not thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "models/spec.h"

namespace pith {

// The matrices of a layer in the order in which they are applied.
enum class Part : uint8_t { kQkv, kAttnOut, kGateUp, kDown };
constexpr Part kParts[] = {Part::kQkv, Part::kAttnOut, Part::kGateUp, Part::kDown};

// "layers.7.attn_qkv" -> 7 and which of the four. False for other tensors.
bool find_layer_part(const std::string& name, uint32_t& layer, Part& part);

// "" when this forward pass knows every tensor of the plan, else what it does not know: such a model is converted without
// calibration. A family whose block differs in more than its tensors (ModelSpec has a switch that this class does not
// read) must be named there too.
std::string why_not_calibrated(const ModelSpec& spec, const std::vector<TensorPlan>& plan);

// The vectors of one layer (empty when the model has none), as floats.
struct LayerVectors {
  std::vector<float> attn_norm, qkv_bias, q_norm, k_norm, attn_out_bias, attn_post_norm;
  std::vector<float> ffn_norm, gate_up_bias, down_bias, ffn_post_norm;
};

// Activations of n_tokens tokens, whole windows.
struct Stream {
  std::vector<float> residual;  // [n_tokens, dim]
  std::vector<float> input;     // [n_tokens, n_inputs] of the next matrix
};

class Forward {
 public:
  Forward(const ModelSpec& spec, uint32_t window, uint32_t n_threads);

  uint32_t n_inputs(Part part) const;
  uint32_t n_outputs(Part part) const;
  // True when what the part puts out goes to the residual stream as it is: no norm between.
  bool is_added(Part part) const;

  void begin_layer(uint32_t layer, LayerVectors vectors);
  void prepare(Stream& stream) const;  // input of kQkv
  // weights: [n_outputs, n_inputs] as in the container's plan (fused, interleaved).
  void apply(Part part, Stream& stream, const std::vector<float>& weights) const;

  // residual: [n_tokens, dim]. norm: the final one. head: [vocab, dim]. logits: [n_tokens, vocab].
  void normalize(const float* residual, uint32_t n_tokens, const std::vector<float>& norm, float* out) const;
  void logits(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
              const std::vector<float>& head, std::vector<float>& logits) const;

 private:
  void attend(std::vector<float>& qkv, uint32_t n_tokens, float* out) const;
  void gate(const std::vector<float>& gate_up, uint32_t n_tokens, float* out) const;
  void add_to_residual(float* residual, uint32_t n_tokens, std::vector<float>& branch,
                       const std::vector<float>& post_norm) const;

  const ModelSpec& spec_;
  uint32_t window_, n_threads_, layer_ = 0;
  LayerVectors vectors_;
  std::vector<std::vector<float>> cos_, sin_;  // per rope: [window, rotary_dim / 2]
};

// Mean KL(p || q) in nats over rows of logits, and the mean NLL of `next` under each.
struct Divergence {
  double kl = 0, nll_p = 0, nll_q = 0;  // sums
  uint64_t n_tokens = 0;
};
// log_p: [n_tokens, vocab], log_probabilities of logits. q: logits, likewise. next: [n_tokens - 1], of all rows but the
// last, which is not counted.
void log_probabilities(std::vector<float>& logits, uint32_t vocab, uint32_t n_threads);  // in place
void add_divergence(const std::vector<float>& log_p, const std::vector<float>& q, uint32_t vocab,
                    const int32_t* next, uint32_t n_threads, Divergence& sums);

}  // namespace pith
