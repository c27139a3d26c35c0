// Calibration, measuring, the budget of bits, and one matrix after another through the quantizer; the
// journal's notes carry what a resumed run must not work out again.
#include "convert/conversion.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "convert/budget.h"
#include "convert/calibration_text.h"
#include "convert/json_file.h"
#include "convert/self_tokens.h"
#include "format/checksum.h"
#include "format/error.h"
#include "format/utf8.h"
#include "runtime/process_limits.h"

namespace pith {

namespace {

constexpr uint32_t kCalibrationWindow = 256;
constexpr uint32_t kMinOutlierCols = 1024;
constexpr uint32_t kNarrowCols = 256;  // below this a target that cannot be reached is a note, not an error
// No weight of a model that runs is near it; d and col_scale, fp16 both, could not hold much more.
constexpr float kMaxWeight = 1e9f;
// The head's metric: what it sees, and this share of the plain one, for a tied embedding and for what the sample missed.
constexpr double kHeadIdentity = 1;

struct EffortFigures {
  uint32_t calibration_tokens, descent_rounds;
  bool is_measured;  // sensitivity
};
// No more than these: on the demo model at 2.85 bits twelve rounds of descent changed the KL divergence by -.0003 +- .0002 and the
// log perplexity by +.004 +- .002 (paired), and scales and norms tuned block by block (Adam, 3 passes over 20,000 tokens) took
// 13 % of the first block's error and 1.5 % of each one's after it; end to end against the 16-bit logits (2 passes over 15,000
// tokens) they left the divergence where it was, .0178 to .0179. Compensation, refit and correction leave little there.
EffortFigures figures_of(Effort effort) {
  if (effort == Effort::kFast) return {16384, 1, false};
  return {65536, 4, true};
}

// What a layer's 4-bit columns are worth beside another's, where that is not measured: found on a small chat model (dim 256,
// 8 layers) at 2.85 bits, KL divergence: even shares 0.0341, attn_out doubled 0.0318, qkv or down x1.5 against gate_up 0.0322.
// There an outlier slot costs an eighth of a bit and buys less than 4-bit columns do: layers of 1024 columns and more get them.
LayerBudget budget_for(const TensorPlan& plan, const Levers& levers) {
  LayerBudget budget{plan.n_rows, plan.n_cols, 1, kOutlierShare, {}};
  if (levers.outliers == Outliers::kNone ||
      (levers.outliers == Outliers::kAuto && plan.n_cols < kMinOutlierCols))
    budget.outlier_share = 0;
  if (levers.budget == Budget::kEven) return budget;
  constexpr std::pair<const char*, double> kWeights[] = {
      {"attn_qkv", 1.25}, {"attn_out", 1.75}, {"gate_up", 0.75}, {"down", 1.25}};
  for (const auto& [ending, weight] : kWeights)
    if (plan.name.ends_with(ending)) budget.fine_weight = weight;
  return budget;
}

void refuse_huge(const std::string& name, const std::vector<float>& weights, uint32_t n_cols) {
  for (size_t i = 0; i < weights.size(); ++i)
    if (!(std::abs(weights[i]) <= kMaxWeight))
      throw_error(ErrorCode::kUnsupported,
                  "tensor '{}': element [{}, {}] is {}, expected at most {} below 16 bits", name, i / n_cols,
                  i % n_cols, weights[i], kMaxWeight);
}

}  // namespace

Conversion::Conversion(const Source& source, const ConvertOptions& options, const Products& products,
                       Writer& writer, ConvertReport& report)
    : source_(source),
      options_(options),
      writer_(writer),
      report_(report),
      products_(products),
      n_threads_(products.n_threads()) {
  for (const TensorPlan& tensor : source.plan) n_weights_ += uint64_t{tensor.n_rows} * tensor.n_cols;
}

Conversion::Timed::~Timed() {
  const Duration duration = stopwatch_.elapsed();
  for (StageTime& stage : report_.stages)
    if (std::strcmp(stage.stage, stage_) == 0) {
      stage.duration += duration;
      return;
    }
  report_.stages.push_back({stage_, duration});
}

bool Conversion::is_quantized(const TensorPlan& plan) const {
  if (options_.bits >= 16) return false;
  const bool is_embedding = plan.role == TensorRole::kEmbedding || plan.role == TensorRole::kHead;
  return plan.role == TensorRole::kLinear || (is_embedding && options_.embed_bits == 4);
}

std::vector<const TensorPlan*> Conversion::linear_layers() const {
  std::vector<const TensorPlan*> layers;
  for (const TensorPlan& plan : source_.plan)
    if (plan.role == TensorRole::kLinear && is_quantized(plan)) layers.push_back(&plan);
  return layers;
}

// Nothing at 16 bits or on demand.
void Conversion::start_calibration(const Metadata& metadata) {
  if (options_.bits >= 16 || !options_.calibrate) return;
  const uint32_t n_tokens = options_.calibration_tokens.value_or(
      affordable_tokens(source_.spec, figures_of(options_.effort).calibration_tokens));
  const uint32_t window = std::min(kCalibrationWindow, source_.spec.max_context);
  if (n_tokens < window)
    throw_error(ErrorCode::kInvalidArgument,
                "--calib-tokens {}: expected at least {}, the length of a window", n_tokens, window);
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(metadata, source_.spec.vocab_size);
  const uint64_t available = options_.memory_bytes > 0 ? options_.memory_bytes : available_memory();
  tokens_ = calibration_tokens(calibration_texts(*tokenizer, n_tokens, available), tokenizer->first_id(),
                               window, n_tokens);
  report_.calibration_tokens = static_cast<uint32_t>(tokens_.ids.size());
  check_memory(report_.calibration_tokens, available);
}

void Conversion::check_memory(uint32_t n_tokens, uint64_t available) const {
  const uint64_t needed = calibration_bytes(source_.spec, n_tokens);
  if (needed > available)
    throw_error(ErrorCode::kOutOfMemory,
                "calibration on {} tokens takes {:.1f} GB of memory, {:.1f} are free: --calib-tokens N and "
                "--no-calib take less",
                n_tokens, 1e-9 * static_cast<double>(needed), 1e-9 * static_cast<double>(available));
}

// As ids. The model's own is last: its share of n_tokens, and what the others cannot fill.
std::vector<std::vector<int32_t>> Conversion::calibration_texts(const Tokenizer& tokenizer, uint32_t n_tokens,
                                                                uint64_t available) {
  std::vector<std::string> sources = options_.calibration_files, texts;
  if (sources.empty()) {
    sources.push_back(kBuiltinText);
    if (n_weights_ < kMaxSelfWeights && first_of_text(tokenizer) >= 0) sources.push_back(kSelfText);
  }
  for (const std::string& source : sources) {
    if (source == kSelfText) continue;
    texts.push_back(source == kBuiltinText ? std::string(builtin_calibration_text())
                                           : read_text_file(source, kMaxCalibrationBytes));
    if (!is_valid_utf8(texts.back()))
      throw_error(ErrorCode::kInvalidArgument, "{}: not UTF-8, expected text to calibrate on", source);
  }
  std::vector<std::vector<int32_t>> encoded = encode_texts(texts, tokenizer);
  if (texts.size() == sources.size()) return encoded;
  check_memory(n_tokens, available);  // before it takes time
  const Timed timed(report_, "sample");
  size_t n_others = 0;
  for (const std::vector<int32_t>& ids : encoded) n_others += ids.size();
  const size_t n_texts = encoded.size() + 1, share = (n_tokens + n_texts - 1) / n_texts;
  const auto n_wanted =
      static_cast<uint32_t>(std::max(share, n_tokens - std::min<size_t>(n_others, n_tokens)));
  encoded.push_back(self_tokens(source_, tokenizer, n_wanted, n_threads_, available, [&](size_t n_done) {
    if (options_.progress) options_.progress({"sample", "", n_done, n_wanted});
  }));
  return encoded;
}

// The whole checkpoint once in float32, with rounded variants of every matrix beside it: sensitivity.h.
void Conversion::measure() {
  const Timed timed(report_, "measure");
  const bool wants_curves = options_.levers.budget == Budget::kMeasured && source_.spec.n_experts == 0;
  SensitivityOptions wanted;
  options_.levers.apply_to(wanted.quantize);
  if (wants_curves) {
    const Levers& levers = options_.levers;
    wanted.groups = levers.group > 0 ? std::vector<uint32_t>{levers.group} : std::vector<uint32_t>{16, 32};
    wanted.outlier_shares = levers.outliers == Outliers::kNone   ? std::vector<double>{0}
                            : levers.outliers == Outliers::kAuto ? std::vector<double>{0, kOutlierShare}
                                                                 : std::vector<double>{kOutlierShare};
  }
  SensitivityRun sensitivity(source_.spec, tokens_, std::move(wanted), products_);
  std::vector<float> norm, head;
  const std::vector<Step> steps = layer_steps(source_.spec);
  std::vector<const TensorPlan*> matrices;  // of a layer so far
  uint64_t n_done = 0;
  const std::string head_name = head_tensor(source_.spec);
  for (const TensorPlan& plan : source_.plan) {
    progress("measure", plan.name, n_done);
    n_done += uint64_t{plan.n_rows} * plan.n_cols;
    uint32_t layer = 0;
    Step step;
    if (plan.name == "norm") norm = source_.read(plan);
    if (plan.role == TensorRole::kEmbedding) {
      Assembly assembly(source_.checkpoint, plan, false);
      sensitivity.embed([&](uint32_t id, float* row) { assembly.read_rows(id, 1, row); });
    }
    if (!find_step(plan.name, layer, step)) continue;
    matrices.push_back(&plan);
    if (matrices.size() < steps.size()) continue;
    sensitivity.run_layer(layer, source_.layer_vectors(layer),
                          [&](size_t i) { return source_.read(*matrices[i]); });
    matrices.clear();
  }
  for (const TensorPlan& plan : source_.plan)
    if (plan.name == head_name) head = source_.read(plan);
  if (options_.levers.head) head_hessian_ = sensitivity.head_hessian(norm);
  if (wants_curves) curves_ = sensitivity.finish(norm, head);
}

void Conversion::check_reached(double bits) {
  if (bits <= options_.bits) return;
  // Narrow layers cannot get there: what every row and panel costs weighs more than the codes.
  const std::vector<const TensorPlan*> layers = linear_layers();
  const bool is_narrow =
      std::all_of(layers.begin(), layers.end(), [](const TensorPlan* l) { return l->n_cols < kNarrowCols; });
  const std::string problem =
      fmt::format("{:.3f} bits per weight is the lowest figure that this model's layers can reach", bits);
  if (!is_narrow) throw_error(ErrorCode::kInvalidArgument, "--bits {}: {}", options_.bits, problem);
  report_.notes.push_back(problem);
}

void Conversion::plan_budget() {
  const std::vector<const TensorPlan*> plans = linear_layers();
  if (plans.empty()) return;
  if (!curves_.empty()) {
    std::vector<std::vector<Candidate>> candidates;
    for (const LossCurve& curve : curves_) candidates.push_back(curve.candidates(options_.levers.fine));
    std::vector<q24::Shape> shapes;
    check_reached(choose_shapes(candidates, options_.bits, shapes));
    for (size_t i = 0; i < plans.size(); ++i) shapes_[plans[i]->name] = shapes[i];
    return;
  }
  std::vector<LayerBudget> layers;
  for (const TensorPlan* plan : plans) layers.push_back(budget_for(*plan, options_.levers));
  check_reached(share_bits(layers, options_.bits, options_.levers.group, options_.levers.fine));
  for (size_t i = 0; i < plans.size(); ++i) shapes_[plans[i]->name] = layers[i].shape;
}

// The first tensor's note carries the shapes of all, so that an interrupted run need not measure again.
std::string Conversion::note_for(const TensorPlan& plan, uint64_t source_hash, double error) const {
  std::string note = fmt::format("{:016x} {}", source_hash, error);
  if (&plan == &source_.plan.front())
    for (const TensorPlan* layer : linear_layers()) {
      const q24::Shape shape = shape_of(*layer);
      note += fmt::format(" {} {} {}", shape.group, shape.n_fine, shape.n_slots);
    }
  return note;
}

bool Conversion::take_noted_budget() {
  const std::string note = writer_.noted(source_.plan.front().name);
  const char* at = note.c_str();
  char* end = nullptr;
  at = std::strchr(at, ' ');
  if (!at) return false;
  std::strtod(at, &end);
  for (const TensorPlan* layer : linear_layers()) {
    uint32_t figures[3];
    for (uint32_t& figure : figures) {
      at = end;
      figure = static_cast<uint32_t>(std::strtoul(at, &end, 10));
      if (end == at) return false;
    }
    shapes_[layer->name] = {layer->n_rows, layer->n_cols, figures[0], figures[1], figures[2]};
  }
  return true;
}

q24::Shape Conversion::shape_of(const TensorPlan& plan) const {
  if (const auto shape = shapes_.find(plan.name); shape != shapes_.end()) return shape->second;
  // Embedding and head: 4 bits throughout.
  return {plan.n_rows, plan.n_cols, 16, q24::padded_cols(plan.n_cols), 0};
}

QuantizeOptions Conversion::quantize_options(const TensorPlan& plan) const {
  QuantizeOptions options;
  options.descent_rounds = figures_of(options_.effort).descent_rounds;
  options_.levers.apply_to(options);
  const q24::Shape shape = shape_of(plan);
  options.group = shape.group;
  options.n_fine = shape.n_fine;
  options.n_slots = shape.n_slots;
  return options;
}

// The metric of a matrix of a layer comes from calibration, of the head from measure(). Both may know nothing: no input, or
// one that was 0 at every token. weights: may be changed.
QuantizeResult Conversion::quantize_matrix(const TensorPlan& plan, std::vector<float>& weights) {
  const QuantizeOptions options = quantize_options(plan);
  uint32_t layer = 0;
  Step step;
  const bool is_step = calibration_ && find_step(plan.name, layer, step);
  Hessian hessian;
  if (is_step) {
    const Timed timed(report_, "statistics");
    hessian = calibration_->hessian(step);
  } else if (head_hessian_ && plan.name == head_tensor(source_.spec)) {
    hessian = *head_hessian_;
    const float plain = static_cast<float>(kHeadIdentity * hessian.mean_diagonal());
    for (size_t c = 0; c < plan.n_cols; ++c) hessian.values[c * plan.n_cols + c] += plain;
  }
  const bool is_known = hessian.n_cols > 0 && hessian.mean_diagonal() != 0;
  Metric metric = is_known ? Metric(std::move(hessian), options.damping, options.shrinkage, n_threads_)
                           : Metric(plan.n_cols);
  hessian = {};
  if (is_step && is_known && options_.levers.correct) {
    const Timed timed(report_, "correct");
    retarget(weights, plan.n_rows, calibration_->drift(step), options_.levers.shrink, metric, products_);
  }
  const Timed timed(report_, "quantize");
  return quantize(weights, plan.n_rows, std::move(metric), options, n_threads_);
}

std::vector<float> Conversion::read_back(const TensorPlan& plan) const {
  const q24::Layout layout = q24::make_layout(shape_of(plan));
  const std::unique_ptr<uint8_t, void (*)(void*)> data(
      static_cast<uint8_t*>(std::aligned_alloc(q24::kLineBytes, layout.size_bytes)), std::free);
  if (!data) throw_error(ErrorCode::kOutOfMemory, "{} bytes for a tensor", layout.size_bytes);
  writer_.read(plan.name, {data.get(), layout.size_bytes});
  return dequantize(q24::unpack(q24::make_view(layout.shape, data.get())), n_threads_);
}

// Embedding, head and linear layers below 16 bits. With calibration the activations pass also through a matrix that an
// earlier run has written: what comes after it must see the same ones.
void Conversion::add_quantized(const TensorPlan& plan) {
  const bool is_there = writer_.has(plan.name);
  uint32_t layer = 0;
  Step step;
  const bool is_step = calibration_ && find_step(plan.name, layer, step);
  const bool is_embedding = calibration_ && plan.role == TensorRole::kEmbedding;
  if (is_there && !is_step && !is_embedding) return;
  Assembly assembly(source_.checkpoint, plan, false);
  std::vector<float> weights(size_t{plan.n_rows} * plan.n_cols);
  {
    const Timed timed(report_, "read");
    assembly.read_rows(0, plan.n_rows, weights.data());
    refuse_huge(plan.name, weights, plan.n_cols);
  }
  if (is_step && step.part == Part::kQkv) {
    const Timed timed(report_, "forward");
    calibration_->begin_layer(layer, source_.layer_vectors(layer));
  }
  // One copy of a large matrix at a time: the original is read again where quantizing has changed it.
  q24::Unpacked quantized;
  if (!is_there) {
    QuantizeResult result = quantize_matrix(plan, weights);
    const Timed timed(report_, "write");
    writer_.note(plan.name, note_for(plan, assembly.source_hash(), result.report.relative_error));
    writer_.add(plan.name, result.tensor);
    quantized = std::move(result.tensor);
  }
  if (is_step) {
    if (!is_there) {
      const Timed timed(report_, "read");
      weights = {};
      weights = source_.read(plan);
    }
    const Timed timed(report_, "forward");
    calibration_->apply_original(step, weights);
    weights = {};
    calibration_->apply_quantized(step, is_there ? read_back(plan) : dequantize(quantized, n_threads_));
  }
  if (is_embedding) {
    const Timed timed(report_, "forward");
    const std::vector<float> in_file = is_there ? read_back(plan) : dequantize(quantized, n_threads_);
    calibration_->embed([&](uint32_t id, float* original, float* file) {
      std::copy_n(weights.data() + size_t{id} * plan.n_cols, plan.n_cols, original);
      std::copy_n(in_file.data() + size_t{id} * plan.n_cols, plan.n_cols, file);
    });
  }
}

// The streams start from an embedding that stays at 16 bits.
void Conversion::embed_plain(const TensorPlan& plan) {
  Assembly assembly(source_.checkpoint, plan, false);
  calibration_->embed([&](uint32_t id, float* original, float* file) {
    assembly.read_rows(id, 1, original);
    std::copy_n(original, plan.n_cols, file);
  });
}

void Conversion::run(Metadata& metadata) {
  report_.n_resumed = writer_.n_resumed();
  start_calibration(metadata);
  const bool is_calibrated = !tokens_.ids.empty();
  const bool is_measured =
      is_calibrated && figures_of(options_.effort).is_measured &&
      ((options_.levers.budget == Budget::kMeasured && source_.spec.n_experts == 0) || options_.levers.head);
  // The head's statistics are measured too: an interrupted run that has no head yet measures again.
  const bool has_head = writer_.has(head_tensor(source_.spec));
  if (!has_head || !take_noted_budget()) {
    if (is_measured) measure();
    plan_budget();
  }
  if (is_calibrated) calibration_.emplace(source_.spec, std::move(tokens_), products_);

  uint64_t source_hash = 0;
  for (const TensorPlan& plan : source_.plan) {
    progress("convert", plan.name, n_done_);
    if (is_quantized(plan)) {
      add_quantized(plan);
    } else {
      if (!writer_.has(plan.name)) add_plain(plan);
      if (calibration_ && plan.role == TensorRole::kEmbedding) embed_plain(plan);
    }
    const std::string noted = writer_.noted(plan.name);
    const std::string_view hash = std::string_view(noted).substr(0, noted.find(' '));
    source_hash = checksum64({reinterpret_cast<const uint8_t*>(hash.data()), hash.size()}, source_hash);
    n_done_ += uint64_t{plan.n_rows} * plan.n_cols;
  }
  progress("convert", "", n_done_);
  if (calibration_) report_.forward = calibration_->forward_time();
  metadata.set("provenance.source_hash", fmt::format("{:016x}", source_hash));
  report_.n_weights = n_weights_;
  store_quality(metadata);
  check(metadata);
}

}  // namespace pith
