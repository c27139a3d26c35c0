// Scores columns, or whole groups where they are not sorted, by the chosen sensitivity, and puts the highest
// last.
#include "convert/quantizer_columns.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace pith {

namespace {

// The unit that moves: single columns when they are sorted, else whole groups in place.
struct Unit {
  uint32_t begin, end;  // input columns
  double score;         // high: 4 bits
};

// Per unit, the mean over rows of (max - min)^2, and of the variance over rows of each column.
struct ColumnStats {
  std::vector<double> variance;  // [n_cols], about the column's mean
  std::vector<double> range;     // [n_units], mean over rows of the squared range
};

ColumnStats measure(std::span<const float> weights, uint32_t n_rows, uint32_t n_cols,
                    const std::vector<Unit>& units) {
  ColumnStats stats{std::vector<double>(n_cols), std::vector<double>(units.size())};
  std::vector<double> sum(n_cols);
  for (uint32_t r = 0; r < n_rows; ++r) {
    const float* row = weights.data() + size_t{r} * n_cols;
    for (uint32_t c = 0; c < n_cols; ++c) {
      sum[c] += row[c];
      stats.variance[c] += double{row[c]} * row[c];
    }
    for (size_t u = 0; u < units.size(); ++u) {
      const auto [low, high] = std::minmax_element(row + units[u].begin, row + units[u].end);
      const double range = units[u].end - units[u].begin > 1 ? *high - *low : std::abs(*high);
      stats.range[u] += range * range / n_rows;
    }
  }
  for (uint32_t c = 0; c < n_cols; ++c)
    stats.variance[c] = std::max(0.0, (stats.variance[c] - sum[c] * sum[c] / n_rows) / n_rows);
  return stats;
}

}  // namespace

std::vector<uint32_t> order_columns(std::span<const float> weights, uint32_t n_rows, Metric& metric,
                                    const QuantizeOptions& options) {
  const uint32_t n_cols = metric.n_cols();
  const std::vector<double>& h_diagonal = metric.diagonal();
  const bool is_compensated = options.sensitivity == Sensitivity::kCompensated;
  const std::vector<double>& h_inverse_diagonal = is_compensated ? metric.inverse_diagonal() : h_diagonal;
  const uint32_t width = options.sort_columns ? 1 : options.group;
  std::vector<Unit> units;
  for (uint32_t c = 0; c < n_cols; c += width) units.push_back({c, std::min(c + width, n_cols), 0});

  const ColumnStats stats = measure(weights, n_rows, n_cols, units);
  std::mt19937_64 random(options.seed);
  for (size_t u = 0; u < units.size(); ++u) {
    Unit& unit = units[u];
    double diagonal = 0, compensated = 0;
    for (uint32_t c = unit.begin; c < unit.end; ++c) {
      diagonal += h_diagonal[c];
      compensated += stats.variance[c] / h_inverse_diagonal[c];
    }
    switch (options.sensitivity) {
      case Sensitivity::kRandom:
        unit.score = static_cast<double>(random() >> 11);
        break;
      case Sensitivity::kRange:
        unit.score = stats.range[u] * diagonal;
        break;
      case Sensitivity::kDiagonal:
        unit.score = diagonal;
        break;
      case Sensitivity::kCompensated:
        unit.score = compensated;
        break;
    }
  }

  // A short last group must stay last, or the groups behind it would straddle two.
  if (units.back().end - units.back().begin < width)
    units.back().score = std::numeric_limits<double>::infinity();

  // Pads fill the end of the 4-bit part: only what is left of n_fine is for real columns.
  const uint32_t padded_cols = q24::padded_cols(n_cols);
  const uint32_t n_pads = padded_cols - n_cols;
  const uint32_t n_fine = options.n_fine > n_pads ? options.n_fine - n_pads : 0;
  std::vector<uint32_t> by_score(units.size());
  std::iota(by_score.begin(), by_score.end(), 0u);
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](uint32_t a, uint32_t b) { return units[a].score > units[b].score; });
  std::vector<bool> is_fine(units.size());
  for (uint32_t i = 0, n = 0; i < units.size() && n < n_fine; ++i) {
    is_fine[by_score[i]] = true;
    n += units[by_score[i]].end - units[by_score[i]].begin;
  }

  std::vector<uint32_t> order(units.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    if (is_fine[a] != is_fine[b]) return static_cast<bool>(is_fine[b]);
    return options.sort_columns && h_diagonal[a] > h_diagonal[b];
  });
  std::vector<uint32_t> columns;
  for (uint32_t u : order)
    for (uint32_t c = units[u].begin; c < units[u].end; ++c) columns.push_back(c);
  return columns;
}

}  // namespace pith
