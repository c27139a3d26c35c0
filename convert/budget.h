// Which layer gets how many bits, so that all linear layers together meet one target with every byte counted.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "format/q24.h"

namespace pith {

constexpr double kOutlierShare = 0.004;  // of the weights, where the target leaves room

struct LayerBudget {
  uint32_t n_rows, n_cols;
  double fine_weight = 1;    // how large its share of 4-bit columns is beside the others'
  double outlier_share = 0;  // of its weights
  q24::Shape shape = {};     // out
};

// Sizes of all layers together over their weights.
double total_bits(const std::vector<LayerBudget>& layers);

// Gives every layer its outliers, groups of 16 if the target leaves room for them (32 otherwise), and 4-bit columns in
// proportion to its weight up to the target, the remainder handed out group by group.
// group: 16 or 32 fixes the groups. with_fine false: no 4-bit columns at all, whatever the target.
// Returns the bits reached, at most `target` unless even the smallest layout is larger: then that is what it returns,
// with the smallest shapes.
double share_bits(std::vector<LayerBudget>& layers, double target, uint32_t group = 0, bool with_fine = true);

// A shape that a matrix may take, and what the model is expected to lose by it.
struct Candidate {
  q24::Shape shape;
  double loss;
};
// Chooses one candidate of each matrix so that the sum of losses is least within `target` bits per weight of all of them
// (Lagrange: the same price per bit everywhere; what is left over goes where it helps most). Each list: not empty.
// Returns the bits reached, more than `target` only when the smallest candidates already are: then it chooses those.
double choose_shapes(const std::vector<std::vector<Candidate>>& layers, double target,
                     std::vector<q24::Shape>& shapes);

}  // namespace pith
