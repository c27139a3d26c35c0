// The sampler's stages, each against a plain statement of what it must do.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "format/error.h"
#include "runtime/sampler.h"

using namespace pith;

namespace {

std::vector<float> random_logits(size_t n, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(n);
  for (float& v : logits) v = normal(rng);
  return logits;
}

// How often each id comes up in n draws.
std::map<int32_t, int> draw(SamplerOptions options, const std::vector<float>& logits, int n,
                            const std::vector<int32_t>& history = {}) {
  Sampler sampler(options, static_cast<uint32_t>(logits.size()));
  std::map<int32_t, int> counts;
  for (int i = 0; i < n; ++i) ++counts[sampler.sample(logits, history)];
  return counts;
}

}  // namespace

TEST_CASE("a penalty that makes infinity of a logit leaves it the largest") {
  SamplerOptions options;
  options.repetition_penalty = 0.01f;
  for (const float temperature : {0.0f, 1.0f}) {
    options.temperature = temperature;
    CHECK(draw(options, {1e38f, 1, 2, 3}, 20, {0}) == std::map<int32_t, int>{{0, 20}});
  }
}

TEST_CASE("greedy takes the largest logit, the first of equals") {
  CHECK(draw({}, {0, 3, -1, 3}, 5) == std::map<int32_t, int>{{1, 5}});
}

TEST_CASE("draws follow the softmax of the logits over temperature") {
  SamplerOptions options;
  options.temperature = 0.5f;
  const std::vector<float> logits = {0, 1, 0.5f};
  const int n = 200000;
  const std::map<int32_t, int> counts = draw(options, logits, n);
  double total = 0;
  for (const float l : logits) total += std::exp(2.0 * l);
  for (size_t i = 0; i < 3; ++i) {
    const double p = std::exp(2.0 * logits[i]) / total;
    // Six standard deviations of a binomial; the seed is fixed, so this cannot flicker.
    CHECK(counts.at(static_cast<int32_t>(i)) == Approx(n * p).margin(6 * std::sqrt(n * p * (1 - p))));
  }
}

TEST_CASE("a temperature near zero is greedy, whatever the filters") {
  SamplerOptions options;
  options.temperature = 1e-38f;
  const std::vector<float> logits = {12, 30, -7, 29.5f};
  CHECK(draw(options, logits, 50) == std::map<int32_t, int>{{1, 50}});
  options.top_p = 0.9f, options.min_p = 0.1f, options.top_k = 3;
  CHECK(draw(options, logits, 50) == std::map<int32_t, int>{{1, 50}});
}

TEST_CASE("top-k, top-p and min-p keep exactly the tokens they are defined to keep") {
  const std::vector<float> logits = random_logits(300, 1);
  std::vector<int32_t> order(300);
  for (int32_t i = 0; i < 300; ++i) order[static_cast<size_t>(i)] = i;
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
  const auto kept = [&](const SamplerOptions& options) {
    std::set<int32_t> ids;
    for (const auto& [id, count] : draw(options, logits, 100000)) ids.insert(id);
    return ids;
  };
  const auto best = [&](size_t n) {
    return std::set<int32_t>(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n));
  };

  SamplerOptions top_k;
  top_k.temperature = 5;  // flat enough that everything kept is drawn
  top_k.top_k = 7;
  CHECK(kept(top_k) == best(7));

  SamplerOptions top_p;
  top_p.temperature = 2;
  top_p.top_p = 0.7f;
  double total = 0, sum = 0;
  for (const float l : logits) total += std::exp(l / 2.0);
  size_t n = 0;
  while (sum < 0.7 * total) sum += std::exp(logits[static_cast<size_t>(order[n++])] / 2.0);
  REQUIRE(n > 64);  // beyond the first step of the partial sort
  CHECK(kept(top_p) == best(n));

  SamplerOptions min_p;
  min_p.temperature = 4;
  min_p.min_p = 0.4f;
  n = 0;
  while (std::exp((logits[static_cast<size_t>(order[n])] - logits[static_cast<size_t>(order[0])]) / 4.0) >=
         0.4)
    ++n;
  CHECK(kept(min_p) == best(n));

  SamplerOptions one;
  one.temperature = 1;
  one.top_p = 0;
  CHECK(kept(one) == best(1));
}

TEST_CASE("penalties lower what the history's last tokens were, once or by count") {
  const std::vector<float> logits = {2, 1.9f, -1, 1.5f};
  SamplerOptions options;
  options.repetition_penalty = 2;
  CHECK(draw(options, logits, 1, {0}) == std::map<int32_t, int>{{1, 1}});     // 2 / 2 < 1.9
  CHECK(draw(options, logits, 1, {0, 1}) == std::map<int32_t, int>{{3, 1}});  // both halved
  options.penalty_last_n = 1;
  CHECK(draw(options, logits, 1, {0, 1}) == std::map<int32_t, int>{{0, 1}});  // 0 is out of sight
  options = {};
  options.presence_penalty = 0.2f;
  CHECK(draw(options, logits, 1, {0, 0, 0}) == std::map<int32_t, int>{{1, 1}});  // 1.8
  options = {};
  options.frequency_penalty = 0.09f;
  CHECK(draw(options, logits, 1, {0}) == std::map<int32_t, int>{{0, 1}});     // 1.91
  CHECK(draw(options, logits, 1, {0, 0}) == std::map<int32_t, int>{{1, 1}});  // 1.82
  options = {};
  options.repetition_penalty = 2;
  CHECK(draw(options, {-1, -1.5f}, 1, {0}) ==
        std::map<int32_t, int>{{1, 1}});  // negative logits are multiplied
  CHECK(draw(options, logits, 1, {-5, 99}) == std::map<int32_t, int>{{0, 1}});  // ids outside are ignored
}

TEST_CASE("the same seed gives the same tokens and another seed others") {
  const std::vector<float> logits = random_logits(50, 2);
  const auto run = [&](uint64_t seed) {
    SamplerOptions options;
    options.temperature = 1;
    options.seed = seed;
    Sampler sampler(options, 50);
    std::vector<int32_t> ids;
    for (int i = 0; i < 30; ++i) ids.push_back(sampler.sample(logits, {}));
    return ids;
  };
  CHECK(run(1) == run(1));
  CHECK(run(1) != run(2));
}

TEST_CASE("non-finite logits are an error, not a token") {
  Sampler sampler({}, 3);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> logits = {0, bad, 1};
    CHECK_THROWS_AS(sampler.sample(logits, {}), Error);
  }
}

TEST_CASE("options are set from text and refused with their range") {
  SamplerOptions o;
  set_sampler_option(o, "temp", "0.7");
  set_sampler_option(o, "top_k", "40");
  set_sampler_option(o, "top_p", "0.9");
  set_sampler_option(o, "min_p", "0.05");
  set_sampler_option(o, "repeat_penalty", "1.1");
  set_sampler_option(o, "presence_penalty", "-0.5");
  set_sampler_option(o, "frequency_penalty", "0.25");
  set_sampler_option(o, "repeat_last_n", "128");
  set_sampler_option(o, "seed", "18446744073709551615");
  CHECK(o.temperature == 0.7f);
  CHECK(o.top_k == 40);
  CHECK(o.top_p == 0.9f);
  CHECK(o.min_p == 0.05f);
  CHECK(o.repetition_penalty == 1.1f);
  CHECK(o.presence_penalty == -0.5f);
  CHECK(o.frequency_penalty == 0.25f);
  CHECK(o.penalty_last_n == 128);
  CHECK(o.seed == UINT64_MAX);
  const auto refuse = [&](const char* key, const char* value, const char* part) {
    CHECK_THROWS_WITH(set_sampler_option(o, key, value), Catch::Contains(part));
  };
  refuse("temp", "-1", "expected a number from 0 to 100");
  refuse("temp", "hot", "'hot'");
  refuse("temp", "", "''");
  refuse("temp", "nan", "'nan'");
  refuse("temp", "1x", "'1x'");
  refuse("top_p", "1.5", "from 0 to 1");
  refuse("repeat_penalty", "0", "0.01");
  refuse("top_k", "-3", "whole number");
  refuse("top_k", "99999999999", "whole number");
  refuse("seed", "-1", "2^64-1");
  refuse("temperature", "1", "expected one of");
}
