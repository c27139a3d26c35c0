#include "convert/assemble.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"

namespace pith {

namespace {
constexpr uint32_t kInterleaveRows = 16;
}

Assembly::Assembly(const Checkpoint& checkpoint, const TensorPlan& plan, bool allow_nonfinite)
    : checkpoint_(checkpoint), plan_(plan), allow_nonfinite_(allow_nonfinite) {
  const bool is_vector = plan.n_rows == 1;
  std::vector<TensorSource> parts = plan.sources;
  for (TensorSource& part : parts) {
    SourceTensor source = checkpoint.get(part.name);
    if (is_vector) {  // a vector's elements are what a matrix's rows are: the unit of concatenation
      if (source.n_rows != 1)
        throw_error(ErrorCode::kFormat, "{}: tensor '{}': shape [{}, {}], expected a vector",
                    checkpoint.dir(), part.name, source.n_rows, source.n_cols);
      source.n_rows = source.n_cols;
      source.n_cols = 1;
    } else if (source.n_cols != plan.n_cols) {
      throw_error(ErrorCode::kFormat, "{}: tensor '{}': shape [{}, {}], expected {} columns for '{}'",
                  checkpoint.dir(), part.name, source.n_rows, source.n_cols, plan.n_cols, plan.name);
    }
    if (part.n_rows == 0) part.n_rows = source.n_rows;
    if (part.row_begin > source.n_rows || part.n_rows > source.n_rows - part.row_begin)
      throw_error(ErrorCode::kFormat, "{}: tensor '{}': {} rows, expected at least {}", checkpoint.dir(),
                  part.name, source.n_rows, part.row_begin + part.n_rows);
    sources_.push_back(std::move(source));
  }

  if (plan.order == RowOrder::kConcat) {
    for (size_t i = 0; i < parts.size(); ++i)
      add_run(parts[i].n_rows, static_cast<int>(i), parts[i].row_begin);
  } else {
    if (parts.size() != 2 || parts[0].n_rows != parts[1].n_rows)
      throw_error(ErrorCode::kFormat, "{}: tensors of '{}' differ in rows: '{}' and '{}'", checkpoint.dir(),
                  plan.name, parts.front().name, parts.back().name);
    const uint32_t n_rows = parts[0].n_rows;
    for (uint32_t row = 0; row < n_rows; row += kInterleaveRows)
      for (int i = 0; i < 2; ++i) {
        const uint32_t n = std::min(kInterleaveRows, n_rows - row);
        add_run(n, i, parts[static_cast<size_t>(i)].row_begin + row);
        if (n < kInterleaveRows) add_run(kInterleaveRows - n, -1, 0);
      }
  }
  const uint32_t n_found = runs_.empty() ? 0 : runs_.back().row_begin + runs_.back().n_rows;
  const uint32_t n_expected = is_vector ? plan.n_cols : plan.n_rows;
  if (n_found != n_expected) {
    std::vector<std::string> shapes;
    for (const SourceTensor& source : sources_)
      shapes.push_back(fmt::format("'{}' [{}, {}]", source.name, source.n_rows, source.n_cols));
    throw_error(ErrorCode::kFormat, "{}: {}: {} rows for '{}', expected {}", checkpoint.dir(),
                fmt::join(shapes, ", "), n_found, plan.name, n_expected);
  }
}

void Assembly::add_run(uint32_t n_rows, int source_idx, uint32_t source_row) {
  const uint32_t row_begin = runs_.empty() ? 0 : runs_.back().row_begin + runs_.back().n_rows;
  runs_.push_back({row_begin, n_rows, source_idx, source_row});
}

void Assembly::read_rows(uint32_t row_begin, uint32_t n_rows, float* out) {
  const bool is_vector = plan_.n_rows == 1;
  const uint32_t row_end = is_vector ? plan_.n_cols : row_begin + n_rows;
  if (is_vector) row_begin = 0;
  const size_t n_cols = is_vector ? 1 : plan_.n_cols;
  std::vector<uint8_t> raw;
  auto run = std::partition_point(runs_.begin(), runs_.end(),
                                  [&](const Run& r) { return r.row_begin + r.n_rows <= row_begin; });
  for (uint32_t row = row_begin; row < row_end; ++run) {
    const uint32_t skip = row - run->row_begin;
    const uint32_t n = std::min(run->n_rows - skip, row_end - row);
    const size_t n_values = n * n_cols;
    if (run->source_idx < 0) {
      std::fill_n(out, n_values, 0.0f);
    } else {
      const SourceTensor& source = sources_[static_cast<size_t>(run->source_idx)];
      raw.resize(n_values * source.element_bytes());
      checkpoint_.read_raw(source, run->source_row + skip, n, raw);
      hash_.update(raw);
      to_float(source.type, raw.data(), n_values, out);
      for (size_t i = 0; i < n_values && !allow_nonfinite_; ++i)
        if (!std::isfinite(out[i])) {
          const size_t source_row = run->source_row + skip + i / n_cols;
          const std::string index =
              is_vector ? fmt::format("{}", source_row) : fmt::format("{}, {}", source_row, i % n_cols);
          throw_error(ErrorCode::kFormat, "{}: tensor '{}': element [{}] is {}", checkpoint_.dir(),
                      source.name, index, out[i]);
        }
    }
    if (plan_.add != 0)
      for (size_t i = 0; i < n_values; ++i) out[i] += plan_.add;
    out += n_values;
    row += n;
  }
}

SourceType Assembly::type() const {
  for (const SourceTensor& source : sources_)
    if (source.type != sources_[0].type) return SourceType::kF32;
  return sources_.empty() ? SourceType::kF32 : sources_[0].type;
}

}  // namespace pith
