// A valid container with random weights of a known model's shape: for speed and memory work where no checkpoint can be had.
//
// Every tensor's content obeys FORMAT.md, and its scale keeps activations finite. The tokenizer is one token a byte, the
// other ids are words ("w1234"). Deterministic: same arguments, same bytes.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace pith {

struct SynthOptions {
  std::string shape;  // one of synth_shapes()
  std::string output;
  double bits = 2.85;       // as ConvertOptions::bits
  uint32_t embed_bits = 4;  // likewise
  uint64_t seed = 1;
  bool resume = true;  // false: what an interrupted run left, also a conversion, is dropped
  std::function<void(const std::string& tensor, uint64_t done, uint64_t total)> progress;  // weights
};

std::vector<std::string> synth_shapes();
// Throws Error(kInvalidArgument | kIo).
void synth(const SynthOptions& options);

}  // namespace pith
