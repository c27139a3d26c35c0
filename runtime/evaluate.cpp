// Perplexity and divergence over windows of a text; the protocol is in evaluate.h.
#include "runtime/evaluate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace pith {
namespace {

struct Windows {
  std::vector<int32_t> ids;  // [n_windows, n_ctx]
  uint32_t n_ctx = 0;
  size_t n_windows = 0;

  std::span<const int32_t> window(size_t i) const { return std::span(ids).subspan(i * n_ctx, n_ctx); }
  uint64_t n_predicted() const { return uint64_t{n_windows} * (n_ctx - 1); }
};

uint32_t window_size(const Model& model, const EvalOptions& options) {
  const uint32_t n_ctx =
      options.session.n_ctx != 0 ? options.session.n_ctx : std::min(model.spec().max_context, 512u);
  if (n_ctx < 2) throw_error(ErrorCode::kInvalidArgument, "a window of {} tokens predicts nothing", n_ctx);
  if (n_ctx > model.spec().max_context)
    throw_error(ErrorCode::kInvalidArgument,
                "ctx: windows of {} tokens, expected at most {}, the limit of {}", n_ctx,
                model.spec().max_context, model.container().path());
  return n_ctx;
}

Windows cut(const Model& model, std::string_view text, const EvalOptions& options) {
  Windows windows;
  windows.n_ctx = window_size(model, options);
  std::vector<int32_t> tokens = model.tokenizer().encode(text, {});
  if (options.max_tokens != 0 && tokens.size() > options.max_tokens) tokens.resize(options.max_tokens);
  const int32_t bos = model.tokenizer().first_id();
  const size_t n_text = windows.n_ctx - (bos >= 0 ? 1 : 0);  // ids of the text in a window
  windows.n_windows = tokens.size() / n_text;
  if (windows.n_windows == 0)
    throw_error(ErrorCode::kInvalidArgument, "the text has {} tokens, expected at least {}, one window",
                tokens.size(), n_text);
  windows.ids.reserve(windows.n_windows * windows.n_ctx);
  for (size_t i = 0; i < windows.n_windows; ++i) {
    if (bos >= 0) windows.ids.push_back(bos);
    const auto begin = tokens.begin() + static_cast<ptrdiff_t>(i * n_text);
    windows.ids.insert(windows.ids.end(), begin, begin + static_cast<ptrdiff_t>(n_text));
  }
  return windows;
}

// log sum exp of a row, and where its maximum is.
struct RowNorm {
  double log_sum;
  size_t top;
};

RowNorm normalize(std::span<const float> logits) {
  const size_t top = static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const double maximum = logits[top];
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - maximum);
  const RowNorm norm{maximum + std::log(sum), top};
  if (!std::isfinite(norm.log_sum)) throw_error(ErrorCode::kInternal, "logits are not finite");
  return norm;
}

// Means over windows with their standard errors.
struct Moments {
  double mean, standard_error;
};

Moments moments(const std::vector<double>& values) {
  const double n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  const double mean = sum / n;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean,
          values.size() > 1 ? std::sqrt(squares / (n - 1) / n) : std::numeric_limits<double>::quiet_NaN()};
}

// The value below which `share` of them lie; reorders.
double quantile(std::vector<float>& values, double share) {
  const size_t at = static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(at), values.end());
  return values[at];
}

// KL(reference || model) of one token. expected: the reference's logits.
double divergence(std::span<const float> expected, const RowNorm& from, std::span<const float> logits,
                  const RowNorm& to) {
  double kl = 0;
  for (size_t v = 0; v < expected.size(); ++v) {
    const double log_p = expected[v] - from.log_sum;
    kl += std::exp(log_p) * (log_p - (logits[v] - to.log_sum));
  }
  return std::max(kl, 0.0);  // rounding
}

// What follows from the tokens' divergences and from the windows' means.
CompareResult summarize(std::vector<float> kls, std::vector<double> window_kl,
                        std::vector<double> window_nll_gap) {
  CompareResult result;
  result.model.n_tokens = result.reference.n_tokens = kls.size();
  const Moments gap = moments(window_nll_gap), kl = moments(window_kl);
  result.ppl_ratio = std::exp(gap.mean);
  result.ppl_ratio_se = result.ppl_ratio * gap.standard_error;  // first order
  result.kl_mean = kl.mean;
  result.kl_mean_se = kl.standard_error;
  result.kl_max = *std::max_element(kls.begin(), kls.end());
  result.kl_p99 = quantile(kls, 0.99);
  result.kl_median = quantile(kls, 0.5);
  result.window_kl = std::move(window_kl);
  result.window_nll_gap = std::move(window_nll_gap);
  return result;
}

SessionOptions window_session(const EvalOptions& options, uint32_t n_ctx) {
  SessionOptions session = options.session;
  session.n_ctx = n_ctx;
  return session;
}

}  // namespace

double EvalResult::ppl() const {
  return std::exp(nll);
}

EvalResult evaluate(const std::shared_ptr<const Model>& model, std::string_view text,
                    const EvalOptions& options) {
  const Windows windows = cut(*model, text, options);
  Session session(model, window_session(options, windows.n_ctx));
  EvalResult result;
  double sum = 0;
  for (size_t w = 0; w < windows.n_windows; ++w) {
    const std::span<const int32_t> ids = windows.window(w);
    session.logits_of_all(ids, [&](uint32_t position, std::span<const float> logits) {
      if (position + 1 == ids.size()) return;
      sum += normalize(logits).log_sum - logits[static_cast<size_t>(ids[position + 1])];
      ++result.n_tokens;
    });
    result.nll = sum / static_cast<double>(result.n_tokens);
    if (options.progress) options.progress(result.n_tokens, windows.n_predicted(), result.nll);
  }
  return result;
}

CompareResult compare(const std::shared_ptr<const Model>& model,
                      const std::shared_ptr<const Model>& reference, std::string_view text,
                      const EvalOptions& options) {
  const Windows windows = cut(*model, text, options);
  EvalOptions same = options;
  same.session.n_ctx = windows.n_ctx;
  const uint32_t n_vocab = model->spec().vocab_size;
  if (reference->spec().vocab_size != n_vocab || cut(*reference, text, same).ids != windows.ids)
    throw_error(ErrorCode::kInvalidArgument, "{} and {} do not tokenize alike: they cannot be compared",
                model->container().path(), reference->container().path());
  Session session(model, window_session(options, windows.n_ctx));
  Session reference_session(reference, window_session(options, windows.n_ctx));

  const size_t n_predicted = windows.n_ctx - 1;
  std::vector<float> rows(n_predicted * n_vocab);  // the reference's logits of one window
  std::vector<RowNorm> norms(n_predicted);
  std::vector<float> kls;
  std::vector<double> window_kl, window_difference;
  double sum = 0, reference_sum = 0, kl_sum = 0;
  uint64_t n_agree = 0;
  for (size_t w = 0; w < windows.n_windows; ++w) {
    const std::span<const int32_t> ids = windows.window(w);
    const double sum_before = sum - reference_sum, kl_before = kl_sum;
    reference_session.logits_of_all(ids, [&](uint32_t position, std::span<const float> logits) {
      if (position + 1 == ids.size()) return;
      std::copy(logits.begin(), logits.end(),
                rows.begin() + static_cast<ptrdiff_t>(size_t{position} * n_vocab));
      norms[position] = normalize(logits);
      reference_sum += norms[position].log_sum - logits[static_cast<size_t>(ids[position + 1])];
    });
    session.logits_of_all(ids, [&](uint32_t position, std::span<const float> logits) {
      if (position + 1 == ids.size()) return;
      const float* const expected = rows.data() + size_t{position} * n_vocab;
      const RowNorm& from = norms[position];
      const RowNorm to = normalize(logits);
      const double kl = divergence({expected, n_vocab}, from, logits, to);
      kls.push_back(static_cast<float>(kl));
      kl_sum += kl;
      n_agree += from.top == to.top;
      sum += to.log_sum - logits[static_cast<size_t>(ids[position + 1])];
    });
    window_kl.push_back((kl_sum - kl_before) / static_cast<double>(n_predicted));
    window_difference.push_back((sum - reference_sum - sum_before) / static_cast<double>(n_predicted));
    if (options.progress)
      options.progress(kls.size(), windows.n_predicted(), sum / static_cast<double>(kls.size()));
  }

  CompareResult result = summarize(std::move(kls), std::move(window_kl), std::move(window_difference));
  const double n = static_cast<double>(result.model.n_tokens);
  result.model.nll = sum / n;
  result.reference.nll = reference_sum / n;
  result.top1_agreement = static_cast<double>(n_agree) / n;
  return result;
}

}  // namespace pith
