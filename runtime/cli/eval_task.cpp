// pith eval --task: zero-shot tasks, alone or beside a reference model.
#include <cmath>
#include <nlohmann/json.hpp>

#include "runtime/cli/eval.h"
#include "runtime/cli/task_data.h"
#include "runtime/cli/terminal.h"

namespace pith::cli {
namespace {

using Json = nlohmann::ordered_json;

void add(Json& out, const std::string& prefix, const Task& task, const TaskResult& result) {
  const auto share = [&](const std::string& name, const Accuracy& accuracy) {
    out[prefix + name] = accuracy.value();
    out[prefix + name + "_se"] = finite(accuracy.standard_error());
  };
  share("acc", result.acc);
  if (task.normalizes) share("acc_norm", result.acc_norm);
  if (!task.completes) return;
  out[prefix + "ppl"] = result.ppl;
  out[prefix + "ppl_se"] = finite(result.ppl_se);
}

Json items_json(const Task& task, const TaskResult& result) {
  Json list = Json::array();
  for (size_t i = 0; i < task.items.size(); ++i) {
    Json scores = Json::array(), greedy = Json::array();
    for (const RequestScore& request : result.items[i].requests) {
      scores.push_back(request.log_likelihood);
      greedy.push_back(request.is_greedy);
    }
    Json item = {{"where", task.items[i].where}, {"answer", task.items[i].answer}};
    item["choice"] = result.items[i].choice;
    if (task.normalizes) item["choice_norm"] = result.items[i].choice_norm;
    item["log_likelihoods"] = std::move(scores);
    item["greedy"] = std::move(greedy);
    list.push_back(std::move(item));
  }
  return list;
}

std::string to_json(const Task& task, const TaskResult& result, const TaskResult* reference, bool items) {
  Json out;
  out["task"] = task.name;
  out["items"] = task.items.size();
  add(out, "", task, result);
  if (!task.completes) out["chance"] = result.chance;
  out["scored_tokens"] = result.n_tokens;
  out["run_tokens"] = result.n_run;
  out["truncated"] = result.n_truncated;
  if (reference != nullptr) {
    add(out, "ref_", task, *reference);
    out["same_choice"] = same_choices(task, result, *reference);
  }
  if (task.groups.size() > 1) {
    out["groups"] = Json::object();
    for (size_t g = 0; g < task.groups.size(); ++g) {
      const Accuracy& acc = result.groups[g];
      out["groups"][task.groups[g]] = {
          {"items", acc.n_items}, {"acc", acc.value()}, {"acc_se", finite(acc.standard_error())}};
      if (reference != nullptr) out["groups"][task.groups[g]]["ref_acc"] = reference->groups[g].value();
    }
  }
  if (items) out["scores"] = items_json(task, result);
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string lines_of(const std::string& prefix, const Task& task, const TaskResult& result) {
  const auto share = [&](const char* name, const Accuracy& accuracy) {
    return fmt::format("{:<15} {:.2f}{} %\n", prefix + name, 100 * accuracy.value(),
                       plus_minus(100 * accuracy.standard_error(), 2));
  };
  std::string out = share("acc", result.acc);
  if (task.normalizes) out += share("acc_norm", result.acc_norm);
  if (task.completes)
    out += fmt::format("{:<15} {:.3f}{}\n", prefix + "ppl", result.ppl, plus_minus(result.ppl_se, 3));
  return out;
}

std::string to_lines(const Task& task, const TaskResult& result, const TaskResult* reference) {
  std::string out = fmt::format("task            {}\nitems           {}\n", task.name, task.items.size());
  out += lines_of("", task, result);
  if (!task.completes) out += fmt::format("chance          {:.2f} %\n", 100 * result.chance);
  if (reference != nullptr) {
    out += lines_of("reference ", task, *reference);
    out += fmt::format("same choice     {:.2f} %\n", 100 * same_choices(task, result, *reference));
  }
  if (result.n_truncated > 0)
    out += fmt::format("truncated       {} texts, to fit the context\n", result.n_truncated);
  if (task.groups.size() < 2) return out;
  out += fmt::format("\n{:<52} {:>5} {:>15}{}\n", "phenomenon", "items", "acc %",
                     reference != nullptr ? "   reference" : "");
  for (size_t g = 0; g < task.groups.size(); ++g) {
    const Accuracy& acc = result.groups[g];
    const std::string error = plus_minus(100 * acc.standard_error(), 2, 5);
    out += fmt::format("{:<52} {:>5} {:>6.2f}", task.groups[g], acc.n_items, 100 * acc.value());
    out += reference == nullptr ? error + "\n"
                                : fmt::format("{:<9}{:>12.2f}\n", error, 100 * reference->groups[g].value());
  }
  return out;
}

}  // namespace

std::string evaluate_task_file(const EvalCommand& command) {
  const Task task = read_task(command.task, command.data, command.limit);
  Progress progress("items");
  TaskOptions options;
  options.session = command.flags.session_options();
  std::string stage = task.name;  // another for the reference, whose time left is its own
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(stage, done, total); };
  const TaskResult result = evaluate_task(Model::open(command.file, command.flags.access()), task, options);
  TaskResult reference;
  if (!command.against.empty()) {
    stage = "reference " + task.name;
    reference = evaluate_task(Model::open(command.against, command.flags.access()), task, options);
  }
  progress.clear();
  const TaskResult* const beside = command.against.empty() ? nullptr : &reference;
  return command.json ? to_json(task, result, beside, command.items) : to_lines(task, result, beside);
}

}  // namespace pith::cli
