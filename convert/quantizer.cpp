// Order of columns, column scales and metric for all rows; then the rows, a block at a time, on all threads.
#include "convert/quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "convert/factor.h"
#include "convert/gemm.h"
#include "convert/quantizer_columns.h"
#include "convert/quantizer_rows.h"
#include "format/error.h"
#include "format/float16.h"

namespace pith {

namespace {

// The Hessian in input order, damped and shrunk: double, [n_cols, n_cols].
std::vector<double> damped(const Hessian& hessian, const QuantizeOptions& options) {
  const uint32_t n = hessian.n_cols;
  double mean = 0;
  for (uint32_t c = 0; c < n; ++c) mean += double{hessian.values[size_t{c} * n + c]} / n;
  if (!(mean > 0) || !std::isfinite(mean))
    throw_error(ErrorCode::kInvalidArgument, "Hessian with mean diagonal {}, expected a number above 0",
                mean);
  std::vector<double> h(size_t{n} * n);
  for (size_t i = 0; i < h.size(); ++i) h[i] = hessian.values[i] / mean * (1 - options.shrinkage);
  for (uint32_t c = 0; c < n; ++c) {
    double& diagonal = h[size_t{c} * n + c];
    diagonal = hessian.values[size_t{c} * n + c] / mean + options.damping;
  }
  return h;
}

// One scale per 16 storage columns: the geometric mean over rows of the columns' range, so that the nibbles of a row
// have little left to say.
std::vector<uint16_t> column_scales(std::span<const float> weights, uint32_t n_rows, uint32_t n_cols,
                                    const std::vector<uint32_t>& columns, uint32_t padded_cols) {
  std::vector<uint16_t> scales(padded_cols / q24::kLineCols, float_to_f16(1));
  for (uint32_t line = 0; line * q24::kLineCols < n_cols; ++line) {
    const uint32_t begin = line * q24::kLineCols, end = std::min(begin + q24::kLineCols, n_cols);
    double sum = 0;
    uint32_t n = 0;
    for (uint32_t r = 0; r < n_rows; ++r) {
      const float* row = weights.data() + size_t{r} * n_cols;
      double square = 0;
      for (uint32_t c = begin; c < end; ++c) square += double{row[columns[c]]} * row[columns[c]];
      if (square > 0) {
        sum += 0.5 * std::log(square / (end - begin));
        ++n;
      }
    }
    if (n > 0) scales[line] = float_to_f16(static_cast<float>(std::clamp(std::exp(sum / n), 1e-4, 1e4)));
    if ((scales[line] & 0x7fff) == 0) scales[line] = float_to_f16(1);
  }
  return scales;
}

// V_g with H_gg = V_g V_g' for every group. In pads zero.
std::vector<float> group_factors(const RowsProblem& problem) {
  const uint32_t n = problem.group, n_groups = problem.n / n;
  std::vector<float> factors(size_t{n_groups} * n * n);
  for (uint32_t g = 0; g < n_groups; ++g) {
    const uint32_t c = g * n, n_here = std::min(n, problem.n_real > c ? problem.n_real - c : 0);
    std::vector<double> h(size_t{n_here} * n_here);
    for (uint32_t i = 0; i < n_here; ++i)
      for (uint32_t j = 0; j < n_here; ++j) h[i * n_here + j] = problem.h[size_t{c + i} * problem.n + c + j];
    if (!factor_upper(h, n_here, 1))
      throw_error(ErrorCode::kInternal, "a block of a positive definite matrix is not");
    for (uint32_t i = 0; i < n_here; ++i)
      for (uint32_t j = i; j < n_here; ++j)
        factors[(size_t{g} * n + i) * n + j] = static_cast<float>(h[i * n_here + j]);
  }
  return factors;
}

// Fills everything of the problem that hangs on the metric. h: damped, input order; empty without a Hessian.
void set_metric(RowsProblem& problem, const std::vector<double>& h, const std::vector<uint32_t>& columns,
                const std::vector<float>& scale, uint32_t n_threads) {
  const uint32_t n = problem.n_real;
  problem.v_diag.assign(problem.n, 0);
  problem.v_inverse.assign(problem.n, 0);
  if (!h.empty()) {
    std::vector<double> v(size_t{n} * n);
    problem.h.assign(size_t{problem.n} * problem.n, 0);
    for (uint32_t i = 0; i < n; ++i)
      for (uint32_t j = 0; j < n; ++j) {
        const double value = h[size_t{columns[i]} * n + columns[j]] * scale[i] * scale[j];
        v[size_t{i} * n + j] = value;
        problem.h[size_t{i} * problem.n + j] = static_cast<float>(value);
      }
    if (!factor_upper(v, n, n_threads))
      throw_error(ErrorCode::kInvalidArgument, "Hessian is not positive definite, even after damping");
    for (uint32_t i = 0; i < n; ++i) problem.v_diag[i] = static_cast<float>(v[size_t{i} * n + i]);
    if (problem.compensate) {
      problem.v.assign(size_t{problem.n} * problem.n, 0);
      for (uint32_t i = 0; i < n; ++i)
        std::copy_n(v.begin() + size_t{i} * n, n, problem.v.begin() + size_t{i} * problem.n);
      problem.group_v = group_factors(problem);
    } else {
      for (uint32_t i = 0; i < n; ++i) problem.v_diag[i] = std::sqrt(problem.h[size_t{i} * problem.n + i]);
    }
  } else {
    for (uint32_t i = 0; i < n; ++i) problem.v_diag[i] = scale[i];
  }
  for (uint32_t i = 0; i < n; ++i) problem.v_inverse[i] = 1 / problem.v_diag[i];
}

}  // namespace

void retarget(std::vector<float>& weights, uint32_t n_rows, uint32_t n_cols, const Hessian& hessian,
              const std::vector<float>& gap, const std::vector<float>& residual_gap, double damping,
              uint32_t n_threads) {
  const size_t n = n_cols;
  double mean = 0;
  for (size_t c = 0; c < n; ++c) mean += double{hessian.values[c * n + c]} / n_cols;
  std::vector<double> v(hessian.values.begin(), hessian.values.end());
  for (size_t c = 0; c < n; ++c) v[c * n + c] += damping * mean;
  if (!factor_upper(v, n_cols, n_threads))
    throw_error(ErrorCode::kInvalidArgument, "Hessian is not positive definite, even after damping");
  // Rows of (W E[(x - x^) x^'] + E[g x^']) H^-1, a stripe at a time.
  constexpr uint32_t kStripe = 256;
  std::vector<float> gap_transposed(n * n);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) gap_transposed[j * n + i] = gap[i * n + j];
  std::vector<float> product(kStripe * n);
  std::vector<double> change(kStripe * n);
  for (uint32_t row = 0; row < n_rows; row += kStripe) {
    const uint32_t n_here = std::min(kStripe, n_rows - row);
    float* const w = weights.data() + row * n;
    multiply_transposed(w, n_here, n_cols, gap_transposed.data(), n_cols, product.data(), n_threads);
    for (size_t i = 0; i < n_here * n; ++i)
      change[i] = double{product[i]} + (residual_gap.empty() ? 0 : double{residual_gap[row * n + i]});
    solve_rows(v, n_cols, change.data(), n_here, n_threads);
    for (size_t i = 0; i < n_here * n; ++i) w[i] += static_cast<float>(change[i]);
  }
}

QuantizeResult quantize(std::span<const float> weights, uint32_t n_rows, uint32_t n_cols,
                        const Hessian* hessian, const QuantizeOptions& options, uint32_t n_threads) {
  QuantizeOptions o = options;
  if (o.outliers == OutlierPlace::kNone) o.n_slots = 0;
  const q24::Shape shape{n_rows, n_cols, o.group, o.n_fine, o.n_slots};
  const q24::Layout layout = q24::make_layout(shape);
  if (hessian && hessian->n_cols != n_cols)
    throw_error(ErrorCode::kInternal, "Hessian of {} columns for a matrix of {}", hessian->n_cols, n_cols);

  std::vector<double> h;
  std::vector<double> h_diagonal(n_cols, 1), h_inverse_diagonal(n_cols, 1);
  if (hessian) {
    h = damped(*hessian, o);
    for (uint32_t c = 0; c < n_cols; ++c) h_diagonal[c] = h[size_t{c} * n_cols + c];
    if (o.sensitivity == Sensitivity::kCompensated) {
      std::vector<double> v = h;
      if (!factor_upper(v, n_cols, n_threads))
        throw_error(ErrorCode::kInvalidArgument, "Hessian is not positive definite, even after damping");
      h_inverse_diagonal = inverse_diagonal(v, n_cols, n_threads);
    }
  }
  const std::vector<uint32_t> columns =
      order_columns(weights, n_rows, n_cols, h_diagonal, h_inverse_diagonal, o);

  QuantizeResult result;
  q24::Unpacked& out = result.tensor;
  out.shape = shape;
  out.perm.assign(layout.padded_cols, 0xffff);
  for (uint32_t c = 0; c < n_cols; ++c) out.perm[c] = static_cast<uint16_t>(columns[c]);
  out.col_scale = column_scales(weights, n_rows, n_cols, columns, layout.padded_cols);
  std::vector<float> scale(layout.padded_cols);
  for (uint32_t c = 0; c < layout.padded_cols; ++c)
    scale[c] = f16_to_float(out.col_scale[c / q24::kLineCols]);

  RowsProblem problem{};
  problem.n = layout.padded_cols;
  problem.n_real = n_cols;
  problem.group = o.group;
  problem.n_fine = o.n_fine;
  problem.n_slots = o.n_slots;
  problem.search_scales = o.search_scales;
  problem.integer_zero = o.integer_zero;
  problem.compensate = o.compensate && hessian;
  problem.outliers_in_fine = o.outliers == OutlierPlace::kEverywhere;
  problem.outliers_by_size = o.outlier_choice == OutlierChoice::kSize;
  problem.descent_rounds = problem.compensate ? o.descent_rounds : 0;
  set_metric(problem, h, columns, scale, n_threads);
  h = {};

  const uint32_t n_groups = layout.padded_cols / o.group;
  out.d.resize(n_rows);
  out.dmin.resize(n_rows);
  out.codes.resize(size_t{n_rows} * layout.padded_cols);
  out.s.resize(size_t{n_rows} * n_groups);
  out.m.resize(size_t{n_rows} * n_groups);
  out.outlier_col.resize(size_t{n_rows} * o.n_slots);
  out.outlier_delta.resize(size_t{n_rows} * o.n_slots);
  const uint32_t n_blocks = (n_rows + kLanes - 1) / kLanes;
  std::vector<double> errors(n_blocks), norms(n_blocks);
  parallel_for(n_blocks, n_threads, [&](uint32_t block) {
    const uint32_t row = block * kLanes, n_here = std::min(kLanes, n_rows - row);
    std::vector<float> w(size_t{problem.n} * kLanes);
    for (uint32_t lane = 0; lane < n_here; ++lane)
      for (uint32_t c = 0; c < n_cols; ++c)
        w[size_t{c} * kLanes + lane] = weights[size_t{row + lane} * n_cols + columns[c]] / scale[c];
    RowsResult rows;
    quantize_rows(problem, w.data(), rows);
    errors[block] = rows.error;
    norms[block] = rows.norm;
    for (uint32_t lane = 0; lane < n_here; ++lane) {
      const size_t r = row + lane;
      out.d[r] = rows.d[lane];
      out.dmin[r] = rows.dmin[lane];
      for (uint32_t c = 0; c < problem.n; ++c)
        out.codes[r * problem.n + c] = rows.codes[size_t{c} * kLanes + lane];
      for (uint32_t g = 0; g < n_groups; ++g) {
        out.s[r * n_groups + g] = rows.s[size_t{g} * kLanes + lane];
        out.m[r * n_groups + g] = rows.m[size_t{g} * kLanes + lane];
      }
      for (uint32_t i = 0; i < o.n_slots; ++i) {
        out.outlier_col[r * o.n_slots + i] = rows.outlier_col[size_t{i} * kLanes + lane];
        out.outlier_delta[r * o.n_slots + i] = rows.outlier_delta[size_t{i} * kLanes + lane];
      }
    }
  });
  double error = 0, norm = 0;
  for (uint32_t block = 0; block < n_blocks; ++block) {
    error += errors[block];
    norm += norms[block];
  }
  result.report.relative_error = norm > 0 ? error / norm : 0;
  result.report.size_bytes = layout.size_bytes;
  result.report.bits_per_weight =
      8.0 * static_cast<double>(layout.size_bytes) / (double{1} * n_rows * n_cols);
  return result;
}

std::vector<float> dequantize(const q24::Unpacked& tensor, uint32_t n_threads) {
  const q24::Shape& shape = tensor.shape;
  const uint64_t size_bytes = q24::make_layout(shape).size_bytes;
  const std::unique_ptr<uint8_t, void (*)(void*)> data(
      static_cast<uint8_t*>(std::aligned_alloc(q24::kLineBytes, size_bytes)), std::free);
  if (!data) throw_error(ErrorCode::kOutOfMemory, "{} bytes for a tensor", size_bytes);
  q24::pack(tensor, {data.get(), size_bytes});
  const q24::View view = q24::make_view(shape, data.get());
  std::vector<float> weights(size_t{shape.n_rows} * shape.n_cols);
  parallel_for(shape.n_rows, n_threads,
               [&](uint32_t r) { q24::dequantize_row(view, r, weights.data() + size_t{r} * shape.n_cols); });
  return weights;
}

}  // namespace pith
