// From a float matrix to Q24 (format/q24.h). Every lever is one function, switched by QuantizeOptions, so that an
// ablation can turn each off.
//
// With a Hessian H of the layer's input the error that counts is tr(E H E'), E = W - W'; without one H is the identity.
// The steps, each in its own file:
//   quantizer_columns   which columns get 4 bits, and in which order the columns lie (quantizer_columns.h)
//   quantizer_rows      scales, codes, compensation, outliers, descent: 16 rows at a time (quantizer_rows.h)
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

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
  kTwoBitOnly,
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
  OutlierPlace outliers = OutlierPlace::kTwoBitOnly;
  OutlierChoice outlier_choice = OutlierChoice::kErrorRemoved;
  bool sort_columns = true;   // off: columns stay in their groups, whole groups move
  bool search_scales = true;  // off: min-max, as in the paper
  bool integer_zero = false;  // on: the minimum is an integer multiple of the scale (the paper's zero point)
  bool compensate = true;     // LDLQ: later columns absorb the error of earlier ones; needs a Hessian
  uint32_t descent_rounds = 4;  // coordinate descent with closed-form refit
  double damping = 0.02;        // of the Hessian's mean diagonal, added to the diagonal
  double shrinkage = 0;         // 0..1: of the off-diagonal elements
  uint64_t seed = 0;            // kRandom
};

// What calibration knows about a layer's input x: H = E[x x'] over tokens. [n_cols, n_cols], row-major, symmetric.
struct Hessian {
  uint32_t n_cols = 0;
  std::vector<float> values;
};

struct QuantizeReport {
  double relative_error;  // tr(E H E') / tr(W H W')
  uint64_t size_bytes;    // in the container, padding and indices included
  double bits_per_weight;
};

struct QuantizeResult {
  q24::Unpacked tensor;
  QuantizeReport report;
};

// What the weights should be when the input is not what it was: x^ comes from layers that are quantized already, x came
// from the original ones. W + (W E[(x - x^) x^'] + E[g x^']) E[x^ x^']^-1 maps x^ to W x + g with the least square error,
// where g is what the residual stream, to which the output is added, lacks. In place.
// gap: E[(x - x^) x^'], [n_cols, n_cols]. residual_gap: E[g x^'], [n_rows, n_cols], or empty. damping: as in
// QuantizeOptions.
void retarget(std::vector<float>& weights, uint32_t n_rows, uint32_t n_cols, const Hessian& hessian,
              const std::vector<float>& gap, const std::vector<float>& residual_gap, double damping,
              uint32_t n_threads);

// weights: [n_rows, n_cols] row-major, finite. hessian: may be null. Deterministic, whatever n_threads (> 0).
// Throws Error(kInvalidArgument) when the Hessian is not positive definite even after damping.
QuantizeResult quantize(std::span<const float> weights, uint32_t n_rows, uint32_t n_cols,
                        const Hessian* hessian, const QuantizeOptions& options, uint32_t n_threads);

// The float weights that a tensor stands for, in input order: [n_rows, n_cols].
std::vector<float> dequantize(const q24::Unpacked& tensor, uint32_t n_threads);

}  // namespace pith
