// What lies between the matrix products of a decoder block: norms, rotation, router, gathering for experts,
// gates.
#include "convert/forward.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>

#include "convert/forward_loops.h"
#include "models/experts.h"

namespace pith {

std::vector<Step> layer_steps(const ModelSpec& spec) {
  std::vector<Step> steps = {{Part::kQkv}, {Part::kAttnOut}};
  for (uint32_t e = 0; e < std::max(spec.n_experts, 1u); ++e) {
    steps.push_back({Part::kGateUp, e});
    steps.push_back({Part::kDown, e});
  }
  return steps;
}

bool find_step(const std::string& name, uint32_t& layer, Step& step) {
  if (!name.starts_with("layers.")) return false;
  char* end = nullptr;
  layer = static_cast<uint32_t>(std::strtoul(name.c_str() + std::strlen("layers."), &end, 10));
  step.expert = 0;
  constexpr const char kExperts[] = ".experts.";
  const bool is_expert = std::strncmp(end, kExperts, std::strlen(kExperts)) == 0;
  if (is_expert) step.expert = static_cast<uint32_t>(std::strtoul(end + std::strlen(kExperts), &end, 10));
  constexpr std::pair<const char*, Part> kDense[] = {{".attn_qkv", Part::kQkv},
                                                     {".attn_out", Part::kAttnOut},
                                                     {".ffn_gate_up", Part::kGateUp},
                                                     {".ffn_down", Part::kDown}};
  constexpr std::pair<const char*, Part> kExpert[] = {{".gate_up", Part::kGateUp}, {".down", Part::kDown}};
  for (const auto& [text, part] : is_expert ? std::span<const std::pair<const char*, Part>>(kExpert)
                                            : std::span<const std::pair<const char*, Part>>(kDense))
    if (std::strcmp(end, text) == 0) {
      step.part = part;
      return true;
    }
  return false;
}

const cpu::Kernels& forward_kernels() {
  static const cpu::Kernels& best = cpu::select_kernels("auto");
  return best;
}

__attribute__((target_clones("avx512f", "avx2", "default"))) void add_scaled(float* y, float a,
                                                                             const float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i) y[i] += a * x[i];
}

Forward::Forward(const ModelSpec& spec, uint32_t window, Products products)
    : spec_(spec), products_(std::move(products)), window_(window), n_threads_(products_.n_threads()) {
  for (const RopeSpec& rope : spec.ropes) {
    std::vector<float> cosines(window * rope.inv_freq.size()), sines(cosines.size());
    rope.fill_tables(rope.frequencies(window), 0, window, cosines.data(), sines.data());
    cos_.push_back(std::move(cosines));
    sin_.push_back(std::move(sines));
  }
}

uint32_t Forward::n_inputs(Part part) const {
  if (part == Part::kAttnOut) return spec_.q_rows();
  return part == Part::kDown ? spec_.ffn_dim : spec_.dim;
}

uint32_t Forward::n_outputs(Part part) const {
  if (part == Part::kQkv) return spec_.q_rows() + 2 * spec_.kv_rows();
  return part == Part::kGateUp ? 2 * spec_.ffn_padded() : spec_.dim;
}

bool Forward::is_added(Step step) const {
  return (step.part == Part::kAttnOut || step.part == Part::kDown) && !spec_.post_norms &&
         !step.is_expert(spec_);
}

const std::vector<float>& Forward::vector(const std::string& name) const {
  static const std::vector<float> none;
  const auto found = vectors_.find(name);
  return found == vectors_.end() ? none : found->second;
}

const std::vector<float>& Forward::bias_of(Step step) const {
  if (step.part == Part::kQkv) return vector("attn_qkv_bias");
  if (step.part == Part::kAttnOut) return vector("attn_out_bias");
  const char* const name = step.part == Part::kGateUp ? "gate_up_bias" : "down_bias";
  return vector(step.is_expert(spec_) ? fmt::format("experts.{}.{}", step.expert, name)
                                      : fmt::format("ffn_{}", name));
}

void Forward::begin_layer(uint32_t layer, LayerVectors vectors) {
  layer_ = layer;
  vectors_ = std::move(vectors);
}

void Forward::normalize(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
                        float* out) const {
  if (norm.empty()) {
    std::copy_n(residual, size_t{n_tokens} * spec_.dim, out);
    return;
  }
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    const size_t at = size_t{t} * spec_.dim;
    forward_kernels().rms_norm(residual + at, norm.data(), spec_.dim, spec_.norm_eps, out + at);
  });
}

void Forward::prepare(Stream& stream) const {
  stream.input.resize(stream.residual.size());
  normalize(stream.residual.data(), static_cast<uint32_t>(stream.residual.size() / spec_.dim),
            vector("attn_norm"), stream.input.data());
}

void Forward::apply(Step step, Stream& stream, const ProductMatrix& weights) const {
  const Part part = step.part;
  const uint32_t n = n_inputs(part), n_rows = n_outputs(part),
                 n_tokens = static_cast<uint32_t>(stream.input.size() / n);
  const std::vector<float>& bias = bias_of(step);
  const uint32_t n_next = part == Part::kQkv      ? n_inputs(Part::kAttnOut)
                          : part == Part::kGateUp ? spec_.ffn_dim
                                                  : 0;
  std::vector<float> next(size_t{n_tokens} * n_next);
  // Outputs of a matrix are in memory for a few windows at a time.
  products_.multiply_transposed(
      stream.input.data(), nullptr, n_tokens, weights, stream.positions.empty() ? window_ : 1,
      [&](uint32_t begin, uint32_t n_here, float* y) {
        if (!bias.empty())
          for_tokens(n_here, n_threads_, [&](uint32_t t) {
            for (uint32_t r = 0; r < n_rows; ++r) y[size_t{t} * n_rows + r] += bias[r];
          });
        const size_t residual = size_t{begin} * spec_.dim;
        if (part == Part::kQkv) {
          float* const out = next.data() + size_t{begin} * n_next;
          if (stream.positions.empty())
            attend(y, n_here, out);
          else
            attend_past(y, begin, n_here, stream, out);
        } else if (part == Part::kGateUp) {
          gate(y, n_here, next.data() + size_t{begin} * n_next);
        } else if (step.is_expert(spec_)) {
          const Stream::Routed* const routed = stream.routed[step.expert].data() + begin;
          for_tokens(n_here, n_threads_, [&](uint32_t i) {
            add_scaled(stream.branch.data() + size_t{routed[i].token} * spec_.dim, routed[i].share,
                       y + size_t{i} * spec_.dim, spec_.dim);
          });
        } else {
          add_to_residual(stream.residual.data() + residual, n_here, y,
                          vector(part == Part::kAttnOut ? "attn_post_norm" : "ffn_post_norm"));
        }
      });
  if (n_next > 0)
    stream.input = std::move(next);
  else if (part == Part::kAttnOut)
    enter_feed_forward(stream);
  else if (step.expert + 1 < spec_.n_experts)
    gather(stream, step.expert + 1);
  else
    leave_feed_forward(stream);
}

void Forward::add_to_residual(float* residual, uint32_t n_tokens, float* branch,
                              const std::vector<float>& post_norm) const {
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    float* const row = branch + size_t{t} * spec_.dim;
    if (!post_norm.empty()) forward_kernels().rms_norm(row, post_norm.data(), spec_.dim, spec_.norm_eps, row);
    add_scaled(residual + size_t{t} * spec_.dim, spec_.residual_scale, row, spec_.dim);
  });
}

void Forward::enter_feed_forward(Stream& stream) const {
  stream.input.resize(stream.residual.size());
  normalize(stream.residual.data(), static_cast<uint32_t>(stream.residual.size() / spec_.dim),
            vector("ffn_norm"), stream.input.data());
  if (spec_.n_experts == 0) return;
  stream.normed = std::move(stream.input);
  stream.branch.assign(stream.normed.size(), 0);
  route(stream);
  gather(stream, 0);
}

void Forward::route(Stream& stream) const {
  const uint32_t n_tokens = static_cast<uint32_t>(stream.normed.size() / spec_.dim), n = spec_.n_experts,
                 n_active = spec_.n_active_experts;
  const std::vector<float>& bias = vector("router_bias");
  std::vector<float> logits(size_t{n_tokens} * n);
  std::vector<ExpertShare> chosen(size_t{n_tokens} * n_active);
  products_.multiply_transposed(stream.normed.data(), n_tokens, spec_.dim, vector("router").data(), n,
                                logits.data());
  for_tokens(n_tokens, n_threads_, [&](uint32_t t) {
    float* const row = logits.data() + size_t{t} * n;
    for (size_t e = 0; e < bias.size(); ++e) row[e] += bias[e];
    choose_experts(spec_, row, chosen.data() + size_t{t} * n_active);
  });
  stream.routed.assign(n, {});
  for (uint32_t i = 0; i < chosen.size(); ++i)
    stream.routed[chosen[i].expert].push_back({i / n_active, chosen[i].share});
}

// The expert's rows of `normed` become the input.
void Forward::gather(Stream& stream, uint32_t expert) const {
  const std::vector<Stream::Routed>& routed = stream.routed[expert];
  stream.input.resize(routed.size() * spec_.dim);
  for (size_t i = 0; i < routed.size(); ++i)
    std::copy_n(stream.normed.data() + size_t{routed[i].token} * spec_.dim, spec_.dim,
                stream.input.data() + i * spec_.dim);
}

void Forward::leave_feed_forward(Stream& stream) const {
  if (spec_.n_experts > 0)
    add_to_residual(stream.residual.data(), static_cast<uint32_t>(stream.residual.size() / spec_.dim),
                    stream.branch.data(), vector("ffn_post_norm"));
  stream.input = stream.normed = stream.branch = {};
  stream.routed = {};
}

// gate_up: [n_rows, 2 * ffn_padded], 16 of gate and 16 of up in turn. out: [n_rows, ffn_dim].
void Forward::gate(const float* gate_up, uint32_t n_rows, float* out) const {
  constexpr uint32_t kBlock = 16;
  for_tokens(n_rows, n_threads_, [&](uint32_t t) {
    const float* row = gate_up + size_t{t} * 2 * spec_.ffn_padded();
    for (uint32_t i = 0; i < spec_.ffn_dim; i += kBlock)
      forward_kernels().gate(spec_.activation, row + 2 * i, row + 2 * i + kBlock,
                             std::min(kBlock, spec_.ffn_dim - i), out + size_t{t} * spec_.ffn_dim + i);
  });
}

void Forward::logits(const float* residual, uint32_t n_tokens, const std::vector<float>& norm,
                     const ProductMatrix& head, std::vector<float>& logits) const {
  std::vector<float> input(size_t{n_tokens} * spec_.dim);
  normalize(residual, n_tokens, norm, input.data());
  logits.resize(size_t{n_tokens} * spec_.vocab_size);
  products_.multiply_transposed(input.data(), nullptr, n_tokens, head, 1,
                                [&](uint32_t begin, uint32_t n_here, const float* y) {
                                  for_tokens(n_here, n_threads_, [&](uint32_t t) {
                                    const float* const from = y + size_t{t} * spec_.vocab_size;
                                    float* const row = logits.data() + size_t{begin + t} * spec_.vocab_size;
                                    for (uint32_t i = 0; i < spec_.vocab_size; ++i)
                                      row[i] = from[i] * spec_.logit_scale;
                                    if (spec_.logit_softcap > 0)
                                      forward_kernels().softcap(row, spec_.vocab_size, spec_.logit_softcap);
                                  });
                                });
}

}  // namespace pith
