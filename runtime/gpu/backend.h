// The CUDA backend's class: a range of layers on one GPU. backend.cpp has its phases and what the host does, launches.cpp what a
// phase launches.
//
// One token is one graph, recorded at creation: what its phases would do is then already in it, so they only
// note that it is due, and it runs when its logits are asked for or the next batch begins.
#pragma once
#include <memory>
#include <span>

#include "runtime/backend.h"
#include "runtime/gpu/choice.h"
#include "runtime/gpu/memory.h"
#include "runtime/gpu/weights.h"

namespace pith::gpu {

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::shared_ptr<const Model> model, const SessionOptions& options,
              const cuda::DeviceInfo& device, const LayerRange& range, const MemoryPlan& needed);
  ~CudaBackend() override;

  void embed(std::span<const int32_t> ids, uint32_t position) override;
  void receive(std::span<const float> x, uint32_t position) override;
  void attn_in(uint32_t layer) override {
    if (!replays()) run_attn_in(layer);
  }
  void attend(uint32_t layer) override {
    if (!replays()) run_attend(layer);
  }
  void attn_out(uint32_t layer) override {
    if (!replays()) run_attn_out(layer);
  }
  void ffn_in(uint32_t layer) override {
    if (!replays()) run_ffn_in(layer);
  }
  void ffn_out(uint32_t layer) override {
    if (!replays()) run_ffn_out(layer);
    due_ = replays() && layer + 1 == range_.end;
  }
  std::span<const float> head(uint32_t first, uint32_t n_rows) override;
  void read_kv(uint32_t layer, uint32_t n_tokens, uint8_t* out) const override;
  void write_kv(uint32_t layer, uint32_t n_tokens, const uint8_t* in) override;

 private:
  bool replays() const { return n_ == 1; }
  void begin_batch(uint32_t n_tokens, uint32_t position);
  void finish_due() const;
  void record_graphs();
  void run_embed();
  void run_attn_in(uint32_t layer);
  void run_attend(uint32_t layer);
  void run_attn_out(uint32_t layer);
  void run_ffn_in(uint32_t layer);
  void run_ffn_out(uint32_t layer);
  void run_experts_in(const LayerWeights& w);
  void run_experts_out(const LayerWeights& w);
  void run_head(uint32_t first, uint32_t n_rows);
  void multiply(const Linear& m, const float* x, uint32_t x_stride, const float* norm, uint32_t n_tokens,
                const cuda::Output& output, uint32_t out_stride);
  void multiply_halves(const Linear& m, const cuda::Input& input, uint32_t x_stride, uint32_t n_tokens,
                       const cuda::Output& output, uint32_t out_stride);
  void add_branch(const Linear& m, const float* x, uint32_t x_stride, const float* bias,
                  const float* post_norm);
  void add_post_normed(const float* post_norm);
  cuda::Output gate_up_output() const;
  cuda::ExpertSlots expert_slots() const;
  void multiply_slots(const ExpertLinear& m, const float* x, uint32_t x_stride, const cuda::Output& output,
                      uint32_t out_stride);
  cuda::AttentionLayer attention_layer(uint32_t layer) const;
  template <typename F>
  void for_each_cache_piece(uint32_t layer, uint32_t n_tokens, F&& f) const;

  const std::shared_ptr<const Model> model_;
  const ModelSpec& spec_;
  const SessionOptions options_;
  const LayerRange range_;
  const cuda::DeviceInfo device_;
  const Kernels kernels_;
  DeviceArena weights_arena_, cache_arena_, scratch_arena_;
  Weights weights_;
  Cache cache_;
  Scratch scratch_;
  cuda::PinnedBuffer step_, arrived_, logits_;
  cuda::Stream stream_;
  cuda::Launch how_;
  cuda::Graph token_, token_and_logits_;
  uint32_t n_ = 0;            // tokens of the current batch
  mutable bool due_ = false;  // the current token's graph has not run yet
};

}  // namespace pith::gpu
