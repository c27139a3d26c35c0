// Device memory of a session: what the KV cache and the scratch of a range of layers take, as pieces of one buffer each.
#pragma once
#include <vector>

#include "cuda/device.h"
#include "cuda/experts.h"
#include "cuda/kernels.h"
#include "format/checked.h"
#include "runtime/backend.h"

namespace pith::gpu {

// Hands out pieces of one device buffer; without one it counts.
class DeviceArena {
 public:
  DeviceArena() = default;
  DeviceArena(uint64_t n_bytes, const char* what) : buffer_(n_bytes, what) {}
  template <typename T>
  T* take(uint64_t count) {
    constexpr uint64_t kAlign = 256;
    const uint64_t at = used_;
    used_ = checked_add(used_, checked_round_up(checked_mul(count, sizeof(T)), kAlign));
    return buffer_.data() == nullptr ? nullptr : reinterpret_cast<T*>(buffer_.data() + at);
  }
  uint64_t size_bytes() const { return used_; }
  void fill(int byte) { buffer_.fill(byte); }

 private:
  cuda::DeviceBuffer buffer_;
  uint64_t used_ = 0;
};

struct LayerCache {
  uint8_t *k, *v;            // [n_kv_heads, n_ctx, head_dim]
  float *k_scale, *v_scale;  // [n_kv_heads, n_ctx] or null
};

struct Cache {
  Cache(const ModelSpec& spec, KvType type, uint32_t n_ctx, const LayerRange& range, DeviceArena& arena);
  const LayerCache& layer(uint32_t i) const { return layers[i - first]; }
  uint32_t first;
  std::vector<LayerCache> layers;
};

struct Weights;

// Sizes are for `n` tokens, prefill_chunk of them. warpgroups: Kernels::warpgroups.
struct Scratch {
  Scratch(const ModelSpec& spec, const Weights& weights, const SessionOptions& options,
          uint32_t n_multiprocessors, bool warpgroups, DeviceArena& arena);

  uint32_t n_splits;               // of decode attention
  int32_t* step;                   // position, then ids [n]
  float* arrived;                  // [n, dim] a residual stream from elsewhere, or null
  float* x;                        // [n, dim] residual stream
  float* qkv;                      // [n, q + 2 kv rows]
  float* attn;                     // [n, q rows]
  float* hidden;                   // [n, ffn_padded]; with experts [slots, ffn_padded]
  float* branch;                   // [n, dim] before a post norm, or null
  float* normed;                   // [n, dim] for 32-bit matrices, or null
  float* logits;                   // [kMaxLogitRows, vocab]
  cuda::HalfTokens half{};         // of 16-bit products, or empty
  cuda::QuantizedTokens tokens{};  // of int8 products, or empty
  float* columns = nullptr;        // QuantizedTokens::columns for tensors with outliers
  float* parts;                    // AttentionDecode::parts
  uint32_t* counters;              // tickets of the KV heads, then of the head's blocks; zero
  float* block_best;
  int32_t* best;
  std::vector<float*> cos, sin;  // [n_ctx, rotary_dim / 2] for each rope
  // Experts
  float* router = nullptr;     // [n, n_experts]
  int32_t* expert = nullptr;   // [n, n_active_experts]
  float* share = nullptr;      // [n, n_active_experts]
  float* slot_rows = nullptr;  // [slots, dim] inputs of the experts, then their outputs
  cuda::ExpertSlots slots{};
};

}  // namespace pith::gpu
