// Attention: a token's heads after their projection, then their queries against the cache, segment by segment.
#include "runtime/cpu/phases.h"

namespace pith::cpu {

// Norm, rotation and append for one head of q, or of k and v (head >= n_heads).
void CpuBackend::finish_token(const LayerWeights& w, uint32_t layer, uint32_t token, uint32_t head) {
  const uint32_t dim = spec_.head_dim, position = position_ + token;
  float* const x = scratch_.qkv + size_t{token} * scratch_.qkv_rows + size_t{head} * dim;
  const bool is_key = head >= spec_.n_heads;
  const float* const norm = is_key ? w.k_norm : w.q_norm;
  if (spec_.qk_norm) kernels_.rms_norm(x, norm, dim, spec_.norm_eps, x);
  const int32_t rope = spec_.layers[layer].rope_idx;
  if (rope >= 0) {
    const size_t half = spec_.ropes[static_cast<size_t>(rope)].inv_freq.size();
    kernels_.rope(x, static_cast<uint32_t>(2 * half),
                  scratch_.cos[static_cast<size_t>(rope)] + position * half,
                  scratch_.sin[static_cast<size_t>(rope)] + position * half);
  }
  if (is_key) kernels_.append(cache_.head(layer, head - spec_.n_heads), position, x, x + spec_.kv_rows());
}

// A head's sums over all segments to its output. A sink is one more position, without a value.
void CpuBackend::finish_head(uint32_t thread, uint32_t layer, uint32_t head, float* sums, float* out) {
  const uint32_t padded = static_cast<uint32_t>(scratch_.out_stride) - 2;
  if (const float* const sinks = weights_.layers[layer].sinks; sinks != nullptr) {
    float* const part = scratch_.sink_part + thread * scratch_.out_stride;
    std::fill_n(part, padded, 0.0f);
    part[padded] = sinks[head];
    part[padded + 1] = 1;
    kernels_.combine(sums, part, padded);
  }
  kernels_.finish(sums, spec_.head_dim, padded, out);
}

void CpuBackend::attend(uint32_t layer) {
  if (n_ == 1) {
    pool_.run([&](uint32_t thread) { attend_one(thread, layer); });
    return;
  }
  const uint32_t group = spec_.n_heads / spec_.n_kv_heads;
  // Queries of a tile share their keys: all heads of a group where they fit, of as many tokens as fit.
  const uint32_t tile = std::max(kMaxQueries / group, 1u);
  const uint32_t n_tiles = (n_ + tile - 1) / tile;
  pool_.run([&](uint32_t thread) {
    pool_.for_each(thread, n_tiles * spec_.n_kv_heads, [&](uint32_t i) {
      const uint32_t first = i / spec_.n_kv_heads * tile;
      attend_tile(thread, layer, i % spec_.n_kv_heads, first, std::min(tile, n_ - first));
    });
  });
}

// Decode: (head group, segment) pairs over the threads, then the parts of each head are combined.
void CpuBackend::attend_one(uint32_t thread, uint32_t layer) {
  const uint32_t group = spec_.n_heads / spec_.n_kv_heads, end = position_ + 1,
                 begin = first_seen(layer, position_);
  const uint32_t first_segment = begin / kSegment, segments = n_segments(end) - first_segment;
  float* const scratch = scratch_.attend + thread * scratch_.attend_stride;
  const auto out = [&](uint32_t head, uint32_t i) {
    return scratch_.sums_out + (uint64_t{head} * segments + i) * scratch_.out_stride;
  };
  pool_.for_each(thread, spec_.n_kv_heads * segments, [&](uint32_t item) {
    const uint32_t kv_head = item / segments, i = item % segments, segment = first_segment + i;
    Query queries[kMaxQueries];
    for (uint32_t done = 0; done < group;) {
      const uint32_t n = std::min(group - done, kMaxQueries);
      for (uint32_t q = 0; q < n; ++q) {
        const uint32_t head = kv_head * group + done + q;
        queries[q] = {scratch_.qkv + size_t{head} * spec_.head_dim, std::max(begin, segment * kSegment),
                      std::min(end, (segment + 1) * kSegment), out(head, i)};
      }
      kernels_.attend(cache_.head(layer, kv_head), segment, queries, n, spec_.attn_scale, spec_.attn_softcap,
                      scratch);
      done += n;
    }
  });
  pool_.barrier();
  const Range heads = share(spec_.n_heads, thread, pool_.n_threads());
  const uint32_t padded = static_cast<uint32_t>(scratch_.out_stride) - 2;
  for (uint32_t head = heads.begin; head < heads.end; ++head) {
    for (uint32_t i = 1; i < segments; ++i) kernels_.combine(out(head, 0), out(head, i), padded);
    finish_head(thread, layer, head, out(head, 0), scratch_.attn + size_t{head} * spec_.head_dim);
  }
}

// Prefill: some tokens, all heads of one group, segment after segment.
void CpuBackend::attend_tile(uint32_t thread, uint32_t layer, uint32_t kv_head, uint32_t first_token,
                             uint32_t n_tokens) {
  const uint32_t group = spec_.n_heads / spec_.n_kv_heads,
                 padded = static_cast<uint32_t>(scratch_.out_stride) - 2;
  float* const scratch = scratch_.attend + thread * scratch_.attend_stride;
  float* const sums = scratch_.tile_out + size_t{thread} * 2 * kMaxQueries * scratch_.out_stride;
  float* const parts = sums + kMaxQueries * scratch_.out_stride;
  for (uint32_t done = 0; done < group; done += kMaxQueries) {
    const uint32_t n_heads = std::min(group - done, kMaxQueries);
    const uint32_t last = position_ + first_token + n_tokens;
    for (uint32_t segment = first_seen(layer, position_ + first_token) / kSegment; segment * kSegment < last;
         ++segment) {
      Query queries[kMaxQueries];
      uint32_t slot[kMaxQueries], n = 0;
      for (uint32_t t = 0; t < n_tokens; ++t) {
        const uint32_t position = position_ + first_token + t;
        const uint32_t begin = std::max(first_seen(layer, position), segment * kSegment);
        const uint32_t end = std::min(position + 1, (segment + 1) * kSegment);
        if (begin >= end) continue;
        for (uint32_t h = 0; h < n_heads; ++h, ++n) {
          slot[n] = t * n_heads + h;
          const bool is_first = first_seen(layer, position) >= segment * kSegment;
          queries[n] = {scratch_.qkv + size_t{first_token + t} * scratch_.qkv_rows +
                            size_t{kv_head * group + done + h} * spec_.head_dim,
                        begin, end, (is_first ? sums : parts) + slot[n] * scratch_.out_stride};
        }
      }
      if (n == 0) continue;
      kernels_.attend(cache_.head(layer, kv_head), segment, queries, n, spec_.attn_scale, spec_.attn_softcap,
                      scratch);
      for (uint32_t q = 0; q < n; ++q) {
        float* const total = sums + slot[q] * scratch_.out_stride;
        if (queries[q].out != total) kernels_.combine(total, queries[q].out, padded);
      }
    }
    for (uint32_t t = 0; t < n_tokens; ++t)
      for (uint32_t h = 0; h < n_heads; ++h) {
        const uint32_t head = kv_head * group + done + h;
        finish_head(thread, layer, head, sums + (t * n_heads + h) * scratch_.out_stride,
                    scratch_.attn + size_t{first_token + t} * spec_.q_rows() + size_t{head} * spec_.head_dim);
      }
  }
}

}  // namespace pith::cpu
