#include "convert/calibration.h"

#include <algorithm>
#include <cmath>

#include "convert/factor.h"
#include "convert/gemm.h"
#include "format/error.h"
#include "format/utf8.h"
#include "runtime/cpu/kernels.h"

namespace pith {

namespace {

constexpr uint32_t kTokensPerTask = 64;
constexpr size_t kMaxHeldOut = 16;  // windows

uint32_t n_tasks(uint32_t n_tokens) {
  return (n_tokens + kTokensPerTask - 1) / kTokensPerTask;
}

// Calls body(token) for every token, on all threads.
template <typename Body>
void for_tokens(uint32_t n_tokens, uint32_t n_threads, Body&& body) {
  parallel_for(n_tasks(n_tokens), n_threads, [&](uint32_t task) {
    const uint32_t end = std::min(n_tokens, (task + 1) * kTokensPerTask);
    for (uint32_t t = task * kTokensPerTask; t < end; ++t) body(t);
  });
}

double log_sum_exp(const float* x, size_t n) {
  const double top = double{*std::max_element(x, x + n)};
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += std::exp(double{x[i]} - top);
  return top + std::log(sum);
}

const cpu::Kernels& kernels() {
  static const cpu::Kernels& best = cpu::select_kernels("auto");
  return best;
}

}  // namespace

CalibrationTokens calibration_tokens(const std::vector<std::string>& texts, const Tokenizer& tokenizer,
                                     uint32_t window, uint32_t max_tokens) {
  // Texts take turns, a window each, so that a cap on tokens leaves every text its share.
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

Calibration::Calibration(const ModelSpec& spec, CalibrationTokens tokens, uint32_t n_threads)
    : spec_(spec),
      tokens_(std::move(tokens)),
      n_tokens_(static_cast<uint32_t>(tokens_.ids.size())),
      n_counted_(n_tokens_ - tokens_.n_held_out * tokens_.window),
      n_threads_(n_threads) {
  original_.residual.resize(size_t{n_tokens_} * spec.dim);
  quantized_.residual.resize(size_t{n_tokens_} * spec.dim);
  for (const RopeSpec& rope : spec.ropes) {
    std::vector<float> cosines, sines;
    for (uint32_t p = 0; p < tokens_.window; ++p)
      for (const float f : rope.inv_freq) {
        cosines.push_back(static_cast<float>(std::cos(double{f} * p) * double{rope.scale}));
        sines.push_back(static_cast<float>(std::sin(double{f} * p) * double{rope.scale}));
      }
    cos_.push_back(std::move(cosines));
    sin_.push_back(std::move(sines));
  }
}

std::vector<int32_t> Calibration::distinct_ids() const {
  std::vector<int32_t> ids = tokens_.ids;
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

void Calibration::normalize(Stream& stream, const std::vector<float>& norm) const {
  stream.input.resize(stream.residual.size());
  for_tokens(n_tokens_, n_threads_, [&](uint32_t t) {
    const size_t at = size_t{t} * spec_.dim;
    kernels().rms_norm(stream.residual.data() + at, norm.data(), spec_.dim, spec_.norm_eps,
                       stream.input.data() + at);
  });
}

std::vector<float> Calibration::times(const Stream& stream, uint32_t n, const std::vector<float>& w,
                                      uint32_t n_rows, const std::vector<float>& bias) const {
  std::vector<float> y(size_t{n_tokens_} * n_rows);
  multiply_transposed(stream.input.data(), n_tokens_, n, w.data(), n_rows, y.data(), n_threads_);
  if (!bias.empty())
    for_tokens(n_tokens_, n_threads_, [&](uint32_t t) {
      for (uint32_t r = 0; r < n_rows; ++r) y[size_t{t} * n_rows + r] += bias[r];
    });
  return y;
}

void Calibration::add_to_residual(Stream& stream, std::vector<float> branch,
                                  const std::vector<float>& post_norm) const {
  for_tokens(n_tokens_, n_threads_, [&](uint32_t t) {
    float* const row = branch.data() + size_t{t} * spec_.dim;
    if (!post_norm.empty()) kernels().rms_norm(row, post_norm.data(), spec_.dim, spec_.norm_eps, row);
    for (uint32_t c = 0; c < spec_.dim; ++c)
      stream.residual[size_t{t} * spec_.dim + c] += row[c] * spec_.residual_scale;
  });
}

uint32_t Calibration::n_inputs(Part part) const {
  if (part == Part::kAttnOut) return spec_.q_rows();
  return part == Part::kDown ? spec_.ffn_dim : spec_.dim;
}

InputStatistics Calibration::input_statistics(Part part) const {
  const uint32_t n = n_inputs(part);
  InputStatistics result{n, std::vector<double>(size_t{n} * n), std::vector<double>(size_t{n} * n), {}};
  const float* const x = quantized_.input.data();
  accumulate_products(x, x, n_counted_, n, n, result.h.data(), n_threads_);
  accumulate_products(original_.input.data(), x, n_counted_, n, n, result.cross.data(), n_threads_);
  for (double& value : result.h) value /= n_counted_;
  for (double& value : result.cross) value /= n_counted_;
  // A norm between the output and the residual stream leaves no linear map to correct by.
  const bool is_added = (part == Part::kAttnOut && vectors_.attn_post_norm.empty()) ||
                        (part == Part::kDown && vectors_.ffn_post_norm.empty());
  if (is_added) {
    std::vector<float> gap(size_t{n_counted_} * spec_.dim);
    for (size_t i = 0; i < gap.size(); ++i) gap[i] = original_.residual[i] - quantized_.residual[i];
    result.residual_cross.resize(size_t{spec_.dim} * n);
    accumulate_products(gap.data(), x, n_counted_, spec_.dim, n, result.residual_cross.data(), n_threads_);
    for (double& value : result.residual_cross)
      value /= static_cast<double>(n_counted_) * double{spec_.residual_scale};
  }
  return result;
}

void Calibration::begin_layer(uint32_t layer, LayerVectors vectors) {
  layer_ = layer;
  vectors_ = std::move(vectors);
  normalize(original_, vectors_.attn_norm);
  normalize(quantized_, vectors_.attn_norm);
}

void Calibration::apply(Part part, const std::vector<float>& original, const std::vector<float>& quantized) {
  apply_to(original_, part, original);
  apply_to(quantized_, part, quantized);
}

void Calibration::apply_to(Stream& stream, Part part, const std::vector<float>& w) {
  const uint32_t n = n_inputs(part);
  switch (part) {
    case Part::kQkv:
      attend(times(stream, n, w, spec_.q_rows() + 2 * spec_.kv_rows(), vectors_.qkv_bias), stream.input);
      break;
    case Part::kAttnOut:
      add_to_residual(stream, times(stream, n, w, spec_.dim, vectors_.attn_out_bias),
                      vectors_.attn_post_norm);
      normalize(stream, vectors_.ffn_norm);
      break;
    case Part::kGateUp:
      gate(times(stream, n, w, 2 * spec_.ffn_padded(), vectors_.gate_up_bias), stream.input);
      break;
    case Part::kDown:
      add_to_residual(stream, times(stream, n, w, spec_.dim, vectors_.down_bias), vectors_.ffn_post_norm);
      break;
  }
}

// gate_up: [n_tokens, 2 * ffn_padded], 16 of gate and 16 of up in turn. out: [n_tokens, ffn_dim].
void Calibration::gate(const std::vector<float>& gate_up, std::vector<float>& out) const {
  constexpr uint32_t kBlock = 16;
  out.resize(size_t{n_tokens_} * spec_.ffn_dim);
  for_tokens(n_tokens_, n_threads_, [&](uint32_t t) {
    const float* row = gate_up.data() + size_t{t} * 2 * spec_.ffn_padded();
    for (uint32_t i = 0; i < spec_.ffn_dim; i += kBlock)
      kernels().gate(spec_.activation, row + 2 * i, row + 2 * i + kBlock, std::min(kBlock, spec_.ffn_dim - i),
                     out.data() + size_t{t} * spec_.ffn_dim + i);
  });
}

// qkv: [n_tokens, q + 2 kv rows]. out: [n_tokens, q rows]. Every window on its own, causal.
void Calibration::attend(const std::vector<float>& qkv_in, std::vector<float>& out) const {
  const uint32_t window = tokens_.window, n_windows = n_tokens_ / window, head_dim = spec_.head_dim;
  const uint32_t q_rows = spec_.q_rows(), kv_rows = spec_.kv_rows(), stride = q_rows + 2 * kv_rows;
  const LayerSpec& layer = spec_.layers[layer_];
  out.resize(size_t{n_tokens_} * q_rows);
  std::vector<float> qkv = qkv_in;
  for_tokens(n_tokens_, n_threads_, [&](uint32_t t) {
    for (uint32_t head = 0; head < spec_.n_heads + spec_.n_kv_heads; ++head) {  // of q, then of k
      float* const x = qkv.data() + size_t{t} * stride + size_t{head} * head_dim;
      const std::vector<float>& norm = head < spec_.n_heads ? vectors_.q_norm : vectors_.k_norm;
      if (!norm.empty()) kernels().rms_norm(x, norm.data(), head_dim, spec_.norm_eps, x);
      if (layer.rope_idx < 0) continue;
      const size_t rope = static_cast<size_t>(layer.rope_idx);
      const uint32_t half = static_cast<uint32_t>(spec_.ropes[rope].inv_freq.size());
      const size_t at = size_t{t % window} * half;
      kernels().rope(x, 2 * half, cos_[rope].data() + at, sin_[rope].data() + at);
    }
  });
  parallel_for(n_windows * spec_.n_heads, n_threads_, [&](uint32_t task) {
    const uint32_t head = task % spec_.n_heads, kv_head = head / (spec_.n_heads / spec_.n_kv_heads);
    const float* const base = qkv.data() + size_t{task / spec_.n_heads} * window * stride;
    const float* const k = base + q_rows + size_t{kv_head} * head_dim;
    const float* const v = k + kv_rows;
    std::vector<float> k_columns(size_t{head_dim} * window), scores(window);
    for (uint32_t p = 0; p < window; ++p)
      for (uint32_t i = 0; i < head_dim; ++i) k_columns[size_t{i} * window + p] = k[size_t{p} * stride + i];
    for (uint32_t p = 0; p < window; ++p) {
      const float* const q = base + size_t{p} * stride + size_t{head} * head_dim;
      const uint32_t begin = layer.window > 0 && p + 1 > layer.window ? p + 1 - layer.window : 0;
      std::fill(scores.begin(), scores.end(), 0.0f);
      for (uint32_t i = 0; i < head_dim; ++i) {
        const float factor = q[i] * spec_.attn_scale;
        const float* const column = k_columns.data() + size_t{i} * window;
        for (uint32_t j = begin; j <= p; ++j) scores[j] += factor * column[j];
      }
      if (spec_.attn_softcap > 0) kernels().softcap(scores.data() + begin, p + 1 - begin, spec_.attn_softcap);
      const float top = *std::max_element(scores.begin() + begin, scores.begin() + p + 1);
      float sum = 0;
      for (uint32_t j = begin; j <= p; ++j) sum += scores[j] = std::exp(scores[j] - top);
      float* const to =
          out.data() + (size_t{task / spec_.n_heads} * window + p) * q_rows + size_t{head} * head_dim;
      std::fill_n(to, head_dim, 0.0f);
      for (uint32_t j = begin; j <= p; ++j) {
        const float weight = scores[j] / sum;
        for (uint32_t i = 0; i < head_dim; ++i) to[i] += weight * v[size_t{j} * stride + i];
      }
    }
  });
}

Calibration::HeldOut Calibration::held_out(const std::vector<float>& norm,
                                           const std::vector<float>& head_original,
                                           const std::vector<float>& head_quantized) const {
  HeldOut result;
  const uint32_t window = tokens_.window;
  const size_t dim = spec_.dim, vocab = spec_.vocab_size;
  if (tokens_.n_held_out == 0) return result;
  double nll_original = 0, nll_quantized = 0, kl = 0;
  std::vector<float> input(window * dim), logits[2];
  for (uint32_t begin = n_counted_; begin < n_tokens_; begin += window) {
    for (const bool is_original : {true, false}) {
      const Stream& stream = is_original ? original_ : quantized_;
      for (uint32_t t = 0; t < window; ++t)
        kernels().rms_norm(stream.residual.data() + (begin + t) * dim, norm.data(), spec_.dim, spec_.norm_eps,
                           input.data() + t * dim);
      std::vector<float>& out = logits[is_original ? 0 : 1];
      out.resize(window * vocab);
      multiply_transposed(input.data(), window, spec_.dim,
                          (is_original ? head_original : head_quantized).data(), spec_.vocab_size, out.data(),
                          n_threads_);
      for (float& value : out) value *= spec_.logit_scale;
      if (spec_.logit_softcap > 0)
        for (uint32_t t = 0; t < window; ++t)
          kernels().softcap(out.data() + t * vocab, spec_.vocab_size, spec_.logit_softcap);
    }
    for (uint32_t t = 0; t + 1 < window; ++t) {
      const float *p = logits[0].data() + t * vocab, *q = logits[1].data() + t * vocab;
      const double log_p = log_sum_exp(p, vocab), log_q = log_sum_exp(q, vocab);
      const size_t next = static_cast<size_t>(tokens_.ids[begin + t + 1]);
      nll_original += log_p - double{p[next]};
      nll_quantized += log_q - double{q[next]};
      for (size_t i = 0; i < vocab; ++i) {
        const double log_ratio = (double{p[i]} - log_p) - (double{q[i]} - log_q);
        kl += std::exp(double{p[i]} - log_p) * log_ratio;
      }
      ++result.n_tokens;
    }
  }
  const double n = static_cast<double>(result.n_tokens);
  result.ppl_original = std::exp(nll_original / n);
  result.ppl_quantized = std::exp(nll_quantized / n);
  result.kl = kl / n;
  return result;
}

double Calibration::drift() const {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < original_.residual.size(); ++i) {
    const double gap = double{original_.residual[i]} - quantized_.residual[i];
    difference += gap * gap;
    norm += double{original_.residual[i]} * original_.residual[i];
  }
  return norm > 0 ? difference / norm : 0;
}

}  // namespace pith
