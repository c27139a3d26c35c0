// What the C API's sources share: the two objects behind the handles, and the guard that turns exceptions into codes.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "format/error.h"
#include "runtime/model.h"
#include "runtime/pith.h"
#include "runtime/sampler.h"
#include "runtime/session.h"

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
  bool has_logits = false;  // session.logits() are those after the timeline's last id
};

namespace pith::capi {

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

// Sets one key of pith_session_open; false when the key is not one of them. Throws on a bad value.
bool set_session_option(SessionOptions& options, std::string_view key, std::string_view value);
// 0..maximum, or throws naming the key.
uint64_t parse_count(std::string_view key, std::string_view value, uint64_t maximum);

void log(int level, std::string_view message) noexcept;

// The checks of pith_model_verify: every tensor's checksum, then the golden vectors.
void verify_model(const std::shared_ptr<const Model>& model);

}  // namespace pith::capi
