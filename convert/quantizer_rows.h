// Scales, codes and outliers of 16 rows at a time: the numeric heart of the quantizer.
//
// Everything here is in storage columns and *scaled* weights, w = W[:, perm] / col_scale, with the metric
// scaled to match, so that
//   w' = d * s * q - dmin * m (+ outlier delta),   q = code (2-bit columns) or code / 4 (4-bit columns).
//
// Compensation (LDLQ). With H = V V', V upper triangular, the error of a row e = w - w' costs |e V|^2, and
//   (e V)_j = V_jj * (t_j - w'_j),   t_j = w_j + a_j / V_jj,   a_j = sum over i < j of e_i V_ij.
// So columns are quantized from left to right, each to its target t_j, and what a column costs is V_jj^2 (t_j - w'_j)^2.
//
// Descent. With all other columns fixed, a group g with H_gg = V_g V_g' costs |e_g V_g + b|^2 plus a constant, where
//   b = (e H_:g - e_g H_gg) V_g'^-1: the same form, so the same search serves it.
//
// Only one half of H is there, and only one is needed: with (U x)_k the sum over the columns j of later groups of x_j H_jk,
//   x H y' = x . U y + y . U x + sum over groups of (x_g V_g) . (y_g V_g),
// and what a group's descent asks of earlier columns are dot products with rows of the same half. U of the errors follows a
// refit of d and dmin by linearity. A round reads the half square twice and takes 4 n^2 operations a row.
//
// A row's sums run in a fixed order within one thread: results do not depend on the number of threads.
#pragma once
#include <cstdint>
#include <vector>

#include "convert/quantizer.h"

namespace pith {

constexpr uint32_t kLanes = 16;  // rows of one block

// What all rows share. n: padded columns. Pads have zero weight and zero metric.
struct RowsProblem {
  uint32_t n, n_real, group, n_fine, n_slots;
  const float*
      square;  // [n, n] scaled metric, on and below the diagonal; above it its factor; null: diagonal
  std::vector<float> v_diag;     // [n], 0 in pads
  std::vector<float> v_inverse;  // [n], 1 / v_diag, 0 in pads
  std::vector<float> group_v;    // [n / group, group, group] factors of H's diagonal blocks; empty: diagonal
  bool search_scales, integer_zero;
  bool compensate;                          // the factor is there and is to be used
  bool outliers_in_fine, outliers_by_size;  // see OutlierPlace, OutlierChoice
  uint32_t descent_rounds;
};

// One block's result. Arrays of [..][kLanes].
struct RowsResult {
  std::vector<uint16_t> d, dmin;                     // [kLanes] fp16
  std::vector<uint8_t> codes;                        // [n][kLanes]
  std::vector<uint8_t> s, m;                         // [n / group][kLanes]
  std::vector<uint16_t> outlier_col, outlier_delta;  // [n_slots][kLanes]
  double error, norm;                                // sums over the lanes of e H e' and w H w'
};

// w: [n][kLanes].
void quantize_rows(const RowsProblem& problem, const float* w, RowsResult& result);

}  // namespace pith
