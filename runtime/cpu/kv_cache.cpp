// Placement of the cache, and its conversion to and from the form of session files.
#include "runtime/cpu/kv_cache.h"

#include <cstring>

namespace pith::cpu {

namespace {

uint32_t round_up_16(uint32_t n) {
  return (n + 15) / 16 * 16;
}

// Calls f(byte in the cache, byte in the file) for each element of k, then of v, and for each scale.
template <typename F>
void for_each_piece(const KvHead* heads, uint32_t n_heads, uint32_t n_tokens, uint32_t element_bytes, F&& f) {
  const uint32_t dim = heads[0].head_dim;
  const uint64_t plane = uint64_t{n_tokens} * dim * element_bytes;
  uint64_t at = 0;
  for (uint32_t h = 0; h < n_heads; ++h, at += plane)
    for (uint32_t t = 0; t < n_tokens; ++t)
      for (uint32_t d = 0; d < dim; ++d)
        f(heads[h].k + ((uint64_t{t / 16} * dim + d) * 16 + t % 16) * element_bytes,
          at + (uint64_t{t} * dim + d) * element_bytes, element_bytes);
  for (uint32_t h = 0; h < n_heads; ++h, at += plane)
    for (uint32_t t = 0; t < n_tokens; ++t)
      f(heads[h].v + uint64_t{t} * heads[h].padded_head_dim * element_bytes,
        at + uint64_t{t} * dim * element_bytes, dim * element_bytes);
  if (heads[0].k_scale == nullptr) return;
  const uint32_t row = n_tokens * 4;
  for (uint32_t h = 0; h < n_heads; ++h, at += row) f(reinterpret_cast<uint8_t*>(heads[h].k_scale), at, row);
  for (uint32_t h = 0; h < n_heads; ++h, at += row) f(reinterpret_cast<uint8_t*>(heads[h].v_scale), at, row);
}

}  // namespace

KvCache::KvCache(const ModelSpec& spec, KvType type, uint32_t n_ctx, uint32_t n_layers, Arena& arena)
    : n_kv_heads_(spec.n_kv_heads), element_bytes_(type == KvType::kF16 ? 2 : 1) {
  const uint64_t positions = round_up_16(n_ctx);
  for (uint32_t i = 0; i < n_layers * spec.n_kv_heads; ++i) {
    KvHead head{};
    head.head_dim = spec.head_dim;
    head.padded_head_dim = round_up_16(spec.head_dim);
    head.k = arena.take<uint8_t>(positions * head.head_dim * element_bytes_);
    head.v = arena.take<uint8_t>(positions * head.padded_head_dim * element_bytes_);
    if (type == KvType::kI8) {
      head.k_scale = arena.take<float>(positions);
      head.v_scale = arena.take<float>(positions);
    }
    heads_.push_back(head);
  }
}

void KvCache::read(uint32_t layer, uint32_t n_tokens, uint8_t* out) const {
  for_each_piece(
      &head(layer, 0), n_kv_heads_, n_tokens, element_bytes_,
      [&](const uint8_t* cache, uint64_t at, uint32_t size) { std::memcpy(out + at, cache, size); });
}

void KvCache::write(uint32_t layer, uint32_t n_tokens, const uint8_t* in) {
  for_each_piece(&head(layer, 0), n_kv_heads_, n_tokens, element_bytes_,
                 [&](uint8_t* cache, uint64_t at, uint32_t size) { std::memcpy(cache, in + at, size); });
}

}  // namespace pith::cpu
