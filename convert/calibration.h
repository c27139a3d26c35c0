// What a layer sees: calibration text run through the model, layer by layer (convert/forward.h).
//
// Two streams of activations go side by side: `original`, through the weights of the checkpoint, and `quantized`, through
// the layers as they will be in the file. Each matrix is quantized for the inputs that it will really get (statistics of
// the quantized stream), towards the outputs that the original gave. One matrix and its statistics are in memory at a time:
// 4 bytes * n_cols^2 and about 5 bytes a weight; and the streams, 4 bytes * (2 dim + 2 max(dim, ffn_dim)) a token (with
// experts 4 dim more), which is why wide models get fewer tokens. Llama-2-7B: 35,544 tokens and 4.3 GB of streams; Llama-2-70B,
// whose 28,672 columns take 3.3 GB: 9,104 and 2.7 GB.
//
// An expert is quantized for the tokens that the quantized model routes to it, each by its share squared. Where they are few,
// what all of the layer's tokens say is mixed in.
// Matrix products run where `products` says (products.h), all else on the CPU. Deterministic, whatever the number of threads. Not
// thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "convert/correction.h"
#include "convert/divergence.h"
#include "convert/forward.h"
#include "convert/metric.h"
#include "convert/stopwatch.h"
#include "models/spec.h"
#include "runtime/tokenizer.h"

namespace pith {

// Token windows of equal length, each starting with BOS where the model has one.
struct CalibrationTokens {
  uint32_t window = 0;
  std::vector<int32_t> ids;  // [n_windows, window]
  uint32_t n_held_out = 0;   // windows at the end that take no part in the statistics

  uint32_t n_windows() const { return static_cast<uint32_t>(ids.size() / window); }
};
constexpr uint32_t kMinCalibrationTokens = 512;
// Texts, in UTF-8, as ids.
std::vector<std::vector<int32_t>> encode_texts(const std::vector<std::string>& texts,
                                               const Tokenizer& tokenizer);
// Texts take turns, a window each. first_id: of every window; -1: none. Throws Error(kInvalidArgument): fewer than
// kMinCalibrationTokens tokens, or no text of a window's length; kUnsupported: a window without two tokens of a text.
CalibrationTokens calibration_tokens(const std::vector<std::vector<int32_t>>& texts, int32_t first_id,
                                     uint32_t window, uint32_t max_tokens);
// What calibration on so many tokens keeps in memory at most: the streams and the largest matrix.
uint64_t calibration_bytes(const ModelSpec& spec, uint32_t n_tokens);
// As many tokens as `spec` can have at most: `wanted`, less where the streams would take more than 4 GiB, or more than is left
// of 7.5 GB beside the largest matrix.
uint32_t affordable_tokens(const ModelSpec& spec, uint32_t wanted);

class Calibration {
 public:
  Calibration(const ModelSpec& spec, CalibrationTokens tokens, const Products& products);

  // Row `id` of the embedding, for the original and the quantized stream: called once for each id that occurs.
  template <typename RowReader>  // void(uint32_t id, float* original, float* quantized)
  void embed(RowReader&& read_row);

  // A layer: begin_layer, then for each of its matrices in order hessian, drift where it is wanted, and both apply.
  void begin_layer(uint32_t layer, LayerVectors vectors);
  Hessian hessian(Step step);    // of the quantized stream
  Drift drift(Step step) const;  // after hessian; until the next call that is not const
  void apply_original(Step step, const std::vector<float>& weights);
  void apply_quantized(Step step, const std::vector<float>& weights);

  uint32_t n_tokens() const { return n_tokens_; }
  // What one stream took through the layers so far: a forward pass in float32.
  Duration forward_time() const { return original_time_; }

  // How the two models differ on the windows that took no part in the statistics, after the last layer.
  // head: [vocab, dim] of either stream.
  Divergence held_out(const std::vector<float>& norm, const std::vector<float>& head_original,
                      const std::vector<float>& head_quantized) const;

 private:
  Hessian expert_hessian(Step step);

  const ModelSpec& spec_;
  CalibrationTokens tokens_;
  uint32_t n_tokens_, n_counted_;  // counted: of the statistics
  Products products_;
  Forward forward_;
  Stream original_, quantized_;
  // Of the expert at hand, rows of either stream's input times the token's share, and how far they are to be trusted.
  std::vector<float> expert_original_, expert_quantized_;
  double expert_weight_ = 0;
  std::vector<float> layer_h_;  // [dim, dim] E[x^ x^'] of what the experts see; empty until one asks
  Duration original_time_;
};

std::vector<int32_t> distinct_ids(const CalibrationTokens& tokens);

template <typename RowReader>
void Calibration::embed(RowReader&& read_row) {
  std::vector<uint32_t> place(spec_.vocab_size);
  const std::vector<int32_t> ids = distinct_ids(tokens_);
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
