// The pipeline: read everything that is small, check every tensor's shape, then stream the tensors.
#include "convert/converter.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <thread>

#include "convert/assemble.h"
#include "convert/budget.h"
#include "convert/calibration.h"
#include "convert/calibration_text.h"
#include "convert/checkpoint.h"
#include "convert/factor.h"
#include "convert/json_file.h"
#include "convert/tokenizer_import.h"
#include "format/checksum.h"
#include "format/float16.h"
#include "format/writer.h"
#include "models/family.h"
#include "runtime/golden.h"
#include "runtime/model.h"

namespace pith {

namespace {

constexpr const char* kConverterVersion = "pith " PITH_VERSION;
constexpr uint64_t kBlockBytes = 16 << 20;  // of float32, read at a time on the unquantized path
constexpr uint32_t kCalibrationTokens = 65536, kCalibrationWindow = 256;
constexpr uint64_t kMaxCalibrationBytes = 1 << 30;
constexpr double kOutlierShare = 0.004;  // of the weights, where the target leaves room
constexpr uint32_t kMinOutlierCols = 1024;
constexpr uint32_t kNarrowCols = 256;  // below this a target that cannot be reached is a note, not an error

// Buffers that some checkpoints carry and no forward pass needs.
bool is_ignorable(const std::string& name) {
  for (const char* suffix : {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".position_ids"})
    if (name.ends_with(suffix)) return true;
  return false;
}

struct Source {
  Checkpoint checkpoint;
  ModelSpec spec;
  std::vector<TensorPlan> plan;
};

// One line for several names: the first few, and how many more.
std::string list_names(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  const size_t n_shown = std::min(names.size(), kShown);
  std::string text =
      fmt::format("'{}'", fmt::join(names.begin(), names.begin() + static_cast<long>(n_shown), "', '"));
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return text;
}

void refuse_unless_forced(const std::string& problem, const ConvertOptions& options, ConvertReport& report) {
  if (!options.force) throw_error(ErrorCode::kUnsupported, "{} (--force ignores this)", problem);
  report.notes.push_back(problem);
}

// A tied checkpoint may store its one matrix under either name.
void resolve_tied(const Checkpoint& checkpoint, const ModelSpec& spec, const char* head,
                  std::vector<TensorPlan>& plan) {
  if (!spec.tied_embeddings || !checkpoint.has(head)) return;
  for (TensorPlan& tensor : plan)
    if (tensor.role == TensorRole::kEmbedding)
      for (TensorSource& source : tensor.sources)
        if (!checkpoint.has(source.name)) source.name = head;
}

void check_unused(const Source& source, const CheckpointNames& names,
                  const ConvertOptions& options, ConvertReport& report) {
  const auto is_left_out = [&](const std::string& name) {
    return std::any_of(names.ignored_prefixes.begin(), names.ignored_prefixes.end(),
                       [&](const std::string& prefix) { return name.starts_with(prefix); });
  };
  std::set<std::string> used;
  for (const TensorPlan& tensor : source.plan)
    for (const TensorSource& part : tensor.sources)
      for (const std::string& name : source.checkpoint.stored_names(part.name)) used.insert(name);
  std::vector<std::string> unused;
  for (const std::string& name : source.checkpoint.names()) {
    const bool is_tied_head = source.spec.tied_embeddings && name == names.head;
    if (!used.contains(name) && !is_ignorable(name) && !is_tied_head && !is_left_out(name))
      unused.push_back(name);
  }
  if (!unused.empty())
    refuse_unless_forced(fmt::format("{}: {} tensors have no place in this architecture: {}",
                                     source.checkpoint.dir(), unused.size(), list_names(unused)),
                         options, report);
}

Source open_source(const std::string& dir, const ConvertOptions& options, ConvertReport& report) {
  Source source{Checkpoint::open(dir), {}, {}};
  const std::string where = dir + "/config.json";
  const nlohmann::json& config_json = source.checkpoint.config();
  const auto architectures = config_json.find("architectures");
  if (architectures == config_json.end() || !architectures->is_array() || architectures->size() != 1 ||
      !(*architectures)[0].is_string())
    throw_error(ErrorCode::kFormat, "{}: 'architectures' is not a list of one name", where);
  const Family& family = family_for((*architectures)[0].get<std::string>(), where);
  Config config(config_json, where);
  source.spec = family.read_config(config);
  if (const std::vector<std::string> unknown = config.unconsumed(); !unknown.empty())
    refuse_unless_forced(fmt::format("{}: unknown keys {}", where, list_names(unknown)), options, report);
  source.plan = family.plan(source.spec);
  resolve_tied(source.checkpoint, source.spec, family.names.head, source.plan);
  for (const TensorPlan& tensor : source.plan) Assembly(source.checkpoint, tensor, options.allow_nonfinite);
  check_unused(source, family.names, options, report);
  return source;
}

void check_options(const ConvertOptions& options) {
  const double bits = options.bits;
  if (bits != 16 && bits != 32 && !(bits >= 2.3 && bits <= 4.5))
    throw_error(ErrorCode::kInvalidArgument, "--bits {}: expected 16, 32 or 2.3 to 4.5", bits);
  if (options.embed_bits != 4 && options.embed_bits != 16)
    throw_error(ErrorCode::kInvalidArgument, "--embed-bits {}: expected 4 or 16", options.embed_bits);
  if (options.allow_nonfinite && bits < 16)
    throw_error(ErrorCode::kInvalidArgument, "NaN and Inf weights can be kept at 16 and 32 bits only");
}

// What decides the bytes, apart from the source.
std::string describe(const ConvertOptions& options) {
  std::string text = fmt::format("bits={}", options.bits);
  if (options.bits < 16)
    text += fmt::format(" embed-bits={} preset={}", options.embed_bits,
                        options.preset == Preset::kPaper ? "paper" : "best");
  if (options.bits < 16 && options.calibrate && options.preset != Preset::kPaper) {
    text += fmt::format(" calibration-tokens={}", options.calibration_tokens);
    for (const std::string& path : options.calibration_files) {
      const std::string bytes = read_text_file(path, kMaxCalibrationBytes);
      text += fmt::format(" calibration={:016x}",
                          checksum64({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
    }
  }
  if (options.force) text += " force";
  if (options.allow_nonfinite) text += " allow-nonfinite";
  return text;
}

// A conversion under way.
class Conversion {
 public:
  Conversion(const Source& source, const ConvertOptions& options, Writer& writer, ConvertReport& report)
      : source_(source),
        options_(options),
        writer_(writer),
        report_(report),
        n_threads_(options.n_threads > 0 ? options.n_threads
                                         : std::max(1u, std::thread::hardware_concurrency())) {
    for (const TensorPlan& tensor : source.plan) n_weights_ += uint64_t{tensor.n_rows} * tensor.n_cols;
  }

  void run(Metadata& metadata);

 private:
  void progress(const std::string& tensor, uint64_t n_done_here) const {
    if (options_.progress) options_.progress({"convert", tensor, n_done_ + n_done_here, n_weights_});
  }
  bool is_quantized(const TensorPlan& plan) const;
  void plan_budget();
  void add_quantized(const TensorPlan& plan);
  void start_calibration(const Metadata& metadata);
  void embed_plain(const TensorPlan& plan);
  LayerVectors layer_vectors(uint32_t layer) const;
  void store_quality(Metadata& metadata);
  void check(Metadata& metadata);
  std::vector<float> read_vector(const TensorPlan& plan) const;
  TensorKind plain_kind(const TensorPlan& plan, SourceType type) const;
  void add_plain(const TensorPlan& plan);
  bool write_plain(const TensorPlan& plan, Assembly& assembly, TensorKind kind);

  const Source& source_;
  const ConvertOptions& options_;
  Writer& writer_;
  ConvertReport& report_;
  uint32_t n_threads_;
  uint64_t n_weights_ = 0, n_done_ = 0;
  std::map<std::string, q24::Shape> shapes_;  // of the linear layers
  std::optional<Calibration> calibration_;
};

bool Conversion::is_quantized(const TensorPlan& plan) const {
  if (options_.bits >= 16) return false;
  const bool is_embedding = plan.role == TensorRole::kEmbedding || plan.role == TensorRole::kHead;
  return plan.role == TensorRole::kLinear || (is_embedding && options_.embed_bits == 4);
}

// What a layer's 4-bit columns are worth beside another's. Measured on a small chat model (dim 256, 8 layers) at 2.85 bits,
// KL divergence: even shares 0.0341, attn_out doubled 0.0318, qkv or down x1.5 against gate_up 0.0322.
// There an outlier slot costs an eighth of a bit and buys less than 4-bit columns do: layers of 1024 columns and more get
// them. The paper's preset has even shares and outliers everywhere.
LayerBudget budget_for(const TensorPlan& plan, Preset preset) {
  LayerBudget budget{plan.n_rows, plan.n_cols, 1, kOutlierShare, {}};
  if (preset == Preset::kPaper) return budget;
  if (plan.n_cols < kMinOutlierCols) budget.outlier_share = 0;
  constexpr std::pair<const char*, double> kWeights[] = {
      {".attn_qkv", 1.25}, {".attn_out", 1.75}, {".ffn_gate_up", 0.75}, {".ffn_down", 1.25}};
  for (const auto& [part, weight] : kWeights)
    if (plan.name.ends_with(part)) budget.fine_weight = weight;
  return budget;
}

void Conversion::plan_budget() {
  std::vector<LayerBudget> layers;
  std::vector<const TensorPlan*> plans;
  for (const TensorPlan& plan : source_.plan)
    if (plan.role == TensorRole::kLinear && is_quantized(plan)) {
      layers.push_back(budget_for(plan, options_.preset));
      plans.push_back(&plan);
    }
  if (layers.empty()) return;
  const double bits = share_bits(layers, options_.bits);
  if (bits > options_.bits) {
    // Narrow layers cannot get there: what every row and panel costs weighs more than the codes.
    const bool is_narrow = std::all_of(layers.begin(), layers.end(),
                                       [](const LayerBudget& l) { return l.n_cols < kNarrowCols; });
    const std::string problem =
        fmt::format("{:.3f} bits per weight is the lowest figure that this model's layers can reach", bits);
    if (!is_narrow) throw_error(ErrorCode::kInvalidArgument, "--bits {}: {}", options_.bits, problem);
    report_.notes.push_back(problem);
  }
  for (size_t i = 0; i < layers.size(); ++i) shapes_[plans[i]->name] = layers[i].shape;
}

// The float weights that a packed tensor stands for, in input order.
std::vector<float> dequantize(const q24::Unpacked& tensor, uint32_t n_threads) {
  const q24::Shape& shape = tensor.shape;
  const uint64_t size_bytes = q24::make_layout(shape).size_bytes;
  const std::unique_ptr<uint8_t, void (*)(void*)> data(
      static_cast<uint8_t*>(std::aligned_alloc(q24::kLineBytes, size_bytes)), std::free);
  if (!data) throw_error(ErrorCode::kOutOfMemory, "{} bytes for a tensor", size_bytes);
  q24::pack(tensor, {data.get(), size_bytes});
  const q24::View view = q24::make_view(shape, data.get());
  std::vector<float> weights(size_t{shape.n_rows} * shape.n_cols);
  parallel_for(shape.n_rows, n_threads,
               [&](uint32_t r) { q24::dequantize_row(view, r, weights.data() + size_t{r} * shape.n_cols); });
  return weights;
}

// "layers.7.attn_qkv" -> 7 and which of the four. False for other tensors.
bool find_layer_part(const std::string& name, uint32_t& layer, Calibration::Part& part) {
  constexpr std::pair<const char*, Calibration::Part> kParts[] = {{"attn_qkv", Calibration::Part::kQkv},
                                                                  {"attn_out", Calibration::Part::kAttnOut},
                                                                  {"ffn_gate_up", Calibration::Part::kGateUp},
                                                                  {"ffn_down", Calibration::Part::kDown}};
  if (!name.starts_with("layers.")) return false;
  layer = static_cast<uint32_t>(std::strtoul(name.c_str() + 7, nullptr, 10));
  for (const auto& [text, value] : kParts)
    if (name == layer_tensor(layer, text)) {
      part = value;
      return true;
    }
  return false;
}

void Conversion::start_calibration(const Metadata& metadata) {
  if (options_.bits >= 16 || !options_.calibrate || options_.preset == Preset::kPaper) return;
  if (const std::string unusual = unusual_switches(source_.spec); !unusual.empty()) {
    report_.notes.push_back(fmt::format("not calibrated: the calibration's forward pass lacks {}", unusual));
    return;
  }
  std::vector<std::string> texts;
  for (const std::string& path : options_.calibration_files)
    texts.push_back(read_text_file(path, kMaxCalibrationBytes));
  if (texts.empty()) texts.emplace_back(builtin_calibration_text());
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(metadata, source_.spec.vocab_size);
  const uint32_t max_tokens =
      options_.calibration_tokens > 0 ? options_.calibration_tokens : kCalibrationTokens;
  calibration_.emplace(source_.spec,
                       calibration_tokens(texts, *tokenizer,
                                          std::min(kCalibrationWindow, source_.spec.max_context), max_tokens),
                       n_threads_);
}

LayerVectors Conversion::layer_vectors(uint32_t layer) const {
  LayerVectors vectors;
  const std::pair<const char*, std::vector<float>*> parts[] = {{"attn_norm", &vectors.attn_norm},
                                                               {"attn_qkv_bias", &vectors.qkv_bias},
                                                               {"q_norm", &vectors.q_norm},
                                                               {"k_norm", &vectors.k_norm},
                                                               {"attn_out_bias", &vectors.attn_out_bias},
                                                               {"attn_post_norm", &vectors.attn_post_norm},
                                                               {"ffn_norm", &vectors.ffn_norm},
                                                               {"ffn_gate_up_bias", &vectors.gate_up_bias},
                                                               {"ffn_down_bias", &vectors.down_bias},
                                                               {"ffn_post_norm", &vectors.ffn_post_norm}};
  for (const TensorPlan& plan : source_.plan)
    for (const auto& [part, out] : parts)
      if (plan.name == layer_tensor(layer, part)) {
        *out = read_vector(plan);
      }
  return vectors;
}

// Embedding, head and linear layers below 16 bits. With calibration every matrix is quantized, also one that an earlier
// run has written: what comes after it must see the same activations.
void Conversion::add_quantized(const TensorPlan& plan) {
  if (writer_.has(plan.name) && !calibration_) return;
  Assembly assembly(source_.checkpoint, plan, false);
  std::vector<float> weights(uint64_t{plan.n_rows} * plan.n_cols);
  assembly.read_rows(0, plan.n_rows, weights.data());
  QuantizeOptions options;
  if (const auto shape = shapes_.find(plan.name); shape != shapes_.end()) {
    options.group = shape->second.group;
    options.n_fine = shape->second.n_fine;
    options.n_slots = shape->second.n_slots;
  } else {  // embedding and head: 4 bits throughout
    options.n_fine = (plan.n_cols + q24::kColAlign - 1) / q24::kColAlign * q24::kColAlign;
  }
  if (options_.preset == Preset::kPaper) {
    options.sensitivity = Sensitivity::kRange;
    options.sort_columns = options.search_scales = options.compensate = false;
    options.integer_zero = true;
  }
  QuantizeResult result;
  uint32_t layer = 0;
  Calibration::Part part = Calibration::Part::kQkv;
  if (calibration_ && find_layer_part(plan.name, layer, part)) {
    if (part == Calibration::Part::kQkv) calibration_->begin_layer(layer, layer_vectors(layer));
    InputStatistics statistics = calibration_->input_statistics(part);
    const Hessian hessian{plan.n_cols, {statistics.h.begin(), statistics.h.end()}};
    statistics.h = {};
    std::vector<float> target = weights;
    retarget(target, plan.n_rows, plan.n_cols, hessian, statistics.cross, statistics.residual_cross,
             options.damping, n_threads_);
    statistics = {};
    result = quantize(target, plan.n_rows, plan.n_cols, &hessian, options, n_threads_);
    calibration_->apply(part, weights, dequantize(result.tensor, n_threads_));
  } else {
    result = quantize(weights, plan.n_rows, plan.n_cols, nullptr, options, n_threads_);
    if (calibration_ && plan.role == TensorRole::kEmbedding) {
      const std::vector<float> quantized = dequantize(result.tensor, n_threads_);
      calibration_->embed([&](uint32_t id, float* original, float* file) {
        std::copy_n(weights.data() + size_t{id} * plan.n_cols, plan.n_cols, original);
        std::copy_n(quantized.data() + size_t{id} * plan.n_cols, plan.n_cols, file);
      });
    }
  }
  weights = {};
  if (writer_.has(plan.name)) return;
  writer_.note(plan.name, fmt::format("{:016x} {}", assembly.source_hash(), result.report.relative_error));
  writer_.add(plan.name, result.tensor);
}

// Error and bits of every quantized tensor, from what was noted with it (it may have been written by an earlier run).
void Conversion::store_quality(Metadata& metadata) {
  std::vector<std::string> names;
  std::vector<float> errors, bits;
  double linear_bits = 0, linear_weights = 0;
  for (const TensorPlan& plan : source_.plan) {
    const double n = static_cast<double>(plan.n_rows) * plan.n_cols;
    if (!is_quantized(plan)) {
      if (plan.role == TensorRole::kLinear) {
        linear_weights += n;
        linear_bits += n * options_.bits;
      }
      continue;
    }
    TensorQuality quality{plan.name, 0, 0};
    const std::string note = writer_.noted(plan.name);
    if (const size_t space = note.find(' '); space != std::string::npos)
      quality.relative_error = std::strtod(note.c_str() + space, nullptr);
    const auto shape = shapes_.find(plan.name);
    const uint32_t padded_cols = (plan.n_cols + q24::kColAlign - 1) / q24::kColAlign * q24::kColAlign;
    const q24::Shape layout =
        shape != shapes_.end() ? shape->second : q24::Shape{plan.n_rows, plan.n_cols, 16, padded_cols, 0};
    quality.bits = 8.0 * static_cast<double>(q24::make_layout(layout).size_bytes) / n;
    if (plan.role == TensorRole::kLinear) {
      linear_weights += n;
      linear_bits += n * quality.bits;
    }
    names.push_back(plan.name);
    errors.push_back(static_cast<float>(quality.relative_error));
    bits.push_back(static_cast<float>(quality.bits));
    report_.tensors.push_back(quality);
  }
  report_.linear_bits = linear_weights > 0 ? linear_bits / linear_weights : 0;
  metadata.set("quality.linear_bits", report_.linear_bits);
  if (names.empty()) return;
  metadata.set("quality.tensors", names);
  metadata.set("quality.errors", errors);
  metadata.set("quality.bits", bits);
}

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
    progress(plan.name, uint64_t{row} * plan.n_cols);
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
  writer_.note(plan.name, fmt::format("{:016x}", assembly.source_hash()));
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

// The streams start from an embedding that stays at 16 bits.
void Conversion::embed_plain(const TensorPlan& plan) {
  Assembly assembly(source_.checkpoint, plan, false);
  calibration_->embed([&](uint32_t id, float* original, float* file) {
    assembly.read_rows(id, 1, original);
    std::copy_n(original, plan.n_cols, file);
  });
}

void Conversion::run(Metadata& metadata) {
  plan_budget();
  start_calibration(metadata);
  report_.n_resumed = writer_.n_resumed();
  uint64_t source_hash = 0;
  for (const TensorPlan& plan : source_.plan) {
    progress(plan.name, 0);
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
  progress("", 0);
  metadata.set("provenance.source_hash", fmt::format("{:016x}", source_hash));
  report_.n_weights = n_weights_;
  store_quality(metadata);
  check(metadata);
}

std::vector<float> Conversion::read_vector(const TensorPlan& plan) const {
  std::vector<float> values(plan.n_cols);
  Assembly(source_.checkpoint, plan, true).read_rows(0, 1, values.data());
  return values;
}

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

// Tries the file before it is put in place: golden vectors, and how far it is from the original on held-out text.
void Conversion::check(Metadata& metadata) {
  if (options_.progress) options_.progress({"check", "", n_weights_, n_weights_});
  writer_.preview(metadata, [&](const std::string& part_path) {
    const std::shared_ptr<const Model> model = Model::open(part_path);
    store_golden_text(metadata, model->tokenizer(), model->chat_template());
    if (!options_.allow_nonfinite) store_golden_logits(metadata, model);
    if (!calibration_) return;
    const std::string head_name = source_.spec.tied_embeddings ? "embed" : "head";
    std::vector<float> norm, head;
    for (const TensorPlan& plan : source_.plan) {
      if (plan.name == "norm") norm = read_vector(plan);
      if (plan.name != head_name) continue;
      head.resize(size_t{plan.n_rows} * plan.n_cols);
      Assembly(source_.checkpoint, plan, false).read_rows(0, plan.n_rows, head.data());
    }
    const Calibration::HeldOut held_out =
        calibration_->held_out(norm, head, decode(model->container().get(head_name), n_threads_));
    if (held_out.n_tokens == 0) return;
    report_.ppl_ratio = held_out.ppl_quantized / held_out.ppl_original;
    report_.kl = held_out.kl;
    metadata.set("quality.held_out_tokens", held_out.n_tokens);
    metadata.set("quality.ppl_original", held_out.ppl_original);
    metadata.set("quality.ppl", held_out.ppl_quantized);
    metadata.set("quality.ppl_ratio", report_.ppl_ratio);
    metadata.set("quality.kl", held_out.kl);
  });
}

}  // namespace

ConvertReport convert(const std::string& dir, const ConvertOptions& options) {
  check_options(options);
  ConvertReport report;
  const Source source = open_source(dir, options, report);

  Metadata metadata;
  store_spec(source.spec, metadata);
  import_tokenizer(dir, source.checkpoint.config(), metadata);
  metadata.set("provenance.converter", std::string(kConverterVersion));
  metadata.set("provenance.options", describe(options));
  metadata.set("provenance.source", std::filesystem::absolute(dir).lexically_normal().filename().string());

  const Bytes settings = metadata.serialize();
  const uint64_t job = checksum64(settings, source.checkpoint.identity());
  Writer writer(options.output, options.resume ? job : job ^ static_cast<uint64_t>(std::time(nullptr)));
  try {
    Conversion(source, options, writer, report).run(metadata);
    writer.finish(metadata);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInterrupted) writer.discard();
    throw;
  }
  report.file_bytes = std::filesystem::file_size(options.output);
  report.file_bits = 8.0 * static_cast<double>(report.file_bytes) / static_cast<double>(report.n_weights);
  return report;
}

}  // namespace pith
