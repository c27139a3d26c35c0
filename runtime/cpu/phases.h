// The phases of a decoder on a CPU. Each is one ThreadPool::run; work is dealt out by panels of rows, heads or tokens,
// which never changes a result: every output element is computed by one thread in an order that kernels.h fixes.
//
// cpu_backend.cpp has creation and the dense phases, attention.cpp attend(), experts.cpp the feed-forward part of a
// mixture of experts.
#pragma once
#include <algorithm>
#include <chrono>

#include "runtime/backend.h"
#include "runtime/cpu/kv_cache.h"
#include "runtime/cpu/scratch.h"
#include "runtime/cpu/weight_pages.h"
#include "runtime/thread_choice.h"
#include "runtime/thread_pool.h"

namespace pith::cpu {

struct Range {
  uint32_t begin, end;
};
inline Range share(uint32_t n, uint32_t thread, uint32_t n_threads) {
  const auto cut = [&](uint32_t t) { return static_cast<uint32_t>(uint64_t{n} * t / n_threads); };
  return {cut(thread), cut(thread + 1)};
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(std::shared_ptr<const Model> model, const SessionOptions& options, const LayerRange& range,
             Arena arena);

  void embed(std::span<const int32_t> ids, uint32_t position) override;
  void attn_in(uint32_t layer) override;
  void attend(uint32_t layer) override;
  void attn_out(uint32_t layer) override;
  void ffn_in(uint32_t layer) override;
  void ffn_out(uint32_t layer) override;
  std::span<const float> head(uint32_t first, uint32_t n_rows) override;
  std::span<const float> residual() override { return {scratch_.x, size_t{n_} * spec_.dim}; }
  void read_kv(uint32_t layer, uint32_t n_tokens, uint8_t* out) const override {
    cache_.read(layer, n_tokens, out);
  }
  void write_kv(uint32_t layer, uint32_t n_tokens, const uint8_t* in) override {
    cache_.write(layer, n_tokens, in);
  }

 private:
  uint32_t n_layers() const {
    return static_cast<uint32_t>(weights_.layers.size());
  }  // the model's first ones
  void begin_batch(uint32_t n_tokens);
  void end_batch();
  Input prepare(uint32_t thread, const Matrix& m, const float* x, uint32_t x_stride, uint32_t n,
                const float* norm);
  Input prepare_one(uint32_t thread, const Matrix& m, const float* x, const float* norm);
  Input prepare_many(uint32_t thread, const Matrix& m, const float* x, uint32_t x_stride, uint32_t n,
                     const float* norm);
  template <typename Store>
  void multiply_panel(uint32_t thread, const Matrix& m, uint32_t panel, const Input& in, Store&& store);
  template <typename Store>
  void multiply(uint32_t thread, const Matrix& m, const Input& in, Store&& store);
  static void add_bias(const float* bias, uint32_t first, uint32_t n_rows, uint32_t n_lanes, float* y);
  void add_branch(uint32_t thread, const Matrix& m, const Input& in, const float* bias,
                  const float* post_norm);
  void add_post_normed(uint32_t thread, uint32_t n_tokens, const float* post_norm);
  void finish_token(const LayerWeights& w, uint32_t layer, uint32_t token, uint32_t head);
  void finish_head(uint32_t thread, uint32_t layer, uint32_t head, float* sums, float* out);
  void store_gate(uint32_t first, const float* bias, const Input& in, float* y, float* hidden);
  void gate_up(uint32_t thread, const Matrix& m, const float* bias, const Input& in, float* hidden);
  void choose_for_tokens(uint32_t thread, const LayerWeights& w);
  void sort_by_expert();
  void experts_in(uint32_t layer);
  void experts_out(uint32_t layer);
  Input input_of_one(uint32_t thread, uint32_t slot, const float* x) const;
  template <typename MatrixOf, typename RowOf>
  void quantize_slots(uint32_t thread, MatrixOf&& matrix_of, RowOf&& row_of);
  void one_token_in(uint32_t layer);
  void one_token_out(uint32_t layer);
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
  WeightPages pages_;
  KvCache cache_;
  Scratch scratch_;
  const double work_of_token_, small_step_;
  ThreadPool pool_;
  ThreadChoice prompt_threads_, token_threads_;
  // Of the current batch:
  uint32_t n_ = 0, position_ = 0;
  bool is_small_ = false;  // runs on one thread
  std::chrono::steady_clock::time_point begin_;
};

// Calls store(first_row, n_rows, y) for a panel; y is [32, n_lanes].
template <typename Store>
void CpuBackend::multiply_panel(uint32_t thread, const Matrix& m, uint32_t panel, const Input& in,
                                Store&& store) {
  float* const y = scratch_.y + thread * scratch_.y_stride;
  kernels_.panel(m, panel, in, scratch_.panel + thread * scratch_.panel_stride, y);
  const uint32_t first = panel * kPanelRows;
  store(first, std::min(kPanelRows, m.n_rows - first), y);
}

// The same for the panels that fall to this thread.
template <typename Store>
void CpuBackend::multiply(uint32_t thread, const Matrix& m, const Input& in, Store&& store) {
  pool_.for_each(thread, m.n_panels(), [&](uint32_t p) { multiply_panel(thread, m, p, in, store); });
}

}  // namespace pith::cpu
