// C API, part 3: a session, its timeline, and text from it.
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <random>

#include "runtime/backend.h"
#include "runtime/capi.h"
#include "runtime/process_limits.h"

namespace pith::capi {

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

uint64_t random_seed() {
  std::random_device device;
  return device();  // 32 bits: short enough to type back
}

// other_keys: what else the caller takes, for the message.
void set_sampling(SamplerOptions& options, std::string_view key, std::string_view value,
                  std::string_view other_keys) {
  if (key == "seed" && (value == "random" || value == "-1"))
    options.seed = random_seed();
  else
    set_sampler_option(options, key, value, other_keys);
}

SamplerOptions default_sampling(const GenerationDefaults& defaults) {
  SamplerOptions options;
  options.temperature = defaults.temperature;
  options.top_k = defaults.top_k;
  options.top_p = defaults.top_p;
  options.min_p = defaults.min_p;
  options.repetition_penalty = defaults.repetition_penalty;
  options.seed = random_seed();
  return options;
}

// What the options' "auto" came to.
std::string kernels_of(const SessionOptions& options) {
  for (const BackendKind& kind : backend_kinds())
    if (options.device == kind.device && kind.kernels_name != nullptr) return kind.kernels_name(options);
  return options.device;
}

std::string session_fact(const pith_session& s, std::string_view key) {
  for (const SamplerOption& option : sampler_options())
    if (key == option.key) return sampler_option_text(s.sampling, option);
  if (key == "max_tokens") return fmt::format("{}", s.max_tokens);
  if (key == "stop") return fmt::format("{}", fmt::join(s.stops.texts(), "\n"));
  if (key == "held_text") return s.stops.held();
  const SessionOptions& options = s.session.options();
  if (key == "ctx") return fmt::format("{}", s.session.n_ctx());
  if (key == "threads") return fmt::format("{}", options.n_threads);
  if (key == "kv") return options.kv == KvType::kF16 ? "f16" : "i8";
  if (key == "kernels") return kernels_of(options);
  if (key == "device") return options.device;
  if (key == "n_tokens") return fmt::format("{}", s.session.tokens().size());
  if (key == "gpu_layers") return fmt::format("{}", options.gpu_layers);
  if (key == "kv_bytes") return fmt::format("{}", s.session.memory().kv_bytes);
  if (key == "scratch_bytes") return fmt::format("{}", s.session.memory().scratch_bytes);
  throw_error(ErrorCode::kInvalidArgument, "a session has no fact '{}'", key);
}

void need_logits(const pith_session& s) {
  if (s.session.logits().empty())
    throw_error(ErrorCode::kInvalidArgument, "no logits: call pith_sync with at least one id first");
}

// What belongs to the timeline's end ends with it.
void forget_end(pith_session& s) {
  s.drawn = -1;
  s.held.clear();
  s.stops.flush();
}

// Returns how many ids were in the cache. What was drawn stays for the timeline that it was drawn for, also where this throws.
uint32_t sync_to(pith_session& s, std::span<const int32_t> ids) {
  // Changed is a timeline of another length, or of another token where ids part from it (no copy: pith_sync allocates nothing).
  const std::vector<int32_t>& tokens = s.session.tokens();
  const size_t n_before = tokens.size();
  const auto part = std::mismatch(tokens.begin(), tokens.end(), ids.begin(), ids.end()).first;
  const size_t n_common = static_cast<size_t>(part - tokens.begin());
  const int32_t before = n_common < n_before ? *part : -1;
  const auto forget_if_changed = [&] {
    if (tokens.size() != n_before || (n_common < n_before && tokens[n_common] != before)) forget_end(s);
  };
  try {
    const uint32_t n_reused = s.session.sync(ids);
    forget_if_changed();
    return n_reused;
  } catch (...) {
    forget_if_changed();
    throw;
  }
}

// The next token: the one that an interrupted call drew and did not append, or a new one.
int32_t draw(pith_session& s) {
  if (s.drawn >= 0) return s.drawn;
  need_logits(s);
  try {
    return s.sampler.sample(s.session.logits(), s.session.tokens());
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", s.session.model().container().path(), error.what()));
  }
}

void append(pith_session& s, int32_t id) {
  s.drawn = id;
  s.session.append(id);
  s.drawn = -1;
}

bool is_full(const pith_session& s) {
  return s.session.tokens().size() >= s.session.n_ctx();
}

// Hands out text in whole code points, up to a stop text. What is held back stays in the session, for the call that goes on.
class TextOut {
 public:
  TextOut(pith_session& session, pith_text_fn fn, void* user) : session_(session), fn_(fn), user_(user) {}

  // Returns why the reply ends here, 0: it does not.
  int put(std::string_view bytes) {
    bool found = false;
    const bool goes_on = emit(session_.stops.push(session_.held.push(bytes), found));
    return found ? PITH_STOP_TEXT : goes_on ? 0 : PITH_STOP_CALLBACK;
  }
  void finish() {
    bool found = false;
    const std::string text = session_.stops.push(session_.held.flush(), found);
    emit(text + session_.stops.flush());
  }

 private:
  bool emit(std::string_view text) {
    return text.empty() || fn_ == nullptr || fn_(text.data(), text.size(), user_) == 0;
  }

  pith_session& session_;
  pith_text_fn fn_;
  void* user_;
};

// What was handed out must get into the timeline, however often it is interrupted. Returns whether it was.
bool append_always(pith_session& s, int32_t id) {
  try {
    append(s, id);
    return false;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInterrupted) throw;
  }
  s.session.append_uninterrupted(id);
  s.drawn = -1;
  return true;
}

// Draws, hands out, appends: in this order, so that a reader sees a token before the next one is computed. at_start: the text begins
// here, so that the dummy prefix space of its first token belongs to no word.
void generate(pith_session& s, TextOut& out, bool at_start, pith_reply& reply) {
  const Tokenizer& tokenizer = s.session.model().tokenizer();
  const auto start = std::chrono::steady_clock::now();
  reply.stop = 0;
  while (reply.stop == 0) {
    if (is_full(s)) {
      reply.stop = PITH_STOP_CONTEXT;
    } else if (s.max_tokens != 0 && reply.n_generated == s.max_tokens) {
      reply.stop = PITH_STOP_LENGTH;
    } else {
      const int32_t id = draw(s);
      if (tokenizer.is_eos(id)) {
        reply.stop = PITH_STOP_END;
        break;
      }
      ++reply.n_generated;
      const std::string piece = tokenizer.piece(id);
      reply.stop = out.put(at_start ? tokenizer.decode({id}) : piece);
      at_start = at_start && piece.empty();
      if (append_always(s, id) && reply.stop != PITH_STOP_TEXT) reply.stop = PITH_STOP_INTERRUPT;
    }
  }
  // No text can follow these; the reply has ended already: a wish to stop changes nothing.
  if (reply.stop == PITH_STOP_END || reply.stop == PITH_STOP_CONTEXT) out.finish();
  if (reply.stop == PITH_STOP_TEXT) s.held.clear();
  reply.generation_seconds = seconds_since(start);
}

void check_reply_size(const pith_reply* reply) {
  if (reply != nullptr)
    need_size(reply, offsetof(pith_reply, generation_seconds) + sizeof reply->generation_seconds,
              "pith_reply");
}

void set_max_tokens(uint32_t& max_tokens, std::string_view value) {
  max_tokens = static_cast<uint32_t>(parse_count("max_tokens", value, UINT32_MAX));
}

}  // namespace

std::string memory_warning(const MemoryPlan& plan, uint64_t own_bytes, uint64_t available_bytes) {
  const uint64_t taken = std::min(own_bytes, plan.weights_bytes - plan.gpu_weights_bytes);
  const uint64_t needed = plan.total() - plan.gpu_bytes - taken;
  if (needed <= available_bytes) return "";
  return fmt::format(
      "the session takes {:.2f} GB of memory, {:.2f} are free: a smaller ctx or kv i8 takes less",
      static_cast<double>(needed) / 1e9, static_cast<double>(available_bytes) / 1e9);
}

void set_options(SessionSettings& settings, const char* const* options) {
  for_each_option(options, [&](std::string_view key, std::string_view value) {
    if (key == "max_tokens")
      set_max_tokens(settings.max_tokens, value);
    else if (key == "stop")
      settings.stops.add(value);
    else if (!set_session_option(settings.session, key, value))
      set_sampling(settings.sampling, key, value,
                   "ctx, threads, kv, prefill_chunk, device, gpu_layers, kernels, max_tokens, stop, ");
  });
}

}  // namespace pith::capi

using namespace pith;  // NOLINT: this file implements the library's own C names
using namespace pith::capi;

extern "C" {

int pith_session_open(const pith_model* model, const char* const* options, pith_session** out) {
  return guarded([&] {
    need(model, "model");
    need(out, "out");
    SessionSettings settings;
    settings.sampling = default_sampling(model->model->generation());
    set_options(settings, options);
    auto session = std::make_unique<pith_session>(model->model, settings.session, settings.sampling);
    session->max_tokens = settings.max_tokens;
    session->stops = std::move(settings.stops);
    const SessionOptions& resolved = session->session.options();
    log(0, fmt::format("{}: context {} of {} tokens, {} threads, {} kernels, device {}",
                       model->model->container().path(), session->session.n_ctx(),
                       model->model->spec().max_context, resolved.n_threads, kernels_of(resolved),
                       resolved.device));
    if (!session->session.note().empty()) log(1, session->session.note());
    const std::string warning =
        memory_warning(session->session.memory(), model->model->container().own_bytes(), available_memory());
    if (!warning.empty()) log(1, warning);
    *out = session.release();
    return PITH_OK;
  });
}

void pith_session_close(pith_session* session) {
  delete session;
}

int pith_set(pith_session* session, const char* key, const char* value) {
  return guarded([&] {
    need(session, "session");
    need(key, "key");
    need(value, "value");
    if (std::string_view(key) == "max_tokens") {
      set_max_tokens(session->max_tokens, value);
      return PITH_OK;
    }
    if (std::string_view(key) == "stop") {
      session->stops.add(value);
      return PITH_OK;
    }
    SamplerOptions changed = session->sampling;
    set_sampling(changed, key, value, "max_tokens, stop, ");
    session->sampler = Sampler(changed, session->session.model().spec().vocab_size);
    session->sampling = changed;
    session->drawn = -1;
    return PITH_OK;
  });
}

int pith_session_get(const pith_session* session, const char* key, char* buffer, size_t capacity,
                     size_t* n_needed) {
  return guarded([&] {
    need(session, "session");
    need(key, "key");
    need(n_needed, "n_needed");
    fill(session_fact(*session, key), buffer, capacity, n_needed);
    return PITH_OK;
  });
}

int pith_sync(pith_session* session, const int32_t* ids, size_t n_ids) {
  return guarded([&] {
    need(session, "session");
    if (n_ids > 0) need(ids, "ids");
    session->session.begin_call();
    sync_to(*session, {ids, n_ids});
    return PITH_OK;
  });
}

int pith_append(pith_session* session, const int32_t* ids, size_t n_ids) {
  return guarded([&] {
    need(session, "session");
    if (n_ids > 0) need(ids, "ids");
    session->session.begin_call();
    const size_t n_before = session->session.tokens().size();
    try {
      session->session.append({ids, n_ids});
    } catch (...) {
      if (session->session.tokens().size() != n_before) forget_end(*session);
      throw;
    }
    forget_end(*session);
    return PITH_OK;
  });
}

int pith_step(pith_session* session, int32_t* id) {
  return guarded([&] {
    need(session, "session");
    need(id, "id");
    session->session.begin_call();
    if (session->drawn < 0) need_logits(*session);
    if (is_full(*session))
      throw_error(ErrorCode::kContextFull, "the timeline's {} tokens fill the context of {}",
                  session->session.tokens().size(), session->session.n_ctx());
    const int32_t next = draw(*session);
    if (session->session.model().tokenizer().is_eos(next)) {
      *id = next;
      return int{PITH_DONE};
    }
    append(*session, next);
    forget_end(*session);  // the caller has this token's text, and not what came before
    *id = next;
    return int{PITH_OK};
  });
}

int pith_logits(const pith_session* session, const float** logits, size_t* n) {
  return guarded([&] {
    need(session, "session");
    need(logits, "logits");
    need(n, "n");
    need_logits(*session);
    *logits = session->session.logits().data();
    *n = session->session.logits().size();
    return PITH_OK;
  });
}

int pith_rewind(pith_session* session, size_t n_tokens) {
  return guarded([&] {
    need(session, "session");
    if (n_tokens > session->session.tokens().size())
      throw_error(ErrorCode::kInvalidArgument, "pith_rewind to {} tokens: the timeline has {}", n_tokens,
                  session->session.tokens().size());
    session->session.rewind(static_cast<uint32_t>(n_tokens));
    forget_end(*session);
    return PITH_OK;
  });
}

int pith_tokens(const pith_session* session, int32_t* ids, size_t capacity, size_t* n_needed) {
  return guarded([&] {
    need(session, "session");
    need(n_needed, "n_needed");
    fill(std::span<const int32_t>(session->session.tokens()), ids, capacity, n_needed);
    return PITH_OK;
  });
}

int pith_generate(pith_session* session, pith_text_fn fn, void* user, pith_reply* reply) {
  return guarded([&] {
    need(session, "session");
    check_reply_size(reply);
    session->session.begin_call();
    if (session->drawn < 0) need_logits(*session);
    pith_reply done{};
    TextOut out(*session, fn, user);
    generate(*session, out, false, done);
    if (reply != nullptr) hand_out(done, reply);
    return PITH_OK;
  });
}

int pith_chat(pith_session* session, const pith_message* messages, size_t n_messages, pith_text_fn fn,
              void* user, pith_reply* reply) {
  return guarded([&] {
    need(session, "session");
    check_reply_size(reply);
    session->session.begin_call();
    const std::vector<int32_t> ids = render_chat(session->session.model(), messages, n_messages, true);
    pith_reply done{};
    done.n_prompt = static_cast<uint32_t>(ids.size());
    const auto start = std::chrono::steady_clock::now();
    done.n_reused = sync_to(*session, ids);
    done.prompt_seconds = seconds_since(start);
    session->held.clear();
    session->stops.flush();
    TextOut out(*session, fn, user);
    generate(*session, out, true, done);
    if (reply != nullptr) hand_out(done, reply);
    return PITH_OK;
  });
}

int pith_interrupt(pith_session* session) {
  if (session == nullptr) return PITH_E_INVALID;  // no message: this may be a signal handler
  session->session.interrupt();
  return PITH_OK;
}

int pith_session_save(const pith_session* session, const char* path) {
  return guarded([&] {
    need(session, "session");
    need(path, "path");
    session->session.save(path);
    return PITH_OK;
  });
}

int pith_session_load(pith_session* session, const char* path) {
  return guarded([&] {
    need(session, "session");
    need(path, "path");
    try {
      session->session.load(path);
    } catch (...) {
      if (session->session.tokens().empty()) forget_end(*session);  // a device failed halfway
      throw;
    }
    forget_end(*session);
    return PITH_OK;
  });
}

}  // extern "C"
