// What a layer sees: calibration text run through the model, layer by layer, in float32.
//
// Two streams of activations go side by side: `original`, through the weights of the checkpoint, and `quantized`, through the
// layers as they will be in the file. Each matrix is quantized for the inputs that it will really get (statistics of the
// quantized stream), towards the outputs that the original gave. One layer's weights and statistics are in memory at a time.
// Deterministic, whatever the number of threads. Not thread safe.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/spec.h"
#include "runtime/tokenizer.h"

namespace pith {

// Token windows of equal length, each starting with BOS where the model has one.
// Throws Error(kInvalidArgument): not UTF-8, empty, or fewer than kMinCalibrationTokens tokens.
constexpr uint32_t kMinCalibrationTokens = 512;
struct CalibrationTokens {
  uint32_t window = 0;
  std::vector<int32_t> ids;  // [n_windows, window]
  uint32_t n_held_out = 0;   // windows at the end that take no part in the statistics
};
CalibrationTokens calibration_tokens(const std::vector<std::string>& texts, const Tokenizer& tokenizer,
                                     uint32_t window, uint32_t max_tokens);

// Second moments of a matrix's input over tokens, [n, n] row-major.
struct InputStatistics {
  uint32_t n = 0;
  std::vector<double> h;      // E[x^ x^'] of the quantized stream
  std::vector<double> cross;  // E[x x^'] of the original with the quantized one
  // E[g x^'], [dim, n]: g = what the quantized residual stream lacks, where the output is added to it; else empty
  std::vector<double> residual_cross;
};

// The vectors of one layer (empty when the model has none), as floats.
struct LayerVectors {
  std::vector<float> attn_norm, qkv_bias, q_norm, k_norm, attn_out_bias, attn_post_norm;
  std::vector<float> ffn_norm, gate_up_bias, down_bias, ffn_post_norm;
};

class Calibration {
 public:
  Calibration(const ModelSpec& spec, CalibrationTokens tokens, uint32_t n_threads);

  // Row `id` of the embedding, for the original and the quantized stream: called once for each id that occurs.
  template <typename RowReader>  // void(uint32_t id, float* original, float* quantized)
  void embed(RowReader&& read_row);
  std::vector<int32_t> distinct_ids() const;

  // A layer: begin_layer, then for each of its matrices in order input_statistics and apply.
  // weights: [rows, cols] as in the container's plan (fused, interleaved), of the original and of what is in the file.
  enum class Part : uint8_t { kQkv, kAttnOut, kGateUp, kDown };
  void begin_layer(uint32_t layer, LayerVectors vectors);
  InputStatistics input_statistics(Part part) const;
  void apply(Part part, const std::vector<float>& original, const std::vector<float>& quantized);

  // How the two models differ on the windows that took no part in the statistics, after the last layer.
  struct HeldOut {
    uint64_t n_tokens = 0;                       // predicted
    double ppl_original = 0, ppl_quantized = 0;  // both with this text, in float32
    double kl = 0;                               // mean KL(original || quantized), nats
  };
  // norm: the final one. head: [vocab, dim] of either stream.
  HeldOut held_out(const std::vector<float>& norm, const std::vector<float>& head_original,
                   const std::vector<float>& head_quantized) const;

  // Mean squared difference of the streams over the original's mean square: how far the file's model has drifted.
  double drift() const;

 private:
  struct Stream {
    std::vector<float> residual;  // [n_tokens, dim]
    std::vector<float> input;     // [n_tokens, n] of the next matrix
  };
  uint32_t n_inputs(Part part) const;
  void apply_to(Stream& stream, Part part, const std::vector<float>& w);
  void attend(const std::vector<float>& qkv, std::vector<float>& out) const;
  void gate(const std::vector<float>& gate_up, std::vector<float>& out) const;
  void normalize(Stream& stream, const std::vector<float>& norm) const;
  std::vector<float> times(const Stream& stream, uint32_t n, const std::vector<float>& w, uint32_t n_rows,
                           const std::vector<float>& bias) const;
  void add_to_residual(Stream& stream, std::vector<float> branch, const std::vector<float>& post_norm) const;
  const ModelSpec& spec_;
  CalibrationTokens tokens_;
  uint32_t n_tokens_, n_counted_, n_threads_, layer_ = 0;  // counted: of the statistics
  LayerVectors vectors_;
  Stream original_, quantized_;
  std::vector<std::vector<float>> cos_, sin_;  // per rope: [window, rotary_dim / 2]
};

template <typename RowReader>
void Calibration::embed(RowReader&& read_row) {
  std::vector<uint32_t> place(spec_.vocab_size);
  const std::vector<int32_t> ids = distinct_ids();
  const size_t dim = spec_.dim;
  std::vector<float> original(ids.size() * dim), quantized(ids.size() * dim);
  for (size_t i = 0; i < ids.size(); ++i) {
    place[static_cast<size_t>(ids[i])] = static_cast<uint32_t>(i);
    read_row(static_cast<uint32_t>(ids[i]), original.data() + i * dim, quantized.data() + i * dim);
  }
  for (uint32_t t = 0; t < n_tokens_; ++t) {
    const size_t from = place[static_cast<size_t>(tokens_.ids[t])] * dim;
    for (size_t c = 0; c < dim; ++c) {
      original_.residual[t * dim + c] = original[from + c] * spec_.embedding_scale;
      quantized_.residual[t * dim + c] = quantized[from + c] * spec_.embedding_scale;
    }
  }
}

}  // namespace pith
