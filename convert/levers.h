// The levers of the quantizer, each switched by a name: what `pith convert --ablate` takes, and what a preset is.
//
//   search        on | off    scales by an importance-weighted search, or min-max
//   minimum       free | integer       an integer minimum is a multiple of the scale: the paper's zero point
//   compensate    on | off    LDLQ: later columns absorb the error of earlier ones
//   hessian       shrunk | plain    its off-diagonal elements are trusted less than its diagonal, or as much
//   sort          on | off    columns sorted by the Hessian's diagonal, or left in their groups
//   sensitivity   random | range | diagonal | inverse          which columns get 4 bits
//   outliers      auto | none | coarse | everywhere            coarse: in 2-bit groups only; auto: coarse, where they pay
//   outlier-by    error | size     chosen by the error that they remove, or the largest
//   descent       0 .. 64     rounds of coordinate descent with refit of the scales (default: by the effort)
//   correct       on | off    weights corrected for what earlier layers lost
//   shrink        on | off    by as much as two halves of the calibration text agree on
//   head          on | off    embedding and head rounded for what the head sees
//   budget        measured | parts | even    the bits of each matrix: by measurement, by its kind, all alike
//   group         auto | 16 | 32
//   fine          on | off    off: no 4-bit columns at all
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "convert/quantizer.h"

namespace pith {

enum class Outliers : uint8_t { kAuto, kNone, kCoarse, kEverywhere };
enum class Budget : uint8_t { kMeasured, kByPart, kEven };

struct Levers {
  bool search = true, free_minimum = true, compensate = true, shrunk_hessian = true, sort = true,
       correct = true, shrink = true, head = true, fine = true;
  Sensitivity sensitivity = Sensitivity::kCompensated;
  Outliers outliers = Outliers::kAuto;
  OutlierChoice outlier_choice = OutlierChoice::kErrorRemoved;
  Budget budget = Budget::kMeasured;
  uint32_t group = 0;    // 0: auto
  int32_t descent = -1;  // below 0: by the effort

  // arXiv 2311.16442 as closely as the layout can express it.
  static Levers paper();
  void apply_to(
      QuantizeOptions& options) const;  // those that a single matrix knows; descent only when it is set
  bool operator==(const Levers&) const = default;
};

// "search=off,descent=0" changes those two. Throws Error(kInvalidArgument) naming the lever and what it takes.
void apply_levers(std::string_view text, Levers& levers);
// All levers in the same syntax.
std::string describe(const Levers& levers);

}  // namespace pith
