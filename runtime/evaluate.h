// How well a model predicts a text, alone (perplexity) or beside a reference (divergence): the protocol of `pith eval`.
//
// The text is tokenized as a whole without BOS and cut to max_tokens. Windows of n_ctx ids do not overlap: BOS and the next
// n_ctx - 1 ids of the text, of which all are predicted; a model that does not begin its texts with BOS
// (Tokenizer::first_id) gives windows of n_ctx ids of the text, the first of which is not predicted. A
// partial last window is dropped. Figures are over all predicted tokens, natural logarithms, summed in
// double.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "runtime/model.h"
#include "runtime/session.h"

namespace pith {

struct EvalOptions {
  SessionOptions session;   // n_ctx is the window; 0 = 512 or the model's maximum if that is less
  uint64_t max_tokens = 0;  // of the text; 0 = all
  // After each window: predicted tokens so far and in all, mean NLL so far. May throw to stop.
  std::function<void(uint64_t done, uint64_t total, double nll)> progress;
};

struct EvalResult {
  uint64_t n_tokens = 0;  // predicted
  double nll = 0;         // mean
  double ppl() const;
};

// KL is KL(reference || model) per token. Standard errors take a window as the unit, because tokens of one window are not
// independent; NaN with a single window.
struct CompareResult {
  EvalResult model, reference;
  double ppl_ratio = 0, ppl_ratio_se = 0;  // model over reference
  double kl_mean = 0, kl_mean_se = 0, kl_median = 0, kl_p99 = 0, kl_max = 0;
  double top1_agreement = 0;  // share of tokens where both rank the same token first
  // Per window, means over its tokens: what a paired comparison of two models on the same text needs.
  std::vector<double> window_kl, window_nll_gap;  // gap: model less reference
};

// Throws kInvalidArgument when the text does not fill one window (with both numbers).
EvalResult evaluate(const std::shared_ptr<const Model>& model, std::string_view text,
                    const EvalOptions& options);

// Window by window; memory besides the two models: one window of the reference's logits, n_ctx * vocab_size floats.
// Throws kInvalidArgument also when the two do not tokenize alike.
CompareResult compare(const std::shared_ptr<const Model>& model,
                      const std::shared_ptr<const Model>& reference, std::string_view text,
                      const EvalOptions& options);

}  // namespace pith
