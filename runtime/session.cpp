// The timeline: what has been run, what the next call must run, in chunks.
#include "runtime/session.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "runtime/backend.h"
#include "runtime/decoder.h"
#include "runtime/placement.h"
#include "runtime/session_file.h"
#include "runtime/thread_pool.h"

namespace pith {

namespace {

constexpr uint32_t kDefaultContext = 4096;

}  // namespace

SessionOptions resolve_options(const Model& model, SessionOptions options) {
  const uint32_t max_context = model.spec().max_context;
  if (options.n_ctx == 0) options.n_ctx = std::min(max_context, kDefaultContext);
  if (options.n_ctx > max_context)
    throw_error(ErrorCode::kInvalidArgument, "ctx: {} tokens, expected at most the model's {}", options.n_ctx,
                max_context);
  if (options.n_threads > kMaxThreads)
    throw_error(ErrorCode::kInvalidArgument, "threads: {}, expected at most {}", options.n_threads,
                kMaxThreads);
  if (options.n_threads == 0) options.n_threads = std::min(ThreadPool::n_physical_cores(), kMaxThreads);
  if (options.prefill_chunk < 1 || options.prefill_chunk > kMaxPrefillChunk)
    throw_error(ErrorCode::kInvalidArgument, "prefill_chunk: {} tokens, expected 1 to {}",
                options.prefill_chunk, kMaxPrefillChunk);
  options.prefill_chunk = std::min(options.prefill_chunk, options.n_ctx);
  if (options.kv != KvType::kF16 && options.kv != KvType::kI8)
    throw_error(ErrorCode::kInvalidArgument, "cache type {}, expected 1 or 2", static_cast<int>(options.kv));
  return options;
}

MemoryPlan plan_memory(const Model& model, const SessionOptions& options) {
  const SessionOptions resolved = resolve_options(model, options);
  return place(model, resolved).memory;
}

struct Session::Impl {
  Impl(std::shared_ptr<const Model> m, const SessionOptions& o)
      : model(std::move(m)), options(resolve_options(*model, o)) {
    placement = place(*model, options);
    options.device = placement.device;
    options.gpu_layers = static_cast<int32_t>(placement.n_gpu_layers);
    backend = open_placed(model, options, placement);
    tokens.reserve(options.n_ctx);
  }

  void check_process() const {
    if (getpid() != process)
      throw_error(ErrorCode::kInvalidArgument,
                  "the session was opened before a fork: this process has none of its threads");
  }

  void check_ids(std::span<const int32_t> ids, size_t n_before) const {
    check_process();
    const uint32_t vocab = model->spec().vocab_size;
    for (size_t i = 0; i < ids.size(); ++i)
      if (ids[i] < 0 || static_cast<uint32_t>(ids[i]) >= vocab)
        throw_error(ErrorCode::kInvalidArgument, "token {} is {}, expected 0 to {}", i, ids[i], vocab - 1);
    if (ids.size() > options.n_ctx - n_before)
      throw_error(ErrorCode::kContextFull, "{} tokens do not fit: {} of the context's {} are taken",
                  ids.size(), n_before, options.n_ctx);
  }

  void check_interrupt() {
    if (stop.exchange(false))
      throw_error(ErrorCode::kInterrupted, "interrupted at position {}", tokens.size());
  }

  // Runs ids after the timeline, chunk by chunk; after_chunk(n) sees each while its rows are in the backend.
  template <typename AfterChunk>
  void feed(std::span<const int32_t> ids, std::atomic<bool>& stop_flag, AfterChunk&& after_chunk) {
    while (!ids.empty()) {
      const auto chunk = ids.first(std::min<size_t>(ids.size(), options.prefill_chunk));
      decode_batch(*backend, model->spec(), chunk, static_cast<uint32_t>(tokens.size()), stop_flag);
      tokens.insert(tokens.end(), chunk.begin(), chunk.end());
      logits = {};
      ids = ids.subspan(chunk.size());
      after_chunk(static_cast<uint32_t>(chunk.size()), ids.empty());
    }
  }

  void feed(std::span<const int32_t> ids, std::atomic<bool>& stop_flag) {
    feed(ids, stop_flag, [this](uint32_t n, bool is_last) {
      if (is_last) logits = backend->head(n - 1, 1);
    });
  }

  void rewind(size_t n_tokens) {
    tokens.resize(n_tokens);
    logits = {};
  }

  const std::shared_ptr<const Model> model;
  SessionOptions options;
  Placement placement;
  std::unique_ptr<Backend> backend;
  std::vector<int32_t> tokens;
  std::span<const float> logits;  // in the backend; empty when they are not those of the last token
  std::atomic<bool> stop{false};
  const pid_t process = getpid();
};

Session::Session(std::shared_ptr<const Model> model, const SessionOptions& options)
    : impl_(std::make_unique<Impl>(std::move(model), options)) {}
Session::~Session() = default;

const Model& Session::model() const {
  return *impl_->model;
}
const SessionOptions& Session::options() const {
  return impl_->options;
}
const MemoryPlan& Session::memory() const {
  return impl_->placement.memory;
}
const std::string& Session::note() const {
  return impl_->placement.note;
}
uint32_t Session::n_ctx() const {
  return impl_->options.n_ctx;
}
const std::vector<int32_t>& Session::tokens() const {
  return impl_->tokens;
}
std::span<const float> Session::logits() const {
  return impl_->logits;
}
void Session::interrupt() {
  impl_->stop.store(true);
}
void Session::begin_call() {
  impl_->check_process();
  impl_->stop.store(false);
}

uint32_t Session::sync(std::span<const int32_t> ids) {
  if (ids.empty()) throw_error(ErrorCode::kInvalidArgument, "no tokens, expected at least one");
  impl_->check_ids(ids, 0);
  impl_->check_interrupt();
  const std::vector<int32_t>& tokens = impl_->tokens;
  size_t common = static_cast<size_t>(
      std::mismatch(ids.begin(), ids.end(), tokens.begin(), tokens.end()).first - ids.begin());
  if (common == ids.size()) {
    if (common == tokens.size() && !impl_->logits.empty()) return static_cast<uint32_t>(common);
    --common;  // the last token runs again for its logits
  }
  if (common < tokens.size()) impl_->rewind(common);
  impl_->feed(ids.subspan(common), impl_->stop);
  return static_cast<uint32_t>(common);
}

void Session::append(std::span<const int32_t> ids) {
  if (ids.empty()) throw_error(ErrorCode::kInvalidArgument, "no tokens, expected at least one");
  impl_->check_ids(ids, impl_->tokens.size());
  impl_->feed(ids, impl_->stop);
}

void Session::append_uninterrupted(int32_t id) {
  const std::span<const int32_t> ids(&id, 1);
  impl_->check_ids(ids, impl_->tokens.size());
  std::atomic<bool> never{false};
  impl_->feed(ids, never);
}

void Session::rewind(uint32_t n_tokens) {
  if (n_tokens > impl_->tokens.size())
    throw_error(ErrorCode::kInvalidArgument, "rewind to {} tokens, expected at most the timeline's {}",
                n_tokens, impl_->tokens.size());
  impl_->rewind(n_tokens);
}

void Session::logits_of_all(std::span<const int32_t> ids,
                            const std::function<void(uint32_t, std::span<const float>)>& row) {
  logits_after(ids, 0, row);
}

uint32_t Session::logits_after(std::span<const int32_t> ids, uint32_t first,
                               const std::function<void(uint32_t, std::span<const float>)>& row) {
  if (first >= ids.size())
    throw_error(ErrorCode::kInvalidArgument, "{} tokens, expected more than {}", ids.size(), first);
  impl_->check_ids(ids, 0);
  impl_->check_interrupt();
  const std::vector<int32_t>& tokens = impl_->tokens;
  const auto kept = ids.first(first);
  const size_t common = static_cast<size_t>(
      std::mismatch(kept.begin(), kept.end(), tokens.begin(), tokens.end()).first - kept.begin());
  impl_->rewind(common);
  const uint32_t vocab = impl_->model->spec().vocab_size;
  impl_->feed(ids.subspan(common), impl_->stop, [&](uint32_t n, bool) {
    const uint32_t begin =
        static_cast<uint32_t>(impl_->tokens.size()) - n;  // position of the chunk's first row
    for (uint32_t i = first > begin ? first - begin : 0; i < n; i += kMaxLogitRows) {
      const uint32_t n_rows = std::min(kMaxLogitRows, n - i);
      const std::span<const float> logits = impl_->backend->head(i, n_rows);
      for (uint32_t r = 0; r < n_rows; ++r) row(begin + i + r, logits.subspan(size_t{r} * vocab, vocab));
    }
  });
  return static_cast<uint32_t>(ids.size() - common);
}

void Session::save(const std::string& path) const {
  impl_->check_process();
  save_session(path, *impl_->model, impl_->options, impl_->tokens, *impl_->backend);
}

void Session::load(const std::string& path) {
  impl_->check_process();
  const SavedSession saved = read_session(path, *impl_->model, impl_->options);
  const uint32_t n_layers = impl_->model->spec().n_layers;
  const size_t layer_bytes = saved.cache.size() / n_layers;
  impl_->rewind(0);  // should a device fail halfway, the session is empty
  for (uint32_t i = 0; i < n_layers; ++i)
    impl_->backend->write_kv(i, static_cast<uint32_t>(saved.tokens.size()),
                             saved.cache.data() + i * layer_bytes);
  impl_->tokens.insert(impl_->tokens.end(), saved.tokens.begin(), saved.tokens.end());
}

}  // namespace pith
