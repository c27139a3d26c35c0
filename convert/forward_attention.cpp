// The attention of Forward: over whole windows, or of the last token of texts that grow over their keys and values.
#include <algorithm>
#include <cmath>

#include "convert/forward.h"
#include "convert/forward_loops.h"
#include "convert/parallel_for.h"

namespace pith {

void Forward::normalize_heads(float* qkv) const {
  const std::vector<float>&q_norm = vector("q_norm"), &k_norm = vector("k_norm");
  if (q_norm.empty()) return;
  const uint32_t n = spec_.qk_norm_whole ? spec_.q_rows() : spec_.head_dim,
                 n_k = spec_.qk_norm_whole ? spec_.kv_rows() : spec_.head_dim;
  for (uint32_t at = 0; at < spec_.q_rows(); at += n)
    forward_kernels().rms_norm(qkv + at, q_norm.data(), n, spec_.norm_eps, qkv + at);
  float* const k = qkv + spec_.q_rows();
  for (uint32_t at = 0; at < spec_.kv_rows(); at += n_k)
    forward_kernels().rms_norm(k + at, k_norm.data(), n_k, spec_.norm_eps, k + at);
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
    forward_kernels().rope(qkv + size_t{head} * spec_.head_dim, 2 * half, cos_[rope].data() + at,
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
  if (spec_.attn_softcap > 0) forward_kernels().softcap(seen, n_seen, spec_.attn_softcap);
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
    float* const row = qkv + t * stride;
    float* const k = past + t * 2 * kv_size;  // [kv rows, window]; after it v [window, kv rows]
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

}  // namespace pith
