#include "convert/forward.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "convert/factor.h"
#include "convert/gemm.h"
#include "format/error.h"
#include "runtime/cpu/kernels.h"

namespace pith {

namespace {

constexpr uint32_t kTokensPerTask = 64;
constexpr uint32_t kTokensPerChunk = 4096;  // whose outputs of a matrix are in memory at a time
constexpr std::pair<const char*, Part> kPartNames[] = {{"attn_qkv", Part::kQkv},
                                                       {"attn_out", Part::kAttnOut},
                                                       {"ffn_gate_up", Part::kGateUp},
                                                       {"ffn_down", Part::kDown}};

// Calls body(token) for every token, on all threads.
template <typename Body>
void for_tokens(uint32_t n_tokens, uint32_t n_threads, Body&& body) {
  parallel_for((n_tokens + kTokensPerTask - 1) / kTokensPerTask, n_threads, [&](uint32_t task) {
    const uint32_t end = std::min(n_tokens, (task + 1) * kTokensPerTask);
    for (uint32_t t = task * kTokensPerTask; t < end; ++t) body(t);
  });
}

double log_sum_exp(const float* x, size_t n) {
  const double top = double{*std::max_element(x, x + n)};
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += double{std::exp(static_cast<float>(double{x[i]} - top))};
  return top + std::log(sum);
}

const cpu::Kernels& kernels() {
  static const cpu::Kernels& best = cpu::select_kernels("auto");
  return best;
}

// y [n] += a * x [n]. Compiled for each instruction set; never fused, so that all give the same bits.
__attribute__((target_clones("avx512f", "avx2", "default"))) void add_scaled(float* y, float a,
                                                                             const float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) y[i] += a * x[i];
}

}  // namespace

bool find_layer_part(const std::string& name, uint32_t& layer, Part& part) {
  if (!name.starts_with("layers.")) return false;
  layer = static_cast<uint32_t>(std::strtoul(name.c_str() + 7, nullptr, 10));
  for (const auto& [text, value] : kPartNames)
    if (name == layer_tensor(layer, text)) {
      part = value;
      return true;
    }
  return false;
}

std::string why_not_calibrated(const ModelSpec& spec, const std::vector<TensorPlan>& plan) {
  static const std::set<std::string> kVectors = {
      "attn_norm",      "attn_qkv_bias", "q_norm",           "k_norm",        "attn_out_bias",
      "attn_post_norm", "ffn_norm",      "ffn_gate_up_bias", "ffn_down_bias", "ffn_post_norm"};
  std::vector<uint32_t> n_parts(spec.n_layers), n_norms(spec.n_layers);
  for (const TensorPlan& tensor : plan) {
    if (!tensor.name.starts_with("layers.")) {
      if (tensor.name == "embed" || tensor.name == "norm" || tensor.name == "head") continue;
      return fmt::format("calibration has no place for tensor '{}'", tensor.name);
    }
    uint32_t layer = 0;
    Part part = Part::kQkv;
    const bool is_part = find_layer_part(tensor.name, layer, part);
    if (layer >= spec.n_layers) return fmt::format("calibration has no place for tensor '{}'", tensor.name);
    const std::string name = tensor.name.substr(tensor.name.find('.', 7) + 1);
    if (is_part) {
      if (n_parts[layer] == std::size(kParts) || part != kParts[n_parts[layer]++])
        return fmt::format("calibration does not expect tensor '{}' where it comes", tensor.name);
    } else if (!kVectors.contains(name)) {
      return fmt::format("calibration has no place for tensor '{}'", tensor.name);
    } else if ((name == "q_norm" || name == "k_norm") && tensor.n_cols != spec.head_dim) {
      return fmt::format("calibration expects a norm of each head, '{}' is of {} elements", tensor.name,
                         tensor.n_cols);
    }
    if (name == "attn_norm" || name == "ffn_norm") ++n_norms[layer];
  }
  for (uint32_t layer = 0; layer < spec.n_layers; ++layer)
    if (n_parts[layer] != std::size(kParts) || n_norms[layer] != 2)
      return fmt::format(
          "calibration expects {} matrices and a norm before attention and feed-forward, layer {} has "
          "{} and {}",
          std::size(kParts), layer, n_parts[layer], n_norms[layer]);
  return "";
}

Forward::Forward(const ModelSpec& spec, uint32_t window, uint32_t n_threads)
    : spec_(spec), window_(window), n_threads_(n_threads) {
  for (const RopeSpec& rope : spec.ropes) {
    std::vector<float> cosines, sines;
    for (uint32_t p = 0; p < window; ++p)
      for (const float f : rope.inv_freq) {
        cosines.push_back(static_cast<float>(std::cos(double{f} * p) * double{rope.scale}));
        sines.push_back(static_cast<float>(std::sin(double{f} * p) * double{rope.scale}));
      }
    cos_.push_back(std::move(cosines));
    sin_.push_back(std::move(sines));
  }
}

uint32_t Forward::n_inputs(Part part) const {
  if (part == Part::kAttnOut) return spec_.q_rows();
  return part == Part::kDown ? spec_.ffn_dim : spec_.dim;
}

uint32_t Forward::n_outputs(Part part) const {
  if (part == Part::kQkv) return spec_.q_rows() + 2 * spec_.kv_rows();
  return part == Part::kGateUp ? 2 * spec_.ffn_padded() : spec_.dim;
}

bool Forward::is_added(Part part) const {
  return (part == Part::kAttnOut && vectors_.attn_post_norm.empty()) ||
         (part == Part::kDown && vectors_.ffn_post_norm.empty());
}

void Forward::begin_layer(uint32_t layer, LayerVectors vectors) {
  layer_ = layer;
  vectors_ = std::move(vectors);
}

void Forward::normalize(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
                        float* out) const {
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    const size_t at = size_t{t} * spec_.dim;
    kernels().rms_norm(residual + at, norm.data(), spec_.dim, spec_.norm_eps, out + at);
  });
}

void Forward::prepare(Stream& stream) const {
  stream.input.resize(stream.residual.size());
  normalize(stream.residual.data(), static_cast<uint32_t>(stream.residual.size() / spec_.dim),
            vectors_.attn_norm, stream.input.data());
}

void Forward::apply(Part part, Stream& stream, const std::vector<float>& weights) const {
  const uint32_t n_tokens = static_cast<uint32_t>(stream.residual.size() / spec_.dim);
  const uint32_t n = n_inputs(part), n_rows = n_outputs(part),
                 chunk = std::max(1u, kTokensPerChunk / window_) * window_;
  const std::vector<float>& bias = part == Part::kQkv       ? vectors_.qkv_bias
                                   : part == Part::kAttnOut ? vectors_.attn_out_bias
                                   : part == Part::kGateUp  ? vectors_.gate_up_bias
                                                            : vectors_.down_bias;
  const uint32_t n_next = part == Part::kQkv      ? n_inputs(Part::kAttnOut)
                          : part == Part::kGateUp ? spec_.ffn_dim
                                                  : 0;
  std::vector<float> next(size_t{n_tokens} * n_next), y;
  for (uint32_t begin = 0; begin < n_tokens; begin += chunk) {
    const uint32_t n_here = std::min(chunk, n_tokens - begin);
    y.resize(size_t{n_here} * n_rows);
    multiply_transposed(stream.input.data() + size_t{begin} * n, n_here, n, weights.data(), n_rows, y.data(),
                        n_threads_);
    if (!bias.empty())
      for_tokens(n_here, n_threads_, [&](uint32_t t) {
        for (uint32_t r = 0; r < n_rows; ++r) y[size_t{t} * n_rows + r] += bias[r];
      });
    float* const residual = stream.residual.data() + size_t{begin} * spec_.dim;
    switch (part) {
      case Part::kQkv:
        attend(y, n_here, next.data() + size_t{begin} * n_next);
        break;
      case Part::kAttnOut:
        add_to_residual(residual, n_here, y, vectors_.attn_post_norm);
        break;
      case Part::kGateUp:
        gate(y, n_here, next.data() + size_t{begin} * n_next);
        break;
      case Part::kDown:
        add_to_residual(residual, n_here, y, vectors_.ffn_post_norm);
        break;
    }
  }
  if (n_next > 0) {
    stream.input = std::move(next);
  } else if (part == Part::kAttnOut) {
    stream.input.resize(stream.residual.size());
    normalize(stream.residual.data(), n_tokens, vectors_.ffn_norm, stream.input.data());
  } else {
    stream.input = {};
  }
}

void Forward::add_to_residual(float* residual, uint32_t n_tokens, std::vector<float>& branch,
                              const std::vector<float>& post_norm) const {
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    float* const row = branch.data() + size_t{t} * spec_.dim;
    if (!post_norm.empty()) kernels().rms_norm(row, post_norm.data(), spec_.dim, spec_.norm_eps, row);
    add_scaled(residual + size_t{t} * spec_.dim, spec_.residual_scale, row, spec_.dim);
  });
}

// gate_up: [n_tokens, 2 * ffn_padded], 16 of gate and 16 of up in turn. out: [n_tokens, ffn_dim].
void Forward::gate(const std::vector<float>& gate_up, uint32_t n_tokens, float* out) const {
  constexpr uint32_t kBlock = 16;
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    const float* row = gate_up.data() + size_t{t} * 2 * spec_.ffn_padded();
    for (uint32_t i = 0; i < spec_.ffn_dim; i += kBlock)
      kernels().gate(spec_.activation, row + 2 * i, row + 2 * i + kBlock, std::min(kBlock, spec_.ffn_dim - i),
                     out + size_t{t} * spec_.ffn_dim + i);
  });
}

// qkv: [n_tokens, q + 2 kv rows], in ruins afterwards. out: [n_tokens, q rows]. Every window on its own, causal.
void Forward::attend(std::vector<float>& qkv, uint32_t n_tokens, float* out) const {
  const uint32_t head_dim = spec_.head_dim, q_rows = spec_.q_rows(), kv_rows = spec_.kv_rows();
  const size_t stride = q_rows + 2 * kv_rows;
  const LayerSpec& layer = spec_.layers[layer_];
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    for (uint32_t head = 0; head < spec_.n_heads + spec_.n_kv_heads; ++head) {  // of q, then of k
      float* const x = qkv.data() + t * stride + size_t{head} * head_dim;
      const std::vector<float>& norm = head < spec_.n_heads ? vectors_.q_norm : vectors_.k_norm;
      if (!norm.empty()) kernels().rms_norm(x, norm.data(), head_dim, spec_.norm_eps, x);
      if (layer.rope_idx < 0) continue;
      const size_t rope = static_cast<size_t>(layer.rope_idx);
      const uint32_t half = static_cast<uint32_t>(spec_.ropes[rope].inv_freq.size());
      const size_t at = size_t{t % window_} * half;
      kernels().rope(x, 2 * half, cos_[rope].data() + at, sin_[rope].data() + at);
    }
  });
  parallel_for(n_tokens / window_ * spec_.n_heads, n_threads_, [&](uint32_t task) {
    const uint32_t head = task % spec_.n_heads, kv_head = head / (spec_.n_heads / spec_.n_kv_heads);
    const size_t first = size_t{task / spec_.n_heads} * window_;
    const float* const base = qkv.data() + first * stride;
    const float* const k = base + q_rows + size_t{kv_head} * head_dim;
    const float* const v = k + kv_rows;
    std::vector<float> k_columns(size_t{head_dim} * window_), scores(window_);
    for (uint32_t p = 0; p < window_; ++p)
      for (uint32_t i = 0; i < head_dim; ++i) k_columns[size_t{i} * window_ + p] = k[p * stride + i];
    for (uint32_t p = 0; p < window_; ++p) {
      const float* const q = base + p * stride + size_t{head} * head_dim;
      const uint32_t begin = layer.window > 0 && p + 1 > layer.window ? p + 1 - layer.window : 0;
      const uint32_t n_seen = p + 1 - begin;
      std::fill(scores.begin(), scores.end(), 0.0f);
      float* const seen = scores.data() + begin;
      for (uint32_t i = 0; i < head_dim; ++i)
        add_scaled(seen, q[i] * spec_.attn_scale, k_columns.data() + size_t{i} * window_ + begin, n_seen);
      if (spec_.attn_softcap > 0) kernels().softcap(seen, n_seen, spec_.attn_softcap);
      const float top = *std::max_element(seen, seen + n_seen);
      float sum = 0;
      for (uint32_t j = 0; j < n_seen; ++j) sum += seen[j] = std::exp(seen[j] - top);
      float* const to = out + (first + p) * q_rows + size_t{head} * head_dim;
      std::fill_n(to, head_dim, 0.0f);
      for (uint32_t j = 0; j < n_seen; ++j) add_scaled(to, seen[j] / sum, v + (begin + j) * stride, head_dim);
    }
  });
}

void Forward::logits(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
                     const std::vector<float>& head, std::vector<float>& logits) const {
  std::vector<float> input(size_t{n_tokens} * spec_.dim);
  normalize(residual, n_tokens, norm, input.data());
  logits.resize(size_t{n_tokens} * spec_.vocab_size);
  multiply_transposed(input.data(), n_tokens, spec_.dim, head.data(), spec_.vocab_size, logits.data(),
                      n_threads_);
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    float* const row = logits.data() + size_t{t} * spec_.vocab_size;
    for (uint32_t i = 0; i < spec_.vocab_size; ++i) row[i] *= spec_.logit_scale;
    if (spec_.logit_softcap > 0) kernels().softcap(row, spec_.vocab_size, spec_.logit_softcap);
  });
}

void log_probabilities(std::vector<float>& logits, uint32_t vocab, uint32_t n_threads) {
  parallel_for(static_cast<uint32_t>(logits.size() / vocab), n_threads, [&](uint32_t t) {
    float* const row = logits.data() + size_t{t} * vocab;
    const double log_sum = log_sum_exp(row, vocab);
    for (uint32_t i = 0; i < vocab; ++i) row[i] = static_cast<float>(double{row[i]} - log_sum);
  });
}

void add_divergence(const std::vector<float>& log_p, const std::vector<float>& q_rows, uint32_t vocab,
                    const int32_t* next, uint32_t n_threads, Divergence& sums) {
  const uint32_t n = static_cast<uint32_t>(log_p.size() / vocab) - 1;
  struct Row {
    double kl, nll_p, nll_q;
  };
  std::vector<Row> rows(n);
  parallel_for(n, n_threads, [&](uint32_t t) {
    const float *p = log_p.data() + size_t{t} * vocab, *q = q_rows.data() + size_t{t} * vocab;
    const double log_q = log_sum_exp(q, vocab);
    const size_t id = static_cast<size_t>(next[t]);
    double kl = 0;
    for (size_t i = 0; i < vocab; ++i) kl += double{std::exp(p[i])} * (double{p[i]} - (double{q[i]} - log_q));
    rows[t] = {kl, -double{p[id]}, log_q - double{q[id]}};
  });
  for (const Row& row : rows) {
    sums.kl += row.kl;
    sums.nll_p += row.nll_p;
    sums.nll_q += row.nll_q;
  }
  sums.n_tokens += n;
}

}  // namespace pith
