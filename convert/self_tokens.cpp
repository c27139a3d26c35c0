// Texts side by side, a token each a pass; weights stay in memory where they fit half of it, else every pass
// reads them again.
#include "convert/self_tokens.h"

#include <algorithm>
#include <map>
#include <string>

#include "convert/assemble.h"
#include "format/error.h"
#include "runtime/sampler.h"

namespace pith {

namespace {

constexpr uint32_t kMaxTextTokens = 256;  // of one text
constexpr uint32_t kMaxTexts = 64;        // side by side
constexpr uint64_t kMaxPastBytes = uint64_t{1} << 30;

// A model's weights as floats: kept from the first time on, or read every time.
class Weights {
 public:
  Weights(const Source& source, bool keeps) : source_(source), keeps_(keeps) {}

  // Valid until the next call.
  const std::vector<float>& get(const TensorPlan& plan) {
    std::vector<float>& values = keeps_ ? kept_[plan.name] : last_;
    if (!keeps_ || values.empty()) values = source_.read(plan);
    return values;
  }

 private:
  const Source& source_;
  bool keeps_;
  std::map<std::string, std::vector<float>> kept_;
  std::vector<float> last_;
};

// Texts that grow by a token each at a time.
class Texts {
 public:
  Texts(const Source& source, uint32_t n_texts, uint32_t window, uint32_t n_threads, bool keeps_weights)
      : source_(source),
        weights_(source, keeps_weights),
        forward_(source.spec, window, n_threads),
        steps_(layer_steps(source.spec)),
        matrices_(source.spec.n_layers) {
    for (const TensorPlan& plan : source.plan) {
      uint32_t layer = 0;
      Step step;
      if (find_step(plan.name, layer, step)) matrices_[layer].push_back(&plan);
      if (plan.name == "norm") norm_ = source.read(plan);
      if (plan.role == TensorRole::kEmbedding) embedding_ = &plan;
      if (plan.name == head_tensor(source.spec)) head_ = &plan;
    }
    for (uint32_t i = 0; i < source.spec.n_layers; ++i) vectors_.push_back(source.layer_vectors(i));
    stream_.residual.resize(size_t{n_texts} * source.spec.dim);
    forward_.begin_texts(n_texts, stream_);
  }

  // A token for each text. Returns the logits after them, [n_texts, vocab].
  const std::vector<float>& append(const std::vector<int32_t>& ids, const std::vector<uint32_t>& positions) {
    const size_t dim = source_.spec.dim;
    Assembly rows(source_.checkpoint, *embedding_, false);
    for (size_t i = 0; i < ids.size(); ++i) {
      float* const row = stream_.residual.data() + i * dim;
      rows.read_rows(static_cast<uint32_t>(ids[i]), 1, row);
      for (size_t c = 0; c < dim; ++c) row[c] *= source_.spec.embedding_scale;
    }
    stream_.positions = positions;
    for (uint32_t layer = 0; layer < source_.spec.n_layers; ++layer) {
      forward_.begin_layer(layer, vectors_[layer]);
      forward_.prepare(stream_);
      for (size_t i = 0; i < steps_.size(); ++i)
        forward_.apply(steps_[i], stream_, weights_.get(*matrices_[layer][i]));
    }
    forward_.logits(stream_.residual.data(), static_cast<uint32_t>(ids.size()), norm_, weights_.get(*head_),
                    logits_);
    return logits_;
  }

 private:
  const Source& source_;
  Weights weights_;
  Forward forward_;
  std::vector<Step> steps_;
  std::vector<std::vector<const TensorPlan*>> matrices_;  // of each layer, as steps_
  std::vector<LayerVectors> vectors_;
  std::vector<float> norm_, logits_;
  const TensorPlan *embedding_ = nullptr, *head_ = nullptr;
  Stream stream_;
};

}  // namespace

int32_t first_of_text(const Tokenizer& tokenizer) {
  const int32_t first = tokenizer.first_id();
  return first < 0 && !tokenizer.eos_ids().empty() ? tokenizer.eos_ids().front() : first;
}

std::vector<int32_t> self_tokens(const Source& source, const Tokenizer& tokenizer, uint32_t n_tokens,
                                 uint32_t n_threads, uint64_t memory_bytes,
                                 const std::function<void(size_t)>& progress) {
  const ModelSpec& spec = source.spec;
  const int32_t first = first_of_text(tokenizer);
  if (first < 0)
    throw_error(ErrorCode::kInvalidArgument,
                "--calib self: the tokenizer has neither BOS nor EOS to begin a text with");

  const uint32_t window = std::min(kMaxTextTokens, spec.max_context);
  const uint64_t past_bytes = uint64_t{2} * sizeof(float) * spec.n_layers * spec.kv_rows() * window;
  const uint32_t n_texts = static_cast<uint32_t>(
      std::clamp<uint64_t>(std::min<uint64_t>(kMaxPastBytes / past_bytes, n_tokens / window), 1, kMaxTexts));
  uint64_t weight_bytes = 0;
  for (const TensorPlan& plan : source.plan)
    weight_bytes += sizeof(float) * uint64_t{plan.n_rows} * plan.n_cols;
  Texts texts(source, n_texts, window, n_threads, weight_bytes < memory_bytes / 2);

  SamplerOptions sampling;
  sampling.temperature = 1;
  Sampler sampler(sampling, spec.vocab_size);
  std::vector<int32_t> finished, ids(n_texts, first);
  std::vector<std::vector<int32_t>> growing(n_texts);
  std::vector<uint32_t> positions(n_texts);
  size_t n_kept = 0, n_drawn = 0;  // a model may have little to say
  while (n_kept < n_tokens && n_drawn < size_t{4} * n_tokens) {
    if (progress) progress(n_kept);
    const std::vector<float>& logits = texts.append(ids, positions);
    for (uint32_t i = 0; i < n_texts && n_kept < n_tokens; ++i) {
      ids[i] = sampler.sample({logits.data() + size_t{i} * spec.vocab_size, spec.vocab_size}, {});
      ++n_drawn;
      const bool is_over = tokenizer.is_eos(ids[i]) || ids[i] == first;
      if (!is_over) {
        growing[i].push_back(ids[i]);
        ++n_kept;
      }
      if (++positions[i] < window && !is_over) continue;
      finished.insert(finished.end(), growing[i].begin(), growing[i].end());
      growing[i].clear();
      positions[i] = 0;
      ids[i] = first;
    }
  }
  for (const std::vector<int32_t>& text : growing) finished.insert(finished.end(), text.begin(), text.end());
  return finished;
}

}  // namespace pith
