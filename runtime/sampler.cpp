// The chain: penalties, temperature, top-k, top-p, min-p, one draw (the order of Hugging Face's generate).
#include "runtime/sampler.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "format/error.h"

namespace pith {

namespace {

// splitmix64 (Steele, Lea, Flood 2014): one word of state, the same everywhere.
uint64_t next_random(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

template <typename T>
bool parse(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

constexpr double kMaxCount = INT32_MAX;
constexpr SamplerOption kOptions[] = {
    {"temp", &SamplerOptions::temperature, 0, 100, "T", "Temperature, 0 = greedy (default: the model's)"},
    {"top_k", &SamplerOptions::top_k, 0, kMaxCount, "K",
     "Keep the K likeliest tokens, 0 = off (default: the model's)"},
    {"top_p", &SamplerOptions::top_p, 0, 1, "P",
     "Keep the likeliest tokens of total probability P (default: the model's)"},
    {"min_p", &SamplerOptions::min_p, 0, 1, "P",
     "Drop tokens less likely than P times the likeliest (default: the model's)"},
    {"repeat_penalty", &SamplerOptions::repetition_penalty, 0.01, 100, "X",
     "Divide logits of recent tokens, 1 = off (default: the model's)"},
    {"presence_penalty", &SamplerOptions::presence_penalty, -100, 100, "X",
     "Subtract from logits of recent tokens"},
    {"frequency_penalty", &SamplerOptions::frequency_penalty, -100, 100, "X", "Subtract per occurrence"},
    {"repeat_last_n", &SamplerOptions::penalty_last_n, 0, kMaxCount, "N",
     "Tokens that count as recent (default: 64)"},
    {"seed", &SamplerOptions::seed, 0, 0x1p64, "S", "An integer, or random (default)"},
};

constexpr float kMaxLogit = std::numeric_limits<float>::max();

// A real is parsed as a double, so that the limits hold before it is rounded.
void set_field(float& field, const SamplerOption& option, std::string_view value) {
  double number;
  if (!parse(value, number) || !(number >= option.low && number <= option.high))
    throw_error(ErrorCode::kInvalidArgument, "{}: '{}', expected a number from {} to {}", option.key, value,
                option.low, option.high);
  field = static_cast<float>(number);
}

void set_field(uint32_t& field, const SamplerOption& option, std::string_view value) {
  const uint32_t high = static_cast<uint32_t>(option.high);
  uint32_t number;
  if (!parse(value, number) || number > high)
    throw_error(ErrorCode::kInvalidArgument, "{}: '{}', expected a whole number from 0 to {}", option.key,
                value, high);
  field = number;
}

void set_field(uint64_t& field, const SamplerOption& option, std::string_view value) {
  uint64_t number;
  if (!parse(value, number))
    throw_error(ErrorCode::kInvalidArgument, "{}: '{}', expected a whole number from 0 to 2^64-1 or random",
                option.key, value);
  field = number;
}

}  // namespace

std::span<const SamplerOption> sampler_options() {
  return kOptions;
}

std::string sampler_option_text(const SamplerOptions& options, const SamplerOption& option) {
  return std::visit([&](auto field) { return fmt::format("{}", options.*field); }, option.field);
}

void set_sampler_option(SamplerOptions& options, std::string_view key, std::string_view value,
                        std::string_view other_keys) {
  std::string known(other_keys);
  for (const SamplerOption& option : kOptions) {
    if (key == option.key) {
      std::visit([&](auto field) { set_field(options.*field, option, value); }, option.field);
      return;
    }
    known.append(known.empty() || known.ends_with(' ') ? "" : ", ").append(option.key);
  }
  throw_error(ErrorCode::kInvalidArgument, "'{}' is not an option, expected one of {}", key, known);
}

Sampler::Sampler(const SamplerOptions& options, uint32_t vocab_size)
    : options_(options), rng_state_(options.seed), vocab_size_(vocab_size), counts_(vocab_size, 0) {
  candidates_.reserve(vocab_size);
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> history) {
  if (logits.size() != vocab_size_)
    throw_error(ErrorCode::kInvalidArgument, "{} logits, expected {}", logits.size(), vocab_size_);
  candidates_.resize(vocab_size_);
  for (uint32_t i = 0; i < vocab_size_; ++i) {
    if (!std::isfinite(logits[i]))
      throw_error(ErrorCode::kFormat, "logit {} is {}, expected a finite number", i, logits[i]);
    candidates_[i] = {static_cast<int32_t>(i), logits[i]};
  }
  penalize(history);
  if (options_.temperature == 0) {
    Candidate best = candidates_[0];
    for (const Candidate& c : candidates_)
      if (c.value > best.value) best = c;
    return best.id;
  }
  // The largest first becomes 0: what a tiny temperature divides to -inf is then never drawn.
  const float max = largest();
  for (Candidate& c : candidates_) c.value = (c.value - max) / options_.temperature;
  keep_top_k();
  keep_top_p();
  keep_min_p();
  return draw();
}

float Sampler::largest() const {
  float max = candidates_[0].value;
  for (const Candidate& c : candidates_) max = std::max(max, c.value);
  return max;
}

void Sampler::penalize(std::span<const int32_t> history) {
  const SamplerOptions& o = options_;
  if (o.repetition_penalty == 1 && o.presence_penalty == 0 && o.frequency_penalty == 0) return;
  const auto recent = history.last(std::min<size_t>(history.size(), o.penalty_last_n));
  const auto is_token = [&](int32_t id) { return id >= 0 && static_cast<uint32_t>(id) < vocab_size_; };
  for (const int32_t id : recent)
    if (is_token(id)) ++counts_[static_cast<uint32_t>(id)];
  for (const int32_t id : recent) {
    if (!is_token(id) || counts_[static_cast<uint32_t>(id)] == 0) continue;
    float& value = candidates_[static_cast<uint32_t>(id)].value;
    value = value > 0 ? value / o.repetition_penalty : value * o.repetition_penalty;
    value -=
        o.presence_penalty + o.frequency_penalty * static_cast<float>(counts_[static_cast<uint32_t>(id)]);
    value = std::clamp(value, -kMaxLogit, kMaxLogit);  // a small penalty may make infinity of it
    counts_[static_cast<uint32_t>(id)] = 0;
  }
}

namespace {
// A strict order, so that equal logits give the same result whatever the algorithm.
constexpr auto kBetter = [](const auto& a, const auto& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
};
}  // namespace

void Sampler::keep_top_k() {
  if (options_.top_k == 0 || options_.top_k >= candidates_.size()) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + options_.top_k - 1, candidates_.end(), kBetter);
  candidates_.resize(options_.top_k);
}

void Sampler::keep_top_p() {
  if (options_.top_p >= 1) return;
  const float max = largest();
  const auto weight = [max](const Candidate& c) { return std::exp(static_cast<double>(c.value - max)); };
  double total = 0;
  for (const Candidate& c : candidates_) total += weight(c);
  // The best few usually suffice: sort as little as needed, doubling.
  double sum = 0;
  for (size_t sorted = 0, want = 64; sorted < candidates_.size(); want *= 2) {
    const size_t end = std::min(want, candidates_.size());
    const auto at = [&](size_t i) { return candidates_.begin() + static_cast<std::ptrdiff_t>(i); };
    std::partial_sort(at(sorted), at(end), candidates_.end(), kBetter);
    for (; sorted < end; ++sorted) {
      sum += weight(candidates_[sorted]);
      if (sum >= static_cast<double>(options_.top_p) * total) {
        candidates_.resize(sorted + 1);
        return;
      }
    }
  }
}

void Sampler::keep_min_p() {
  if (options_.min_p <= 0) return;
  const float max = largest();
  const float least = max + std::log(options_.min_p);
  std::erase_if(candidates_,
                [&](const Candidate& c) { return c.value < least; });  // the best one stays: min_p <= 1
}

int32_t Sampler::draw() {
  const float max = largest();
  double total = 0;
  for (Candidate& c : candidates_) {
    c.value = std::exp(c.value - max);
    total += static_cast<double>(c.value);
  }
  const double target = static_cast<double>(next_random(rng_state_) >> 11) * 0x1p-53 * total;
  double sum = 0;
  for (const Candidate& c : candidates_) {
    sum += static_cast<double>(c.value);
    if (sum > target) return c.id;
  }
  return candidates_.back().id;
}

}  // namespace pith
