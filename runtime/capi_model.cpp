// C API, part 2: a model, its facts, its tokens and its memory plan.
#include <fmt/ranges.h>

#include <array>

#include "models/weight_count.h"
#include "runtime/capi.h"
#include "runtime/chat_render.h"
#include "runtime/golden.h"

namespace pith::capi {
namespace {

std::string to_text(const MetadataValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool>)
          return v ? "true" : "false";
        else if constexpr (std::is_same_v<T, std::string>)
          return v;
        else if constexpr (std::is_same_v<T, Bytes>)
          return fmt::format("<{} bytes>", v.size());
        else if constexpr (std::is_arithmetic_v<T>)
          return fmt::format("{}", v);
        else
          return fmt::format("{}", fmt::join(v, ","));
      },
      value);
}

std::string model_fact(const Model& model, std::string_view key) {
  const Container& container = model.container();
  const ModelSpec& spec = model.spec();
  if (key == "name") return container.path().substr(container.path().rfind('/') + 1);
  if (key == "vocab_size") return fmt::format("{}", spec.vocab_size);
  if (key == "n_layers") return fmt::format("{}", spec.n_layers);
  if (key == "dim") return fmt::format("{}", spec.dim);
  if (key == "max_context") return fmt::format("{}", spec.max_context);
  if (key == "file_bytes") return fmt::format("{}", container.file_size());
  if (key == "fingerprint") return fmt::format("{:016x}", container.fingerprint());
  if (key == "chat_template") return model.chat_template() != nullptr ? "yes" : "no";
  if (key == "bos_id") return fmt::format("{}", model.tokenizer().bos_id());
  if (key == "eos_ids") return fmt::format("{}", fmt::join(model.tokenizer().eos_ids(), ","));
  const WeightCount count = count_weights(container);
  if (key == "parameters") return fmt::format("{}", count.weights);
  if (key == "linear_bpw") return fmt::format("{:.4f}", count.linear_bits());
  if (key == "file_bpw") return fmt::format("{:.4f}", count.file_bits(container.file_size()));
  const auto entry = container.metadata().entries().find(key);
  if (entry == container.metadata().entries().end())
    throw_error(ErrorCode::kInvalidArgument, "{}: the model has no fact '{}'", container.path(), key);
  return to_text(entry->second);
}

std::vector<ChatMessage> to_messages(const pith_message* messages, size_t n_messages) {
  if (n_messages == 0) throw_error(ErrorCode::kInvalidArgument, "a conversation without messages");
  need(messages, "messages");
  std::vector<ChatMessage> list;
  for (size_t i = 0; i < n_messages; ++i) {
    need(messages[i].role, "messages[].role");
    need(messages[i].content, "messages[].content");
    list.push_back({messages[i].role, messages[i].content});
  }
  return list;
}

}  // namespace

std::vector<int32_t> render_chat(const Model& model, const pith_message* messages, size_t n_messages,
                                 bool add_reply_start) {
  const std::vector<ChatMessage> list = to_messages(messages, n_messages);
  if (model.chat_template() == nullptr)
    throw_error(ErrorCode::kUnsupported, "{}: the model has no chat template", model.container().path());
  return encode_chat(model.tokenizer(), model.chat_template()->render(list, add_reply_start));
}

}  // namespace pith::capi

using namespace pith;  // NOLINT: this file implements the library's own C names
using namespace pith::capi;

extern "C" {

int pith_model_open(const char* path, const char* const* options, pith_model** out) {
  return guarded([&] {
    need(path, "path");
    need(out, "out");
    bool mmap = true, huge_pages = true;
    for_each_option(options, [&](std::string_view key, std::string_view value) {
      if (key != "mmap" && key != "huge_pages")
        throw_error(ErrorCode::kInvalidArgument, "unknown option '{}', expected mmap, huge_pages", key);
      if (value != "on" && value != "off")
        throw_error(ErrorCode::kInvalidArgument, "option '{}': '{}' is not one of on, off", key, value);
      (key == "mmap" ? mmap : huge_pages) = value == "on";
    });
    using Access = Container::Access;
    const Access access = !mmap ? Access::kRead : huge_pages ? Access::kMap : Access::kMapShared;
    auto handle = std::make_unique<pith_model>(pith_model{Model::open(path, access)});
    *out = handle.release();
    return PITH_OK;
  });
}

void pith_model_close(pith_model* model) {
  delete model;
}

int pith_model_get(const pith_model* model, const char* key, char* buffer, size_t capacity,
                   size_t* n_needed) {
  return guarded([&] {
    need(model, "model");
    need(key, "key");
    need(n_needed, "n_needed");
    fill(model_fact(*model->model, key), buffer, capacity, n_needed);
    return PITH_OK;
  });
}

int pith_model_verify(const pith_model* model) {
  return guarded([&] {
    need(model, "model");
    const Container& container = model->model->container();
    for (const Tensor& tensor : container.tensors()) container.verify_tensor(tensor);
    check_golden(model->model);
    return PITH_OK;
  });
}

int pith_tokenize(const pith_model* model, const char* text, size_t n_bytes, unsigned flags, int32_t* ids,
                  size_t capacity, size_t* n_needed) {
  return guarded([&] {
    need(model, "model");
    if (n_bytes > 0) need(text, "text");
    need(n_needed, "n_needed");
    if ((flags & ~7u) != 0)
      throw_error(ErrorCode::kInvalidArgument, "pith_tokenize: unknown flags {:#x}", flags);
    EncodeOptions options;
    options.add_bos = (flags & PITH_ADD_BOS) != 0;
    options.parse_special = (flags & PITH_PARSE_SPECIAL) != 0;
    options.continuation = (flags & PITH_CONTINUATION) != 0;
    const std::string_view input = n_bytes > 0 ? std::string_view(text, n_bytes) : std::string_view();
    fill(model->model->tokenizer().encode(input, options), ids, capacity, n_needed);
    return PITH_OK;
  });
}

int pith_detokenize(const pith_model* model, const int32_t* ids, size_t n_ids, unsigned flags, char* text,
                    size_t capacity, size_t* n_needed) {
  return guarded([&] {
    need(model, "model");
    if (n_ids > 0) need(ids, "ids");
    need(n_needed, "n_needed");
    if ((flags & ~unsigned{PITH_SHOW_SPECIAL}) != 0)
      throw_error(ErrorCode::kInvalidArgument, "pith_detokenize: unknown flags {:#x}", flags);
    const Tokenizer& tokenizer = model->model->tokenizer();
    const std::vector<int32_t> list(ids, ids + n_ids);
    for (const int32_t id : list)
      if (id < 0 || static_cast<uint32_t>(id) >= tokenizer.vocab_size())
        throw_error(ErrorCode::kInvalidArgument, "token id {} is outside the vocabulary of {}", id,
                    tokenizer.vocab_size());
    fill(tokenizer.decode(list, (flags & PITH_SHOW_SPECIAL) != 0), text, capacity, n_needed);
    return PITH_OK;
  });
}

int pith_chat_render(const pith_model* model, const pith_message* messages, size_t n_messages,
                     int add_reply_start, int32_t* ids, size_t capacity, size_t* n_needed) {
  return guarded([&] {
    need(model, "model");
    need(n_needed, "n_needed");
    fill(render_chat(*model->model, messages, n_messages, add_reply_start != 0), ids, capacity, n_needed);
    return PITH_OK;
  });
}

int pith_plan(const char* path, const char* const* options, pith_memory_plan* plan) {
  return guarded([&] {
    need(path, "path");
    need(plan, "plan");
    need_size(plan, offsetof(pith_memory_plan, total_bytes) + sizeof plan->total_bytes, "pith_memory_plan");
    SessionSettings settings;
    set_options(settings, options);
    const auto model = Model::open(path);
    const SessionOptions resolved = resolve_options(*model, settings.session);
    const MemoryPlan bytes = plan_memory(*model, resolved);
    hand_out({0, resolved.n_ctx, bytes.weights_bytes, bytes.kv_bytes, bytes.scratch_bytes, bytes.total(),
              bytes.n_gpu_layers, bytes.gpu_bytes, model->spec().n_layers},
             plan);
    return PITH_OK;
  });
}

}  // extern "C"
