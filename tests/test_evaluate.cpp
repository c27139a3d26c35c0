// Perplexity and divergence of `pith eval`, and the divergence that a conversion measures, against their definitions written
// out in double over whole rows of logits.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "convert/converter.h"
#include "convert/divergence.h"
#include "runtime/evaluate.h"
#include "tiny_checkpoint.h"

using namespace pith;

namespace {

// Two models whose tokens are bytes, the second with an element in `step` of its head moved.
struct Pair {
  test::TinyCheckpoint checkpoint, other;
  std::shared_ptr<const Model> reference, model;

  explicit Pair(bool with_bos, uint64_t step = 6) {
    for (uint64_t i = 0; i < 300 * 64; i += step)
      other.set("lm_head.weight", i, 0.25f * static_cast<float>(static_cast<int>(i % 13) - 6) / 6);
    reference = made(checkpoint, with_bos);
    model = made(other, with_bos);
    REQUIRE((model->tokenizer().first_id() >= 0) == with_bos);
  }
  static std::shared_ptr<const Model> made(const test::TinyCheckpoint& from, bool with_bos) {
    from.write();
    std::ofstream(from.model_dir() + "/tokenizer_config.json")
        << nlohmann::json{{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"add_bos_token", with_bos}}.dump();
    ConvertOptions options;
    options.output = from.output();
    options.bits = 16;
    convert(from.model_dir(), options);
    return Model::open(options.output);
  }
};

constexpr uint32_t kContext = 24;

// Bytes without order, so that windows differ; its last window is not full.
std::string sample_text(size_t n_windows, size_t n_of_window) {
  std::mt19937 rng(11);
  std::string text;
  while (text.size() < n_windows * n_of_window + n_of_window - 1)
    text += static_cast<char>(rng() % 3 == 0 ? ' ' : 'a' + rng() % 26);
  return text;
}

std::vector<std::vector<int32_t>> windows_of(const Model& model, const std::string& text) {
  const std::vector<int32_t> ids = model.tokenizer().encode(text, {});
  const int32_t bos = model.tokenizer().first_id();
  std::vector<std::vector<int32_t>> windows;
  for (size_t at = 0;;) {
    std::vector<int32_t>& window = windows.emplace_back();
    if (bos >= 0) window.push_back(bos);
    while (window.size() < kContext && at < ids.size()) window.push_back(ids[at++]);
    if (window.size() < kContext) break;
  }
  windows.pop_back();
  return windows;
}

// [n_ctx, vocab]
std::vector<float> logits_of(const std::shared_ptr<const Model>& model, const std::vector<int32_t>& ids) {
  SessionOptions options;
  options.n_ctx = kContext;
  Session session(model, options);
  std::vector<float> rows;
  session.logits_of_all(
      ids, [&](uint32_t, std::span<const float> row) { rows.insert(rows.end(), row.begin(), row.end()); });
  return rows;
}

std::vector<double> softmax(const float* logits, size_t n) {
  std::vector<double> p(n);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += p[i] = std::exp(double{logits[i]});  // small models, small logits
  for (double& value : p) value /= sum;
  return p;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

// Of the mean, by the variance of what was drawn.
double standard_error(const std::vector<double>& values) {
  const double middle = mean(values), n = static_cast<double>(values.size());
  double variance = 0;
  for (const double value : values) variance += std::pow(value - middle, 2) / (n - 1);
  return std::sqrt(variance) / std::sqrt(n);
}

// What evaluate.h and divergence.h say, a token at a time.
struct Naive {
  std::vector<double> kl, nll, nll_reference, window_kl, window_gap;
  double n_agree = 0;

  Naive(const Pair& pair, const std::vector<std::vector<int32_t>>& windows) {
    const size_t vocab = pair.model->spec().vocab_size;
    for (const std::vector<int32_t>& ids : windows) {
      const std::vector<float> p_rows = logits_of(pair.reference, ids), q_rows = logits_of(pair.model, ids);
      std::vector<double> kls, gaps;
      for (size_t t = 0; t + 1 < ids.size(); ++t) {
        const std::vector<double> p = softmax(&p_rows[t * vocab], vocab),
                                  q = softmax(&q_rows[t * vocab], vocab);
        const size_t next = static_cast<size_t>(ids[t + 1]);
        double kl_here = 0;
        for (size_t i = 0; i < vocab; ++i) kl_here += p[i] * std::log(p[i] / q[i]);
        kls.push_back(kl_here);
        gaps.push_back(std::log(p[next] / q[next]));
        nll.push_back(-std::log(q[next]));
        nll_reference.push_back(-std::log(p[next]));
        n_agree += std::max_element(p.begin(), p.end()) - p.begin() ==
                   std::max_element(q.begin(), q.end()) - q.begin();
      }
      kl.insert(kl.end(), kls.begin(), kls.end());
      window_kl.push_back(mean(kls));
      window_gap.push_back(mean(gaps));
    }
  }
};

Approx near(double value) {
  return Approx(value).epsilon(1e-9);
}

}  // namespace

TEST_CASE("divergence, perplexities, agreement and standard errors are those of the definitions") {
  const bool with_bos = GENERATE(true, false);
  const Pair pair(with_bos);
  constexpr size_t kWindows = 9;
  const std::string text = sample_text(kWindows, with_bos ? kContext - 1 : kContext);
  const std::vector<std::vector<int32_t>> windows = windows_of(*pair.model, text);
  REQUIRE(windows.size() == kWindows);
  const Naive naive(pair, windows);
  // Far enough from every trivial value.
  REQUIRE(mean(naive.kl) > 0.05);
  const double agreement = naive.n_agree / static_cast<double>(naive.kl.size());
  REQUIRE((agreement > 0.2 && agreement < 0.9));
  REQUIRE(std::abs(mean(naive.window_gap)) > 0.01);

  EvalOptions options;
  options.session.n_ctx = kContext;
  const CompareResult found = compare(pair.model, pair.reference, text, options);
  CHECK(found.kl_mean == near(mean(naive.kl)));
  CHECK(found.kl_mean_se == near(standard_error(naive.window_kl)));
  CHECK(found.top1_agreement == near(agreement));
  CHECK(found.ppl_ratio == near(std::exp(mean(naive.nll)) / std::exp(mean(naive.nll_reference))));
  // A relative error of the ratio is an absolute one of its logarithm.
  CHECK(found.ppl_ratio_se == near(found.ppl_ratio * standard_error(naive.window_gap)));
  CHECK(found.model.n_tokens == naive.kl.size());
  CHECK(found.reference.n_tokens == naive.kl.size());
  CHECK(found.model.nll == near(mean(naive.nll)));
  CHECK(found.reference.nll == near(mean(naive.nll_reference)));
  CHECK(found.model.ppl() == near(std::exp(mean(naive.nll))));
  REQUIRE(found.window_kl.size() == kWindows);
  for (size_t w = 0; w < kWindows; ++w) {
    CHECK(found.window_kl[w] == near(naive.window_kl[w]));
    CHECK(found.window_nll_gap[w] == Approx(naive.window_gap[w]).margin(1e-9));
  }
  // One of the values, kept as floats, the nearest to the share.
  std::vector<double> sorted = naive.kl;
  std::sort(sorted.begin(), sorted.end());
  const double last = static_cast<double>(sorted.size() - 1);
  CHECK(found.kl_median == Approx(sorted[static_cast<size_t>(std::lround(0.5 * last))]).epsilon(1e-6));
  CHECK(found.kl_p99 == Approx(sorted[static_cast<size_t>(std::lround(0.99 * last))]).epsilon(1e-6));
  CHECK(found.kl_max == Approx(sorted.back()).epsilon(1e-6));

  CHECK(evaluate(pair.model, text, options).nll == near(mean(naive.nll)));
  CHECK(evaluate(pair.reference, text, options).nll == near(mean(naive.nll_reference)));

  // The same of a conversion's own sums, whose exponentials are floats: 2^-23 of each probability.
  for (const uint32_t n_threads : {1u, 3u}) {
    Divergence sums;
    for (const std::vector<int32_t>& ids : windows) {
      std::vector<float> log_p = logits_of(pair.reference, ids);
      log_probabilities(log_p, pair.model->spec().vocab_size, n_threads);
      add_divergence(log_p, logits_of(pair.model, ids), pair.model->spec().vocab_size, ids.data() + 1,
                     n_threads, sums);
    }
    CHECK(sums.n_tokens == naive.kl.size());
    const double n = static_cast<double>(sums.n_tokens);
    CHECK(sums.kl / n == Approx(mean(naive.kl)).margin(1e-6));
    CHECK(sums.nll_p / n == Approx(mean(naive.nll_reference)).margin(1e-6));
    CHECK(sums.nll_q / n == Approx(mean(naive.nll)).margin(1e-6));
  }
}

TEST_CASE("a window above the model's limit is refused before the text is looked at") {
  const Pair pair(true);
  EvalOptions options;
  options.session.n_ctx = pair.model->spec().max_context + 1;
  const std::string said =
      fmt::format("ctx: windows of {} tokens, expected at most {}, the limit of {}", options.session.n_ctx,
                  pair.model->spec().max_context, pair.model->container().path());
  CHECK_THROWS_WITH(evaluate(pair.model, "short", options), said);
  CHECK_THROWS_WITH(compare(pair.model, pair.reference, "short", options), said);
}

TEST_CASE("max_tokens cuts the text, and one window has no standard error") {
  const Pair pair(true);
  const std::string text = sample_text(3, kContext - 1);
  EvalOptions options;
  options.session.n_ctx = kContext;
  options.max_tokens = 2 * (kContext - 1) - 1;
  const CompareResult one = compare(pair.model, pair.reference, text, options);
  CHECK(one.model.n_tokens == kContext - 1);
  CHECK(std::isnan(one.kl_mean_se));
  CHECK(std::isnan(one.ppl_ratio_se));
  const Naive naive(pair, {windows_of(*pair.model, text).front()});
  CHECK(one.kl_mean == near(mean(naive.kl)));
  options.max_tokens = kContext - 2;
  CHECK_THROWS_WITH(compare(pair.model, pair.reference, text, options),
                    Catch::Contains("22 tokens, expected at least 23"));
}
