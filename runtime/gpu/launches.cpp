// What each phase of the CUDA backend launches.
#include "runtime/gpu/backend.h"

namespace pith::gpu {

using namespace cuda;

void CudaBackend::multiply(const Linear& m, const float* x, uint32_t x_stride, const float* norm,
                           uint32_t n_tokens, const Output& output, uint32_t out_stride) {
  const Input input{x, norm, spec_.norm_eps};
  if (n_tokens > 1 && (m.is_q24 ? kernels_.warpgroups : halves_weights(m.plain)))
    return multiply_halves(m, input, x_stride, n_tokens, output, out_stride);
  if (!m.is_q24) {
    MatvecPlain args;
    args.w = m.plain;
    args.input = input;
    args.x_stride = x_stride;
    if (norm != nullptr && n_tokens > 1) {
      launch_norm_tokens(
          {x, norm, spec_.norm_eps, 1, scratch_.normed, false, m.n_cols, n_tokens, x_stride, m.n_cols}, how_);
      args.input = {scratch_.normed, nullptr, 0};
      args.x_stride = m.n_cols;
    }
    args.output = output;
    args.n_tokens = n_tokens;
    args.out_stride = out_stride;
    args.n_blocks = m.shape.n_blocks;
    return launch_matvec_plain(args, how_);
  }
  if (n_tokens == 1) return launch_matvec_q24(kernels_.pipeline, {m.q24, input, output, m.shape}, how_);
  QuantizedTokens tokens = scratch_.tokens;
  tokens.columns = m.q24.n_slots != 0 ? scratch_.columns : nullptr;
  tokens.n_tokens = n_tokens;
  tokens.n_padded = (n_tokens + kTokenTile - 1) / kTokenTile * kTokenTile;
  launch_quantize_tokens({m.q24, input, x_stride, tokens}, how_);
  launch_gemm_q24({m.q24, tokens, output, out_stride}, how_);
}

void CudaBackend::multiply_halves(const Linear& m, const Input& input, uint32_t x_stride, uint32_t n_tokens,
                                  const Output& output, uint32_t out_stride) {
  HalfTokens tokens = scratch_.half;
  tokens.n_tokens = n_tokens;
  tokens.n_padded = (n_tokens + kTokenTile - 1) / kTokenTile * kTokenTile;
  launch_halve_tokens({m.q24, m.is_q24 ? 0 : m.n_cols, input, x_stride, tokens}, how_);
  const uint32_t n_groups =
      choose_half_groups(kernels_.warpgroups, m.is_q24, m.n_rows, n_tokens,
                         static_cast<uint32_t>(device_.n_multiprocessors), device_.max_shared_bytes);
  launch_gemm_half({m.q24, m.plain, tokens, output, out_stride, n_groups, kernels_.warpgroups}, how_);
}

// x += residual_scale * post_norm(m . in + bias)
void CudaBackend::add_branch(const Linear& m, const float* x, uint32_t x_stride, const float* bias,
                             const float* post_norm) {
  Output output;
  output.bias = bias;
  output.epilogue = post_norm != nullptr ? Epilogue::kStore : Epilogue::kAdd;
  output.scale = spec_.residual_scale;
  output.out = post_norm != nullptr ? scratch_.branch : scratch_.x;
  multiply(m, x, x_stride, nullptr, n_, output, spec_.dim);
  if (post_norm != nullptr) add_post_normed(post_norm);
}

void CudaBackend::add_post_normed(const float* post_norm) {
  launch_norm_tokens({scratch_.branch, post_norm, spec_.norm_eps, spec_.residual_scale, scratch_.x, true,
                      spec_.dim, n_, spec_.dim, spec_.dim},
                     how_);
}

AttentionLayer CudaBackend::attention_layer(uint32_t layer) const {
  const LayerWeights& w = weights_.layer(layer);
  const LayerCache& cache = cache_.layer(layer);
  AttentionLayer a{};
  a.q_norm = spec_.qk_norm ? w.q_norm : nullptr;
  a.k_norm = spec_.qk_norm ? w.k_norm : nullptr;
  a.sinks = w.sinks;
  a.norm_eps = spec_.norm_eps;
  if (const int32_t rope = spec_.layers[layer].rope_idx; rope >= 0) {
    const size_t i = static_cast<size_t>(rope);
    a.rope = {scratch_.cos[i], scratch_.sin[i], static_cast<uint32_t>(2 * spec_.ropes[i].inv_freq.size())};
  }
  a.k = cache.k;
  a.v = cache.v;
  a.k_scale = cache.k_scale;
  a.v_scale = cache.v_scale;
  a.n_heads = spec_.n_heads;
  a.n_kv_heads = spec_.n_kv_heads;
  a.head_dim = spec_.head_dim;
  a.n_ctx = options_.n_ctx;
  a.window = spec_.layers[layer].window;
  a.scale = spec_.attn_scale;
  a.softcap = spec_.attn_softcap;
  a.position = scratch_.step;
  return a;
}

void CudaBackend::run_embed() {
  stream_.copy_to_device(scratch_.step, step_.data(), (1 + uint64_t{n_}) * 4);
  // The first kernel after a copy must not overlap it: the copy is no kernel that it could wait for.
  const Launch first{stream_.handle(), false};
  if (range_.begin != 0) {
    stream_.copy_to_device(scratch_.arrived, arrived_.data(), uint64_t{n_} * spec_.dim * 4);
    return launch_norm_tokens(
        {scratch_.arrived, nullptr, 0, 1, scratch_.x, false, spec_.dim, n_, spec_.dim, spec_.dim}, first);
  }
  Embed args{};
  if (weights_.embed.is_q24)
    args.q24 = weights_.embed.q24;
  else
    args.plain = weights_.embed.plain;
  args.ids = scratch_.step + 1;
  args.x = scratch_.x;
  args.scale = spec_.embedding_scale;
  args.n_tokens = n_;
  launch_embed(args, first);
}

void CudaBackend::run_attn_in(uint32_t layer) {
  const LayerWeights& w = weights_.layer(layer);
  Output output;
  output.bias = w.qkv_bias;
  output.out = scratch_.qkv;
  const uint32_t row = w.qkv.n_rows, n_q = spec_.q_rows(), n_k = spec_.kv_rows();
  multiply(w.qkv, scratch_.x, spec_.dim, w.attn_norm, n_, output, row);
  if (!spec_.qk_norm_whole) return;
  float *const q = scratch_.qkv, *const k = q + n_q;
  launch_norm_tokens({q, w.q_norm, spec_.norm_eps, 1, q, false, n_q, n_, row, row}, how_);
  launch_norm_tokens({k, w.k_norm, spec_.norm_eps, 1, k, false, n_k, n_, row, row}, how_);
}

void CudaBackend::run_attend(uint32_t layer) {
  if (n_ == 1) {
    AttentionDecode args{};
    static_cast<AttentionLayer&>(args) = attention_layer(layer);
    args.qkv = scratch_.qkv;
    args.out = scratch_.attn;
    args.parts = scratch_.parts;
    args.tickets = scratch_.counters;
    return launch_attention_decode(args, scratch_.n_splits, how_);
  }
  AttentionPrefill args{};
  static_cast<AttentionLayer&>(args) = attention_layer(layer);
  args.qkv = scratch_.qkv;
  args.out = scratch_.attn;
  args.n_tokens = n_;
  launch_append_tokens(args, how_);
  launch_attention_prefill(args, how_);
}

void CudaBackend::run_attn_out(uint32_t layer) {
  const LayerWeights& w = weights_.layer(layer);
  add_branch(w.attn_out, scratch_.attn, spec_.q_rows(), w.attn_out_bias, w.attn_post_norm);
}

Output CudaBackend::gate_up_output() const {
  Output output;
  output.epilogue = Epilogue::kGlu;
  output.activation = static_cast<cuda::Activation>(spec_.activation);
  output.out = scratch_.hidden;
  return output;
}

void CudaBackend::run_ffn_in(uint32_t layer) {
  const LayerWeights& w = weights_.layer(layer);
  if (spec_.n_experts != 0) return run_experts_in(w);
  Output output = gate_up_output();
  output.bias = w.gate_up_bias;
  multiply(w.gate_up, scratch_.x, spec_.dim, w.ffn_norm, n_, output, spec_.ffn_padded());
}

void CudaBackend::run_ffn_out(uint32_t layer) {
  const LayerWeights& w = weights_.layer(layer);
  if (spec_.n_experts != 0) return run_experts_out(w);
  add_branch(w.down, scratch_.hidden, spec_.ffn_padded(), w.down_bias, w.ffn_post_norm);
}

// The router's choice, then gate and up of what it chose: one token's experts side by side, several tokens' sorted by expert.
void CudaBackend::run_experts_in(const LayerWeights& w) {
  const uint32_t n_active = spec_.n_active_experts;
  Output router;
  router.bias = w.router_bias;
  router.out = scratch_.router;
  multiply(w.router, scratch_.x, spec_.dim, w.ffn_norm, n_, router, spec_.n_experts);
  launch_choose_experts({scratch_.router, scratch_.expert, scratch_.share, n_, spec_.n_experts, n_active,
                         spec_.router_renormalize},
                        how_);
  if (n_ == 1)
    return launch_matvec_experts(kernels_.pipeline,
                                 {w.expert_gate_up.stack,
                                  scratch_.expert,
                                  n_active,
                                  {scratch_.x, w.ffn_norm, spec_.norm_eps},
                                  0,
                                  gate_up_output(),
                                  spec_.ffn_padded(),
                                  w.expert_gate_up.shape},
                                 how_);
  const ExpertSlots slots = expert_slots();
  launch_sort_slots({scratch_.expert, n_, spec_.n_experts, n_active, slots}, how_);
  launch_norm_tokens({scratch_.x, w.ffn_norm, spec_.norm_eps, 1, scratch_.slot_rows, false, spec_.dim,
                      slots.n_slots, spec_.dim, spec_.dim, slots.token},
                     how_);
  multiply_slots(w.expert_gate_up, scratch_.slot_rows, spec_.dim, gate_up_output(), spec_.ffn_padded());
}

void CudaBackend::run_experts_out(const LayerWeights& w) {
  Output output;
  output.out = scratch_.slot_rows;
  if (n_ == 1)
    launch_matvec_experts(kernels_.pipeline,
                          {w.expert_down.stack,
                           scratch_.expert,
                           spec_.n_active_experts,
                           {scratch_.hidden, nullptr, 0},
                           spec_.ffn_padded(),
                           output,
                           spec_.dim,
                           w.expert_down.shape},
                          how_);
  else
    multiply_slots(w.expert_down, scratch_.hidden, spec_.ffn_padded(), output, spec_.dim);
  const bool is_last = w.ffn_post_norm == nullptr;
  launch_combine_experts({scratch_.slot_rows, scratch_.share, n_ == 1 ? nullptr : scratch_.slots.of,
                          is_last ? scratch_.x : scratch_.branch, is_last ? spec_.residual_scale : 1, is_last,
                          spec_.dim, n_, spec_.n_active_experts},
                         how_);
  if (!is_last) add_post_normed(w.ffn_post_norm);
}

// Of the batch under way.
ExpertSlots CudaBackend::expert_slots() const {
  ExpertSlots slots = scratch_.slots;
  slots.n_slots = static_cast<uint32_t>(n_slots_for(n_, spec_.n_active_experts, spec_.n_experts));
  return slots;
}

void CudaBackend::multiply_slots(const ExpertLinear& m, const float* x, uint32_t x_stride,
                                 const Output& output, uint32_t out_stride) {
  QuantizedTokens tokens = scratch_.tokens;
  tokens.columns = scratch_.columns;
  launch_product_experts({m.stack, expert_slots(), n_, x, x_stride, tokens, scratch_.half,
                          kernels_.warpgroups, output, out_stride, m.shape.n_blocks},
                         how_);
}

void CudaBackend::run_head(uint32_t first, uint32_t n_rows) {
  Output output;
  output.epilogue = Epilogue::kLogits;
  output.scale = spec_.logit_scale;
  output.softcap = spec_.logit_softcap;
  output.out = scratch_.logits;
  if (n_rows == 1) {
    output.best = scratch_.best;
    output.block_best = scratch_.block_best;
    output.ticket = scratch_.counters + spec_.n_kv_heads;
  }
  multiply(weights_.head, scratch_.x + uint64_t{first} * spec_.dim, spec_.dim, weights_.norm, n_rows, output,
           spec_.vocab_size);
  stream_.copy_to_host(logits_.data(), scratch_.logits, uint64_t{n_rows} * spec_.vocab_size * 4);
}

}  // namespace pith::gpu
