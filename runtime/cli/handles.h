// The C API as the command line uses it: handles that close themselves, codes that become exceptions.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "format/error.h"
#include "runtime/cli/cli.h"
#include "runtime/pith.h"

namespace pith::cli {

inline void check(int code) {
  if (code != PITH_OK) throw Error(static_cast<ErrorCode>(code), pith_errmsg());
}

struct CloseModel {
  void operator()(pith_model* model) const { pith_model_close(model); }
};
struct CloseSession {
  void operator()(pith_session* session) const { pith_session_close(session); }
};
using ModelHandle = std::unique_ptr<pith_model, CloseModel>;
using SessionHandle = std::unique_ptr<pith_session, CloseSession>;

inline ModelHandle open_model(const std::string& path, Container::Access access = Container::Access::kMap) {
  pith_model* model = nullptr;
  const char* const options[] = {"mmap", access == Container::Access::kRead ? "off" : "on",  //
                                 "huge_pages", access == Container::Access::kMap ? "on" : "off", nullptr};
  check(pith_model_open(path.c_str(), options, &model));
  return ModelHandle(model);
}

inline SessionHandle open_session(const ModelHandle& model, const SessionFlags& flags) {
  pith_session* session = nullptr;
  flags.in_flags_of([&] { check(pith_session_open(model.get(), flags.options().data(), &session)); });
  return SessionHandle(session);
}

// Calls a buffer-filling function twice: for the size, then for the content.
template <typename Element, typename F>
std::vector<Element> filled(F&& call) {
  size_t n = 0;
  check(call(nullptr, 0, &n));
  std::vector<Element> buffer(n);
  if (n > 0) check(call(buffer.data(), n, &n));
  return buffer;
}

inline std::string get(const pith_model* model, const char* key) {
  const auto text = filled<char>([&](char* buffer, size_t capacity, size_t* n) {
    return pith_model_get(model, key, buffer, capacity, n);
  });
  return {text.begin(), text.end()};
}

inline std::string get(const pith_session* session, const char* key) {
  const auto text = filled<char>([&](char* buffer, size_t capacity, size_t* n) {
    return pith_session_get(session, key, buffer, capacity, n);
  });
  return {text.begin(), text.end()};
}

// What helps a prompt that the context has no room for.
inline std::string context_hint(const pith_model* model, size_t n_prompt_tokens) {
  const std::string most = get(model, "max_context");
  return n_prompt_tokens < std::stoul(most) ? "--ctx takes more" : "the model takes at most " + most;
}

inline std::vector<int32_t> tokenize(const pith_model* model, const std::string& text, unsigned flags) {
  return filled<int32_t>([&](int32_t* ids, size_t capacity, size_t* n) {
    return pith_tokenize(model, text.data(), text.size(), flags, ids, capacity, n);
  });
}

inline std::vector<int32_t> render(const pith_model* model, const std::vector<pith_message>& messages) {
  return filled<int32_t>([&](int32_t* ids, size_t capacity, size_t* n) {
    return pith_chat_render(model, messages.data(), messages.size(), 1, ids, capacity, n);
  });
}

}  // namespace pith::cli
