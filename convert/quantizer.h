// From a float matrix to Q24 (format/q24.h). Every lever is one function, switched by QuantizeOptions, so that an
// ablation can turn each off.
//
// With a Hessian H of the layer's input the error that counts is tr(E H E'), E = W - W'; without one H is the identity.
// The steps, each in its own file:
//   metric              H, its factor and its order (metric.h)
//   quantizer_columns   which columns get 4 bits, and in which order the columns lie (quantizer_columns.h)
//   quantizer_rows      scales, codes, compensation, outliers, descent: 16 rows at a time (quantizer_rows.h)
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "convert/metric.h"
#include "format/q24.h"

namespace pith {

// How the 4-bit columns (whole groups unless the columns are sorted) are chosen.
enum class Sensitivity : uint8_t {
  kRandom,       // control
  kRange,        // the paper's: range of the group (times the Hessian's diagonal when there is one)
  kDiagonal,     // Hessian diagonal alone
  kCompensated,  // row variance over [H^-1]_jj: what remains after the other columns compensate
};

enum class OutlierPlace : uint8_t {
  kNone,
  kCoarse,      // in 2-bit groups only
  kEverywhere,  // control: also in 4-bit groups
};

// Which weights become outliers: at most one per group, the best n_slots of a row.
enum class OutlierChoice : uint8_t {
  kErrorRemoved,  // those whose removal lets the rest of their group be quantized best
  kSize,          // control, the usual one: the largest, weighted by the Hessian's diagonal
};

struct QuantizeOptions {
  uint32_t group = 16;   // columns: 16 or 32
  uint32_t n_fine = 0;   // 4-bit columns, a multiple of group; padding counts
  uint32_t n_slots = 0;  // outliers per row
  Sensitivity sensitivity = Sensitivity::kCompensated;
  OutlierPlace outliers = OutlierPlace::kCoarse;
  OutlierChoice outlier_choice = OutlierChoice::kErrorRemoved;
  bool sort_columns = true;   // off: columns stay in their groups, whole groups move
  bool search_scales = true;  // off: min-max, as in the paper
  bool integer_zero = false;  // on: the minimum is an integer multiple of the scale (the paper's zero point)
  bool compensate = true;     // LDLQ: later columns absorb the error of earlier ones; needs a Hessian
  uint32_t descent_rounds = 4;  // coordinate descent with closed-form refit
  double damping = 0.02;        // of the Hessian's mean diagonal, added to the diagonal
  // 0..1: of the off-diagonal elements, which the text knows worst. SmolLM2-135M at 2.85 bits, calibrated on 16,384 tokens,
  // divergence on WikiText-2: 0 0.632, 0.1 0.584, 0.3 0.613; the demo model 0.0295, 0.0288
  // with `fast`, but 0.0207, 0.0218 with every lever.
  double shrinkage = 0.1;
  uint64_t seed = 0;  // kRandom
};

struct QuantizeReport {
  double relative_error;  // tr(E H E') / tr(W H W'), H damped and shrunk
  uint64_t size_bytes;    // in the container, padding and indices included
  double bits_per_weight;
};

struct QuantizeResult {
  q24::Unpacked tensor;
  QuantizeReport report;
};

// The order of a matrix's columns in storage, what they are scaled by, and what an error costs there. Shared by all shapes with
// the same order: building it costs a factorization.
struct Arrangement {
  std::vector<uint32_t> columns;    // storage position -> input column, [n_cols]
  std::vector<uint16_t> col_scale;  // [padded_cols / q24::kLineCols], fp16
  Metric metric;                    // arranged
};

// weights: [n_rows, metric.n_cols()] row-major, finite, everywhere below. Deterministic, whatever n_threads (> 0). Throws
// Error(kInvalidArgument) when the Hessian is not positive definite even after damping.
// columns: as order_columns gives them for these weights and options (quantizer_columns.h).
Arrangement arrange(std::span<const float> weights, uint32_t n_rows, std::vector<uint32_t> columns,
                    Metric metric, const QuantizeOptions& options);
QuantizeResult quantize(std::span<const float> weights, uint32_t n_rows, const Arrangement& arrangement,
                        const QuantizeOptions& options, uint32_t n_threads);
// Both, in the order that the options ask for.
QuantizeResult quantize(std::span<const float> weights, uint32_t n_rows, Metric metric,
                        const QuantizeOptions& options, uint32_t n_threads);

// The float weights that a tensor stands for, in input order: [n_rows, n_cols].
std::vector<float> dequantize(const q24::Unpacked& tensor, uint32_t n_threads);

}  // namespace pith
