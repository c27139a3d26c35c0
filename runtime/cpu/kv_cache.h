// The CPU's KV cache: for each layer and KV head a KvHead (kernels.h), all in one arena.
#pragma once
#include <vector>

#include "runtime/cpu/arena.h"
#include "runtime/cpu/kernels.h"
#include "runtime/session.h"

namespace pith::cpu {

class KvCache {
 public:
  KvCache(const ModelSpec& spec, KvType type, uint32_t n_ctx, uint32_t n_layers, Arena& arena);

  const KvHead& head(uint32_t layer, uint32_t kv_head) const {
    return heads_[size_t{layer} * n_kv_heads_ + kv_head];
  }
  // The form of Backend::read_kv.
  void read(uint32_t layer, uint32_t n_tokens, uint8_t* out) const;
  void write(uint32_t layer, uint32_t n_tokens, const uint8_t* in);

 private:
  uint32_t n_kv_heads_, element_bytes_;
  std::vector<KvHead> heads_;
};

}  // namespace pith::cpu
