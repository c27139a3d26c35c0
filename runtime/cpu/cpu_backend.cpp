// The six phases on a CPU. Each is one ThreadPool::run; work is dealt out by panels of rows, heads or tokens, which never
// changes a result: every output element is computed by one thread in an order that kernels.h fixes.
#include "runtime/cpu/cpu_backend.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "runtime/cpu/kv_cache.h"
#include "runtime/cpu/weights.h"
#include "runtime/thread_choice.h"
#include "runtime/thread_pool.h"

namespace pith::cpu {

namespace {

struct Range {
  uint32_t begin, end;
};
Range share(uint32_t n, uint32_t thread, uint32_t n_threads) {
  const auto cut = [&](uint32_t t) { return static_cast<uint32_t>(uint64_t{n} * t / n_threads); };
  return {cut(thread), cut(thread + 1)};
}

uint32_t n_segments(uint32_t n_positions) {
  return (n_positions + kSegment - 1) / kSegment;
}

// Everything but weights and cache. Sizes are for `chunk` tokens.
struct Scratch {
  Scratch(const ModelSpec& spec, const Weights& weights, uint32_t n_ctx, uint32_t chunk, uint32_t n_threads,
          Arena& arena) {
    const uint64_t n = chunk, lanes = lanes_for(chunk), t = n_threads;
    const uint64_t padded_head_dim = (spec.head_dim + 15) / 16 * 16;
    out_stride = padded_head_dim + 2;
    thread_stride = std::max({spec.dim, spec.q_rows(), spec.ffn_dim}) + kLanes;
    y_stride = lanes * kPanelRows;
    panel_stride = (panel_scratch_bytes(weights.max_padded_cols, lanes_for(chunk)) + 63) / 64 * 64;
    qkv_rows = spec.q_rows() + 2 * spec.kv_rows();
    x = arena.take<float>(n * spec.dim);
    normed = arena.take<float>(n * spec.dim);
    qkv = arena.take<float>(n * qkv_rows);
    attn = arena.take<float>(n * spec.q_rows());
    const uint64_t chosen_per_token = std::max(spec.n_active_experts, 1u);
    hidden = arena.take<float>(n * chosen_per_token * spec.ffn_dim);
    branch = spec.post_norms || spec.n_experts != 0 ? arena.take<float>(n * spec.dim) : nullptr;
    if (spec.n_experts != 0) {
      router = arena.take<float>(n * spec.n_experts);
      gathered = arena.take<float>(n * spec.dim);
      expert_begin = arena.take<uint32_t>(uint64_t{spec.n_experts} + 1);
      slots = arena.take<Slot>(n * chosen_per_token);
      slot_of = arena.take<Chosen>(n * chosen_per_token);
    }
    a = arena.take<int8_t>(lanes * weights.max_padded_cols + 64);
    sums = arena.take<int16_t>(lanes * weights.max_padded_cols / 16);
    scales = arena.take<float>(lanes * ((weights.max_padded_cols + kBlock - 1) / kBlock));
    x_hat = arena.take<float>(weights.max_padded_cols);
    thread_row = arena.take<float>(t * thread_stride);
    y = arena.take<float>(t * y_stride);
    panel = arena.take<uint8_t>(t * panel_stride);
    scores = arena.take<float>(t * kMaxQueries * kSegment);
    // Decode: every head and segment; prefill: a tile's running sums and one part a thread.
    sums_out =
        arena.take<float>(std::max<uint64_t>(uint64_t{spec.n_heads} * n_segments(n_ctx), 1) * out_stride);
    tile_out = arena.take<float>(t * 2 * kMaxQueries * out_stride);
    sink_part = spec.attn_sinks ? arena.take<float>(t * out_stride) : nullptr;
    logits = arena.take<float>(uint64_t{std::min(kMaxLogitRows, chunk)} * spec.vocab_size);
    for (const RopeSpec& rope : spec.ropes) {
      cos.push_back(arena.take<float>(uint64_t{n_ctx} * rope.inv_freq.size()));
      sin.push_back(arena.take<float>(uint64_t{n_ctx} * rope.inv_freq.size()));
    }
  }

  uint64_t out_stride, thread_stride, y_stride, panel_stride;
  uint32_t qkv_rows;
  float* x;       // [n, dim] residual stream
  float* normed;  // [n, dim]
  float* qkv;     // [n, q + 2 kv rows]
  float* attn;    // [n, q rows]
  float* hidden;  // [n, ffn_dim]; with experts [slots, ffn_dim]
  float* branch;  // [n, dim] before a post norm, and the sum of experts
  // Experts: what each token chose, and the same sorted by expert.
  struct Chosen {
    uint32_t expert;
    float share;
  };
  struct Slot {
    uint32_t token;
    float share;
  };
  float* router = nullptr;           // [n, n_experts]
  float* gathered = nullptr;         // [n, dim] the input of one expert
  uint32_t* expert_begin = nullptr;  // [n_experts + 1] into slots
  Slot* slots = nullptr;             // [n * n_active_experts]
  Chosen* slot_of = nullptr;         // [n, n_active_experts], experts ascending
  int8_t* a;                         // quantized input of the current matrix: Input
  int16_t* sums;
  float* scales;
  float* x_hat;
  float* thread_row;             // [threads, thread_stride] the normed token, for decode
  float* y;                      // [threads, 32, lanes]
  uint8_t* panel;                // [threads] kernel scratch
  float* scores;                 // [threads, kMaxQueries, kSegment]
  float* sums_out;               // [n_heads, segments, out_stride]
  float* tile_out;               // [threads, 2, kMaxQueries, out_stride]
  float* sink_part;              // [threads, out_stride]
  float* logits;                 // [kMaxLogitRows, vocab]
  std::vector<float*> cos, sin;  // [n_ctx, rotary_dim / 2] for each rope
};

// cos and sin of position * inv_freq, times the rope's scale; angles in double.
void fill_rope(const RopeSpec& rope, uint32_t n_ctx, Range positions, float* cos, float* sin) {
  const std::vector<float> inv_freq = rope.frequencies(n_ctx);
  size_t at = positions.begin * inv_freq.size();
  for (uint32_t p = positions.begin; p < positions.end; ++p)
    for (const float f : inv_freq) {
      const double angle = double{f} * p;
      cos[at] = static_cast<float>(std::cos(angle) * double{rope.scale});
      sin[at++] = static_cast<float>(std::sin(angle) * double{rope.scale});
    }
}

// About how many weights of a Q24 matrix are multiplied in the time that a token of this model takes.
double work_of_token(const Weights& weights, const ModelSpec& spec) {
  const auto work = [](const Matrix& m) {
    const double n = static_cast<double>(m.n_rows) * m.n_cols;
    return m.is_q24() ? n : 4 * n;
  };
  double sum = work(weights.head);
  for (const LayerWeights& layer : weights.layers) {
    sum += work(layer.qkv) + work(layer.attn_out);
    if (spec.n_experts == 0)
      sum += work(layer.gate_up) + work(layer.down);
    else
      sum += spec.n_active_experts * (work(layer.experts[0].gate_up) + work(layer.experts[0].down));
  }
  return sum;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(std::shared_ptr<const Model> model, const SessionOptions& options, Arena arena)
      : model_(std::move(model)),
        spec_(model_->spec()),
        kernels_(select_kernels(options.kernels)),
        arena_(std::move(arena)),
        weights_(*model_, arena_),
        cache_(spec_, options.kv, options.n_ctx, arena_),
        scratch_(spec_, weights_, options.n_ctx, options.prefill_chunk, options.n_threads, arena_),
        work_of_token_(work_of_token(weights_, spec_)),
        small_step_(options.small_step),
        pool_(options.n_threads),
        prompt_threads_(options.n_threads),
        token_threads_(options.n_threads) {
    pool_.run([&](uint32_t thread) {
      for (size_t i = 0; i < spec_.ropes.size(); ++i)
        fill_rope(spec_.ropes[i], options.n_ctx, share(options.n_ctx, thread, pool_.n_threads()),
                  scratch_.cos[i], scratch_.sin[i]);
    });
  }

  void embed(std::span<const int32_t> ids, uint32_t position) override;
  void attn_in(uint32_t layer) override;
  void attend(uint32_t layer) override;
  void attn_out(uint32_t layer) override;
  void ffn_in(uint32_t layer) override;
  void ffn_out(uint32_t layer) override;
  std::span<const float> head(uint32_t first, uint32_t n_rows) override;
  void read_kv(uint32_t layer, uint32_t n_tokens, uint8_t* out) const override {
    cache_.read(layer, n_tokens, out);
  }
  void write_kv(uint32_t layer, uint32_t n_tokens, const uint8_t* in) override {
    cache_.write(layer, n_tokens, in);
  }

 private:
  void begin_batch(uint32_t n_tokens);
  void end_batch();
  void read_ahead(uint32_t n_layers);
  Input prepare(uint32_t thread, const Matrix& m, const float* x, uint32_t x_stride, uint32_t n,
                const float* norm);
  template <typename Store>
  void multiply(uint32_t thread, const Matrix& m, const Input& in, Store&& store);
  static void add_bias(const float* bias, uint32_t first, uint32_t n_rows, uint32_t n_lanes, float* y);
  void add_branch(uint32_t thread, const Matrix& m, const Input& in, const float* bias,
                  const float* post_norm);
  void add_post_normed(uint32_t thread, uint32_t n_tokens, const float* post_norm);
  void finish_token(const LayerWeights& w, uint32_t layer, uint32_t token, uint32_t head);
  void finish_head(uint32_t thread, uint32_t layer, uint32_t head, float* sums, float* out);
  void gate_up(uint32_t thread, const Matrix& m, const float* bias, const Input& in, float* hidden);
  void choose_experts(uint32_t token);
  void sort_by_expert();
  void experts_in(uint32_t layer);
  void experts_out(uint32_t layer);
  void attend_one(uint32_t thread, uint32_t layer);
  void attend_tile(uint32_t thread, uint32_t layer, uint32_t kv_head, uint32_t first_token,
                   uint32_t n_tokens);
  uint32_t first_seen(uint32_t layer, uint32_t position) const {
    const uint32_t window = spec_.layers[layer].window;
    return window != 0 && position + 1 > window ? position + 1 - window : 0;
  }

  const std::shared_ptr<const Model> model_;
  const ModelSpec& spec_;
  const Kernels& kernels_;
  Arena arena_;
  Weights weights_;
  KvCache cache_;
  Scratch scratch_;
  const double work_of_token_, small_step_;
  ThreadPool pool_;
  ThreadChoice prompt_threads_, token_threads_;
  // Of the current batch:
  uint32_t n_ = 0, position_ = 0;
  bool is_small_ = false;  // runs on one thread
  std::chrono::steady_clock::time_point begin_;
  uint32_t n_layers_asked_ = 0;  // of read_ahead()
};

// ---- matrices -----------------------------------------------------------------------------------------------------

// Brings n rows of x through `norm` (or none) to the form that the matrix wants. All threads call it together; on
// return the input is ready for every thread.
Input CpuBackend::prepare(uint32_t thread, const Matrix& m, const float* x, uint32_t x_stride, uint32_t n,
                          const float* norm) {
  Input in;
  in.n_tokens = n;
  in.n_lanes = lanes_for(n);
  in.a = scratch_.a;
  in.sums = scratch_.sums;
  in.scales = scratch_.scales;
  in.x_hat = scratch_.x_hat;
  in.x = x;
  in.x_stride = x_stride;
  const uint32_t n_threads = pool_.n_threads();
  if (n == 1) {  // every thread norms for itself, which is cheaper than a barrier, and quantizes a share
    if (norm != nullptr) {
      float* const row = scratch_.thread_row + thread * scratch_.thread_stride;
      kernels_.rms_norm(x, norm, m.n_cols, spec_.norm_eps, row);
      in.x = row;
    }
    if (!m.is_q24()) return in;
    const Range blocks = share(m.n_blocks(), thread, n_threads);
    kernels_.quantize(m, in.x, blocks.begin, blocks.end, 0, in);
  } else {
    const Range tokens = share(n, thread, n_threads);
    for (uint32_t t = tokens.begin; t < tokens.end; ++t) {
      const float* row = x + size_t{t} * x_stride;
      if (norm != nullptr) {
        float* const out = scratch_.normed + size_t{t} * m.n_cols;
        kernels_.rms_norm(row, norm, m.n_cols, spec_.norm_eps, out);
        row = out;
      }
      if (m.is_q24()) kernels_.quantize(m, row, 0, m.n_blocks(), t, in);
    }
    if (norm != nullptr) {
      in.x = scratch_.normed;
      in.x_stride = m.n_cols;
    }
  }
  pool_.barrier();
  return in;
}

// Calls store(first_row, n_rows, y) for the panels that fall to this thread; y is [32, n_lanes].
template <typename Store>
void CpuBackend::multiply(uint32_t thread, const Matrix& m, const Input& in, Store&& store) {
  float* const y = scratch_.y + thread * scratch_.y_stride;
  uint8_t* const panel_scratch = scratch_.panel + thread * scratch_.panel_stride;
  pool_.for_each(thread, m.n_panels(), [&](uint32_t p) {
    kernels_.panel(m, p, in, panel_scratch, y);
    const uint32_t first = p * kPanelRows;
    store(first, std::min(kPanelRows, m.n_rows - first), y);
  });
}

void CpuBackend::add_bias(const float* bias, uint32_t first, uint32_t n_rows, uint32_t n_lanes, float* y) {
  if (bias == nullptr) return;
  for (uint32_t r = 0; r < n_rows; ++r)
    for (uint32_t t = 0; t < n_lanes; ++t) y[size_t{r} * n_lanes + t] += bias[first + r];
}

// x += residual_scale * post_norm(m . in + bias)
void CpuBackend::add_branch(uint32_t thread, const Matrix& m, const Input& in, const float* bias,
                            const float* post_norm) {
  multiply(thread, m, in, [&](uint32_t first, uint32_t n_rows, float* y) {
    add_bias(bias, first, n_rows, in.n_lanes, y);
    const bool add = post_norm == nullptr;
    kernels_.store(y, in.n_lanes, n_rows, in.n_tokens, add ? spec_.residual_scale : 1, add,
                   (add ? scratch_.x : scratch_.branch) + first, spec_.dim);
  });
  if (post_norm == nullptr) return;
  pool_.barrier();
  add_post_normed(thread, in.n_tokens, post_norm);
}

// x += residual_scale * norm(branch); no norm when it is null.
void CpuBackend::add_post_normed(uint32_t thread, uint32_t n_tokens, const float* post_norm) {
  const Range tokens = share(n_tokens, thread, pool_.n_threads());
  for (uint32_t t = tokens.begin; t < tokens.end; ++t) {
    float* const branch = scratch_.branch + size_t{t} * spec_.dim;
    float* const x = scratch_.x + size_t{t} * spec_.dim;
    if (post_norm != nullptr) kernels_.rms_norm(branch, post_norm, spec_.dim, spec_.norm_eps, branch);
    for (uint32_t i = 0; i < spec_.dim; ++i) x[i] += spec_.residual_scale * branch[i];
  }
}

// ---- phases -------------------------------------------------------------------------------------------------------

// Chooses the threads of a batch: five steps a layer, and the head.
void CpuBackend::begin_batch(uint32_t n_tokens) {
  const double n_lanes = n_tokens == 1 ? 1 : lanes_for(n_tokens) / 4;  // many tokens are cheaper
  is_small_ = work_of_token_ * n_lanes < small_step_ * (5.0 * spec_.n_layers + 1);
  pool_.use(is_small_ ? 1 : (n_tokens == 1 ? token_threads_ : prompt_threads_).n_threads());
  if (is_small_) return;
  pool_.take_stalled_ns();
  begin_ = std::chrono::steady_clock::now();
}

void CpuBackend::end_batch() {
  if (is_small_) return;
  const std::chrono::nanoseconds busy = std::chrono::steady_clock::now() - begin_;
  (n_ == 1 ? token_threads_ : prompt_threads_)
      .record(lanes_for(n_), static_cast<uint64_t>(busy.count()), pool_.take_stalled_ns());
}

void CpuBackend::embed(std::span<const int32_t> ids, uint32_t position) {
  n_ = static_cast<uint32_t>(ids.size());
  position_ = position;
  begin_batch(n_);
  const auto row = [&](uint32_t t) {
    embedding_row(weights_.embed, static_cast<uint32_t>(ids[t]), spec_.embedding_scale,
                  scratch_.x + size_t{t} * spec_.dim);
  };
  if (n_ == 1) return row(0);
  pool_.run([&](uint32_t thread) {
    const Range tokens = share(n_, thread, pool_.n_threads());
    for (uint32_t t = tokens.begin; t < tokens.end; ++t) row(t);
  });
}

// From a cold file the first batch finds the pages of each layer on their way while it computes the one before: page
// faults alone read 128 KB at a time and wait for each. Experts are left out: most are not needed.
void CpuBackend::read_ahead(uint32_t n_layers) {
  for (; n_layers_asked_ < std::min(n_layers, spec_.n_layers); ++n_layers_asked_)
    for (const char* part : {"attn_qkv", "attn_out", "ffn_gate_up", "ffn_down"})
      if (const Tensor* const t = model_->container().find(layer_tensor(n_layers_asked_, part)))
        model_->container().read_ahead(*t);
}

void CpuBackend::attn_in(uint32_t layer) {
  read_ahead(layer + 2);
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Input in = prepare(thread, w.qkv, scratch_.x, spec_.dim, n_, w.attn_norm);
    multiply(thread, w.qkv, in, [&](uint32_t first, uint32_t n_rows, float* y) {
      add_bias(w.qkv_bias, first, n_rows, in.n_lanes, y);
      kernels_.store(y, in.n_lanes, n_rows, n_, 1, false, scratch_.qkv + first, scratch_.qkv_rows);
    });
    pool_.barrier();
    if (spec_.qk_norm_whole) {
      const Range halves = share(n_ * 2, thread, pool_.n_threads());
      for (uint32_t i = halves.begin; i < halves.end; ++i) {
        float* const q = scratch_.qkv + size_t{i / 2} * scratch_.qkv_rows;
        if (i % 2 == 0)
          kernels_.rms_norm(q, w.q_norm, spec_.q_rows(), spec_.norm_eps, q);
        else
          kernels_.rms_norm(q + spec_.q_rows(), w.k_norm, spec_.kv_rows(), spec_.norm_eps,
                            q + spec_.q_rows());
      }
      pool_.barrier();
    }
    const uint32_t n_heads = spec_.n_heads + spec_.n_kv_heads;
    const Range items = share(n_ * n_heads, thread, pool_.n_threads());
    for (uint32_t i = items.begin; i < items.end; ++i) finish_token(w, layer, i / n_heads, i % n_heads);
  });
}

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
  float* const scores = scratch_.scores + size_t{thread} * kMaxQueries * kSegment;
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
                      scores);
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
  float* const scores = scratch_.scores + size_t{thread} * kMaxQueries * kSegment;
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
                      scores);
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

void CpuBackend::attn_out(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Input in = prepare(thread, w.attn_out, scratch_.attn, spec_.q_rows(), n_, nullptr);
    add_branch(thread, w.attn_out, in, w.attn_out_bias, w.attn_post_norm);
  });
}

// hidden [n_tokens, ffn_dim] = act(gate) * up
void CpuBackend::gate_up(uint32_t thread, const Matrix& m, const float* bias, const Input& in,
                         float* hidden) {
  multiply(thread, m, in, [&](uint32_t first, uint32_t, float* y) {
    const uint32_t lanes = in.n_lanes, col = first / 2, n_cols = std::min(16u, spec_.ffn_dim - col);
    add_bias(bias, first, kPanelRows, lanes, y);
    kernels_.gate(spec_.activation, y, y + 16 * lanes, 16 * lanes, y);  // 16 rows of gate, 16 of up
    kernels_.store(y, lanes, n_cols, in.n_tokens, 1, false, hidden + col, spec_.ffn_dim);
  });
}

void CpuBackend::ffn_in(uint32_t layer) {
  if (spec_.n_experts != 0) return experts_in(layer);
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Input in = prepare(thread, w.gate_up, scratch_.x, spec_.dim, n_, w.ffn_norm);
    gate_up(thread, w.gate_up, w.gate_up_bias, in, scratch_.hidden);
  });
}

// ---- experts ------------------------------------------------------------------------------------------------------

// The n_active_experts largest logits of a token (the lower index where equal), with their shares, experts ascending.
void CpuBackend::choose_experts(uint32_t token) {
  float* const logits = scratch_.router + size_t{token} * spec_.n_experts;
  Scratch::Chosen* const chosen = scratch_.slot_of + size_t{token} * spec_.n_active_experts;
  const float top = *std::max_element(logits, logits + spec_.n_experts);
  float all = 0;
  for (uint32_t e = 0; e < spec_.n_experts; ++e) all += std::exp(logits[e] - top);
  float sum = 0;
  for (uint32_t i = 0; i < spec_.n_active_experts; ++i) {
    const float* const best = std::max_element(logits, logits + spec_.n_experts);
    chosen[i] = {static_cast<uint32_t>(best - logits), std::exp(*best - top)};
    sum += chosen[i].share;
    logits[chosen[i].expert] = -INFINITY;
  }
  const float total = spec_.router_renormalize ? sum : all;
  for (uint32_t i = 0; i < spec_.n_active_experts; ++i) chosen[i].share /= total;
  std::sort(chosen, chosen + spec_.n_active_experts,
            [](const auto& a, const auto& b) { return a.expert < b.expert; });
}

// slot_of to slots: the tokens of each expert, ascending.
void CpuBackend::sort_by_expert() {
  const uint32_t n_chosen = n_ * spec_.n_active_experts;
  uint32_t* const begin = scratch_.expert_begin;
  std::fill_n(begin, spec_.n_experts + 1, 0u);
  for (uint32_t i = 0; i < n_chosen; ++i) ++begin[scratch_.slot_of[i].expert + 1];
  for (uint32_t e = 0; e < spec_.n_experts; ++e) begin[e + 1] += begin[e];
  for (uint32_t i = 0; i < n_chosen; ++i) {
    const Scratch::Chosen& chosen = scratch_.slot_of[i];
    scratch_.slots[begin[chosen.expert]++] = {i / spec_.n_active_experts, chosen.share};
  }
  for (uint32_t e = spec_.n_experts; e > 0; --e) begin[e] = begin[e - 1];
  begin[0] = 0;
}

// Router, then gate and up of each expert for its tokens. All threads work on one expert after another.
void CpuBackend::experts_in(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const uint32_t n_threads = pool_.n_threads();
    const Range tokens = share(n_, thread, n_threads);
    for (uint32_t t = tokens.begin; t < tokens.end; ++t) {
      const float* const x = scratch_.x + size_t{t} * spec_.dim;
      float* const normed = scratch_.normed + size_t{t} * spec_.dim;
      if (w.ffn_norm != nullptr)
        kernels_.rms_norm(x, w.ffn_norm, spec_.dim, spec_.norm_eps, normed);
      else
        std::copy_n(x, spec_.dim, normed);
    }
    const Input in = prepare(thread, w.router, scratch_.normed, spec_.dim, n_, nullptr);
    if (n_ == 1) pool_.barrier();  // prepare has none for one token
    multiply(thread, w.router, in, [&](uint32_t first, uint32_t n_rows, const float* y) {
      for (uint32_t t = 0; t < n_; ++t)
        for (uint32_t r = 0; r < n_rows; ++r)
          scratch_.router[size_t{t} * spec_.n_experts + first + r] =
              y[size_t{r} * in.n_lanes + t] + (w.router_bias != nullptr ? w.router_bias[first + r] : 0.0f);
    });
    pool_.barrier();
    for (uint32_t t = tokens.begin; t < tokens.end; ++t) choose_experts(t);
    pool_.barrier();
    if (thread == 0) sort_by_expert();
    pool_.barrier();
    for (uint32_t e = 0; e < spec_.n_experts; ++e) {
      const uint32_t begin = scratch_.expert_begin[e], n = scratch_.expert_begin[e + 1] - begin;
      if (n == 0) continue;
      const Range rows = share(n, thread, n_threads);
      for (uint32_t i = rows.begin; i < rows.end; ++i)
        std::copy_n(scratch_.normed + size_t{scratch_.slots[begin + i].token} * spec_.dim, spec_.dim,
                    scratch_.gathered + size_t{i} * spec_.dim);
      pool_.barrier();
      const ExpertWeights& expert = w.experts[e];
      const Input mine = prepare(thread, expert.gate_up, scratch_.gathered, spec_.dim, n, nullptr);
      gate_up(thread, expert.gate_up, expert.gate_up_bias, mine,
              scratch_.hidden + size_t{begin} * spec_.ffn_dim);
      pool_.barrier();  // the next expert overwrites gathered and the quantized input
    }
  });
}

// branch = sum over a token's experts, in their order, of share * (down . hidden + bias); then as any branch.
void CpuBackend::experts_out(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Range tokens = share(n_, thread, pool_.n_threads());
    std::fill(scratch_.branch + size_t{tokens.begin} * spec_.dim,
              scratch_.branch + size_t{tokens.end} * spec_.dim, 0.0f);
    pool_.barrier();
    for (uint32_t e = 0; e < spec_.n_experts; ++e) {
      const uint32_t begin = scratch_.expert_begin[e], n = scratch_.expert_begin[e + 1] - begin;
      if (n == 0) continue;
      const ExpertWeights& expert = w.experts[e];
      const float* const hidden = scratch_.hidden + size_t{begin} * spec_.ffn_dim;
      const Input in = prepare(thread, expert.down, hidden, spec_.ffn_dim, n, nullptr);
      multiply(thread, expert.down, in, [&](uint32_t first, uint32_t n_rows, const float* y) {
        for (uint32_t i = 0; i < n; ++i) {
          const Scratch::Slot& slot = scratch_.slots[begin + i];
          float* const out = scratch_.branch + size_t{slot.token} * spec_.dim + first;
          for (uint32_t r = 0; r < n_rows; ++r)
            out[r] += slot.share * (y[size_t{r} * in.n_lanes + i] +
                                    (expert.down_bias != nullptr ? expert.down_bias[first + r] : 0.0f));
        }
      });
      pool_.barrier();
    }
    add_post_normed(thread, n_, w.ffn_post_norm);
  });
  if (layer + 1 == spec_.n_layers) end_batch();
}

void CpuBackend::ffn_out(uint32_t layer) {
  if (spec_.n_experts != 0) return experts_out(layer);
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Input in = prepare(thread, w.down, scratch_.hidden, spec_.ffn_dim, n_, nullptr);
    add_branch(thread, w.down, in, w.down_bias, w.ffn_post_norm);
  });
  if (layer + 1 == spec_.n_layers) end_batch();
}

std::span<const float> CpuBackend::head(uint32_t first, uint32_t n_rows) {
  const uint32_t vocab = spec_.vocab_size;
  pool_.run([&](uint32_t thread) {
    const Input in = prepare(thread, weights_.head, scratch_.x + size_t{first} * spec_.dim, spec_.dim, n_rows,
                             weights_.norm);
    multiply(thread, weights_.head, in, [&](uint32_t row, uint32_t n, const float* y) {
      kernels_.store(y, in.n_lanes, n, n_rows, spec_.logit_scale, false, scratch_.logits + row, vocab);
      if (spec_.logit_softcap == 0) return;
      for (uint32_t t = 0; t < n_rows; ++t)
        kernels_.softcap(scratch_.logits + size_t{t} * vocab + row, n, spec_.logit_softcap);
    });
  });
  return {scratch_.logits, size_t{n_rows} * vocab};
}

// ---- creation -----------------------------------------------------------------------------------------------------

MemoryPlan plan(const Model& model, const SessionOptions& options) {
  select_kernels(options.kernels);  // a plan refuses what a session would
  Arena weights_arena, kv_arena, scratch_arena;
  const Weights weights(model, weights_arena);
  const KvCache cache(model.spec(), options.kv, options.n_ctx, kv_arena);
  const Scratch scratch(model.spec(), weights, options.n_ctx, options.prefill_chunk, options.n_threads,
                        scratch_arena);
  return {model.container().file_size(), kv_arena.size_bytes(),
          checked_add(weights_arena.size_bytes(), scratch_arena.size_bytes())};
}

std::unique_ptr<Backend> create(std::shared_ptr<const Model> model, const SessionOptions& options) {
  const MemoryPlan needed = plan(*model, options);
  return std::make_unique<CpuBackend>(std::move(model), options,
                                      Arena(checked_add(needed.kv_bytes, needed.scratch_bytes)));
}

}  // namespace

BackendKind backend_kind() {
  return {"cpu", [] { return true; }, create, plan};
}

}  // namespace pith::cpu
