// One share of 4-bit columns for all by bisection, then group by group what is left; or, with measured
// losses, the price of a bit at which what every matrix takes meets the target.
#include "convert/budget.h"

#include <algorithm>
#include <cmath>

namespace pith {

namespace {

uint64_t size_of(const q24::Shape& shape) {
  return q24::make_layout(shape).size_bytes;
}

// Columns of padding at the end count as 4-bit columns first: they are paid, but serve nothing.
uint32_t n_pads(const LayerBudget& layer) {
  return q24::padded_cols(layer.n_cols) - layer.n_cols;
}

// Shapes with about `fraction` of the real columns at 4 bits, weighted.
void set_all(std::vector<LayerBudget>& layers, uint32_t group, bool with_outliers, double fraction) {
  for (LayerBudget& layer : layers) {
    const double columns = std::min(1.0, fraction * layer.fine_weight) * layer.n_cols;
    const uint32_t n_groups = static_cast<uint32_t>(columns) / group;
    const uint32_t n_fine = n_groups == 0 ? 0 : n_groups * group + n_pads(layer) / group * group;
    const uint32_t n_slots =
        with_outliers ? static_cast<uint32_t>(std::lround(layer.outlier_share * layer.n_cols)) : 0;
    layer.shape = {layer.n_rows, layer.n_cols, group, n_fine,
                   std::min(n_slots, layer.n_cols + n_pads(layer) - n_fine)};
  }
}

}  // namespace

double total_bits(const std::vector<LayerBudget>& layers) {
  double bits = 0, weights = 0;
  for (const LayerBudget& layer : layers) {
    bits += 8.0 * static_cast<double>(size_of(layer.shape));
    weights += static_cast<double>(layer.n_rows) * layer.n_cols;
  }
  return weights > 0 ? bits / weights : 0;
}

double share_bits(std::vector<LayerBudget>& layers, double target, uint32_t group, bool with_fine) {
  // From the richest mix down: the first whose smallest form fits. A twentieth of the columns at 4 bits is worth more
  // than outliers, and outliers more than group 16.
  struct Mix {
    uint32_t group;
    bool with_outliers;
    double fraction;
  };
  std::vector<Mix> mixes = {{16, true, 0.05}, {32, true, 0.05}, {32, false, 0.05}, {32, false, 0}};
  if (group > 0) mixes = {{group, true, 0.05}, {group, true, 0}, {group, false, 0}};
  if (!with_fine) {
    set_all(layers, mixes[0].group, true, 0);
    return total_bits(layers);
  }
  const Mix* mix = nullptr;
  for (const Mix& candidate : mixes) {
    mix = &candidate;
    set_all(layers, mix->group, mix->with_outliers, mix->fraction);
    if (total_bits(layers) <= target) break;
  }
  if (total_bits(layers) > target) return total_bits(layers);

  double low = mix->fraction, high = 1;
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    set_all(layers, mix->group, mix->with_outliers, middle);
    (total_bits(layers) <= target ? low : high) = middle;
  }
  set_all(layers, mix->group, mix->with_outliers, low);
  // Whole groups leave a remainder: round after round, one more group or slot wherever it fits.
  for (bool has_grown = true; has_grown;) {
    has_grown = false;
    for (LayerBudget& layer : layers) {
      const q24::Shape before = layer.shape;
      q24::Shape wider = before;
      wider.n_fine += before.group + (before.n_fine == 0 ? n_pads(layer) / before.group * before.group : 0);
      q24::Shape longer = before;
      longer.n_slots += 1;
      for (const q24::Shape& grown : {wider, longer}) {
        if (grown.n_fine + grown.n_slots > layer.n_cols) continue;
        if (layer.outlier_share == 0 && grown.n_slots > 0) continue;
        layer.shape = grown;
        if (total_bits(layers) <= target) {
          has_grown = true;
          break;
        }
        layer.shape = before;
      }
    }
  }
  return total_bits(layers);
}

double choose_shapes(const std::vector<std::vector<Candidate>>& layers, double target,
                     std::vector<q24::Shape>& shapes) {
  struct Choice {
    std::vector<double> bits;  // of each candidate
    size_t chosen = 0;
  };
  std::vector<Choice> choices(layers.size());
  double weights = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const Candidate& candidate : layers[i])
      choices[i].bits.push_back(8.0 * static_cast<double>(size_of(candidate.shape)));
    weights += static_cast<double>(layers[i][0].shape.n_rows) * layers[i][0].shape.n_cols;
  }
  // At `price` every matrix takes what costs least; returns the bits of all.
  const auto choose_at = [&](double price) {
    double bits = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
      Choice& choice = choices[i];
      const auto cost = [&](size_t k) { return layers[i][k].loss + price * choice.bits[k]; };
      choice.chosen = 0;
      for (size_t k = 1; k < layers[i].size(); ++k)
        if (cost(k) < cost(choice.chosen)) choice.chosen = k;
      bits += choice.bits[choice.chosen];
    }
    return bits;
  };
  const double budget = target * weights;
  double low = 1e-30, high = 1e10;  // prices: too many bits, few enough
  for (int i = 0; i < 200; ++i) {
    const double middle = std::sqrt(low * high);
    (choose_at(middle) <= budget ? high : low) = middle;
  }
  double bits = choose_at(high);
  // The rest, step by step to where a bit removes most.
  while (bits <= budget) {
    size_t best_layer = 0, best_candidate = 0;
    double best_gain = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
      const Candidate& now = layers[i][choices[i].chosen];
      for (size_t k = 0; k < layers[i].size(); ++k) {
        const double more = choices[i].bits[k] - choices[i].bits[choices[i].chosen];
        if (more <= 0 || bits + more > budget) continue;
        const double gain = (now.loss - layers[i][k].loss) / more;
        if (gain <= best_gain) continue;
        best_gain = gain;
        best_layer = i;
        best_candidate = k;
      }
    }
    if (best_gain <= 0) break;
    Choice& choice = choices[best_layer];
    bits += choice.bits[best_candidate] - choice.bits[choice.chosen];
    choice.chosen = best_candidate;
  }
  shapes.clear();
  for (size_t i = 0; i < layers.size(); ++i) shapes.push_back(layers[i][choices[i].chosen].shape);
  return bits / weights;
}

}  // namespace pith
