// Scoring the requests of a task one after another on a session that keeps what they have in common.
#include "runtime/evaluate_task.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "format/error.h"

namespace pith {
namespace {

struct Encoded {
  std::vector<int32_t> ids;
  uint32_t n_context = 0;  // ids before the continuation, at least 1
  bool has_bos = false;
};

Encoded encode(const Tokenizer& tokenizer, const TaskRequest& request) {
  const size_t n_kept = request.context.find_last_not_of(' ') + 1;  // npos + 1 is 0
  const std::string_view context = std::string_view(request.context).substr(0, n_kept);
  const std::string whole = request.context + request.continuation;
  Encoded encoded;
  int32_t first = tokenizer.first_id();
  if (first < 0 && context.empty() && !tokenizer.eos_ids().empty()) first = tokenizer.eos_ids().front();
  encoded.has_bos = first >= 0;
  if (encoded.has_bos) encoded.ids.push_back(first);
  const std::vector<int32_t> ids = tokenizer.encode(whole, {});
  encoded.ids.insert(encoded.ids.end(), ids.begin(), ids.end());
  const size_t n_context = (encoded.has_bos ? 1 : 0) + tokenizer.encode(context, {}).size();
  // A continuation that merged into the context's last token is that token.
  encoded.n_context =
      static_cast<uint32_t>(std::clamp<size_t>(n_context, 1, std::max<size_t>(encoded.ids.size(), 2) - 1));
  return encoded;
}

// Takes what is too much for n_ctx from the start of the context. The last id is only predicted, never run.
bool truncate(Encoded& encoded, uint32_t n_ctx, const std::string& where) {
  const size_t n_most = size_t{n_ctx} + 1;
  if (encoded.ids.size() <= n_most) return false;
  const size_t n_drop = encoded.ids.size() - n_most, first = encoded.has_bos ? 1 : 0;
  if (n_drop > encoded.n_context - first || n_drop >= encoded.n_context)
    throw_error(ErrorCode::kContextFull, "{}: an answer of {} tokens, expected at most {}, the context",
                where, encoded.ids.size() - encoded.n_context, n_ctx);
  const auto begin = encoded.ids.begin() + static_cast<ptrdiff_t>(first);
  encoded.ids.erase(begin, begin + static_cast<ptrdiff_t>(n_drop));
  encoded.n_context -= static_cast<uint32_t>(n_drop);
  return true;
}

RequestScore score(Session& session, const Encoded& encoded, uint64_t& n_run) {
  RequestScore result;
  result.is_greedy = true;
  const std::span<const int32_t> run = std::span(encoded.ids).first(encoded.ids.size() - 1);
  n_run +=
      session.logits_after(run, encoded.n_context - 1, [&](uint32_t position, std::span<const float> logits) {
        const size_t target = static_cast<size_t>(encoded.ids[position + 1]);
        const auto top = std::max_element(logits.begin(), logits.end());
        double sum = 0;
        for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - *top);
        result.log_likelihood += logits[target] - *top - std::log(sum);
        result.is_greedy &= static_cast<size_t>(top - logits.begin()) == target;
        ++result.n_tokens;
      });
  if (!std::isfinite(result.log_likelihood)) throw_error(ErrorCode::kInternal, "logits are not finite");
  return result;
}

// The index of the largest, the first of equals.
template <typename Value>
uint32_t best_of(size_t n, Value&& value) {
  uint32_t best = 0;
  for (uint32_t i = 1; i < n; ++i)
    if (value(i) > value(best)) best = i;
  return best;
}

void count(Accuracy& accuracy, bool is_right) {
  ++accuracy.n_items;
  accuracy.n_right += is_right;
}

}  // namespace

double Accuracy::value() const {
  return static_cast<double>(n_right) / static_cast<double>(n_items);
}

double Accuracy::standard_error() const {
  if (n_items < 2) return std::numeric_limits<double>::quiet_NaN();
  return std::sqrt(value() * (1 - value()) / static_cast<double>(n_items - 1));
}

TaskResult evaluate_task(const std::shared_ptr<const Model>& model, const Task& task,
                         const TaskOptions& options) {
  if (task.items.empty()) throw_error(ErrorCode::kInvalidArgument, "task {} has no items", task.name);
  // The longest text decides how much cache is taken, so all are tokenized first.
  std::vector<std::vector<Encoded>> texts;
  size_t longest = 2;
  for (const TaskItem& item : task.items) {
    std::vector<Encoded>& encoded = texts.emplace_back();
    for (const TaskRequest& request : item.requests) {
      encoded.push_back(encode(model->tokenizer(), request));
      if (encoded.back().ids.size() < 2)
        throw_error(ErrorCode::kInvalidArgument, "{}: a text of {} tokens, expected at least 2", item.where,
                    encoded.back().ids.size());
      longest = std::max(longest, encoded.back().ids.size());
    }
  }
  SessionOptions session_options = options.session;
  if (session_options.n_ctx == 0)
    session_options.n_ctx = static_cast<uint32_t>(std::min<size_t>(longest - 1, model->spec().max_context));
  Session session(model, session_options);

  TaskResult result;
  result.groups.resize(task.groups.size());
  double sum = 0, squares = 0, chance = 0;  // of the first request's log-likelihood
  for (size_t i = 0; i < task.items.size(); ++i) {
    const TaskItem& item = task.items[i];
    ItemScore& scores = result.items.emplace_back();
    for (Encoded& encoded : texts[i]) {
      result.n_truncated += truncate(encoded, session.n_ctx(), item.where);
      scores.requests.push_back(score(session, encoded, result.n_run));
      result.n_tokens += scores.requests.back().n_tokens;
    }
    const size_t n = scores.requests.size();
    scores.choice = best_of(n, [&](uint32_t r) { return scores.requests[r].log_likelihood; });
    scores.choice_norm = best_of(n, [&](uint32_t r) {
      return scores.requests[r].log_likelihood / std::max(item.requests[r].n_chars, 1u);
    });
    const bool is_right = task.completes ? scores.requests[0].is_greedy : scores.choice == item.answer;
    count(result.acc, is_right);
    count(result.groups[item.group], is_right);
    if (task.normalizes) count(result.acc_norm, scores.choice_norm == item.answer);
    sum += scores.requests[0].log_likelihood;
    squares += scores.requests[0].log_likelihood * scores.requests[0].log_likelihood;
    chance += 1.0 / static_cast<double>(n);
    if (options.progress) options.progress(i + 1, task.items.size());
  }
  const double n = static_cast<double>(task.items.size());
  if (task.completes) {
    result.ppl = std::exp(-sum / n);
    const double variance = std::max(0.0, squares - sum * sum / n) / (n - 1);
    result.ppl_se = n > 1 ? result.ppl * std::sqrt(variance / n) : std::numeric_limits<double>::quiet_NaN();
  } else {
    result.chance = chance / n;
  }
  return result;
}

double same_choices(const Task& task, const TaskResult& a, const TaskResult& b) {
  uint64_t n_same = 0;
  for (size_t i = 0; i < task.items.size(); ++i)
    n_same += task.completes ? a.items[i].requests[0].is_greedy == b.items[i].requests[0].is_greedy
                             : a.items[i].choice == b.items[i].choice;
  return static_cast<double>(n_same) / static_cast<double>(task.items.size());
}

}  // namespace pith
