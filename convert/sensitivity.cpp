// A layer with its streams: the untouched one forks at every matrix, which is rounded for that one stream and
// read again.
#include "convert/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "convert/divergence.h"
#include "convert/gemm.h"
#include "convert/quantizer_columns.h"

namespace pith {

namespace {

constexpr uint32_t kMaxTokens = 1024;
constexpr uint64_t kMaxStreamBytes = uint64_t{2} << 30;
constexpr uint32_t kSampleRows = 64;  // of a matrix, for its errors

// Of those that take part in the statistics, spread over all of them.
CalibrationTokens some_windows(const ModelSpec& spec, const CalibrationTokens& tokens) {
  const uint64_t token_bytes = sizeof(float) * spec.dim * (4 * uint64_t{spec.n_layers} + 1);
  const uint64_t n = std::min<uint64_t>(kMaxTokens, kMaxStreamBytes / token_bytes) / tokens.window;
  const size_t n_all = tokens.n_windows() - tokens.n_held_out, n_windows = std::clamp<size_t>(n, 1, n_all);
  CalibrationTokens some{tokens.window, {}, 0};
  for (size_t i = 0; i < n_windows; ++i) {
    const auto from = tokens.ids.begin() + static_cast<ptrdiff_t>(i * n_all / n_windows * tokens.window);
    some.ids.insert(some.ids.end(), from, from + static_cast<ptrdiff_t>(tokens.window));
  }
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

// Mean over the rows of input of |x E'|^2, E the rows of errors: tr(E H E'), undamped. A few rows: on the CPU, sending the input elsewhere
// takes as long.
double weighted_square(const std::vector<float>& errors, const std::vector<float>& input, uint32_t n_cols,
                       uint32_t n_threads) {
  const uint32_t n_rows = static_cast<uint32_t>(errors.size() / n_cols),
                 n_tokens = static_cast<uint32_t>(input.size() / n_cols);
  std::vector<float> product(size_t{n_tokens} * n_rows);
  multiply_transposed(input.data(), n_tokens, n_cols, errors.data(), n_rows, product.data(), n_threads);
  double sum = 0;
  for (const float value : product) sum += double{value} * double{value};
  return sum / n_tokens;
}

double at_least(double error) {
  return std::max(error, 1e-12);
}

Hessian second_moments(const std::vector<float>& x, uint32_t n, const Products& products) {
  Hessian hessian{n, std::vector<float>(size_t{n} * n)};
  products.mean_products(x.data(), nullptr, x.data(), static_cast<uint32_t>(x.size() / n), n, n, 1,
                         hessian.values.data());
  return hessian;
}

}  // namespace

std::vector<Candidate> LossCurve::candidates(bool with_fine) const {
  const uint32_t padded_cols = q24::padded_cols(n_cols);
  std::vector<Candidate> all;
  for (const ShapeFamily& family : families)
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
                               SensitivityOptions options, const Products& products)
    : spec_(spec),
      steps_(layer_steps(spec)),
      tokens_(some_windows(spec, tokens)),
      options_(std::move(options)),
      products_(products),
      n_threads_(products.n_threads()),
      n_tokens_(static_cast<uint32_t>(tokens_.ids.size())),
      forward_(spec, tokens_.window, products),
      untouched_(size_t{n_tokens_} * spec.dim) {}

void SensitivityRun::run(std::vector<float>& residual, const std::vector<ProductMatrix>& weights) {
  Stream stream;
  stream.residual = std::move(residual);
  forward_.prepare(stream);
  for (size_t i = 0; i < steps_.size(); ++i) forward_.apply(steps_[i], stream, weights[i]);
  residual = std::move(stream.residual);
}

void SensitivityRun::run_layer(uint32_t layer, LayerVectors vectors,
                               const std::function<std::vector<float>(size_t step)>& read) {
  forward_.begin_layer(layer, std::move(vectors));
  std::vector<std::vector<float>> weights;
  std::vector<ProductMatrix> matrices(steps_.size());
  // With streams beside the untouched one each is used many times; otherwise once.
  const auto keep = [&](size_t i) {
    const uint32_t n_rows = forward_.n_outputs(steps_[i].part), n_cols = forward_.n_inputs(steps_[i].part);
    matrices[i] = {weights[i].data(), n_rows, n_cols, nullptr};
    if (!options_.groups.empty()) matrices[i] = products_.keep(weights[i].data(), n_rows, n_cols);
  };
  for (size_t i = 0; i < steps_.size(); ++i) weights.push_back(read(i));
  for (size_t i = 0; i < steps_.size(); ++i) keep(i);
  for (std::vector<float>& residual : touched_) run(residual, matrices);
  Stream stream;
  stream.residual = untouched_;
  forward_.prepare(stream);
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (!options_.groups.empty()) {
      const uint32_t n_cols = forward_.n_inputs(steps_[i].part), n_rows = forward_.n_outputs(steps_[i].part);
      curves_.push_back(measure(weights[i], n_cols, stream.input));
      QuantizeOptions rough;
      rough.group = 32;
      q24::Unpacked rounded = quantize(weights[i], n_rows, Metric(n_cols), rough, n_threads_).tensor;
      const std::vector<float> exact = sample(weights[i], n_cols, kSampleRows);
      weights[i] = {};
      weights[i] = dequantize(rounded, n_threads_);
      rounded = {};
      std::vector<float> error = sample(weights[i], n_cols, kSampleRows);
      for (size_t k = 0; k < error.size(); ++k) error[k] -= exact[k];
      const double norm = weighted_square(exact, stream.input, n_cols, n_threads_);
      curves_.back().kl_error =
          at_least(norm > 0 ? weighted_square(error, stream.input, n_cols, n_threads_) / norm : 0);
      touched_.push_back(untouched_);
      keep(i);
      run(touched_.back(), matrices);
      weights[i] = {};
      weights[i] = read(i);
      keep(i);
    }
    forward_.apply(steps_[i], stream, matrices[i]);
  }
  untouched_ = std::move(stream.residual);
}

// Errors of a sample of the rows in every family.
LossCurve SensitivityRun::measure(const std::vector<float>& weights, uint32_t n_cols,
                                  const std::vector<float>& input) const {
  LossCurve curve;
  curve.n_rows = static_cast<uint32_t>(weights.size() / n_cols);
  curve.n_cols = n_cols;
  const std::vector<float> w = sample(weights, n_cols, kSampleRows);
  const uint32_t n_rows = static_cast<uint32_t>(w.size() / n_cols);
  const uint32_t padded_cols = q24::padded_cols(n_cols);
  QuantizeOptions options = options_.quantize;
  options.descent_rounds = 0;
  // From fewer tokens than this the compensation would fit the noise of the sample, and look too good. Then a square of
  // n_cols^2, rank n_tokens, has nothing to say that its diagonals and the tokens do not.
  options.compensate = options.compensate && n_tokens_ >= 2 * n_cols;
  const double norm = weighted_square(w, input, n_cols, n_threads_);
  Metric metric(n_cols);
  if (norm > 0)
    metric = options.compensate ? Metric(second_moments(input, n_cols, products_), options.damping,
                                         options.shrinkage, n_threads_)
                                : Metric::of_samples(input, n_cols, options.damping, products_);
  // Shapes differ in the order of the columns or not, and only orders cost a factorization.
  std::map<std::vector<uint32_t>, Arrangement> arrangements;
  const auto error_of = [&](uint32_t group, double fine_share, uint32_t n_slots) {
    if (norm == 0) return at_least(0);
    options.group = group;
    options.n_fine = static_cast<uint32_t>(fine_share * padded_cols) / group * group;
    options.n_slots = n_slots;
    const std::vector<uint32_t> columns = order_columns(w, n_rows, metric, options);
    auto found = arrangements.find(columns);
    if (found == arrangements.end())
      found = arrangements.emplace(columns, arrange(w, n_rows, columns, metric, options)).first;
    const QuantizeResult result = quantize(w, n_rows, found->second, options, n_threads_);
    if (metric.is_dense()) return at_least(result.report.relative_error);
    std::vector<float> error = dequantize(result.tensor, n_threads_);
    for (size_t i = 0; i < error.size(); ++i) error[i] -= w[i];
    return at_least(weighted_square(error, input, n_cols, n_threads_) / norm);
  };
  for (const uint32_t group : options_.groups) {
    LossCurve::ShapeFamily plain{group, 0, {}};
    for (const double share : LossCurve::kFineShares) plain.errors.push_back(error_of(group, share, 0));
    for (const double outliers : options_.outlier_shares) {
      const uint32_t n_slots = static_cast<uint32_t>(std::lround(outliers * n_cols));
      if (n_slots == 0) {
        curve.families.push_back(plain);
        continue;
      }
      // What outliers remove they remove from the 2-bit columns.
      LossCurve::ShapeFamily with = plain;
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
  const ProductMatrix kept = products_.keep(head.data(), spec_.vocab_size, spec_.dim);
  for (uint32_t begin = 0; begin < n_tokens_; begin += window) {
    const size_t at = size_t{begin} * spec_.dim;
    forward_.logits(untouched_.data() + at, window, norm, kept, p);
    log_probabilities(p, spec_.vocab_size, n_threads_);
    for (size_t i = 0; i < touched_.size(); ++i) {
      forward_.logits(touched_[i].data() + at, window, norm, kept, q);
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
  return second_moments(input, spec_.dim, products_);
}

}  // namespace pith
