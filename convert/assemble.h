// One container tensor put together from a checkpoint's tensors, rows at a time, as float.
#pragma once
#include <cstdint>
#include <vector>

#include "convert/checkpoint.h"
#include "format/checksum.h"
#include "models/spec.h"

namespace pith {

class Assembly {
 public:
  // Checks that every source is there with the right shape and a type that can be read. Throws Error naming it.
  // allow_nonfinite: NaN and Inf pass; otherwise read_rows refuses them, naming tensor and index.
  Assembly(const Checkpoint& checkpoint, const TensorPlan& plan, bool allow_nonfinite);

  // Rows [row_begin, row_begin + n_rows) of the container's tensor. out: [n_rows, plan.n_cols].
  void read_rows(uint32_t row_begin, uint32_t n_rows, float* out);
  // XXH3-64 of the sources' bytes read so far, in the order of the container's rows.
  uint64_t source_hash() const { return hash_.value(); }

  // The type all sources share, or kF32 when they differ.
  SourceType type() const;

 private:
  struct Run {  // consecutive rows of the container's tensor that are consecutive rows of one source
    uint32_t row_begin, n_rows;
    int source_idx;  // -1: zero padding
    uint32_t source_row;
  };
  void add_run(uint32_t n_rows, int source_idx, uint32_t source_row);

  const Checkpoint& checkpoint_;
  const TensorPlan& plan_;
  bool allow_nonfinite_;
  std::vector<SourceTensor> sources_;
  std::vector<Run> runs_;
  Checksum64 hash_{0};
};

}  // namespace pith
