// Where the decoder's arithmetic happens: seven fused phases over a batch of consecutive positions of one timeline.
//
// The decoder (decoder.cpp) calls embed, then for each layer attn_in, attend, attn_out, ffn_in, ffn_out, then head. A
// backend keeps weights, KV cache and scratch where it likes; it may record the phases instead of running them, as long
// as head() returns logits. A new backend is one file beside this and a line in backends.cpp.
// Everything is allocated on construction. One thread at a time.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "runtime/model.h"
#include "runtime/session.h"

namespace pith {

// At most this many rows of logits a call of head().
constexpr uint32_t kMaxLogitRows = 16;

// The layers begin .. end - 1 of a model: what a backend runs. The first layer's backend embeds, the last layer's has the head; between
// two backends the residual stream is handed over (SplitBackend).
struct LayerRange {
  uint32_t begin, end;
};
inline LayerRange all_layers(const ModelSpec& spec) {
  return {0, spec.n_layers};
}

class Backend {
 public:
  virtual ~Backend() = default;

  // Starts a batch: ids (1 .. prefill_chunk, each < vocab_size) at positions position, position + 1, ... (< n_ctx).
  virtual void embed(std::span<const int32_t> ids, uint32_t position) = 0;
  // In its place where the layers before are elsewhere: x [n, dim] is their residual stream. Of a backend that does not begin at layer 0.
  virtual void receive(std::span<const float> x, uint32_t position);
  // The residual stream [n, dim] after the last of its layers. Of a backend that does not end at the last layer.
  virtual std::span<const float> residual();
  // norm, q/k/v (+ bias, + norm over heads), RoPE, append k and v to the cache
  virtual void attn_in(uint32_t layer) = 0;
  // softmax(q k') v over the cache, up to each position itself
  virtual void attend(uint32_t layer) = 0;
  // output projection (+ bias, + post norm), added to the residual stream
  virtual void attn_out(uint32_t layer) = 0;
  // norm, gate and up, act(gate) * up
  virtual void ffn_in(uint32_t layer) = 0;
  // down projection (+ bias, + post norm), added to the residual stream
  virtual void ffn_out(uint32_t layer) = 0;
  // Final norm and head for tokens first .. first + n_rows of the batch. Valid until the next call.
  virtual std::span<const float> head(uint32_t first, uint32_t n_rows) = 0;  // [n_rows, vocab_size]

  // The cache of one layer for positions 0 .. n_tokens, as bytes of one form whatever the backend:
  //   k [n_kv_heads, n_tokens, head_dim], v likewise, then for KvType::kI8 the float scales of k and of v
  //   [n_kv_heads, n_tokens].  kv_layer_bytes() long.
  virtual void read_kv(uint32_t layer, uint32_t n_tokens, uint8_t* out) const = 0;
  virtual void write_kv(uint32_t layer, uint32_t n_tokens, const uint8_t* in) = 0;
};

inline uint64_t kv_layer_bytes(const ModelSpec& spec, KvType type, uint64_t n_tokens) {
  const uint64_t per_token = type == KvType::kF16 ? uint64_t{spec.head_dim} * 2 : uint64_t{spec.head_dim} + 4;
  return 2 * n_tokens * spec.n_kv_heads * per_token;
}

// A kind of backend. `device` is what stands before a colon in SessionOptions::device.
struct BackendKind {
  const char* device;
  bool (*available)();
  // The CPU runs a model's first layers or all of them, cuda its last ones or all.
  std::unique_ptr<Backend> (*create)(std::shared_ptr<const Model> model, const SessionOptions& options,
                                     const LayerRange& range);
  MemoryPlan (*plan)(const Model& model, const SessionOptions& options, const LayerRange& range);
  std::string (*describe)() = nullptr;  // one line: what was found, or why it is not available
  // Free memory of "cuda" or "cuda:N"; null of the CPU.
  uint64_t (*free_bytes)(const std::string& device) = nullptr;
  // What "auto" among SessionOptions::kernels comes to; null: as the device says.
  std::string (*kernels_name)(const SessionOptions& options) = nullptr;

  bool is_cpu() const { return free_bytes == nullptr; }
};
const std::vector<BackendKind>& backend_kinds();  // backends.cpp, in the order in which "auto" tries them
// Throws kInvalidArgument or kUnsupported.
const BackendKind& backend_for(const std::string& device,
                               const std::vector<BackendKind>& kinds = backend_kinds());

}  // namespace pith
