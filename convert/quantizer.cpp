// Order of columns, column scales and metric for all rows; then the rows, a block at a time, on all threads.
#include "convert/quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "convert/factor.h"
#include "convert/parallel_for.h"
#include "convert/quantizer_columns.h"
#include "convert/quantizer_rows.h"
#include "format/error.h"
#include "format/float16.h"

namespace pith {

namespace {

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

// V_g with H_gg = V_g V_g' for every group, [n / group, group, group]. In pads zero.
std::vector<float> group_factors(const RowsProblem& problem, uint32_t n_threads) {
  const uint32_t n = problem.group, n_groups = problem.n / n;
  std::vector<float> factors(size_t{n_groups} * n * n);
  parallel_for(n_groups, n_threads, [&](uint32_t g) {
    const uint32_t c = g * n, n_here = std::min(n, problem.n_real > c ? problem.n_real - c : 0);
    float* const v = factors.data() + size_t{g} * n * n;
    for (uint32_t i = 0; i < n_here; ++i)
      for (uint32_t j = 0; j <= i; ++j)
        v[i * n + j] = v[j * n + i] = problem.square[size_t{c + i} * problem.n + c + j];
    const UpperFactor factor = factor_upper(v, n_here, n, 1);
    if (factor.n() != n_here)
      throw_error(ErrorCode::kInternal, "a block of a positive definite matrix is not");
    for (uint32_t i = 0; i < n_here; ++i) {
      std::fill_n(v + i * n, i, 0.0f);
      v[i * n + i] = static_cast<float>(factor.diagonal[i]);
    }
  });
  return factors;
}

RowsProblem rows_problem(const Arrangement& arrangement, const std::vector<float>& scale,
                         const QuantizeOptions& options, uint32_t n_threads) {
  const Metric& metric = arrangement.metric;
  RowsProblem problem{};
  problem.n = static_cast<uint32_t>(scale.size());
  problem.n_real = metric.n_cols();
  problem.group = options.group;
  problem.n_fine = options.n_fine;
  problem.n_slots = options.outliers == OutlierPlace::kNone ? 0 : options.n_slots;
  problem.search_scales = options.search_scales;
  problem.integer_zero = options.integer_zero;
  problem.compensate = options.compensate && metric.is_dense();
  problem.outliers_in_fine = options.outliers == OutlierPlace::kEverywhere;
  problem.outliers_by_size = options.outlier_choice == OutlierChoice::kSize;
  problem.descent_rounds = problem.compensate ? options.descent_rounds : 0;
  problem.square = metric.square();
  problem.v_diag = metric.v_diagonal();
  problem.v_diag.resize(problem.n);
  problem.v_inverse.resize(problem.n);
  for (uint32_t i = 0; i < problem.n_real; ++i) problem.v_inverse[i] = 1 / problem.v_diag[i];
  if (problem.square) problem.group_v = group_factors(problem, n_threads);
  return problem;
}

std::vector<float> unpacked_scales(const std::vector<uint16_t>& col_scale) {
  std::vector<float> scale(col_scale.size() * q24::kLineCols);
  for (size_t c = 0; c < scale.size(); ++c) scale[c] = f16_to_float(col_scale[c / q24::kLineCols]);
  return scale;
}

}  // namespace

Arrangement arrange(std::span<const float> weights, uint32_t n_rows, std::vector<uint32_t> columns,
                    Metric metric, const QuantizeOptions& options) {
  const uint32_t n_cols = metric.n_cols(), padded_cols = q24::padded_cols(n_cols);
  Arrangement arrangement{std::move(columns), {}, std::move(metric)};
  arrangement.col_scale = column_scales(weights, n_rows, n_cols, arrangement.columns, padded_cols);
  arrangement.metric.arrange(arrangement.columns, unpacked_scales(arrangement.col_scale), padded_cols,
                             options.compensate);
  return arrangement;
}

QuantizeResult quantize(std::span<const float> weights, uint32_t n_rows, Metric metric,
                        const QuantizeOptions& options, uint32_t n_threads) {
  std::vector<uint32_t> columns = order_columns(weights, n_rows, metric, options);
  return quantize(weights, n_rows, arrange(weights, n_rows, std::move(columns), std::move(metric), options),
                  options, n_threads);
}

QuantizeResult quantize(std::span<const float> weights, uint32_t n_rows, const Arrangement& arrangement,
                        const QuantizeOptions& options, uint32_t n_threads) {
  const uint32_t n_cols = arrangement.metric.n_cols();
  const std::vector<uint32_t>& columns = arrangement.columns;
  const std::vector<float> scale = unpacked_scales(arrangement.col_scale);
  const RowsProblem problem = rows_problem(arrangement, scale, options, n_threads);
  const q24::Shape shape{n_rows, n_cols, options.group, options.n_fine, problem.n_slots};
  const q24::Layout layout = q24::make_layout(shape);

  QuantizeResult result;
  q24::Unpacked& out = result.tensor;
  out.shape = shape;
  out.perm.assign(layout.padded_cols, 0xffff);
  for (uint32_t c = 0; c < n_cols; ++c) out.perm[c] = static_cast<uint16_t>(columns[c]);
  out.col_scale = arrangement.col_scale;

  const uint32_t n_groups = layout.padded_cols / problem.group;
  out.d.resize(n_rows);
  out.dmin.resize(n_rows);
  out.codes.resize(size_t{n_rows} * layout.padded_cols);
  out.s.resize(size_t{n_rows} * n_groups);
  out.m.resize(size_t{n_rows} * n_groups);
  out.outlier_col.resize(size_t{n_rows} * problem.n_slots);
  out.outlier_delta.resize(size_t{n_rows} * problem.n_slots);
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
      for (uint32_t i = 0; i < problem.n_slots; ++i) {
        out.outlier_col[r * problem.n_slots + i] = rows.outlier_col[size_t{i} * kLanes + lane];
        out.outlier_delta[r * problem.n_slots + i] = rows.outlier_delta[size_t{i} * kLanes + lane];
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
