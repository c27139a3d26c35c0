// XXH3-64, the one hash of the format: checksums, journal records, fingerprints. Not cryptographic: it finds
// accidents, not forgers. About 10 GB/s a core with SSE2 only; CRC32C needs a CPU extension for the same.
#pragma once
#include <cstdint>
#include <memory>
#include <span>

namespace pith {

uint64_t checksum64(std::span<const uint8_t> data, uint64_t seed = 0);

// The same value over data that comes in pieces.
class Checksum64 {
 public:
  explicit Checksum64(uint64_t seed = 0);
  ~Checksum64();
  void update(std::span<const uint8_t> data);
  uint64_t value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pith
