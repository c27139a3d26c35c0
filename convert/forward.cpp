#include "convert/forward.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <span>

#include "convert/factor.h"
#include "runtime/cpu/kernels.h"

namespace pith {

namespace {

constexpr uint32_t kTokensPerTask = 64;

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

std::vector<Step> layer_steps(const ModelSpec& spec) {
  std::vector<Step> steps = {{Part::kQkv}, {Part::kAttnOut}};
  for (uint32_t e = 0; e < std::max(spec.n_experts, 1u); ++e) {
    steps.push_back({Part::kGateUp, e});
    steps.push_back({Part::kDown, e});
  }
  return steps;
}

bool find_step(const std::string& name, uint32_t& layer, Step& step) {
  if (!name.starts_with("layers.")) return false;
  char* end = nullptr;
  layer = static_cast<uint32_t>(std::strtoul(name.c_str() + std::strlen("layers."), &end, 10));
  step.expert = 0;
  constexpr const char kExperts[] = ".experts.";
  const bool is_expert = std::strncmp(end, kExperts, std::strlen(kExperts)) == 0;
  if (is_expert) step.expert = static_cast<uint32_t>(std::strtoul(end + std::strlen(kExperts), &end, 10));
  constexpr std::pair<const char*, Part> kDense[] = {{".attn_qkv", Part::kQkv},
                                                     {".attn_out", Part::kAttnOut},
                                                     {".ffn_gate_up", Part::kGateUp},
                                                     {".ffn_down", Part::kDown}};
  constexpr std::pair<const char*, Part> kExpert[] = {{".gate_up", Part::kGateUp}, {".down", Part::kDown}};
  for (const auto& [text, part] : is_expert ? std::span<const std::pair<const char*, Part>>(kExpert)
                                            : std::span<const std::pair<const char*, Part>>(kDense))
    if (std::strcmp(end, text) == 0) {
      step.part = part;
      return true;
    }
  return false;
}

Forward::Forward(const ModelSpec& spec, uint32_t window, Products products)
    : spec_(spec), products_(std::move(products)), window_(window), n_threads_(products_.n_threads()) {
  for (const RopeSpec& rope : spec.ropes) {
    std::vector<float> cosines, sines;
    for (uint32_t p = 0; p < window; ++p)
      for (const float f : rope.frequencies(window)) {
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

bool Forward::is_added(Step step) const {
  return (step.part == Part::kAttnOut || step.part == Part::kDown) && !spec_.post_norms &&
         !step.is_expert(spec_);
}

const std::vector<float>& Forward::vector(const std::string& name) const {
  static const std::vector<float> none;
  const auto found = vectors_.find(name);
  return found == vectors_.end() ? none : found->second;
}

const std::vector<float>& Forward::bias_of(Step step) const {
  if (step.part == Part::kQkv) return vector("attn_qkv_bias");
  if (step.part == Part::kAttnOut) return vector("attn_out_bias");
  const char* const name = step.part == Part::kGateUp ? "gate_up_bias" : "down_bias";
  return vector(step.is_expert(spec_) ? fmt::format("experts.{}.{}", step.expert, name)
                                      : fmt::format("ffn_{}", name));
}

void Forward::begin_layer(uint32_t layer, LayerVectors vectors) {
  layer_ = layer;
  vectors_ = std::move(vectors);
}

void Forward::normalize(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
                        float* out) const {
  if (norm.empty()) {
    std::copy_n(residual, size_t{n_tokens} * spec_.dim, out);
    return;
  }
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    const size_t at = size_t{t} * spec_.dim;
    kernels().rms_norm(residual + at, norm.data(), spec_.dim, spec_.norm_eps, out + at);
  });
}

void Forward::prepare(Stream& stream) const {
  stream.input.resize(stream.residual.size());
  normalize(stream.residual.data(), static_cast<uint32_t>(stream.residual.size() / spec_.dim),
            vector("attn_norm"), stream.input.data());
}

void Forward::apply(Step step, Stream& stream, const ProductMatrix& weights) const {
  const Part part = step.part;
  const uint32_t n = n_inputs(part), n_rows = n_outputs(part),
                 n_tokens = static_cast<uint32_t>(stream.input.size() / n);
  const std::vector<float>& bias = bias_of(step);
  const uint32_t n_next = part == Part::kQkv      ? n_inputs(Part::kAttnOut)
                          : part == Part::kGateUp ? spec_.ffn_dim
                                                  : 0;
  std::vector<float> next(size_t{n_tokens} * n_next);
  // Outputs of a matrix are in memory for a few windows at a time.
  products_.multiply_transposed(
      stream.input.data(), nullptr, n_tokens, weights, stream.positions.empty() ? window_ : 1,
      [&](uint32_t begin, uint32_t n_here, float* y) {
        if (!bias.empty())
          for_tokens(n_here, n_threads_, [&](uint32_t t) {
            for (uint32_t r = 0; r < n_rows; ++r) y[size_t{t} * n_rows + r] += bias[r];
          });
        const size_t residual = size_t{begin} * spec_.dim;
        if (part == Part::kQkv) {
          float* const out = next.data() + size_t{begin} * n_next;
          if (stream.positions.empty())
            attend(y, n_here, out);
          else
            attend_past(y, begin, n_here, stream, out);
        } else if (part == Part::kGateUp) {
          gate(y, n_here, next.data() + size_t{begin} * n_next);
        } else if (step.is_expert(spec_)) {
          const Stream::Routed* const routed = stream.routed[step.expert].data() + begin;
          for_tokens(n_here, n_threads_, [&](uint32_t i) {
            add_scaled(stream.branch.data() + size_t{routed[i].token} * spec_.dim, routed[i].share,
                       y + size_t{i} * spec_.dim, spec_.dim);
          });
        } else {
          add_to_residual(stream.residual.data() + residual, n_here, y,
                          vector(part == Part::kAttnOut ? "attn_post_norm" : "ffn_post_norm"));
        }
      });
  if (n_next > 0)
    stream.input = std::move(next);
  else if (part == Part::kAttnOut)
    enter_feed_forward(stream);
  else if (step.expert + 1 < spec_.n_experts)
    gather(stream, step.expert + 1);
  else
    leave_feed_forward(stream);
}

void Forward::add_to_residual(float* residual, uint32_t n_tokens, float* branch,
                              const std::vector<float>& post_norm) const {
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    float* const row = branch + size_t{t} * spec_.dim;
    if (!post_norm.empty()) kernels().rms_norm(row, post_norm.data(), spec_.dim, spec_.norm_eps, row);
    add_scaled(residual + size_t{t} * spec_.dim, spec_.residual_scale, row, spec_.dim);
  });
}

void Forward::enter_feed_forward(Stream& stream) const {
  stream.input.resize(stream.residual.size());
  normalize(stream.residual.data(), static_cast<uint32_t>(stream.residual.size() / spec_.dim),
            vector("ffn_norm"), stream.input.data());
  if (spec_.n_experts == 0) return;
  stream.normed = std::move(stream.input);
  stream.branch.assign(stream.normed.size(), 0);
  route(stream);
  gather(stream, 0);
}

// The n_active_experts largest logits of a token (the lower index where equal), with their shares.
void Forward::route(Stream& stream) const {
  const uint32_t n_tokens = static_cast<uint32_t>(stream.normed.size() / spec_.dim), n = spec_.n_experts,
                 n_active = spec_.n_active_experts;
  const std::vector<float>& bias = vector("router_bias");
  std::vector<float> logits(size_t{n_tokens} * n), shares(size_t{n_tokens} * n_active);
  std::vector<uint32_t> chosen(shares.size());
  products_.multiply_transposed(stream.normed.data(), n_tokens, spec_.dim, vector("router").data(), n,
                                logits.data());
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    float* const row = logits.data() + size_t{t} * n;
    for (size_t e = 0; e < bias.size(); ++e) row[e] += bias[e];
    const float top = *std::max_element(row, row + n);
    float all = 0, sum = 0;
    for (uint32_t e = 0; e < n; ++e) all += std::exp(row[e] - top);
    float* const share = shares.data() + size_t{t} * n_active;
    for (uint32_t i = 0; i < n_active; ++i) {
      float* const best = std::max_element(row, row + n);
      chosen[size_t{t} * n_active + i] = static_cast<uint32_t>(best - row);
      sum += share[i] = std::exp(*best - top);
      *best = -INFINITY;
    }
    for (uint32_t i = 0; i < n_active; ++i) share[i] /= spec_.router_renormalize ? sum : all;
  });
  stream.routed.assign(n, {});
  for (uint32_t i = 0; i < chosen.size(); ++i) stream.routed[chosen[i]].push_back({i / n_active, shares[i]});
}

// The expert's rows of `normed` become the input.
void Forward::gather(Stream& stream, uint32_t expert) const {
  const std::vector<Stream::Routed>& routed = stream.routed[expert];
  stream.input.resize(routed.size() * spec_.dim);
  for (size_t i = 0; i < routed.size(); ++i)
    std::copy_n(stream.normed.data() + size_t{routed[i].token} * spec_.dim, spec_.dim,
                stream.input.data() + i * spec_.dim);
}

void Forward::leave_feed_forward(Stream& stream) const {
  if (spec_.n_experts > 0)
    add_to_residual(stream.residual.data(), static_cast<uint32_t>(stream.residual.size() / spec_.dim),
                    stream.branch.data(), vector("ffn_post_norm"));
  stream.input = stream.normed = stream.branch = {};
  stream.routed = {};
}

// gate_up: [n_rows, 2 * ffn_padded], 16 of gate and 16 of up in turn. out: [n_rows, ffn_dim].
void Forward::gate(const float* gate_up, uint32_t n_rows, float* out) const {
  constexpr uint32_t kBlock = 16;
  for_tokens(n_rows, n_threads_, [&](uint32_t t) {
    const float* row = gate_up + size_t{t} * 2 * spec_.ffn_padded();
    for (uint32_t i = 0; i < spec_.ffn_dim; i += kBlock)
      kernels().gate(spec_.activation, row + 2 * i, row + 2 * i + kBlock, std::min(kBlock, spec_.ffn_dim - i),
                     out + size_t{t} * spec_.ffn_dim + i);
  });
}

void Forward::normalize_heads(float* qkv) const {
  const std::vector<float>&q_norm = vector("q_norm"), &k_norm = vector("k_norm");
  if (q_norm.empty()) return;
  const uint32_t n = spec_.qk_norm_whole ? spec_.q_rows() : spec_.head_dim,
                 n_k = spec_.qk_norm_whole ? spec_.kv_rows() : spec_.head_dim;
  for (uint32_t at = 0; at < spec_.q_rows(); at += n)
    kernels().rms_norm(qkv + at, q_norm.data(), n, spec_.norm_eps, qkv + at);
  float* const k = qkv + spec_.q_rows();
  for (uint32_t at = 0; at < spec_.kv_rows(); at += n_k)
    kernels().rms_norm(k + at, k_norm.data(), n_k, spec_.norm_eps, k + at);
}

// Norms and rotation of one token's heads of q and k, in place.
void Forward::finish_heads(float* qkv, uint32_t position) const {
  normalize_heads(qkv);
  const LayerSpec& layer = spec_.layers[layer_];
  if (layer.rope_idx < 0) return;
  const size_t rope = static_cast<size_t>(layer.rope_idx);
  const uint32_t half = static_cast<uint32_t>(spec_.ropes[rope].inv_freq.size());
  const size_t at = size_t{position} * half;
  for (uint32_t head = 0; head < spec_.n_heads + spec_.n_kv_heads; ++head)  // of q, then of k
    kernels().rope(qkv + size_t{head} * spec_.head_dim, 2 * half, cos_[rope].data() + at,
                   sin_[rope].data() + at);
}

// One head of one query. k_columns: [head_dim, window]. v: v_stride floats from one position to the next. scores: [window].
void Forward::attend_one(const float* q, uint32_t head, uint32_t position, const float* k_columns,
                         const float* v, size_t v_stride, std::vector<float>& scores, float* out) const {
  const LayerSpec& layer = spec_.layers[layer_];
  const std::vector<float>& sinks = vector("sinks");
  const uint32_t begin = layer.window > 0 && position + 1 > layer.window ? position + 1 - layer.window : 0;
  const uint32_t n_seen = position + 1 - begin, head_dim = spec_.head_dim;
  std::fill(scores.begin(), scores.end(), 0.0f);
  float* const seen = scores.data() + begin;
  for (uint32_t i = 0; i < head_dim; ++i)
    add_scaled(seen, q[i] * spec_.attn_scale, k_columns + size_t{i} * window_ + begin, n_seen);
  if (spec_.attn_softcap > 0) kernels().softcap(seen, n_seen, spec_.attn_softcap);
  // A sink is one more position, without a value.
  const float sink = sinks.empty() ? -INFINITY : sinks[head];
  const float top = std::max(sink, *std::max_element(seen, seen + n_seen));
  float sum = std::exp(sink - top);
  for (uint32_t j = 0; j < n_seen; ++j) sum += seen[j] = std::exp(seen[j] - top);
  std::fill_n(out, head_dim, 0.0f);
  for (uint32_t j = 0; j < n_seen; ++j) add_scaled(out, seen[j] / sum, v + (begin + j) * v_stride, head_dim);
}

// qkv: [n_tokens, q + 2 kv rows], in ruins afterwards. out: [n_tokens, q rows]. Every window on its own, causal.
void Forward::attend(float* qkv, uint32_t n_tokens, float* out) const {
  const uint32_t head_dim = spec_.head_dim, q_rows = spec_.q_rows(), kv_rows = spec_.kv_rows();
  const size_t stride = q_rows + 2 * kv_rows;
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) { finish_heads(qkv + t * stride, t % window_); });
  parallel_for(n_tokens / window_ * spec_.n_heads, n_threads_, [&](uint32_t task) {
    const uint32_t head = task % spec_.n_heads, kv_head = head / (spec_.n_heads / spec_.n_kv_heads);
    const size_t first = size_t{task / spec_.n_heads} * window_;
    const float* const base = qkv + first * stride;
    const float* const k = base + q_rows + size_t{kv_head} * head_dim;
    std::vector<float> k_columns(size_t{head_dim} * window_), scores(window_);
    for (uint32_t p = 0; p < window_; ++p)
      for (uint32_t i = 0; i < head_dim; ++i) k_columns[size_t{i} * window_ + p] = k[p * stride + i];
    for (uint32_t p = 0; p < window_; ++p)
      attend_one(base + p * stride + size_t{head} * head_dim, head, p, k_columns.data(), k + kv_rows, stride,
                 scores, out + (first + p) * q_rows + size_t{head} * head_dim);
  });
}

void Forward::begin_texts(uint32_t n_texts, Stream& stream) const {
  stream.positions.assign(n_texts, 0);
  stream.past.resize(spec_.n_layers);
  for (std::vector<float>& layer : stream.past)
    layer.assign(size_t{n_texts} * 2 * spec_.kv_rows() * window_, 0);
}

// Tokens first, first + 1, ... of the stream, each the last of its text, which their keys and values are added to.
void Forward::attend_past(float* qkv, uint32_t first, uint32_t n_tokens, Stream& stream, float* out) const {
  const uint32_t head_dim = spec_.head_dim, q_rows = spec_.q_rows(), kv_rows = spec_.kv_rows();
  const size_t stride = q_rows + 2 * kv_rows, kv_size = size_t{kv_rows} * window_;
  float* const past = stream.past[layer_].data() + first * 2 * kv_size;
  const uint32_t* const positions = stream.positions.data() + first;
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    float *const row = qkv + t * stride, *const k =
                                             past +
                                             t * 2 * kv_size;  // [kv rows, window], v [window, kv rows]
    finish_heads(row, positions[t]);
    for (uint32_t i = 0; i < kv_rows; ++i) k[size_t{i} * window_ + positions[t]] = row[q_rows + i];
    std::copy_n(row + q_rows + kv_rows, kv_rows, k + kv_size + size_t{positions[t]} * kv_rows);
  });
  parallel_for(n_tokens, n_threads_, [&](uint32_t t) {
    std::vector<float> scores(window_);
    for (uint32_t head = 0; head < spec_.n_heads; ++head) {
      const size_t kv_head = head / (spec_.n_heads / spec_.n_kv_heads);
      const float* const k = past + t * 2 * kv_size;
      attend_one(qkv + t * stride + size_t{head} * head_dim, head, positions[t],
                 k + kv_head * head_dim * window_, k + kv_size + kv_head * head_dim, kv_rows, scores,
                 out + size_t{t} * q_rows + size_t{head} * head_dim);
    }
  });
}

void Forward::logits(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
                     const ProductMatrix& head, std::vector<float>& logits) const {
  std::vector<float> input(size_t{n_tokens} * spec_.dim);
  normalize(residual, n_tokens, norm, input.data());
  logits.resize(size_t{n_tokens} * spec_.vocab_size);
  products_.multiply_transposed(input.data(), nullptr, n_tokens, head, 1,
                                [&](uint32_t begin, uint32_t n_here, const float* y) {
                                  for_tokens(n_here, n_threads_, [&](uint32_t t) {
                                    const float* const from = y + size_t{t} * spec_.vocab_size;
                                    float* const row = logits.data() + size_t{begin + t} * spec_.vocab_size;
                                    for (uint32_t i = 0; i < spec_.vocab_size; ++i)
                                      row[i] = from[i] * spec_.logit_scale;
                                    if (spec_.logit_softcap > 0)
                                      kernels().softcap(row, spec_.vocab_size, spec_.logit_softcap);
                                  });
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
