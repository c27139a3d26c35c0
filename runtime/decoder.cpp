// One decoder block, n_layers times. The switches of a spec live in the backend's phases.
#include "runtime/decoder.h"

namespace pith {

void decode_batch(Backend& backend, const ModelSpec& spec, std::span<const int32_t> ids, uint32_t position,
                  std::atomic<bool>& stop) {
  backend.embed(ids, position);
  for (uint32_t layer = 0; layer < spec.n_layers; ++layer) {
    if (stop.load(std::memory_order_relaxed) && stop.exchange(false))
      throw_error(ErrorCode::kInterrupted, "interrupted at position {}, layer {}", position, layer);
    backend.attn_in(layer);
    backend.attend(layer);
    backend.attn_out(layer);
    backend.ffn_in(layer);
    backend.ffn_out(layer);
  }
}

}  // namespace pith
