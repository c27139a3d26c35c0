// See backend.h.
#include "runtime/gpu/backend.h"

#include <algorithm>

#include "runtime/gpu/cuda_backend.h"

namespace pith {

namespace gpu {

using namespace cuda;

CudaBackend::CudaBackend(std::shared_ptr<const Model> model, const SessionOptions& options,
                         const DeviceInfo& device, const LayerRange& range, const MemoryPlan& needed)
    : model_(std::move(model)),
      spec_(model_->spec()),
      options_(options),
      range_(range),
      device_(device),
      kernels_(choose_kernels(options.kernels, device)),
      weights_arena_(needed.weights_bytes, "weights"),
      cache_arena_(needed.kv_bytes, "KV cache"),
      scratch_arena_(needed.scratch_bytes, "scratch"),
      weights_(*model_, range, weights_arena_),
      cache_(spec_, options.kv, options.n_ctx, range, cache_arena_),
      scratch_(spec_, weights_, options, static_cast<uint32_t>(device.n_multiprocessors), kernels_.warpgroups,
               scratch_arena_),
      step_((1 + uint64_t{options.prefill_chunk}) * 4),
      arrived_(range.begin != 0 ? uint64_t{options.prefill_chunk} * spec_.dim * 4 : 0),
      logits_(uint64_t{std::min(kMaxLogitRows, options.prefill_chunk)} * spec_.vocab_size * 4),
      how_{stream_.handle(), device.sm() >= 90} {
  scratch_arena_.fill(0);
  weights_.upload(*model_);
  weights_.sort_outliers(how_);
  weights_.choose_shapes(kernels_.pipeline, kernels_.synchronous, device_);
  for (size_t i = 0; i < spec_.ropes.size(); ++i) {
    const RopeSpec& rope = spec_.ropes[i];
    std::vector<float> cos(options.n_ctx * rope.inv_freq.size()), sin(cos.size());
    rope.fill_tables(rope.frequencies(options.n_ctx), 0, options.n_ctx, cos.data(), sin.data());
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
    for (uint32_t layer = range_.begin; layer < range_.end; ++layer) {
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

void CudaBackend::begin_batch(uint32_t n_tokens, uint32_t position) {
  use_device(device_.idx);
  finish_due();
  stream_.wait();  // step_ and arrived_ may still be on their way
  n_ = n_tokens;
  step_.as<int32_t>()[0] = static_cast<int32_t>(position);
}

void CudaBackend::embed(std::span<const int32_t> ids, uint32_t position) {
  begin_batch(static_cast<uint32_t>(ids.size()), position);
  std::copy(ids.begin(), ids.end(), step_.as<int32_t>() + 1);
  if (!replays()) run_embed();
}

void CudaBackend::receive(std::span<const float> x, uint32_t position) {
  begin_batch(static_cast<uint32_t>(x.size() / spec_.dim), position);
  std::copy(x.begin(), x.end(), arrived_.as<float>());
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
  const LayerCache& cache = cache_.layer(layer);
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

namespace {

MemoryPlan plan_on(const Model& model, const SessionOptions& options, const LayerRange& range,
                   const DeviceInfo& device) {
  check_supported(model.spec(), device);
  const Kernels kernels = choose_kernels(options.kernels, device);  // a plan refuses what a session would
  DeviceArena weights_arena, cache_arena, scratch_arena;
  Weights weights(model, range, weights_arena);
  weights.choose_shapes(kernels.pipeline, kernels.synchronous, device);
  const Cache cache(model.spec(), options.kv, options.n_ctx, range, cache_arena);
  const Scratch scratch(model.spec(), weights, options, static_cast<uint32_t>(device.n_multiprocessors),
                        kernels.warpgroups, scratch_arena);
  return {weights_arena.size_bytes(), cache_arena.size_bytes(), scratch_arena.size_bytes()};
}

MemoryPlan plan(const Model& model, const SessionOptions& options, const LayerRange& range) {
  return plan_on(model, options, range, find_device(options.device));
}

std::unique_ptr<Backend> create(std::shared_ptr<const Model> model, const SessionOptions& options,
                                const LayerRange& range) {
  const DeviceInfo device = find_device(options.device);
  use_device(device.idx);
  const MemoryPlan needed = plan_on(*model, options, range, device);
  const uint64_t free_bytes = free_memory().first;
  if (needed.total() > free_bytes)
    throw_error(ErrorCode::kOutOfMemory,
                "cuda:{} ({}): needs {} MB (weights {}, KV cache {} for {} tokens, scratch {}), {} MB are "
                "free; gpu_layers auto leaves on the CPU what does not fit",
                device.idx, device.name, needed.total() >> 20, needed.weights_bytes >> 20,
                needed.kv_bytes >> 20, options.n_ctx, needed.scratch_bytes >> 20, free_bytes >> 20);
  return std::make_unique<CudaBackend>(std::move(model), options, device, range, needed);
}

}  // namespace

}  // namespace gpu

BackendKind cuda_backend_kind() {
  const auto describe = [] {
    const cuda::DeviceList list = cuda::list_devices();
    std::string text;
    for (const cuda::DeviceInfo& d : list.devices)
      text +=
          fmt::format("{}{}, compute capability {}.{}, {} of {} MB free", text.empty() ? "" : "; ", d.label(),
                      d.compute_major, d.compute_minor, d.free_bytes >> 20, d.total_bytes >> 20);
    if (!list.problem.empty()) text += (text.empty() ? "" : "; ") + list.problem;
    return text;
  };
  return {"cuda",      [] { return !cuda::list_devices().devices.empty(); },
          gpu::create, gpu::plan,
          describe,    [](const std::string& device) { return gpu::find_device(device).free_bytes; }};
}

}  // namespace pith
