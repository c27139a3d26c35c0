// The six phases as launches. One token is one graph, recorded at creation: what its phases would do is then already in it, so
// they only note that it is due, and it runs when its logits are asked for or the next batch begins.
#include "runtime/backend_cuda.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "format/checked.h"

namespace pith {

namespace {

using namespace cuda;  // NOLINT: this file is the bridge to it

constexpr uint64_t kAlign = 256;
constexpr uint64_t kReadableAfter = 1024;  // after a Q24 tensor, see matvec_q24.cuh
constexpr uint32_t kMaxHeadDim = 256;

// Hands out pieces of one device buffer; without one it counts.
class DeviceArena {
 public:
  DeviceArena() = default;
  DeviceArena(uint64_t n_bytes, const char* what) : buffer_(n_bytes, what) {}
  template <typename T>
  T* take(uint64_t count) {
    const uint64_t at = used_;
    used_ = checked_add(used_, checked_round_up(checked_mul(count, sizeof(T)), kAlign));
    return buffer_.data() == nullptr ? nullptr : reinterpret_cast<T*>(buffer_.data() + at);
  }
  uint64_t size_bytes() const { return used_; }
  void fill(int byte) { buffer_.fill(byte); }

 private:
  DeviceBuffer buffer_;
  uint64_t used_ = 0;
};

// ---- Weights ------------------------------------------------------------------------------------------------------

struct Linear {
  bool is_q24 = false;
  Q24Weights q24{};
  PlainWeights plain;
  MatvecShape shape{};  // of its matrix-vector product
  uint32_t n_rows = 0, n_cols = 0;
};

struct LayerWeights {
  const float *attn_norm, *q_norm, *k_norm, *attn_post_norm, *ffn_norm, *ffn_post_norm;
  const float *qkv_bias, *attn_out_bias, *gate_up_bias, *down_bias;
  Linear qkv, attn_out, gate_up, down;
};

// Every tensor of the container on the device, in file order.
struct Weights {
  Weights(const Model& model, DeviceArena& arena) {
    for (const Tensor& tensor : model.container().tensors())
      places_[tensor.name] = arena.take<uint8_t>(checked_add(tensor.size_bytes, kReadableAfter));
    const ModelSpec& spec = model.spec();
    const auto vector = [&](const std::string& name, bool present) {
      return present ? reinterpret_cast<const float*>(places_.at(name)) : nullptr;
    };
    const auto matrix = [&](const std::string& name) {
      const Tensor& tensor = model.container().get(name);
      Linear l;
      l.n_rows = tensor.n_rows;
      l.n_cols = tensor.n_cols;
      l.is_q24 = tensor.kind == TensorKind::kQ24;
      if (l.is_q24) {
        const q24::Layout layout = q24::make_layout(tensor.q24);
        l.q24 = q24_weights(layout, places_.at(name));
        max_padded_cols = std::max(max_padded_cols, layout.padded_cols);
        if (tensor.q24.n_slots != 0) max_outlier_cols = std::max(max_outlier_cols, layout.padded_cols);
      } else {
        l.plain = {places_.at(name), tensor.n_rows, tensor.n_cols, static_cast<PlainKind>(tensor.kind)};
        has_plain = true;
      }
      return l;
    };
    norm = vector("norm", true);
    embed = matrix("embed");
    head = spec.tied_embeddings ? embed : matrix("head");
    for (uint32_t i = 0; i < spec.n_layers; ++i) {
      const auto v = [&](const char* part, bool present) { return vector(layer_tensor(i, part), present); };
      const auto m = [&](const char* part) { return matrix(layer_tensor(i, part)); };
      layers.push_back({v("attn_norm", true), v("q_norm", spec.qk_norm), v("k_norm", spec.qk_norm),
                        v("attn_post_norm", spec.post_norms), v("ffn_norm", true),
                        v("ffn_post_norm", spec.post_norms), v("attn_qkv_bias", spec.qkv_bias),
                        v("attn_out_bias", spec.attn_out_bias), v("ffn_gate_up_bias", spec.mlp_bias),
                        v("ffn_down_bias", spec.mlp_bias), m("attn_qkv"), m("attn_out"), m("ffn_gate_up"),
                        m("ffn_down")});
    }
  }

  void upload(const Model& model) const {
    Uploader uploader;
    for (const Tensor& tensor : model.container().tensors())
      uploader.upload(places_.at(tensor.name), tensor.data, tensor.size_bytes);
    uploader.finish();
  }
  template <typename F>
  void for_each_linear(F&& f) {
    f(embed);
    f(head);
    for (LayerWeights& l : layers)
      for (Linear* m : {&l.qkv, &l.attn_out, &l.gate_up, &l.down}) f(*m);
  }

  std::vector<LayerWeights> layers;
  const float* norm;
  Linear embed, head;
  uint32_t max_padded_cols = 0, max_outlier_cols = 0;  // of Q24 tensors; of those with outliers
  bool has_plain = false;

 private:
  std::unordered_map<std::string, uint8_t*> places_;
};

// ---- Cache and scratch --------------------------------------------------------------------------------------------

struct LayerCache {
  uint8_t *k, *v;            // [n_kv_heads, n_ctx, head_dim]
  float *k_scale, *v_scale;  // [n_kv_heads, n_ctx] or null
};

struct Cache {
  Cache(const ModelSpec& spec, KvType type, uint32_t n_ctx, DeviceArena& arena) {
    const uint64_t n_rows = uint64_t{spec.n_kv_heads} * n_ctx;
    const uint64_t n_bytes = checked_mul(n_rows, uint64_t{spec.head_dim} * (type == KvType::kI8 ? 1 : 2));
    for (uint32_t i = 0; i < spec.n_layers; ++i) {
      LayerCache l{arena.take<uint8_t>(n_bytes), arena.take<uint8_t>(n_bytes), nullptr, nullptr};
      if (type == KvType::kI8) {
        l.k_scale = arena.take<float>(n_rows);
        l.v_scale = arena.take<float>(n_rows);
      }
      layers.push_back(l);
    }
  }
  std::vector<LayerCache> layers;
};

struct Scratch {
  Scratch(const ModelSpec& spec, const Weights& weights, const SessionOptions& options, uint32_t splits,
          uint32_t n_blocks, DeviceArena& arena) {
    const uint64_t n = options.prefill_chunk, padded = (n + kTokenTile - 1) / kTokenTile * kTokenTile;
    n_splits = splits;
    n_padded = static_cast<uint32_t>(padded);
    step = arena.take<int32_t>(1 + n);
    x = arena.take<float>(n * spec.dim);
    qkv = arena.take<float>(n * (spec.q_rows() + 2 * spec.kv_rows()));
    attn = arena.take<float>(n * spec.q_rows());
    hidden = arena.take<float>(n * spec.ffn_padded());
    branch = spec.post_norms ? arena.take<float>(n * spec.dim) : nullptr;
    normed = weights.has_plain ? arena.take<float>(n * spec.dim) : nullptr;
    logits = arena.take<float>(std::min<uint64_t>(kMaxLogitRows, n) * spec.vocab_size);
    const uint64_t blocks =
        (uint64_t{weights.max_padded_cols} + q24::kActivationBlock - 1) / q24::kActivationBlock;
    if (n > 1 && blocks != 0) {
      tokens.a = arena.take<uint8_t>(blocks * padded * q24::kActivationBlock);
      tokens.sums = arena.take<uint8_t>(blocks * padded * 16);
      tokens.scale = arena.take<float>(blocks * padded);
      if (weights.max_outlier_cols != 0)
        columns = arena.take<float>(checked_mul(weights.max_outlier_cols, padded));
    }
    parts = arena.take<float>(uint64_t{spec.n_heads} * n_splits * (spec.head_dim + 2));
    counters = arena.take<uint32_t>(spec.n_kv_heads + 1);
    block_best = arena.take<float>(2 * n_blocks);
    best = arena.take<int32_t>(1);
    for (const RopeSpec& rope : spec.ropes) {
      cos.push_back(arena.take<float>(uint64_t{options.n_ctx} * rope.inv_freq.size()));
      sin.push_back(arena.take<float>(uint64_t{options.n_ctx} * rope.inv_freq.size()));
    }
  }

  uint32_t n_splits, n_padded;
  int32_t* step;  // position, then ids [n]
  float* x;       // [n, dim] residual stream
  float* qkv;     // [n, q + 2 kv rows]
  float* attn;    // [n, q rows]
  float* hidden;  // [n, ffn_padded]
  float* branch;  // [n, dim] before a post norm
  float* normed;  // [n, dim] for plain matrices
  float* logits;  // [kMaxLogitRows, vocab]
  QuantizedTokens tokens{};
  float* columns = nullptr;  // QuantizedTokens::columns for tensors with outliers
  float* parts;              // AttentionDecode::parts
  uint32_t* counters;        // tickets of the KV heads, then of the head's blocks; zero
  float* block_best;
  int32_t* best;
  std::vector<float*> cos, sin;  // [n_ctx, rotary_dim / 2] for each rope
};

// Splits of decode attention: enough blocks to fill the device, none with fewer than 64 positions of a full context.
uint32_t attention_splits(const ModelSpec& spec, uint32_t n_ctx, uint32_t n_multiprocessors) {
  const uint32_t wanted = (n_multiprocessors + spec.n_kv_heads - 1) / spec.n_kv_heads;
  return std::clamp(wanted, 1u, std::max(n_ctx / 64, 1u));
}

// ---- Options ------------------------------------------------------------------------------------------------------

DeviceInfo find_device(const std::string& device) {
  const DeviceList list = list_devices();
  if (list.devices.empty()) throw_error(ErrorCode::kUnsupported, "device '{}': {}", device, list.problem);
  const size_t colon = device.find(':');
  if (colon == std::string::npos) return list.devices.front();
  for (const DeviceInfo& info : list.devices)
    if (std::to_string(info.idx) == device.substr(colon + 1)) return info;
  throw_error(ErrorCode::kInvalidArgument, "device '{}', expected cuda:0 to cuda:{}", device,
              list.devices.size() - 1);
}

struct Kernels {
  Pipeline pipeline;
  bool synchronous;
};
Kernels choose_kernels(const std::string& name, const DeviceInfo& device) {
  const bool synchronous = name.ends_with("-sync");
  const std::string base = synchronous ? name.substr(0, name.size() - 5) : name;
  const auto need = [&](int sm, Pipeline pipeline) -> Kernels {
    if (device.sm() < sm)
      throw_error(ErrorCode::kUnsupported, "kernels '{}' need compute capability {}.{}, {} has {}.{}", name,
                  sm / 10, sm % 10, device.name, device.compute_major, device.compute_minor);
    return {pipeline, synchronous};
  };
  if (base == "auto")
    return {device.sm() >= 90   ? Pipeline::kBulkCopy
            : device.sm() >= 80 ? Pipeline::kAsyncCopy
                                : Pipeline::kRegisters,
            synchronous};
  if (base == "bulk") return need(90, Pipeline::kBulkCopy);
  if (base == "async") return need(80, Pipeline::kAsyncCopy);
  if (base == "registers") return need(75, Pipeline::kRegisters);
  throw_error(ErrorCode::kInvalidArgument,
              "kernels '{}', expected auto, registers, async or bulk, with or without -sync", name);
}

void check_supported(const ModelSpec& spec) {
  if (const std::string unusual = unusual_switches(spec); !unusual.empty())
    throw_error(ErrorCode::kUnsupported, "cuda: this model needs {}, which the CPU has (--device cpu)",
                unusual);
  if (spec.head_dim % 8 != 0 || spec.head_dim > kMaxHeadDim)
    throw_error(ErrorCode::kUnsupported, "cuda: head_dim of {}, expected a multiple of 8 up to {}",
                spec.head_dim, kMaxHeadDim);
}

// ---- The backend --------------------------------------------------------------------------------------------------

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::shared_ptr<const Model> model, const SessionOptions& options, const DeviceInfo& device,
              const MemoryPlan& needed);
  ~CudaBackend() override;

  void embed(std::span<const int32_t> ids, uint32_t position) override;
  void attn_in(uint32_t layer) override {
    if (!replays()) run_attn_in(layer);
  }
  void attend(uint32_t layer) override {
    if (!replays()) run_attend(layer);
  }
  void attn_out(uint32_t layer) override {
    if (!replays()) run_attn_out(layer);
  }
  void ffn_in(uint32_t layer) override {
    if (!replays()) run_ffn_in(layer);
  }
  void ffn_out(uint32_t layer) override {
    if (!replays()) run_ffn_out(layer);
    due_ = replays() && layer + 1 == spec_.n_layers;
  }
  std::span<const float> head(uint32_t first, uint32_t n_rows) override;
  void read_kv(uint32_t layer, uint32_t n_tokens, uint8_t* out) const override;
  void write_kv(uint32_t layer, uint32_t n_tokens, const uint8_t* in) override;

 private:
  bool replays() const { return n_ == 1; }
  void finish_due() const;
  void record_graphs();
  void run_embed();
  void run_attn_in(uint32_t layer);
  void run_attend(uint32_t layer);
  void run_attn_out(uint32_t layer);
  void run_ffn_in(uint32_t layer);
  void run_ffn_out(uint32_t layer);
  void run_head(uint32_t first, uint32_t n_rows);
  void multiply(const Linear& m, const float* x, uint32_t x_stride, const float* norm, uint32_t n_tokens,
                const Output& output, uint32_t out_stride);
  void add_branch(const Linear& m, const float* x, uint32_t x_stride, const float* bias,
                  const float* post_norm);
  AttentionLayer attention_layer(uint32_t layer) const;
  template <typename F>
  void for_each_cache_piece(uint32_t layer, uint32_t n_tokens, F&& f) const;

  const std::shared_ptr<const Model> model_;
  const ModelSpec& spec_;
  const SessionOptions options_;
  const DeviceInfo device_;
  const Kernels kernels_;
  DeviceArena weights_arena_, cache_arena_, scratch_arena_;
  Weights weights_;
  Cache cache_;
  Scratch scratch_;
  PinnedBuffer step_, logits_;
  Stream stream_;
  Launch how_;
  Graph token_, token_and_logits_;
  uint32_t n_ = 0;            // tokens of the current batch
  mutable bool due_ = false;  // the current token's graph has not run yet
};

CudaBackend::CudaBackend(std::shared_ptr<const Model> model, const SessionOptions& options,
                         const DeviceInfo& device, const MemoryPlan& needed)
    : model_(std::move(model)),
      spec_(model_->spec()),
      options_(options),
      device_(device),
      kernels_(choose_kernels(options.kernels, device)),
      weights_arena_(needed.weights_bytes, "weights"),
      cache_arena_(needed.kv_bytes, "KV cache"),
      scratch_arena_(needed.scratch_bytes, "scratch"),
      weights_(*model_, weights_arena_),
      cache_(spec_, options.kv, options.n_ctx, cache_arena_),
      scratch_(spec_, weights_, options, attention_splits(spec_, options.n_ctx, device.n_multiprocessors),
               device.n_multiprocessors, scratch_arena_),
      step_((1 + uint64_t{options.prefill_chunk}) * 4),
      logits_(uint64_t{std::min(kMaxLogitRows, options.prefill_chunk)} * spec_.vocab_size * 4),
      how_{stream_.handle(), device.sm() >= 90} {
  scratch_arena_.fill(0);
  weights_.upload(*model_);
  weights_.for_each_linear([&](Linear& m) {
    if (m.is_q24)
      m.shape = choose_matvec_shape(kernels_.pipeline, m.q24, kernels_.synchronous, device_.n_multiprocessors,
                                    device_.max_shared_bytes);
  });
  for (size_t i = 0; i < spec_.ropes.size(); ++i) {
    const RopeSpec& rope = spec_.ropes[i];
    const std::vector<float> inv_freq = rope.frequencies(options.n_ctx);
    std::vector<float> cos, sin;
    for (uint32_t p = 0; p < options.n_ctx; ++p)
      for (const float f : inv_freq) {
        const double angle = double{f} * p;
        cos.push_back(static_cast<float>(std::cos(angle) * double{rope.scale}));
        sin.push_back(static_cast<float>(std::sin(angle) * double{rope.scale}));
      }
    stream_.copy_to_device(scratch_.cos[i], cos.data(), cos.size() * 4);
    stream_.copy_to_device(scratch_.sin[i], sin.data(), sin.size() * 4);
    stream_.wait();
  }
  record_graphs();
}

// CUDA's current device is the thread's: the public calls set it, as each may come from another thread.
CudaBackend::~CudaBackend() {
  try {
    use_device(device_.idx);
  } catch (const Error&) {
    // A device that is lost: what is released on it now fails without harm.
  }
}

void CudaBackend::record_graphs() {
  n_ = 1;
  for (Graph* graph : {&token_, &token_and_logits_}) {
    Graph::begin(stream_);
    run_embed();
    for (uint32_t layer = 0; layer < spec_.n_layers; ++layer) {
      run_attn_in(layer);
      run_attend(layer);
      run_attn_out(layer);
      run_ffn_in(layer);
      run_ffn_out(layer);
    }
    if (graph == &token_and_logits_) run_head(0, 1);
    *graph = Graph::end(stream_);
  }
  n_ = 0;
}

void CudaBackend::finish_due() const {
  if (due_) token_.launch(stream_);
  due_ = false;
}

// ---- Launches -----------------------------------------------------------------------------------------------------

void CudaBackend::multiply(const Linear& m, const float* x, uint32_t x_stride, const float* norm,
                           uint32_t n_tokens, const Output& output, uint32_t out_stride) {
  const Input input{x, norm, spec_.norm_eps};
  if (!m.is_q24) {
    MatvecPlain args;
    args.w = m.plain;
    args.input = input;
    args.x_stride = x_stride;
    if (norm != nullptr && n_tokens > 1) {
      launch_norm_tokens({x, norm, spec_.norm_eps, 1, scratch_.normed, false, m.n_cols, n_tokens}, how_);
      args.input = {scratch_.normed, nullptr, 0};
      args.x_stride = m.n_cols;
    }
    args.output = output;
    args.n_tokens = n_tokens;
    args.out_stride = out_stride;
    args.n_blocks = device_.n_multiprocessors;
    return launch_matvec_plain(args, how_);
  }
  if (n_tokens == 1) return launch_matvec_q24(kernels_.pipeline, {m.q24, input, output, m.shape}, how_);
  QuantizedTokens tokens = scratch_.tokens;
  tokens.columns = m.q24.n_slots != 0 ? scratch_.columns : nullptr;
  tokens.n_tokens = n_tokens;
  tokens.n_padded = (n_tokens + kTokenTile - 1) / kTokenTile * kTokenTile;
  launch_quantize_tokens({m.q24, input, x_stride, tokens}, how_);
  launch_gemm_q24({m.q24, tokens, output, out_stride}, how_);
}

// x += residual_scale * post_norm(m . in + bias)
void CudaBackend::add_branch(const Linear& m, const float* x, uint32_t x_stride, const float* bias,
                             const float* post_norm) {
  Output output;
  output.bias = bias;
  output.epilogue = post_norm != nullptr ? Epilogue::kStore : Epilogue::kAdd;
  output.scale = spec_.residual_scale;
  output.out = post_norm != nullptr ? scratch_.branch : scratch_.x;
  multiply(m, x, x_stride, nullptr, n_, output, spec_.dim);
  if (post_norm != nullptr)
    launch_norm_tokens(
        {scratch_.branch, post_norm, spec_.norm_eps, spec_.residual_scale, scratch_.x, true, spec_.dim, n_},
        how_);
}

AttentionLayer CudaBackend::attention_layer(uint32_t layer) const {
  const LayerWeights& w = weights_.layers[layer];
  const LayerCache& cache = cache_.layers[layer];
  AttentionLayer a{};
  a.q_norm = w.q_norm;
  a.k_norm = w.k_norm;
  a.norm_eps = spec_.norm_eps;
  if (const int32_t rope = spec_.layers[layer].rope_idx; rope >= 0) {
    const size_t i = static_cast<size_t>(rope);
    a.rope = {scratch_.cos[i], scratch_.sin[i], static_cast<uint32_t>(2 * spec_.ropes[i].inv_freq.size())};
  }
  a.k = cache.k;
  a.v = cache.v;
  a.k_scale = cache.k_scale;
  a.v_scale = cache.v_scale;
  a.n_heads = spec_.n_heads;
  a.n_kv_heads = spec_.n_kv_heads;
  a.head_dim = spec_.head_dim;
  a.n_ctx = options_.n_ctx;
  a.window = spec_.layers[layer].window;
  a.scale = spec_.attn_scale;
  a.softcap = spec_.attn_softcap;
  a.position = scratch_.step;
  return a;
}

void CudaBackend::run_embed() {
  stream_.copy_to_device(scratch_.step, step_.data(), (1 + uint64_t{n_}) * 4);
  Embed args{};
  if (weights_.embed.is_q24)
    args.q24 = weights_.embed.q24;
  else
    args.plain = weights_.embed.plain;
  args.ids = scratch_.step + 1;
  args.x = scratch_.x;
  args.scale = spec_.embedding_scale;
  args.n_tokens = n_;
  // The first kernel after a copy must not overlap it: the copy is no kernel that it could wait for.
  launch_embed(args, {stream_.handle(), false});
}

void CudaBackend::run_attn_in(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  Output output;
  output.bias = w.qkv_bias;
  output.out = scratch_.qkv;
  multiply(w.qkv, scratch_.x, spec_.dim, w.attn_norm, n_, output, w.qkv.n_rows);
}

void CudaBackend::run_attend(uint32_t layer) {
  if (n_ == 1) {
    AttentionDecode args{};
    static_cast<AttentionLayer&>(args) = attention_layer(layer);
    args.qkv = scratch_.qkv;
    args.out = scratch_.attn;
    args.parts = scratch_.parts;
    args.tickets = scratch_.counters;
    return launch_attention_decode(args, scratch_.n_splits, how_);
  }
  AttentionPrefill args{};
  static_cast<AttentionLayer&>(args) = attention_layer(layer);
  args.qkv = scratch_.qkv;
  args.out = scratch_.attn;
  args.n_tokens = n_;
  launch_append_tokens(args, how_);
  launch_attention_prefill(args, how_);
}

void CudaBackend::run_attn_out(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  add_branch(w.attn_out, scratch_.attn, spec_.q_rows(), w.attn_out_bias, w.attn_post_norm);
}

void CudaBackend::run_ffn_in(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  Output output;
  output.epilogue = Epilogue::kGlu;
  output.activation = static_cast<cuda::Activation>(spec_.activation);
  output.bias = w.gate_up_bias;
  output.out = scratch_.hidden;
  multiply(w.gate_up, scratch_.x, spec_.dim, w.ffn_norm, n_, output, spec_.ffn_padded());
}

void CudaBackend::run_ffn_out(uint32_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  add_branch(w.down, scratch_.hidden, spec_.ffn_padded(), w.down_bias, w.ffn_post_norm);
}

void CudaBackend::run_head(uint32_t first, uint32_t n_rows) {
  Output output;
  output.epilogue = Epilogue::kLogits;
  output.scale = spec_.logit_scale;
  output.softcap = spec_.logit_softcap;
  output.out = scratch_.logits;
  if (n_rows == 1) {
    output.best = scratch_.best;
    output.block_best = scratch_.block_best;
    output.ticket = scratch_.counters + spec_.n_kv_heads;
  }
  multiply(weights_.head, scratch_.x + uint64_t{first} * spec_.dim, spec_.dim, weights_.norm, n_rows, output,
           spec_.vocab_size);
  stream_.copy_to_host(logits_.data(), scratch_.logits, uint64_t{n_rows} * spec_.vocab_size * 4);
}

// ---- Phases -------------------------------------------------------------------------------------------------------

void CudaBackend::embed(std::span<const int32_t> ids, uint32_t position) {
  use_device(device_.idx);
  finish_due();
  stream_.wait();  // step_ may still be on its way
  n_ = static_cast<uint32_t>(ids.size());
  int32_t* const step = step_.as<int32_t>();
  step[0] = static_cast<int32_t>(position);
  std::copy(ids.begin(), ids.end(), step + 1);
  if (!replays()) run_embed();
}

std::span<const float> CudaBackend::head(uint32_t first, uint32_t n_rows) {
  use_device(device_.idx);
  if (due_) {
    token_and_logits_.launch(stream_);
    due_ = false;
  } else {
    run_head(first, n_rows);
  }
  stream_.wait();
  return {logits_.as<float>(), uint64_t{n_rows} * spec_.vocab_size};
}

// Calls f(in the cache, at in the common form, size) for each head's rows, then for each head's scales.
template <typename F>
void CudaBackend::for_each_cache_piece(uint32_t layer, uint32_t n_tokens, F&& f) const {
  const LayerCache& cache = cache_.layers[layer];
  const uint64_t row_bytes = uint64_t{spec_.head_dim} * (cache.k_scale != nullptr ? 1 : 2);
  uint64_t at = 0;
  const auto heads = [&](uint8_t* rows, uint64_t bytes) {
    for (uint32_t h = 0; h < spec_.n_kv_heads; ++h, at += n_tokens * bytes)
      f(rows + uint64_t{h} * options_.n_ctx * bytes, at, n_tokens * bytes);
  };
  heads(cache.k, row_bytes);
  heads(cache.v, row_bytes);
  if (cache.k_scale == nullptr) return;
  heads(reinterpret_cast<uint8_t*>(cache.k_scale), 4);
  heads(reinterpret_cast<uint8_t*>(cache.v_scale), 4);
}

void CudaBackend::read_kv(uint32_t layer, uint32_t n_tokens, uint8_t* out) const {
  use_device(device_.idx);
  finish_due();
  for_each_cache_piece(layer, n_tokens, [&](const uint8_t* cache, uint64_t at, uint64_t n_bytes) {
    stream_.copy_to_host(out + at, cache, n_bytes);
  });
  stream_.wait();
}

void CudaBackend::write_kv(uint32_t layer, uint32_t n_tokens, const uint8_t* in) {
  use_device(device_.idx);
  finish_due();
  for_each_cache_piece(layer, n_tokens, [&](uint8_t* cache, uint64_t at, uint64_t n_bytes) {
    stream_.copy_to_device(cache, in + at, n_bytes);
  });
  stream_.wait();
}

// ---- Creation -----------------------------------------------------------------------------------------------------

MemoryPlan plan_on(const Model& model, const SessionOptions& options, const DeviceInfo& device) {
  check_supported(model.spec());
  DeviceArena weights_arena, cache_arena, scratch_arena;
  const Weights weights(model, weights_arena);
  const Cache cache(model.spec(), options.kv, options.n_ctx, cache_arena);
  const Scratch scratch(model.spec(), weights, options,
                        attention_splits(model.spec(), options.n_ctx, device.n_multiprocessors),
                        device.n_multiprocessors, scratch_arena);
  return {weights_arena.size_bytes(), cache_arena.size_bytes(), scratch_arena.size_bytes()};
}

MemoryPlan plan(const Model& model, const SessionOptions& options) {
  return plan_on(model, options, find_device(options.device));
}

std::unique_ptr<Backend> create(std::shared_ptr<const Model> model, const SessionOptions& options) {
  const DeviceInfo device = find_device(options.device);
  use_device(device.idx);
  const MemoryPlan needed = plan_on(*model, options, device);
  const uint64_t free_bytes = free_memory().first;
  if (needed.total() > free_bytes)
    throw_error(
        ErrorCode::kOutOfMemory,
        "cuda:{} ({}): needs {} MB (weights {}, KV cache {} for {} tokens, scratch {}), {} MB are free",
        device.idx, device.name, needed.total() >> 20, needed.weights_bytes >> 20, needed.kv_bytes >> 20,
        options.n_ctx, needed.scratch_bytes >> 20, free_bytes >> 20);
  return std::make_unique<CudaBackend>(std::move(model), options, device, needed);
}

}  // namespace

BackendKind cuda_backend_kind() {
  const auto describe = [] {
    const DeviceList list = list_devices();
    std::string text = list.problem;
    for (const DeviceInfo& d : list.devices)
      text += fmt::format("{}cuda:{} {}, compute capability {}.{}, {} of {} MB free",
                          text.empty() ? "" : "; ", d.idx, d.name, d.compute_major, d.compute_minor,
                          d.free_bytes >> 20, d.total_bytes >> 20);
    return text;
  };
  return {"cuda", [] { return !list_devices().devices.empty(); }, create, plan, describe};
}

}  // namespace pith
