#include "convert/calibration.h"

#include <algorithm>
#include <chrono>

#include "convert/gemm.h"
#include "format/error.h"
#include "format/utf8.h"

namespace pith {

namespace {

constexpr size_t kMaxHeldOut = 16;  // windows
constexpr uint64_t kMaxStreamBytes = uint64_t{4} << 30;

// E over n rows of (x - minus) y', as floats.
std::vector<float> mean_products(const float* x, const float* minus, const float* y, uint32_t n, uint32_t n_x,
                                 uint32_t n_y, double scale, uint32_t n_threads) {
  std::vector<double> sums(size_t{n_x} * n_y);
  accumulate_products(x, minus, y, n, n_x, n_y, sums.data(), n_threads);
  std::vector<float> means(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) means[i] = static_cast<float>(sums[i] / n * scale);
  return means;
}

}  // namespace

CalibrationTokens calibration_tokens(const std::vector<std::string>& texts, const Tokenizer& tokenizer,
                                     uint32_t window, uint32_t max_tokens) {
  const uint32_t n_bos = tokenizer.first_id() >= 0 ? 1 : 0;
  const size_t step = window - n_bos;
  std::vector<std::vector<int32_t>> encoded;
  size_t n_all = 0;
  for (const std::string& text : texts) {
    if (!is_valid_utf8(text))
      throw_error(ErrorCode::kInvalidArgument, "calibration text {}: not UTF-8", encoded.size());
    encoded.push_back(tokenizer.encode(text, {}));
    n_all += encoded.back().size();
  }
  if (n_all < kMinCalibrationTokens)
    throw_error(ErrorCode::kInvalidArgument, "calibration text: {} tokens, expected at least {}", n_all,
                kMinCalibrationTokens);
  CalibrationTokens tokens{window, {}, 0};
  for (size_t at = 0, n_added = 1; n_added > 0; at += step) {
    n_added = 0;
    for (const std::vector<int32_t>& ids : encoded) {
      if (at + step > ids.size() || tokens.ids.size() + window > max_tokens) continue;
      if (n_bos > 0) tokens.ids.push_back(tokenizer.first_id());
      tokens.ids.insert(tokens.ids.end(), ids.begin() + static_cast<ptrdiff_t>(at),
                        ids.begin() + static_cast<ptrdiff_t>(at + step));
      ++n_added;
    }
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

uint32_t affordable_tokens(const ModelSpec& spec, uint32_t wanted) {
  const uint64_t widest = std::max({spec.dim, spec.ffn_dim, spec.q_rows()});
  const uint64_t affordable = kMaxStreamBytes / (sizeof(float) * 2 * (spec.dim + widest));
  return static_cast<uint32_t>(std::min<uint64_t>(wanted, std::max<uint64_t>(affordable, 4096)));
}

std::vector<int32_t> distinct_ids(const CalibrationTokens& tokens) {
  std::vector<int32_t> ids = tokens.ids;
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

Calibration::Calibration(const ModelSpec& spec, CalibrationTokens tokens, uint32_t n_threads)
    : spec_(spec),
      tokens_(std::move(tokens)),
      n_tokens_(static_cast<uint32_t>(tokens_.ids.size())),
      n_counted_(n_tokens_ - tokens_.n_held_out * tokens_.window),
      n_threads_(n_threads),
      forward_(spec, tokens_.window, n_threads) {
  original_.residual.resize(size_t{n_tokens_} * spec.dim);
  quantized_.residual.resize(size_t{n_tokens_} * spec.dim);
}

void Calibration::begin_layer(uint32_t layer, LayerVectors vectors) {
  forward_.begin_layer(layer, std::move(vectors));
  forward_.prepare(original_);
  forward_.prepare(quantized_);
}

InputStatistics Calibration::statistics_of(const std::vector<float>& original,
                                           const std::vector<float>& quantized, uint32_t n,
                                           bool is_added) const {
  InputStatistics result{n, {}, {}, {}};
  const float *x = original.data(), *y = quantized.data();
  result.h = mean_products(y, nullptr, y, n_counted_, n, n, 1, n_threads_);
  result.gap = mean_products(x, y, y, n_counted_, n, n, 1, n_threads_);
  // A norm between the output and the residual stream leaves no linear map to correct by.
  if (is_added)
    result.residual_gap = mean_products(original_.residual.data(), quantized_.residual.data(), y, n_counted_,
                                        spec_.dim, n, 1 / double{spec_.residual_scale}, n_threads_);
  return result;
}

InputStatistics Calibration::input_statistics(Part part) const {
  return statistics_of(original_.input, quantized_.input, forward_.n_inputs(part), forward_.is_added(part));
}

InputStatistics Calibration::head_statistics(const std::vector<float>& norm) const {
  std::vector<float> inputs[2];
  for (const bool is_original : {true, false}) {
    inputs[is_original ? 0 : 1].resize(original_.residual.size());
    forward_.normalize((is_original ? original_ : quantized_).residual.data(), n_tokens_, norm,
                       inputs[is_original ? 0 : 1].data());
  }
  return statistics_of(inputs[0], inputs[1], spec_.dim, false);
}

void Calibration::apply(Part part, const std::vector<float>& original, const std::vector<float>& quantized) {
  const auto start = std::chrono::steady_clock::now();
  forward_.apply(part, original_, original);
  original_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  forward_.apply(part, quantized_, quantized);
}

Divergence Calibration::held_out(const std::vector<float>& norm, const std::vector<float>& head_original,
                                 const std::vector<float>& head_quantized) const {
  Divergence sums;
  std::vector<float> p, q;
  for (uint32_t begin = n_counted_; begin < n_tokens_; begin += tokens_.window) {
    const size_t at = size_t{begin} * spec_.dim;
    forward_.logits(original_.residual.data() + at, tokens_.window, norm, head_original, p);
    log_probabilities(p, spec_.vocab_size, n_threads_);
    forward_.logits(quantized_.residual.data() + at, tokens_.window, norm, head_quantized, q);
    add_divergence(p, q, spec_.vocab_size, tokens_.ids.data() + begin + 1, n_threads_, sums);
  }
  return sums;
}

}  // namespace pith
