// Hashes for tables whose keys come from a file: with a number in them that is drawn as the table is made, so
// that no file can hold keys that all fall into one place.
#pragma once
#include <cstdint>
#include <cstring>
#include <random>
#include <string_view>

namespace pith {

class TokenHash {
 public:
  TokenHash() {
    std::random_device device;
    seed_ = uint64_t{device()} << 32 | device();
  }
  uint64_t of(uint64_t number) const { return mix(mix(number ^ seed_)) >> 20; }
  uint64_t of(std::string_view text) const {
    uint64_t hash = seed_ ^ text.size();
    while (text.size() >= 8) {
      uint64_t word;
      std::memcpy(&word, text.data(), 8);
      hash = mix(hash ^ word);
      text.remove_prefix(8);
    }
    uint64_t rest = 0;
    if (!text.empty()) std::memcpy(&rest, text.data(), text.size());
    return mix(hash ^ rest) >> 20;
  }

 private:
  static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9u;
  }
  uint64_t seed_;
};

}  // namespace pith
