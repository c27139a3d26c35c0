// The one exception type of pith, and the helper that formats its message.
//
// A message names what (file, tensor, key), where, what was expected and what was found, in one line.
// Inside the library errors are thrown as pith::Error; the C API turns them into codes (runtime/capi.cpp).
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace pith {

// Values are part of the C ABI (PITH_E_* in runtime/pith.h): never renumber.
enum class ErrorCode : int {
  kInvalidArgument = 1,  // the caller's mistake: an option, an id, an empty prompt
  kIo = 2,               // the operating system said no: open, read, write, full disk
  kFormat = 3,           // a file's bytes break its format's rules
  kUnsupported = 4,      // well-formed, but something pith does not implement
  kOutOfMemory = 5,
  kInterrupted = 6,  // pith_interrupt or Ctrl-C
  kContextFull = 7,  // the timeline has no room left
  kInternal = 8,     // a defect in pith
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// throw_error(ErrorCode::kFormat, "{}: tensor '{}': {} rows, expected {}", path, name, found, expected);
template <typename... Args>
[[noreturn]] void throw_error(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace pith
