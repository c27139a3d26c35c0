// What the tests of conversion share (test_convert*.cpp): options that are quick, refusals.
#pragma once
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "convert/converter.h"
#include "convert/json_file.h"
#include "format/container.h"
#include "format/error.h"
#include "tests/tensor_floats.h"
#include "tests/tiny_checkpoint.h"

namespace pith::test {

// Two windows of the built-in text: enough for every step to run.
inline ConvertOptions options_for(const TinyCheckpoint& checkpoint, double bits) {
  ConvertOptions options;
  options.output = checkpoint.output();
  options.bits = bits;
  options.n_threads = 1;
  options.calibration_files = {kBuiltinText};
  options.calibration_tokens = 512;
  options.device = "cpu";
  return options;
}

// The message of a conversion that must fail, and that it left nothing.
inline std::string failure(const TinyCheckpoint& checkpoint, const ConvertOptions& options) {
  checkpoint.write();
  try {
    convert(checkpoint.model_dir(), options);
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message.find('\n') == std::string::npos);
    CHECK(checkpoint.leftovers().empty());
    return message;
  }
  FAIL("the conversion succeeded");
  return "";
}
inline std::string failure(const TinyCheckpoint& checkpoint, double bits = 16) {
  return failure(checkpoint, options_for(checkpoint, bits));
}

// Runs body in a child; its exit code, or -signal.
template <typename Body>
int in_child(Body&& body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace pith::test
