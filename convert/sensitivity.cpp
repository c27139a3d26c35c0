#include "convert/sensitivity.h"

#include <algorithm>
#include <cmath>

#include "convert/gemm.h"

namespace pith {

namespace {

constexpr uint32_t kMaxTokens = 2048;
constexpr uint64_t kMaxStreamBytes = uint64_t{2} << 30;
constexpr uint32_t kSampleRows = 64;  // of a matrix, for its errors

CalibrationTokens first_windows(const ModelSpec& spec, const CalibrationTokens& tokens) {
  const uint64_t token_bytes = sizeof(float) * spec.dim * (4 * uint64_t{spec.n_layers} + 1);
  const uint64_t n = std::min<uint64_t>(kMaxTokens, kMaxStreamBytes / token_bytes) / tokens.window;
  const size_t n_windows = std::clamp<size_t>(n, 1, tokens.n_windows() - tokens.n_held_out);
  CalibrationTokens some{tokens.window, {}, 0};
  some.ids.assign(tokens.ids.begin(), tokens.ids.begin() + static_cast<ptrdiff_t>(n_windows * tokens.window));
  return some;
}

// Rows of m [n_rows, n_cols] at even distances.
std::vector<float> sample(const std::vector<float>& m, uint32_t n_cols, uint32_t n_wanted) {
  const size_t n_rows = m.size() / n_cols, n = std::min<size_t>(n_wanted, n_rows);
  std::vector<float> rows;
  for (size_t i = 0; i < n; ++i) {
    const auto row = m.begin() + static_cast<ptrdiff_t>(i * n_rows / n * n_cols);
    rows.insert(rows.end(), row, row + n_cols);
  }
  return rows;
}

// tr(X H X') of the rows of x.
double weighted_square(const std::vector<float>& x, const Hessian& hessian, uint32_t n_threads) {
  const uint32_t n = hessian.n_cols, n_rows = static_cast<uint32_t>(x.size() / n);
  std::vector<float> product(x.size());
  multiply_transposed(x.data(), n_rows, n, hessian.values.data(), n, product.data(), n_threads);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += double{x[i]} * double{product[i]};
  return sum;
}

Hessian second_moments(const std::vector<float>& x, uint32_t n, uint32_t n_threads) {
  const uint32_t n_tokens = static_cast<uint32_t>(x.size() / n);
  std::vector<double> sums(size_t{n} * n);
  accumulate_products(x.data(), nullptr, x.data(), n_tokens, n, n, sums.data(), n_threads);
  Hessian hessian{n, std::vector<float>(sums.size())};
  for (size_t i = 0; i < sums.size(); ++i) hessian.values[i] = static_cast<float>(sums[i] / n_tokens);
  return hessian;
}

}  // namespace

std::vector<Candidate> LossCurve::candidates(bool with_fine) const {
  const uint32_t padded_cols = (n_cols + q24::kColAlign - 1) / q24::kColAlign * q24::kColAlign;
  std::vector<Candidate> all;
  for (const Family& family : families)
    for (uint32_t n_fine = 0; n_fine <= padded_cols; n_fine += family.group) {
      if (n_fine > 0 && !with_fine) break;
      if (family.n_slots > padded_cols - n_fine) break;
      // Pads are the last columns: they are paid as 4-bit ones, but serve nothing.
      const uint32_t n_pads = padded_cols - n_cols, n_real = n_fine > n_pads ? n_fine - n_pads : 0;
      const double share = static_cast<double>(n_real) / n_cols;
      size_t i = 1;
      while (i + 1 < std::size(kFineShares) && share > kFineShares[i]) ++i;
      const double at = (share - kFineShares[i - 1]) / (kFineShares[i] - kFineShares[i - 1]);
      const double error =
          std::exp((1 - at) * std::log(family.errors[i - 1]) + at * std::log(family.errors[i]));
      all.push_back({{n_rows, n_cols, family.group, n_fine, family.n_slots}, kl * error / kl_error});
    }
  return all;
}

SensitivityRun::SensitivityRun(const ModelSpec& spec, const CalibrationTokens& tokens,
                               SensitivityOptions options, uint32_t n_threads)
    : spec_(spec),
      steps_(layer_steps(spec)),
      tokens_(first_windows(spec, tokens)),
      options_(std::move(options)),
      n_threads_(n_threads),
      n_tokens_(static_cast<uint32_t>(tokens_.ids.size())),
      forward_(spec, tokens_.window, n_threads),
      untouched_(size_t{n_tokens_} * spec.dim) {}

void SensitivityRun::run(std::vector<float>& residual, const std::vector<std::vector<float>>& weights,
                         size_t changed, const std::vector<float>& rounded) {
  Stream stream;
  stream.residual = std::move(residual);
  forward_.prepare(stream);
  for (size_t i = 0; i < steps_.size(); ++i)
    forward_.apply(steps_[i], stream, i == changed ? rounded : weights[i]);
  residual = std::move(stream.residual);
}

void SensitivityRun::run_layer(uint32_t layer, LayerVectors vectors,
                               const std::vector<std::vector<float>>& weights) {
  forward_.begin_layer(layer, std::move(vectors));
  for (std::vector<float>& residual : touched_) run(residual, weights, steps_.size(), {});
  Stream stream;
  stream.residual = untouched_;
  forward_.prepare(stream);
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (options_.groups.empty()) {
      forward_.apply(steps_[i], stream, weights[i]);
      continue;
    }
    const uint32_t n_cols = forward_.n_inputs(steps_[i].part), n_rows = forward_.n_outputs(steps_[i].part);
    QuantizeOptions rough;
    rough.group = 32;
    const std::vector<float> rounded =
        dequantize(quantize(weights[i], n_rows, n_cols, nullptr, rough, n_threads_).tensor, n_threads_);
    curves_.push_back(measure(weights[i], rounded, n_cols, second_moments(stream.input, n_cols, n_threads_)));
    touched_.push_back(untouched_);
    run(touched_.back(), weights, i, rounded);
    forward_.apply(steps_[i], stream, weights[i]);
  }
  untouched_ = std::move(stream.residual);
}

LossCurve SensitivityRun::measure(const std::vector<float>& weights, const std::vector<float>& rounded,
                                  uint32_t n_cols, const Hessian& hessian) const {
  LossCurve curve;
  curve.n_rows = static_cast<uint32_t>(weights.size() / n_cols);
  curve.n_cols = n_cols;
  const std::vector<float> w = sample(weights, n_cols, kSampleRows);
  std::vector<float> e = sample(rounded, n_cols, kSampleRows);
  for (size_t i = 0; i < e.size(); ++i) e[i] -= w[i];
  const double norm = weighted_square(w, hessian, n_threads_);
  const auto at_least = [](double error) { return std::max(error, 1e-12); };
  curve.kl_error = at_least(norm > 0 ? weighted_square(e, hessian, n_threads_) / norm : 0);

  const uint32_t n_rows = static_cast<uint32_t>(w.size() / n_cols);
  const uint32_t padded_cols = (n_cols + q24::kColAlign - 1) / q24::kColAlign * q24::kColAlign;
  QuantizeOptions options = options_.quantize;
  options.descent_rounds = 0;
  // From fewer tokens than this the compensation would fit the noise of the sample, and look too good.
  options.compensate = options.compensate && n_tokens_ >= 2 * n_cols;
  const bool is_known = norm > 0;
  const auto error_of = [&](uint32_t group, double fine_share, uint32_t n_slots) {
    options.group = group;
    options.n_fine = static_cast<uint32_t>(fine_share * padded_cols) / group * group;
    options.n_slots = n_slots;
    return at_least(
        is_known ? quantize(w, n_rows, n_cols, &hessian, options, n_threads_).report.relative_error : 0);
  };
  for (const uint32_t group : options_.groups) {
    LossCurve::Family plain{group, 0, {}};
    for (const double share : LossCurve::kFineShares) plain.errors.push_back(error_of(group, share, 0));
    for (const double outliers : options_.outlier_shares) {
      const uint32_t n_slots = static_cast<uint32_t>(std::lround(outliers * n_cols));
      if (n_slots == 0) {
        curve.families.push_back(plain);
        continue;
      }
      // What outliers remove they remove from the 2-bit columns.
      LossCurve::Family with = plain;
      with.n_slots = n_slots;
      const double factor = error_of(group, LossCurve::kFineShares[1], n_slots) / plain.errors[1];
      for (size_t i = 0; i + 1 < with.errors.size(); ++i) with.errors[i] *= factor;
      curve.families.push_back(with);
    }
  }
  return curve;
}

std::vector<LossCurve> SensitivityRun::finish(const std::vector<float>& norm,
                                              const std::vector<float>& head) {
  std::vector<Divergence> sums(touched_.size());
  std::vector<float> p, q;
  const uint32_t window = tokens_.window;
  for (uint32_t begin = 0; begin < n_tokens_; begin += window) {
    const size_t at = size_t{begin} * spec_.dim;
    forward_.logits(untouched_.data() + at, window, norm, head, p);
    log_probabilities(p, spec_.vocab_size, n_threads_);
    for (size_t i = 0; i < touched_.size(); ++i) {
      forward_.logits(touched_[i].data() + at, window, norm, head, q);
      add_divergence(p, q, spec_.vocab_size, tokens_.ids.data() + begin + 1, n_threads_, sums[i]);
    }
  }
  for (size_t i = 0; i < curves_.size(); ++i)
    curves_[i].kl = std::max(sums[i].kl, 0.0) / static_cast<double>(sums[i].n_tokens);
  return std::move(curves_);
}

Hessian SensitivityRun::head_hessian(const std::vector<float>& norm) const {
  std::vector<float> input(untouched_.size());
  forward_.normalize(untouched_.data(), n_tokens_, norm, input.data());
  return second_moments(input, spec_.dim, n_threads_);
}

}  // namespace pith
