// XXH3-64 by way of the system's xxhash.h, inlined: nothing to link.
#define XXH_INLINE_ALL
#include "format/checksum.h"

#include <xxhash.h>

namespace pith {

struct Checksum64::State {
  XXH3_state_t xxh;
};

uint64_t checksum64(std::span<const uint8_t> data, uint64_t seed) {
  return XXH3_64bits_withSeed(data.data(), data.size(), seed);
}

Checksum64::Checksum64(uint64_t seed) : state_(std::make_unique<State>()) {
  XXH3_64bits_reset_withSeed(&state_->xxh, seed);
}

Checksum64::~Checksum64() = default;

void Checksum64::update(std::span<const uint8_t> data) {
  XXH3_64bits_update(&state_->xxh, data.data(), data.size());
}

uint64_t Checksum64::value() const {
  return XXH3_64bits_digest(&state_->xxh);
}

}  // namespace pith
