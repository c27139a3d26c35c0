// From a float matrix to Q24 (format/q24.h). Every lever is one function, switched by QuantizeOptions, so that an
// ablation can turn each off.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "format/q24.h"

namespace pith {

// How the 4-bit groups (or columns, once sorted) are chosen.
enum class Sensitivity : uint8_t {
  kRandom,       // control
  kRange,        // the paper's: range of the group (times the Hessian's diagonal when there is one)
  kDiagonal,     // Hessian diagonal alone
  kCompensated,  // row variance over [H^-1]_jj: what remains after the other columns compensate
};

enum class OutlierPlace : uint8_t { kNone, kEverywhere, kTwoBitOnly };

struct QuantizeOptions {
  uint32_t group = 16;
  double fine_fraction = 0.125;  // of the columns, rounded to whole groups
  uint32_t n_slots = 0;          // outliers per row
  Sensitivity sensitivity = Sensitivity::kRange;
  OutlierPlace outliers = OutlierPlace::kTwoBitOnly;
  bool sort_columns = true;      // off: columns stay in place, whole groups move
  bool search_scales = true;     // off: min-max, as in the paper
  bool integer_zero = false;     // on: the minimum is an integer multiple of the scale (the paper's zero point)
  bool compensate = true;        // GPTQ/LDLQ; needs a Hessian
  uint32_t descent_rounds = 0;   // coordinate descent with closed-form refit
  uint64_t seed = 0;             // kRandom
};

// What calibration knows about a layer's input x: H = E[x x'] over tokens. [n_cols, n_cols], row-major, symmetric.
struct Hessian {
  uint32_t n_cols = 0;
  std::vector<float> values;
};

struct QuantizeReport {
  double relative_error;  // |W - W'|^2 / |W|^2, weighted by H when there is one
  uint64_t size_bytes;    // in the container, padding and indices included
  double bits_per_weight;
};

struct QuantizeResult {
  q24::Unpacked tensor;
  QuantizeReport report;
};

// weights: [n_rows, n_cols] row-major, finite. Deterministic, whatever n_threads.
QuantizeResult quantize(std::span<const float> weights, uint32_t n_rows, uint32_t n_cols, const Hessian* hessian,
                        const QuantizeOptions& options, uint32_t n_threads);

}  // namespace pith
