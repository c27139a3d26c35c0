// A tensor as runs of source rows, each read where it lies in the checkpoint; a stack stored the other way
// round is transposed once.
#include "convert/assemble.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"

namespace pith {

namespace {
constexpr uint32_t kInterleaveRows = 16;
}

// A stack in floating point has its matrices the other way round: rows are the input dimension.
bool Assembly::is_transposed(size_t source_idx) const {
  return !is_vector_ && plan_.sources[source_idx].stack_idx >= 0 &&
         sources_[source_idx].type != SourceType::kMxfp4;
}

Assembly::Assembly(const Checkpoint& checkpoint, const TensorPlan& plan, bool allow_nonfinite)
    : checkpoint_(checkpoint),
      plan_(plan),
      allow_nonfinite_(allow_nonfinite),
      is_vector_(plan.role == TensorRole::kNorm || plan.role == TensorRole::kBias) {
  const std::vector<TensorSource>& parts = plan.sources;
  for (size_t i = 0; i < parts.size(); ++i) {
    const TensorSource& part = parts[i];
    sources_.push_back(find_source(part));
    const SourceTensor& source = sources_.back();
    const uint32_t n_cols = is_transposed(i) ? source.n_rows : source.n_cols;
    if (!is_vector_ && n_cols != plan.n_cols)
      throw_error(ErrorCode::kFormat, "{}: tensor '{}': shape [{}, {}], expected {} columns for '{}'",
                  checkpoint.dir(), part.name, source.n_rows, source.n_cols, plan.n_cols, plan.name);
    const uint32_t n_rows = is_transposed(i) ? source.n_cols : source.n_rows;
    uint64_t n_taken = 0;
    for (const TensorSource& other : parts)
      if (other.name == part.name) n_taken += other.n_rows;
    if (n_rows != n_taken)
      throw_error(ErrorCode::kFormat, "{}: tensor '{}': {} rows, expected {} for '{}'", checkpoint.dir(),
                  part.name, n_rows, n_taken, plan.name);
  }

  if (plan.order == RowOrder::kConcat) {
    for (size_t i = 0; i < parts.size(); ++i)
      add_run(parts[i].n_rows, static_cast<int>(i), parts[i].row_begin);
  } else {
    const uint32_t n_rows = parts[0].n_rows;
    for (uint32_t row = 0; row < n_rows; row += kInterleaveRows)
      for (int i = 0; i < 2; ++i) {
        const uint32_t n = std::min(kInterleaveRows, n_rows - row);
        const TensorSource& part = parts[static_cast<size_t>(i)];
        add_run(n, i, part.row_begin + row * part.row_step);
        if (n < kInterleaveRows) add_run(kInterleaveRows - n, -1, 0);
      }
  }
}

SourceTensor Assembly::find_source(const TensorSource& part) const {
  SourceTensor source = part.stack_idx < 0
                            ? checkpoint_.get(part.name)
                            : checkpoint_.get_of_stack(part.name, static_cast<uint32_t>(part.stack_idx));
  if (!is_vector_) return source;
  // A vector's elements are what a matrix's rows are: the unit of concatenation.
  if (source.n_rows != 1)
    throw_error(ErrorCode::kFormat, "{}: tensor '{}': shape [{}, {}], expected a vector", checkpoint_.dir(),
                part.name, source.n_rows, source.n_cols);
  source.n_rows = source.n_cols;
  source.n_cols = 1;
  return source;
}

void Assembly::add_run(uint32_t n_rows, int source_idx, uint32_t source_row) {
  const uint32_t row_begin = runs_.empty() ? 0 : runs_.back().row_begin + runs_.back().n_rows;
  runs_.push_back({row_begin, n_rows, source_idx, source_row});
}

const std::vector<float>& Assembly::transposed(const SourceTensor& source) {
  if (!transposed_.empty() && transposed_file_ == source.file_idx && transposed_offset_ == source.offset)
    return transposed_;
  const size_t n_rows = source.n_cols, n_cols = source.n_rows;  // of the result
  std::vector<uint8_t> raw(source.row_bytes() * source.n_rows);
  checkpoint_.read_raw(source, 0, source.n_rows, raw);
  hash_.update(raw);
  std::vector<float> row(n_rows);
  transposed_.resize(n_rows * n_cols);
  transposed_file_ = source.file_idx;
  transposed_offset_ = source.offset;
  for (size_t c = 0; c < n_cols; ++c) {
    to_float(source.type, raw.data() + c * source.row_bytes(), n_rows, row.data());
    for (size_t r = 0; r < n_rows; ++r) transposed_[r * n_cols + c] = row[r];
  }
  return transposed_;
}

// Rows [skip, skip + n_rows) of a run of a source, checked. out: [n_rows, columns].
void Assembly::read_run(const Run& run, uint32_t skip, uint32_t n_rows, float* out) {
  const size_t idx = static_cast<size_t>(run.source_idx);
  const SourceTensor& source = sources_[idx];
  const uint32_t step = plan_.sources[idx].row_step, first = run.source_row + skip * step;
  const size_t n_cols = is_vector_ ? 1 : plan_.n_cols;
  if (is_transposed(idx)) {
    const std::vector<float>& all = transposed(source);
    for (size_t r = 0; r < n_rows; ++r)
      std::copy_n(all.data() + (first + r * step) * n_cols, n_cols, out + r * n_cols);
  } else {
    const uint32_t n_read = (n_rows - 1) * step + 1;
    std::vector<uint8_t> raw(n_read * source.row_bytes());
    checkpoint_.read_raw(source, first, n_read, raw);
    hash_.update(raw);
    if (step == 1) {
      to_float(source.type, raw.data(), n_rows * n_cols, out);
    } else {
      std::vector<float> all(n_read * n_cols);
      to_float(source.type, raw.data(), all.size(), all.data());
      for (size_t r = 0; r < n_rows; ++r)
        std::copy_n(all.data() + r * step * n_cols, n_cols, out + r * n_cols);
    }
  }
  for (size_t i = 0; i < n_rows * n_cols && !allow_nonfinite_; ++i)
    if (!std::isfinite(out[i])) {
      const size_t row = first + i / n_cols * step;
      const std::string index = is_vector_ ? fmt::format("{}", row) : fmt::format("{}, {}", row, i % n_cols);
      throw_error(ErrorCode::kFormat, "{}: tensor '{}': element [{}] is {}", checkpoint_.dir(), source.name,
                  index, out[i]);
    }
}

void Assembly::read_rows(uint32_t row_begin, uint32_t n_rows, float* out) {
  const uint32_t row_end = is_vector_ ? plan_.n_cols : row_begin + n_rows;
  if (is_vector_) row_begin = 0;
  const size_t n_cols = is_vector_ ? 1 : plan_.n_cols;
  auto run = std::partition_point(runs_.begin(), runs_.end(),
                                  [&](const Run& r) { return r.row_begin + r.n_rows <= row_begin; });
  for (uint32_t row = row_begin; row < row_end; ++run) {
    const uint32_t skip = row - run->row_begin;
    const uint32_t n = std::min(run->n_rows - skip, row_end - row);
    const size_t n_values = n * n_cols;
    if (run->source_idx < 0)
      std::fill_n(out, n_values, 0.0f);
    else
      read_run(*run, skip, n, out);
    if (plan_.add != 0)
      for (size_t i = 0; i < n_values; ++i) out[i] += plan_.add;
    out += n_values;
    row += n;
  }
}

SourceType Assembly::type() const {
  for (const SourceTensor& source : sources_)
    if (source.type != sources_[0].type) return SourceType::kF32;
  // A 4-bit float times a power of two fits bfloat16.
  if (!sources_.empty() && sources_[0].type == SourceType::kMxfp4) return SourceType::kBF16;
  return sources_.empty() ? SourceType::kF32 : sources_[0].type;
}

}  // namespace pith
