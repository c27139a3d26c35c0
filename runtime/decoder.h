// The transformer, written once over ModelSpec and Backend.
#pragma once
#include <atomic>
#include <cstdint>
#include <span>

#include "runtime/backend.h"

namespace pith {

// Runs ids at positions position .. through all layers; head() of the backend may be called afterwards. The cache then
// holds the batch. Throws Error(kInterrupted) between layers when `stop` becomes true (it is reset to false); the cache
// beyond `position` is then meaningless.
void decode_batch(Backend& backend, const ModelSpec& spec, std::span<const int32_t> ids, uint32_t position,
                  std::atomic<bool>& stop);

}  // namespace pith
