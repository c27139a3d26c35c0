// What of a conversion is not quantizing: 16- and 32-bit tensors, quality figures, and the check at the end.
#include <algorithm>
#include <cmath>

#include "convert/conversion.h"
#include "convert/parallel_for.h"
#include "format/float16.h"
#include "format/records.h"
#include "models/weight_count.h"
#include "runtime/golden.h"
#include "runtime/model.h"

namespace pith {

namespace {

constexpr uint64_t kBlockBytes = 16 << 20;  // of float32, read at a time

// A container's matrix as floats, in input order.
std::vector<float> decode(const Tensor& tensor, uint32_t n_threads) {
  std::vector<float> values(size_t{tensor.n_rows} * tensor.n_cols);
  const bool is_q24 = tensor.kind == TensorKind::kQ24;
  const q24::View view = is_q24 ? tensor.q24_view() : q24::View{};
  const SourceType type = tensor.kind == TensorKind::kF32   ? SourceType::kF32
                          : tensor.kind == TensorKind::kF16 ? SourceType::kF16
                                                            : SourceType::kBF16;
  parallel_for(tensor.n_rows, n_threads, [&](uint32_t r) {
    float* const out = values.data() + size_t{r} * tensor.n_cols;
    if (is_q24)
      q24::dequantize_row(view, r, out);
    else
      to_float(type, tensor.data + size_t{r} * tensor.n_cols * (type == SourceType::kF32 ? 4 : 2),
               tensor.n_cols, out);
  });
  return values;
}

}  // namespace

// Vectors are small and stay float32. Matrices keep a 16-bit source's own type, so that nothing is rounded.
TensorKind Conversion::plain_kind(const TensorPlan& plan, SourceType type) const {
  if (plan.role == TensorRole::kNorm || plan.role == TensorRole::kBias || options_.bits == 32)
    return TensorKind::kF32;
  return type == SourceType::kBF16 ? TensorKind::kBF16 : TensorKind::kF16;
}

// False when a value does not fit kind (fp16 ends at 65504).
bool Conversion::write_plain(const TensorPlan& plan, Assembly& assembly, TensorKind kind) {
  const size_t element_bytes = kind == TensorKind::kF32 ? 4 : 2;
  std::vector<uint8_t> data(element_bytes * plan.n_rows * plan.n_cols);
  const uint64_t row_bytes = uint64_t{plan.n_cols} * sizeof(float);
  const uint32_t block_rows =
      static_cast<uint32_t>(std::clamp<uint64_t>(kBlockBytes / row_bytes, 1, plan.n_rows));
  std::vector<float> block(uint64_t{block_rows} * plan.n_cols);
  for (uint32_t row = 0; row < plan.n_rows; row += block_rows) {
    progress("convert", plan.name, n_done_ + uint64_t{row} * plan.n_cols);
    const uint32_t n_rows = std::min(block_rows, plan.n_rows - row);
    const size_t n = size_t{n_rows} * plan.n_cols;
    assembly.read_rows(row, n_rows, block.data());
    uint8_t* out = data.data() + uint64_t{row} * plan.n_cols * element_bytes;
    if (kind == TensorKind::kF32) {
      std::copy_n(reinterpret_cast<const uint8_t*>(block.data()), n * sizeof(float), out);
      continue;
    }
    auto* out16 = reinterpret_cast<uint16_t*>(out);
    for (size_t i = 0; i < n; ++i) {
      out16[i] = kind == TensorKind::kF16 ? float_to_f16(block[i]) : float_to_bf16(block[i]);
      if (kind == TensorKind::kF16 && (out16[i] & 0x7fff) == 0x7c00 && std::isfinite(block[i])) return false;
    }
  }
  writer_.note(plan.name, note_for(plan, assembly.source_hash(), 0));
  writer_.add(plan.name, kind, plan.n_rows, plan.n_cols, data);
  return true;
}

void Conversion::add_plain(const TensorPlan& plan) {
  Assembly assembly(source_.checkpoint, plan, options_.allow_nonfinite);
  if (write_plain(plan, assembly, plain_kind(plan, assembly.type()))) return;
  report_.notes.push_back(fmt::format("tensor '{}' has values beyond fp16: stored as bf16", plan.name));
  Assembly again(source_.checkpoint, plan, options_.allow_nonfinite);
  write_plain(plan, again, TensorKind::kBF16);
}

// Error and bits of every quantized tensor, from what was noted with it (it may have been written by an earlier run).
void Conversion::store_quality(Metadata& metadata) {
  std::vector<std::string> names;
  std::vector<float> errors, bits;
  WeightCount count;
  for (const TensorPlan& plan : source_.plan) {
    const uint64_t n = uint64_t{plan.n_rows} * plan.n_cols;
    if (!is_quantized(plan)) {
      const TensorKind kind = options_.bits == 32 ? TensorKind::kF32 : TensorKind::kF16;  // bf16 is as large
      count.add(plan.role, n, tensor_size(kind, {plan.n_rows, plan.n_cols, 0, 0, 0}));
      continue;
    }
    const uint64_t n_bytes = q24::make_layout(shape_of(plan)).size_bytes;
    count.add(plan.role, n, n_bytes);
    TensorQuality quality{plan.name, 0, 0};
    const std::string note = writer_.noted(plan.name);
    if (const size_t space = note.find(' '); space != std::string::npos)
      quality.relative_error = std::strtod(note.c_str() + space, nullptr);
    quality.bits = 8 * static_cast<double>(n_bytes) / static_cast<double>(n);
    names.push_back(plan.name);
    errors.push_back(static_cast<float>(quality.relative_error));
    bits.push_back(static_cast<float>(quality.bits));
    report_.tensors.push_back(quality);
  }
  report_.linear_bits = count.linear_bits();
  metadata.set("quality.linear_bits", report_.linear_bits);
  if (names.empty()) return;
  metadata.set("quality.tensors", names);
  metadata.set("quality.errors", errors);
  metadata.set("quality.bits", bits);
}

// Tries the file before it is put in place: golden vectors, and how far it is from the original on held-out text.
void Conversion::check(Metadata& metadata) {
  const Timed timed(report_, "check");
  progress("check", "", n_weights_);
  writer_.preview(metadata, [&](const std::string& part_path) {
    const std::shared_ptr<const Model> model = Model::open(part_path);
    store_golden_text(metadata, model->tokenizer(), model->chat_template());
    if (!options_.allow_nonfinite) store_golden_logits(metadata, model);
    const char* const head = head_tensor(source_.spec);
    if (calibration_) store_held_out(metadata, decode(model->container().get(head), n_threads_));
  });
}

void Conversion::store_held_out(Metadata& metadata, const std::vector<float>& quantized_head) {
  const std::string head_name = head_tensor(source_.spec);
  std::vector<float> norm, head;
  for (const TensorPlan& plan : source_.plan) {
    if (plan.name == "norm") norm = source_.read(plan);
    if (plan.name == head_name) head = source_.read(plan);
  }
  const Divergence held_out = calibration_->held_out(norm, head, quantized_head);
  if (held_out.n_tokens == 0) return;
  const double n = static_cast<double>(held_out.n_tokens);
  report_.ppl_ratio = std::exp((held_out.nll_q - held_out.nll_p) / n);
  report_.kl = std::max(held_out.kl, 0.0) / n;  // rounding
  metadata.set("quality.held_out_tokens", held_out.n_tokens);
  metadata.set("quality.ppl_original", std::exp(held_out.nll_p / n));
  metadata.set("quality.ppl", std::exp(held_out.nll_q / n));
  metadata.set("quality.ppl_ratio", report_.ppl_ratio);
  metadata.set("quality.kl", report_.kl);
}

}  // namespace pith
