// From a checkpoint folder to a .pith file: `pith convert`.
//
// Tensors stream one by one through format/writer.h in the order of the family's plan. Peak memory is two of the largest
// tensors of the container in float32 plus a constant (64 MiB), whatever the model's size; a 16-bit target needs less
// than one. Calibration needs more: a matrix's statistics and the streams, see calibration.h, and while it measures a layer's
// matrices in float32. The check at the end maps the file (pages that the system can drop).
//
// An interrupted run leaves OUTPUT.part and its journal, and so does one that ran out of disk or memory. The next run with
// the same source and options goes on after the last whole tensor: what is done is not quantized again, calibration only
// passes its activations through it. The bytes are the same as those of an uninterrupted run, for any number
// of threads; on a GPU they are not the CPU's, but the same on every GPU. With another source or other options what is
// done is refused, unless `resume` is off.
// Throws Error; a failure that resuming cannot help (bad input) leaves nothing behind.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "convert/levers.h"
#include "convert/stopwatch.h"

namespace pith {

// How long a conversion below 16 bits may take. Figures: convert/conversion.cpp.
enum class Effort : uint8_t { kFast, kNormal };

// In place of a calibration file: what the model writes itself (self_tokens.h), and the text that the program carries.
constexpr const char *kSelfText = "self", *kBuiltinText = "builtin";

struct ConvertProgress {
  const char* stage;     // "sample", "measure", "convert", "check"
  std::string tensor;    // being worked on
  uint64_t done, total;  // weights: elements of the container's tensors
};

constexpr uint64_t kMaxSelfWeights = 1'600'000'000;  // as floats with their texts below 8 GB

struct ConvertOptions {
  std::string output;
  double bits = 2.85;       // 16, 32, or 2.3 to 4.5: bits per weight of the linear layers, everything counted
  uint32_t embed_bits = 4;  // of embedding and head when bits < 16: 4 or 16
  Effort effort = Effort::kNormal;
  Levers levers;          // Levers::paper() for the published method
  bool calibrate = true;  // below 16 bits: measure what each layer sees, and quantize for that
  // Text, UTF-8; kSelfText, kBuiltinText. None: the built-in text, and of models below kMaxSelfWeights half their own.
  std::vector<std::string> calibration_files;
  std::optional<uint32_t> calibration_tokens;  // at most; none: by effort and width
  bool force = false;            // unknown config keys and unused tensors are noted, not refused
  bool allow_nonfinite = false;  // NaN and Inf weights pass (16 and 32 bits only)
  bool resume = true;            // false: start over, whatever is there; what this run does can be resumed
  uint32_t n_threads = 0;        // 0: all cores
  // Where calibration multiplies (products.h): auto, cpu, cuda, cuda:N. An interrupted run goes on on the kind that it began on,
  // and is refused on the other: with auto also where the GPU has less room than it had.
  std::string device = "auto";
  uint64_t memory_bytes = 0;  // that calibration may take; 0: what the system has free
  std::function<void(const ConvertProgress&)> progress;  // from the calling thread; may throw to stop
};

struct TensorQuality {
  std::string name;
  double bits;            // per weight, everything counted
  double relative_error;  // see QuantizeReport
};

struct StageTime {
  const char* stage;
  Duration duration;
};

struct ConvertReport {
  double linear_bits = 0;  // of all linear layers together
  double file_bits = 0;    // file size over the number of weights
  uint64_t file_bytes = 0, n_weights = 0;
  double ppl_ratio = 0, kl = 0;   // on held-out calibration text, against the original; 0: not measured
  size_t n_resumed = 0;           // tensors taken over from an interrupted run
  std::vector<StageTime> stages;  // below 16 bits
  // What one forward pass over the calibration tokens in float32 takes, head left out; zero: not calibrated
  Duration forward;
  uint32_t calibration_tokens = 0;
  std::string products_on;             // "cuda:0 NVIDIA H200", empty: the CPU
  std::vector<TensorQuality> tensors;  // quantized ones
  std::vector<std::string> notes;      // one line each, for the user
};

ConvertReport convert(const std::string& dir, const ConvertOptions& options);

}  // namespace pith
