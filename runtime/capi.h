// What the C API's sources share: the two objects behind the handles, and the guard that turns exceptions into codes.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "format/error.h"
#include "runtime/model.h"
#include "runtime/pith.h"
#include "runtime/sampler.h"
#include "runtime/session.h"
#include "runtime/stop_texts.h"
#include "runtime/utf8.h"

struct pith_model {
  std::shared_ptr<const pith::Model> model;
};

struct pith_session {
  pith_session(std::shared_ptr<const pith::Model> opened, const pith::SessionOptions& options,
               const pith::SamplerOptions& sampling_options)
      : session(std::move(opened), options),
        sampling(sampling_options),
        sampler(sampling_options, session.model().spec().vocab_size) {}

  pith::Session session;
  pith::SamplerOptions sampling;
  pith::Sampler sampler;
  uint32_t max_tokens = 0;  // 0 = as many as fit
  int32_t drawn = -1;       // a token that an interrupted call drew for the end of the timeline; -1 = none
  pith::Utf8Holder held;    // the code point that the timeline's text ends inside of
  pith::StopTexts stops;    // and what of that text may begin a stop text
};

namespace pith::capi {

// What the options of pith_session_open come to.
struct SessionSettings {
  SessionOptions session;
  SamplerOptions sampling;
  uint32_t max_tokens = 0;
  StopTexts stops;
};

// Stores the exception in flight as this thread's message and returns its code. Allocates nothing.
int report_exception() noexcept;

// Runs a function that returns PITH_OK or PITH_DONE, or throws.
template <typename F>
int guarded(F&& body) noexcept {
  try {
    return body();
  } catch (...) {
    return report_exception();
  }
}

// Throws kInvalidArgument naming the argument when a pointer is null.
void need(const void* pointer, const char* argument);

// Calls each(key, value) for an option array.
template <typename F>
void for_each_option(const char* const* options, F&& each) {
  if (options == nullptr) return;
  for (; options[0] != nullptr; options += 2) {
    if (options[1] == nullptr)
      throw_error(ErrorCode::kInvalidArgument, "option '{}' has no value", options[0]);
    each(std::string_view(options[0]), std::string_view(options[1]));
  }
}

// snprintf's contract for text (0-terminated when it fits) and for ids.
void fill(std::string_view text, char* buffer, size_t capacity, size_t* n_needed);
void fill(std::span<const int32_t> ids, int32_t* buffer, size_t capacity, size_t* n_needed);

// Sets every option of pith_session_open over the defaults in `settings`. Throws on an unknown key or a bad value.
void set_options(SessionSettings& settings, const char* const* options);
// Sets one key of pith_session_open that is not one of pith_set; false when the key is not one of them. Throws on a bad value.
bool set_session_option(SessionOptions& options, std::string_view key, std::string_view value);
// 0..maximum, or throws naming the key.
// other_values: what else the option takes, for the message ("all or ").
uint64_t parse_count(std::string_view key, std::string_view value, uint64_t maximum,
                     std::string_view other_values = "");

// Output structs begin with `size`, the caller's. The first version ended at first_size; later ones only add members.
template <typename T>
void need_size(const T* out, size_t first_size, const char* name) {
  if (out->size < first_size)
    throw_error(ErrorCode::kInvalidArgument, "{}.size is {}, expected at least {}", name, out->size,
                first_size);
}
// Copies the members that the caller's version has.
template <typename T>
void hand_out(const T& from, T* out) {
  const size_t size = out->size;
  std::memcpy(out, &from, std::min(size, sizeof from));
  out->size = size;
}

// A conversation as ids, as pith_chat_render() says. Throws kUnsupported when the model has no template.
std::vector<int32_t> render_chat(const Model& model, const pith_message* messages, size_t n_messages,
                                 bool add_reply_start);

void log(int level, std::string_view message) noexcept;

// Whether a session's plan fits into what this process may take besides the GPU's memory: "" or a line that says it does not.
// own_bytes: of the file, those that it has taken already (Container::own_bytes).
std::string memory_warning(const MemoryPlan& plan, uint64_t own_bytes, uint64_t available_bytes);

}  // namespace pith::capi
