// What each matrix is worth: how far the model's predictions move when one matrix alone is rounded to 2 bits, and how much of
// that rounding error is left with more bits. The budget (budget.h) divides the bits by it.
//
// A few windows of calibration text go through the checkpoint in float32, once as it is and once for every matrix with
// that matrix rounded: all these streams pass a layer while its weights are in memory. They end in logits, and a matrix's
// `kl` is the mean KL divergence of its stream from the untouched one. Cost: n_matrices / 2 + 1 passes of these windows.
// Deterministic, whatever the number of threads. Not thread safe.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "convert/budget.h"
#include "convert/calibration.h"
#include "convert/forward.h"
#include "convert/quantizer.h"

namespace pith {

// A matrix's loss over its shapes. Errors are tr(E H E') / tr(W H W') on some of its rows.
struct LossCurve {
  uint32_t n_rows = 0, n_cols = 0;
  double kl = 0, kl_error = 0;  // of the model with this matrix rounded, and the error of that rounding
  struct ShapeFamily {          // one group size, with or without outliers
    uint32_t group = 16, n_slots = 0;
    std::vector<double> errors;  // at kFineShares of the columns at 4 bits
  };
  std::vector<ShapeFamily> families;
  static constexpr double kFineShares[] = {0, 0.125, 0.375, 1};

  // Every shape of every family, with the KL divergence that it is expected to cost.
  std::vector<Candidate> candidates(bool with_fine) const;
};

struct SensitivityOptions {
  // That a matrix may have. None: nothing is rounded, only what the head sees is wanted (so with experts, of which there
  // are too many for a stream each).
  std::vector<uint32_t> groups;
  std::vector<double> outlier_shares;  // of its columns, likewise; 0: no outliers
  QuantizeOptions quantize;            // levers that a matrix knows; shape and descent are set here
};

class SensitivityRun {
 public:
  // Uses at most the first of `tokens`' windows: as many as fit 2 GiB of streams, 1024 tokens at most.
  SensitivityRun(const ModelSpec& spec, const CalibrationTokens& tokens, SensitivityOptions options,
                 const Products& products);

  const CalibrationTokens& tokens() const { return tokens_; }  // those used
  // Row `id` of the embedding: called once for each id that occurs.
  template <typename RowReader>  // void(uint32_t id, float* row)
  void embed(RowReader&& read_row);
  // read(i): the weights of the layer's step i, [n_outputs, n_inputs]. All of a layer's are in memory, and each is read a second
  // time, after it has made room for what it is rounded to.
  void run_layer(uint32_t layer, LayerVectors vectors,
                 const std::function<std::vector<float>(size_t step)>& read);
  // After the last layer: a curve for every matrix, in the order of the layers and parts. norm: the final one.
  std::vector<LossCurve> finish(const std::vector<float>& norm, const std::vector<float>& head);
  Hessian head_hessian(const std::vector<float>& norm) const;  // after the last layer

 private:
  LossCurve measure(const std::vector<float>& weights, uint32_t n_cols,
                    const std::vector<float>& input) const;
  void run(std::vector<float>& residual, const std::vector<ProductMatrix>& weights);

  const ModelSpec& spec_;
  std::vector<Step> steps_;  // of a layer
  CalibrationTokens tokens_;
  SensitivityOptions options_;
  Products products_;
  uint32_t n_threads_, n_tokens_ = 0;
  Forward forward_;
  std::vector<float> untouched_;             // [n_tokens, dim] residual stream
  std::vector<std::vector<float>> touched_;  // one per matrix so far
  std::vector<LossCurve> curves_;            // likewise
};

template <typename RowReader>
void SensitivityRun::embed(RowReader&& read_row) {
  std::vector<uint32_t> place(spec_.vocab_size);
  const std::vector<int32_t> ids = distinct_ids(tokens_);
  std::vector<float> rows(ids.size() * spec_.dim);
  for (size_t i = 0; i < ids.size(); ++i) {
    place[static_cast<size_t>(ids[i])] = static_cast<uint32_t>(i);
    read_row(static_cast<uint32_t>(ids[i]), rows.data() + i * spec_.dim);
  }
  for (uint32_t t = 0; t < n_tokens_; ++t)
    for (uint32_t c = 0; c < spec_.dim; ++c)
      untouched_[size_t{t} * spec_.dim + c] =
          rows[size_t{place[static_cast<size_t>(tokens_.ids[t])]} * spec_.dim + c] * spec_.embedding_scale;
}

}  // namespace pith
