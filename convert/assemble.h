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
  struct Run {  // consecutive rows of the container's tensor that are rows of one source, row_step apart
    uint32_t row_begin, n_rows;
    int source_idx;  // -1: zero padding
    uint32_t source_row;
  };
  SourceTensor find_source(const TensorSource& part) const;
  void add_run(uint32_t n_rows, int source_idx, uint32_t source_row);
  void read_run(const Run& run, uint32_t skip, uint32_t n_rows, float* out);
  bool is_transposed(size_t source_idx) const;
  const std::vector<float>& transposed(const SourceTensor& source);

  const Checkpoint& checkpoint_;
  const TensorPlan& plan_;
  bool allow_nonfinite_, is_vector_;
  std::vector<SourceTensor> sources_;
  std::vector<float> transposed_;  // of one source, whole: [rows of the container's tensor, n_cols]
  uint32_t transposed_file_ = 0;
  uint64_t transposed_offset_ = 0;
  std::vector<Run> runs_;
  Checksum64 hash_{0};
};

}  // namespace pith
