// What the two halves of `pith eval` share: the text (eval.cpp) and the zero-shot tasks (eval_task.cpp).
#pragma once
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/cli/cli.h"

namespace pith::cli {

struct EvalCommand {
  std::string file, against;
  bool json = false;
  SessionFlags flags;
  std::string text;  // a text and its first tokens
  uint64_t max_tokens = 0;
  std::string task, data;  // or a task, its file and its first items
  uint64_t limit = 0;
  bool items = false;  // every item's scores
};

// NaN (a standard error from one window or item) is null in JSON.
inline nlohmann::json finite(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

// " +- 0.12" in lines, the figure `width` wide; nothing for NaN.
inline std::string plus_minus(double error, int n_digits, int width = 0) {
  return std::isfinite(error) ? fmt::format(" +- {:>{}.{}f}", error, width, n_digits) : "";
}

// The output of `pith eval --task`.
std::string evaluate_task_file(const EvalCommand& command);

}  // namespace pith::cli
