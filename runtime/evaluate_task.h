// Zero-shot tasks: which of several texts a model finds most likely. Reading the files is cli/task_data.h.
//
// An item is a few requests, each a context and its continuation. The log-likelihood of a request is the sum over the
// continuation's tokens, natural logarithms, as EleutherAI's lm-evaluation-harness has it: context and continuation are
// tokenized together, and the tokens after as many as the context alone has are the continuation's; blanks at the context's
// end belong to the continuation; a text begins with BOS where the model wants one. With an empty context and no BOS the
// end token stands before the text, so that its first token is predicted too.
// A request that is longer than the session's context loses tokens at the start of its context (BOS stays).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/model.h"
#include "runtime/session.h"

namespace pith {

struct TaskRequest {
  std::string context, continuation;
  uint32_t n_chars = 0;  // what acc_norm divides by: code points of the answer, without the blank before it
};

struct TaskItem {
  std::vector<TaskRequest> requests;
  uint32_t answer = 0;  // index of the right request
  uint32_t group = 0;   // index in Task::groups
  std::string where;    // "file:line"
};

struct Task {
  std::string name;
  std::vector<std::string> groups;  // of items that get their own figure (BLiMP's phenomena); may be one
  std::vector<TaskItem> items;
  bool normalizes = false;  // acc_norm is one of its figures
  bool completes = false;   // one request an item: right when greedy decoding gives it (LAMBADA)
};

struct RequestScore {
  double log_likelihood = 0;
  uint32_t n_tokens = 0;   // of the continuation
  bool is_greedy = false;  // every one of them was the most likely
};

struct ItemScore {
  std::vector<RequestScore> requests;
  uint32_t choice = 0, choice_norm = 0;  // largest log-likelihood, and per character; the first of equals
};

// A share with the standard error of a mean of zeros and ones; NaN with a single item.
struct Accuracy {
  uint64_t n_items = 0, n_right = 0;
  double value() const;
  double standard_error() const;
};

struct TaskResult {
  std::vector<ItemScore> items;
  Accuracy acc, acc_norm;        // acc_norm only where the task normalizes
  std::vector<Accuracy> groups;  // acc of each group
  double ppl = 0, ppl_se = 0;    // of the continuations, only where the task completes; se to first order
  double chance = 0;             // acc of a blind guess; 0 where the task completes
  uint64_t n_tokens = 0;         // of all continuations
  uint64_t n_truncated = 0;      // requests that lost tokens of their context
  uint64_t n_run = 0;  // tokens that went through the model; the rest was shared with the request before
};

struct TaskOptions {
  SessionOptions session;  // n_ctx 0: what the longest item takes, at most the model's maximum
  std::function<void(uint64_t done, uint64_t total)> progress;  // after each item; may throw to stop
};

// Throws kInvalidArgument for a task without items, and kContextFull naming the item whose continuation alone does not fit.
TaskResult evaluate_task(const std::shared_ptr<const Model>& model, const Task& task,
                         const TaskOptions& options);

// The share of items on which both choose alike (a task that completes: where both are right or both are wrong).
double same_choices(const Task& task, const TaskResult& a, const TaskResult& b);

}  // namespace pith
