// What calibration costs and can afford, the two streams through a layer's steps, and the statistics of
// experts that see few tokens.
#include "convert/calibration.h"

#include <algorithm>

#include "format/error.h"

namespace pith {

namespace {

constexpr size_t kMaxHeldOut = 16;  // windows
constexpr uint64_t kMaxStreamBytes = uint64_t{4} << 30;
constexpr uint64_t kMaxBytes = 7'500'000'000;  // of streams and a matrix, so that all stays below 8 GB
constexpr uint32_t kMinTokens = 4096;
// For each input of an expert. Mixtral's block (64 columns, 6 experts, 2 of them at work), 4.5 bits, 512
// tokens, KL divergence: 0.03 0.0722, 0.25 0.0643, 1 0.0632; 2048 tokens: 0.0533, 0.0516, 0.0519.
constexpr double kPriorTokens = 0.25;

}  // namespace

std::vector<std::vector<int32_t>> encode_texts(const std::vector<std::string>& texts,
                                               const Tokenizer& tokenizer) {
  std::vector<std::vector<int32_t>> encoded;
  for (const std::string& text : texts) encoded.push_back(tokenizer.encode(text, {}));
  return encoded;
}

CalibrationTokens calibration_tokens(const std::vector<std::vector<int32_t>>& texts, int32_t first_id,
                                     uint32_t window, uint32_t max_tokens) {
  const uint32_t n_bos = first_id >= 0 ? 1 : 0;
  if (window < 2 + n_bos)
    throw_error(
        ErrorCode::kUnsupported,
        "calibration: the model's context of {} tokens, expected at least {}; --no-calib does without",
        window, 2 + n_bos);
  const size_t step = window - n_bos;
  size_t n_all = 0;
  for (const std::vector<int32_t>& ids : texts) n_all += ids.size();
  if (n_all < kMinCalibrationTokens)
    throw_error(ErrorCode::kInvalidArgument, "calibration text: {} tokens, expected at least {}", n_all,
                kMinCalibrationTokens);
  // Of each text as many windows as its turns allow, spread over all of it.
  std::vector<size_t> n_taken(texts.size());
  size_t n_free = max_tokens / window, n_rounds = 0;
  for (bool has_taken = true; has_taken && n_free > 0; n_rounds += has_taken) {
    has_taken = false;
    for (size_t i = 0; i < texts.size() && n_free > 0; ++i) {
      if ((n_taken[i] + 1) * step > texts[i].size()) continue;
      ++n_taken[i];
      --n_free;
      has_taken = true;
    }
  }
  CalibrationTokens tokens{window, {}, 0};
  for (size_t turn = 0; turn < n_rounds; ++turn)
    for (size_t i = 0; i < texts.size(); ++i) {
      if (turn >= n_taken[i]) continue;
      const size_t n_there = texts[i].size() / step;
      const auto from = texts[i].begin() + static_cast<ptrdiff_t>(turn * n_there / n_taken[i] * step);
      if (n_bos > 0) tokens.ids.push_back(first_id);
      tokens.ids.insert(tokens.ids.end(), from, from + static_cast<ptrdiff_t>(step));
    }
  if (tokens.ids.empty())
    throw_error(ErrorCode::kInvalidArgument, "calibration text: no text of {} tokens, the length of a window",
                step);
  // One window in 16 is held out, at the end.
  const size_t n_windows = tokens.ids.size() / window;
  if (n_windows >= 4)
    tokens.n_held_out = static_cast<uint32_t>(std::clamp<size_t>(n_windows / 16, 1, kMaxHeldOut));
  return tokens;
}

namespace {

// Of both streams, a token.
uint64_t token_bytes(const ModelSpec& spec) {
  const uint64_t widest = std::max({spec.dim, spec.ffn_dim, spec.q_rows()});
  return sizeof(float) * 2 * (spec.dim + widest + (spec.n_experts > 0 ? 2 * uint64_t{spec.dim} : 0));
}

// The square in float32, the weights, a byte for each code; and a correction: four stripes, and room for a gap (correction.cpp).
uint64_t largest_matrix_bytes(const ModelSpec& spec) {
  const auto bytes_of = [](uint64_t n_rows, uint64_t n_cols) {
    return 4 * n_cols * n_cols + 5 * n_rows * n_cols + 3 * 4 * 1024 * n_cols;
  };
  return std::max({bytes_of(spec.q_rows() + 2 * spec.kv_rows(), spec.dim), bytes_of(spec.dim, spec.q_rows()),
                   bytes_of(2 * spec.ffn_padded(), spec.dim), bytes_of(spec.dim, spec.ffn_dim)});
}

}  // namespace

uint64_t calibration_bytes(const ModelSpec& spec, uint32_t n_tokens) {
  return token_bytes(spec) * n_tokens + largest_matrix_bytes(spec);
}

uint32_t affordable_tokens(const ModelSpec& spec, uint32_t wanted) {
  const uint64_t matrix = largest_matrix_bytes(spec);
  const uint64_t streams = std::min(kMaxStreamBytes, kMaxBytes > matrix ? kMaxBytes - matrix : 0);
  const uint64_t affordable = std::max<uint64_t>(streams / token_bytes(spec), kMinTokens);
  return static_cast<uint32_t>(std::min<uint64_t>(wanted, affordable));
}

std::vector<int32_t> distinct_ids(const CalibrationTokens& tokens) {
  std::vector<int32_t> ids = tokens.ids;
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

Calibration::Calibration(const ModelSpec& spec, CalibrationTokens tokens, const Products& products)
    : spec_(spec),
      tokens_(std::move(tokens)),
      n_tokens_(static_cast<uint32_t>(tokens_.ids.size())),
      n_counted_(n_tokens_ - tokens_.n_held_out * tokens_.window),
      products_(products),
      forward_(spec, tokens_.window, products) {
  original_.residual.resize(size_t{n_tokens_} * spec.dim);
  quantized_.residual.resize(size_t{n_tokens_} * spec.dim);
}

void Calibration::begin_layer(uint32_t layer, LayerVectors vectors) {
  forward_.begin_layer(layer, std::move(vectors));
  forward_.prepare(original_);
  forward_.prepare(quantized_);
  layer_h_ = {};
}

Hessian Calibration::hessian(Step step) {
  if (step.is_expert(spec_)) return expert_hessian(step);
  const uint32_t n = forward_.n_inputs(step.part);
  Hessian hessian{n, std::vector<float>(size_t{n} * n)};
  const float* const x = quantized_.input.data();
  products_.mean_products(x, nullptr, x, n_counted_, n, n, 1, hessian.values.data());
  return hessian;
}

Drift Calibration::drift(Step step) const {
  Drift drift;
  drift.n_cols = forward_.n_inputs(step.part);
  if (step.is_expert(spec_)) {
    drift.n_tokens = static_cast<uint32_t>(expert_quantized_.size() / drift.n_cols);
    drift.original = expert_original_.data();
    drift.quantized = expert_quantized_.data();
    drift.weight = expert_weight_;
    return drift;
  }
  drift.n_tokens = n_counted_;
  drift.original = original_.input.data();
  drift.quantized = quantized_.input.data();
  // A norm between the output and the residual stream leaves no linear map to correct by.
  if (forward_.is_added(step)) {
    drift.residual_original = original_.residual.data();
    drift.residual_quantized = quantized_.residual.data();
    drift.gap_scale = 1 / double{spec_.residual_scale};
  }
  return drift;
}

// The prior weighs as much as kPriorTokens times the number of inputs: of what all tokens of the layer give for gate and up,
// of independent inputs for down, whose inputs no other expert shares.
Hessian Calibration::expert_hessian(Step step) {
  const uint32_t n = forward_.n_inputs(step.part);
  const bool is_down = step.part == Part::kDown;
  const std::vector<Stream::Routed>&routed = quantized_.routed[step.expert],
        &routed_original = original_.routed[step.expert];
  std::vector<float>&x = expert_original_, &y = expert_quantized_;
  x.clear();
  y.clear();
  double square = 0;
  size_t n_rows = 0, other = 0;
  for (; n_rows < routed.size() && routed[n_rows].token < n_counted_; ++n_rows) {
    const auto [token, share] = routed[n_rows];
    while (other < routed_original.size() && routed_original[other].token < token) ++other;
    const bool is_in_both = other < routed_original.size() && routed_original[other].token == token;
    const float* const of_quantized = quantized_.input.data() + n_rows * n;
    const float* const of_original = !is_down     ? original_.normed.data() + size_t{token} * n
                                     : is_in_both ? original_.input.data() + other * n
                                                  : of_quantized;
    for (uint32_t c = 0; c < n; ++c) {
      x.push_back(share * of_original[c]);
      y.push_back(share * of_quantized[c]);
    }
    square += double{share} * share;
  }
  Hessian result{n, std::vector<float>(size_t{n} * n)};
  const double scale = n_rows > 0 ? static_cast<double>(n_rows) / square : 0;  // as if shares were 1
  if (n_rows > 0)
    products_.mean_products(y.data(), nullptr, y.data(), static_cast<uint32_t>(n_rows), n, n, scale,
                            result.values.data());
  if (!is_down && layer_h_.empty()) {
    layer_h_.resize(size_t{n} * n);
    const float* const normed = quantized_.normed.data();
    products_.mean_products(normed, nullptr, normed, n_counted_, n, n, 1, layer_h_.data());
  }
  const double mean = result.mean_diagonal();
  const float own =
      static_cast<float>(static_cast<double>(n_rows) / (static_cast<double>(n_rows) + kPriorTokens * n));
  for (size_t i = 0; i < result.values.size(); ++i) {
    const float prior = !is_down           ? layer_h_[i]
                        : i % (n + 1) == 0 ? static_cast<float>(mean > 0 ? mean : 1)
                                           : 0;
    result.values[i] = own * result.values[i] + (1 - own) * prior;
  }
  expert_weight_ = scale * double{own};
  return result;
}

void Calibration::apply_original(Step step, const std::vector<float>& weights) {
  const Stopwatch stopwatch;
  forward_.apply(step, original_, weights);
  original_time_ += stopwatch.elapsed();
}

void Calibration::apply_quantized(Step step, const std::vector<float>& weights) {
  forward_.apply(step, quantized_, weights);
}

Divergence Calibration::held_out(const std::vector<float>& norm, const std::vector<float>& head_original,
                                 const std::vector<float>& head_quantized) const {
  Divergence sums;
  if (n_counted_ == n_tokens_) return sums;
  std::vector<float> p, q;
  const ProductMatrix original = products_.keep(head_original.data(), spec_.vocab_size, spec_.dim),
                      quantized = products_.keep(head_quantized.data(), spec_.vocab_size, spec_.dim);
  for (uint32_t begin = n_counted_; begin < n_tokens_; begin += tokens_.window) {
    const size_t at = size_t{begin} * spec_.dim;
    forward_.logits(original_.residual.data() + at, tokens_.window, norm, original, p);
    log_probabilities(p, spec_.vocab_size, products_.n_threads());
    forward_.logits(quantized_.residual.data() + at, tokens_.window, norm, quantized, q);
    add_divergence(p, q, spec_.vocab_size, tokens_.ids.data() + begin + 1, products_.n_threads(), sums);
  }
  return sums;
}

}  // namespace pith
