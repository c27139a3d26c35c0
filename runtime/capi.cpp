// C API, part 1: errors, log, buffers and option texts.
#include "runtime/capi.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <mutex>
#include <new>

namespace {

// Fixed, so that reporting "out of memory" needs none.
thread_local char last_message[2048] = "";

// Paths and keys in a message may hold anything.
void make_one_line(char* text, size_t n) noexcept {
  std::replace_if(
      text, text + n, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
}

void store_message(std::string_view message) noexcept {
  const size_t n = std::min(message.size(), sizeof last_message - 1);
  std::memcpy(last_message, message.data(), n);
  last_message[n] = 0;
  make_one_line(last_message, n);
}

struct LogSink {
  std::mutex mutex;
  pith_log_fn fn = nullptr;
  void* user = nullptr;
};

LogSink& log_sink() {
  static LogSink sink;
  return sink;
}

}  // namespace

namespace pith::capi {

int report_exception() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    store_message(error.what());
    return static_cast<int>(error.code());
  } catch (const std::bad_alloc&) {
    store_message("out of memory");
    return PITH_E_MEMORY;
  } catch (const std::exception& error) {
    store_message(error.what());
    return PITH_E_INTERNAL;
  } catch (...) {
    store_message("unknown exception");
    return PITH_E_INTERNAL;
  }
}

void need(const void* pointer, const char* argument) {
  if (pointer == nullptr) throw_error(ErrorCode::kInvalidArgument, "argument '{}' is null", argument);
}

void fill(std::string_view text, char* buffer, size_t capacity, size_t* n_needed) {
  if (capacity > 0) {
    need(buffer, "buffer");
    const size_t n = std::min(text.size(), capacity);
    std::memcpy(buffer, text.data(), n);
    if (n < capacity) buffer[n] = 0;
  }
  *n_needed = text.size();
}

void fill(std::span<const int32_t> ids, int32_t* buffer, size_t capacity, size_t* n_needed) {
  if (capacity > 0) {
    need(buffer, "ids");
    std::copy_n(ids.begin(), std::min(ids.size(), capacity), buffer);
  }
  *n_needed = ids.size();
}

uint64_t parse_count(std::string_view key, std::string_view value, uint64_t maximum,
                     std::string_view other_values) {
  uint64_t count = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  if (error != std::errc() || end != value.data() + value.size() || count > maximum)
    throw_error(ErrorCode::kInvalidArgument, "option '{}': '{}' is not {}an integer from 0 to {}", key, value,
                other_values, maximum);
  return count;
}

bool set_session_option(SessionOptions& options, std::string_view key, std::string_view value) {
  const auto one_of = [&](std::initializer_list<std::string_view> allowed, std::string_view list) {
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
      throw_error(ErrorCode::kInvalidArgument, "option '{}': '{}' is not one of {}", key, value, list);
    return std::string(value);
  };
  if (key == "ctx") {
    options.n_ctx = static_cast<uint32_t>(parse_count(key, value, UINT32_MAX));
  } else if (key == "threads") {
    options.n_threads = static_cast<uint32_t>(parse_count(key, value, kMaxThreads));
  } else if (key == "prefill_chunk") {
    options.prefill_chunk = static_cast<uint32_t>(parse_count(key, value, kMaxPrefillChunk));
  } else if (key == "kv") {
    options.kv = one_of({"f16", "i8"}, "f16, i8") == "f16" ? KvType::kF16 : KvType::kI8;
  } else if (key == "kernels") {
    options.kernels = value;  // the device knows which there are
  } else if (key == "gpu_layers") {
    options.gpu_layers = value == "all" ? kGpuLayersAll
                         : value == "auto"
                             ? kGpuLayersAuto
                             : static_cast<int32_t>(parse_count(key, value, INT32_MAX, "all, auto or "));
  } else if (key == "device") {
    options.device = value;  // the session knows which there are
  } else {
    return false;
  }
  return true;
}

void log(int level, std::string_view message) noexcept {
  try {
    LogSink& sink = log_sink();
    const std::lock_guard lock(sink.mutex);
    if (sink.fn == nullptr) return;
    std::string line(message);
    make_one_line(line.data(), line.size());
    sink.fn(level, line.c_str(), sink.user);
  } catch (...) {
    // A note that cannot be delivered is dropped: it must not fail the call it belongs to.
  }
}

}  // namespace pith::capi

extern "C" {

int pith_abi_version(void) {
  return PITH_ABI;
}
const char* pith_version(void) {
  return PITH_VERSION;
}
const char* pith_errmsg(void) {
  return last_message;
}

int pith_log_set(pith_log_fn fn, void* user) {
  return pith::capi::guarded([&] {
    LogSink& sink = log_sink();
    const std::lock_guard lock(sink.mutex);
    sink.fn = fn;
    sink.user = user;
    return PITH_OK;
  });
}

}  // extern "C"
