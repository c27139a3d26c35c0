// The backend's creation, and its phases around attention and experts.
#include "runtime/cpu/cpu_backend.h"

#include "runtime/cpu/phases.h"

namespace pith::cpu {

namespace {

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

}  // namespace

CpuBackend::CpuBackend(std::shared_ptr<const Model> model, const SessionOptions& options,
                       const LayerRange& range, Arena arena)
    : model_(std::move(model)),
      spec_(model_->spec()),
      kernels_(select_kernels(options.kernels)),
      arena_(std::move(arena)),
      weights_(*model_, range.end, arena_),
      pages_(*model_, range.end),
      cache_(spec_, options.kv, options.n_ctx, range.end, arena_),
      scratch_(spec_, weights_, options.n_ctx, options.prefill_chunk, options.n_threads, arena_),
      work_of_token_(work_of_token(weights_, spec_)),
      small_step_(options.small_step),
      pool_(options.n_threads),
      prompt_threads_(options.n_threads),
      token_threads_(options.n_threads) {
  for (size_t i = 0; i < spec_.ropes.size(); ++i) {
    const RopeSpec& rope = spec_.ropes[i];
    const std::vector<float> frequencies = rope.frequencies(options.n_ctx);  // here: a thread must not throw
    pool_.run([&](uint32_t thread) {
      const Range mine = share(options.n_ctx, thread, pool_.n_threads());
      const size_t at = mine.begin * frequencies.size();
      rope.fill_tables(frequencies, mine.begin, mine.end, scratch_.cos[i] + at, scratch_.sin[i] + at);
    });
  }
}

// ---- matrices -----------------------------------------------------------------------------------------------------

// Where the quantized input of one token lies for a thread, whose line sums are its own; with experts that of its slot-th
// expert.
Input CpuBackend::input_of_one(uint32_t thread, uint32_t slot, const float* x) const {
  const size_t n_blocks = size_t{slot} * scratch_.max_blocks,
               n_lines = size_t{slot} * scratch_.max_summed_lines;
  Input in;
  in.n_tokens = in.n_lanes = 1;
  in.a = scratch_.a + n_blocks * kBlock;
  in.sums = scratch_.sums + thread * scratch_.sums_stride + n_lines;
  in.sum_steps = scratch_.sum_steps + size_t{thread} * std::max(spec_.n_active_experts, 1u) + slot;
  in.line_sums = scratch_.line_sums + n_lines;
  in.scales = scratch_.scales + n_blocks;
  in.x_hat = scratch_.x_hat + n_blocks * kBlock;
  in.x = x;
  return in;
}

// Brings n rows of x through `norm` (or none) to the form that the matrix wants. All threads call it together; on return the
// input is ready for the thread that has it, and may not change before all are done with the matrix.
Input CpuBackend::prepare(uint32_t thread, const Matrix& m, const float* x, uint32_t x_stride, uint32_t n,
                          const float* norm) {
  return n == 1 ? prepare_one(thread, m, x, norm) : prepare_many(thread, m, x, x_stride, n, norm);
}

// Every thread norms for itself, which is cheaper than a barrier, and quantizes a share. For a plain matrix there is no
// barrier: x must be ready.
Input CpuBackend::prepare_one(uint32_t thread, const Matrix& m, const float* x, const float* norm) {
  Input in = input_of_one(thread, 0, x);
  if (norm != nullptr) {
    float* const row = scratch_.thread_row + thread * scratch_.thread_stride;
    kernels_.rms_norm(x, norm, m.n_cols, spec_.norm_eps, row);
    in.x = row;
  }
  if (!m.is_q24()) return in;
  const Range blocks = share(m.n_blocks(), thread, pool_.n_threads());
  kernels_.quantize(m, in.x, blocks.begin, blocks.end, in);
  pool_.barrier();
  kernels_.quantize_sums(m, in);
  return in;
}

Input CpuBackend::prepare_many(uint32_t thread, const Matrix& m, const float* x, uint32_t x_stride,
                               uint32_t n, const float* norm) {
  Input in = input_of_one(0, 0, x);  // its arrays are those of many tokens too
  in.n_tokens = n;
  in.n_lanes = lanes_for(n);
  in.x_stride = x_stride;
  const Range tiles = share(in.n_lanes / kLanes, thread, pool_.n_threads());
  for (uint32_t first = tiles.begin * kLanes; first < std::min(tiles.end * kLanes, n); first += kLanes) {
    const uint32_t n_here = std::min(n - first, kLanes);
    const float* rows = x + size_t{first} * x_stride;
    size_t stride = x_stride;
    if (norm != nullptr) {
      float* const normed = scratch_.normed + size_t{first} * m.n_cols;
      for (uint32_t t = 0; t < n_here; ++t)
        kernels_.rms_norm(rows + t * stride, norm, m.n_cols, spec_.norm_eps, normed + size_t{t} * m.n_cols);
      rows = normed;
      stride = m.n_cols;
    }
    if (m.is_q24())
      kernels_.quantize_tile(m, rows, stride, n_here, first, in,
                             reinterpret_cast<float*>(scratch_.panel + thread * scratch_.panel_stride));
  }
  if (norm != nullptr) {
    in.x = scratch_.normed;
    in.x_stride = m.n_cols;
  }
  pool_.barrier();
  return in;
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
  is_small_ = work_of_token_ * n_lanes < small_step_ * (5.0 * n_layers() + 1);
  pool_.use(is_small_ ? 1 : (n_tokens == 1 ? token_threads_ : prompt_threads_).n_threads());
  if (is_small_) return;
  pages_.move_some(n_tokens, pool_);
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

void CpuBackend::attn_in(uint32_t layer) {
  pages_.read_ahead(layer + 1);
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

void CpuBackend::attn_out(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Input in = prepare(thread, w.attn_out, scratch_.attn, spec_.q_rows(), n_, nullptr);
    add_branch(thread, w.attn_out, in, w.attn_out_bias, w.attn_post_norm);
  });
}

// Of a panel from row `first` on: 16 rows of gate, 16 of up.
void CpuBackend::store_gate(uint32_t first, const float* bias, const Input& in, float* y, float* hidden) {
  const uint32_t lanes = in.n_lanes, col = first / 2, n_cols = std::min(16u, spec_.ffn_dim - col);
  add_bias(bias, first, kPanelRows, lanes, y);
  kernels_.gate(spec_.activation, y, y + 16 * lanes, 16 * lanes, y);
  kernels_.store(y, lanes, n_cols, in.n_tokens, 1, false, hidden + col, spec_.ffn_dim);
}

// hidden [n_tokens, ffn_dim] = act(gate) * up
void CpuBackend::gate_up(uint32_t thread, const Matrix& m, const float* bias, const Input& in,
                         float* hidden) {
  multiply(thread, m, in,
           [&](uint32_t first, uint32_t, float* y) { store_gate(first, bias, in, y, hidden); });
}

void CpuBackend::ffn_in(uint32_t layer) {
  if (spec_.n_experts != 0) return experts_in(layer);
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Input in = prepare(thread, w.gate_up, scratch_.x, spec_.dim, n_, w.ffn_norm);
    gate_up(thread, w.gate_up, w.gate_up_bias, in, scratch_.hidden);
  });
}

void CpuBackend::ffn_out(uint32_t layer) {
  if (spec_.n_experts != 0) return experts_out(layer);
  const LayerWeights& w = weights_.layers[layer];
  pool_.run([&](uint32_t thread) {
    const Input in = prepare(thread, w.down, scratch_.hidden, spec_.ffn_dim, n_, nullptr);
    add_branch(thread, w.down, in, w.down_bias, w.ffn_post_norm);
  });
  if (layer + 1 == n_layers()) end_batch();
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

// ---- what the runtime calls ----------------------------------------------------------------------------------------

namespace {

MemoryPlan plan(const Model& model, const SessionOptions& options, const LayerRange& range) {
  select_kernels(options.kernels);  // a plan refuses what a session would
  Arena weights_arena, kv_arena, scratch_arena;
  const Weights weights(model, range.end, weights_arena);
  const KvCache cache(model.spec(), options.kv, options.n_ctx, range.end, kv_arena);
  const Scratch scratch(model.spec(), weights, options.n_ctx, options.prefill_chunk, options.n_threads,
                        scratch_arena);
  uint64_t mapped_bytes = model.container().file_size();  // whole, but for what another device runs
  for (const Tensor& tensor : model.container().tensors())
    if (tensor_layer(tensor.name) >= static_cast<int32_t>(range.end)) mapped_bytes -= tensor.size_bytes;
  return {mapped_bytes, kv_arena.size_bytes(),
          checked_add(weights_arena.size_bytes(), scratch_arena.size_bytes())};
}

std::unique_ptr<Backend> create(std::shared_ptr<const Model> model, const SessionOptions& options,
                                const LayerRange& range) {
  const MemoryPlan needed = plan(*model, options, range);
  return std::make_unique<CpuBackend>(std::move(model), options, range,
                                      Arena(checked_add(needed.kv_bytes, needed.scratch_bytes)));
}

}  // namespace

BackendKind backend_kind() {
  BackendKind kind{"cpu", [] { return true; }, create, plan};
  kind.kernels_name = [](const SessionOptions& options) -> std::string {
    return select_kernels(options.kernels).name;
  };
  return kind;
}

}  // namespace pith::cpu
