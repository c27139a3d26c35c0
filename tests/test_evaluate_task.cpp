// Zero-shot tasks: what a file asks, what a session answers, and what is said of a file that is wrong.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <map>
#include <string>

#include "convert/converter.h"
#include "runtime/cli/task_data.h"
#include "runtime/evaluate_task.h"
#include "temp_folder.h"
#include "tiny_checkpoint.h"

using namespace pith;
using cli::read_task;

namespace {

// A tiny model whose tokens are bytes, with a context of 256. Made once.
struct Tiny {
  test::TinyCheckpoint checkpoint;
  std::shared_ptr<const Model> model;

  explicit Tiny(bool with_bos) {
    checkpoint.write();
    std::ofstream(checkpoint.model_dir() + "/tokenizer_config.json")
        << nlohmann::json{{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"add_bos_token", with_bos}}.dump();
    ConvertOptions options;
    options.output = checkpoint.output();
    options.bits = 16;
    convert(checkpoint.model_dir(), options);
    model = Model::open(options.output);
    REQUIRE((model->tokenizer().first_id() >= 0) == with_bos);
  }
};

std::shared_ptr<const Model> tiny_model(bool with_bos = true) {
  static const Tiny with(true), without(false);
  return with_bos ? with.model : without.model;
}

constexpr const char* kHellaswag =
    "A man sits. he\n1\nstands up.\nis na\xc3\xafve.\nflies.\nfalls off.\n"
    "A dog runs. it\n3\nbarks.\nsleeps.\nreads a book.\neats.\n";
constexpr const char* kArc =
    R"({"centerpiece": "What is wet?", "options": ["Sand", "Water", "Fire"], "correct_options_idx": [1]})"
    "\n";
constexpr const char* kWinogrande =
    R"({"centerpiece": "Ann fed Sue, so _  was full.", "options": ["Ann", "Sue"], "correct_options_idx": [1]})"
    "\n";
constexpr const char* kPiqa = R"({"goal": "Dry a cup.", "sol1": "Use a towel.", "sol2": "Use a hose."})"
                              "\n";
constexpr const char* kLambada = R"({"text": "She called her dog, but no dog"})"
                                 "\n";
constexpr const char* kBlimp =
    R"({"sentence_good": "Dogs bark.", "sentence_bad": "Dogs barks.", "UID": "agreement"})"
    "\n"
    R"({"sentence_good": "A cat sleeps.", "sentence_bad": "A cat sleep.", "UID": "agreement"})"
    "\n";

// log p(ids[i] | ids[0 .. i)) from a session of its own over the whole text, and whether ids[i] was the likeliest.
RequestScore naive_score(const std::shared_ptr<const Model>& model, const std::vector<int32_t>& ids,
                         size_t n_context) {
  Session session(model, {});
  RequestScore result;
  result.is_greedy = true;
  session.logits_of_all(ids, [&](uint32_t i, std::span<const float> logits) {
    if (i + 1 < n_context || i + 1 == ids.size()) return;
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    const float own = logits[static_cast<size_t>(ids[i + 1])];
    result.log_likelihood += own - std::log(sum);
    result.is_greedy &= own == *std::max_element(logits.begin(), logits.end());
    ++result.n_tokens;
  });
  return result;
}

std::vector<int32_t> ids_of(const Model& model, const std::string& text, int32_t first) {
  std::vector<int32_t> ids = model.tokenizer().encode(text, {});
  if (first >= 0) ids.insert(ids.begin(), first);
  return ids;
}

// The item of one context with these continuations.
Task task_of(const std::string& context, const std::vector<std::string>& continuations) {
  Task task;
  task.name = "test";
  task.groups = {"test"};
  task.normalizes = true;
  TaskItem& item = task.items.emplace_back();
  item.where = "test:1";
  for (const std::string& text : continuations)
    item.requests.push_back({context, text, static_cast<uint32_t>(text.size())});
  return task;
}

}  // namespace

TEST_CASE("each task's file becomes its published question") {
  const test::TempFolder folder;
  const auto requests = [](const TaskItem& item) {
    std::vector<std::pair<std::string, std::string>> texts;
    for (const TaskRequest& request : item.requests)
      texts.emplace_back(request.context, request.continuation);
    return texts;
  };
  using Texts = std::vector<std::pair<std::string, std::string>>;

  const Task hellaswag = read_task("hellaswag", folder.write("h.txt", kHellaswag), 0);
  REQUIRE(hellaswag.items.size() == 2);
  CHECK(requests(hellaswag.items[0]) == Texts{{"A man sits. he", " stands up."},
                                              {"A man sits. he", " is na\xc3\xafve."},
                                              {"A man sits. he", " flies."},
                                              {"A man sits. he", " falls off."}});
  CHECK(hellaswag.items[0].answer == 1);
  CHECK(hellaswag.items[0].requests[1].n_chars == 9);  // not bytes, not the blank
  CHECK(hellaswag.items[1].answer == 3);
  CHECK(hellaswag.items[1].where == folder / "h.txt" + ":7");
  CHECK(hellaswag.normalizes);

  for (const char* name : {"arc-easy", "arc-challenge"}) {
    const Task arc = read_task(name, folder.write("a.json", kArc), 0);
    CHECK(requests(arc.items.at(0)) == Texts{{"Question: What is wet?\nAnswer:", " Sand"},
                                             {"Question: What is wet?\nAnswer:", " Water"},
                                             {"Question: What is wet?\nAnswer:", " Fire"}});
    CHECK(arc.items[0].answer == 1);
    CHECK(arc.normalizes);
  }

  const Task winogrande = read_task("winogrande", folder.write("w.json", kWinogrande), 0);
  CHECK(requests(winogrande.items.at(0)) ==
        Texts{{"Ann fed Sue, so Ann", " was full."}, {"Ann fed Sue, so Sue", " was full."}});
  CHECK(winogrande.items[0].answer == 1);

  folder.write("p-labels.lst", "1\n");
  const Task piqa = read_task("piqa", folder.write("p.jsonl", kPiqa), 0);
  CHECK(requests(piqa.items.at(0)) == Texts{{"Question: Dry a cup.\nAnswer:", " Use a towel."},
                                            {"Question: Dry a cup.\nAnswer:", " Use a hose."}});
  CHECK(piqa.items[0].answer == 1);

  const Task lambada = read_task("lambada", folder.write("l.jsonl", kLambada), 0);
  CHECK(requests(lambada.items.at(0)) == Texts{{"She called her dog, but no", " dog"}});
  CHECK(lambada.completes);

  folder.write("b/one.jsonl", kBlimp);
  folder.write("b/two.jsonl", R"({"sentence_good": "I am.", "sentence_bad": "I is.", "UID": "other"})");
  folder.write("b/notes.txt", "not read");
  const Task blimp = read_task("blimp", folder / "b", 0);
  REQUIRE(blimp.items.size() == 3);
  CHECK(blimp.groups == std::vector<std::string>{"agreement", "other"});
  CHECK(requests(blimp.items[1]) == Texts{{"", "A cat sleeps."}, {"", "A cat sleep."}});
  CHECK(blimp.items[1].group == 0);
  CHECK(blimp.items[2].group == 1);
  CHECK(blimp.items[2].answer == 0);
  // The limit is of a file.
  CHECK(read_task("blimp", folder / "b", 1).items.size() == 2);
  CHECK(read_task("hellaswag", folder / "h.txt", 1).items.size() == 1);
}

TEST_CASE("a fault of a task's file is named with its line, what was expected and what was found") {
  const test::TempFolder folder;
  struct Case {
    const char *task, *text;
    std::vector<std::string> words;
  };
  const std::string arc_text = kArc;
  const Case cases[] = {
      {"arc-easy", "", {"empty"}},
      {"arc-easy", "{\"centerpiece\": \"x\"\n", {":1:", "JSON"}},
      {"arc-easy", "[1]\n", {":1:", "array", "expected an object"}},
      {"arc-easy", "\xff\n", {":1:", "UTF-8"}},
      {"arc-easy", "BZh91AY", {"compressed", "bunzip2"}},
      {"arc-easy", "PK\x03\x04 ", {"compressed", "unzip"}},
      {"arc-easy", "\x1f\x8b ", {"compressed", "gunzip"}},
      {"arc-easy",
       R"({"options": ["a", "b"], "correct_options_idx": [0]})",
       {":1:", "'centerpiece' is missing"}},
      {"arc-easy",
       R"({"centerpiece": "", "options": ["a", "b"], "correct_options_idx": [0]})",
       {":1:", "'centerpiece'", "not empty"}},
      {"arc-easy",
       R"({"centerpiece": "x", "options": ["a", 5], "correct_options_idx": [0]})",
       {":1:", "'options' holds 5"}},
      {"arc-easy",
       R"({"centerpiece": "x", "options": ["a"], "correct_options_idx": [0]})",
       {":1:", "1 options, expected at least 2"}},
      {"arc-easy",
       R"({"centerpiece": "x", "options": "ab", "correct_options_idx": [0]})",
       {":1:", "'options' is \"ab\", expected a list"}},
      {"arc-easy",
       R"({"centerpiece": "x", "options": ["a", "b"], "correct_options_idx": [2]})",
       {":1:", "'correct_options_idx' is [2]", "below 2"}},
      {"arc-easy",
       R"({"centerpiece": "x", "options": ["a", "b"], "correct_options_idx": [-1]})",
       {":1:", "[-1]"}},
      {"arc-easy",
       R"({"centerpiece": "x", "options": ["a", "b"], "correct_options_idx": []})",
       {":1:", "[]"}},
      {"arc-easy", R"({"centerpiece": "x", "centerpiece": "y"})", {":1:", "twice"}},
      {"winogrande",
       R"({"centerpiece": "no blank", "options": ["a", "b"], "correct_options_idx": [0]})",
       {":1:", "0 blanks", "expected 1"}},
      {"winogrande",
       R"({"centerpiece": "_ and _.", "options": ["a", "b"], "correct_options_idx": [0]})",
       {":1:", "2 blanks"}},
      {"winogrande",
       R"({"centerpiece": "It is _ ", "options": ["a", "b"], "correct_options_idx": [0]})",
       {":1:", "nothing after the blank"}},
      {"winogrande",
       R"({"centerpiece": "_ x", "options": ["a", "b", "c"], "correct_options_idx": [0]})",
       {":1:", "3 options, expected 2"}},
      {"hellaswag", "a\n0\nb\nc\nd\n", {":1:", "5 lines are left, expected 6"}},
      {"hellaswag", "a\n4\nb\nc\nd\ne\n", {":2:", "'4'", "0 to 3"}},
      {"hellaswag", "a\n00\nb\nc\nd\ne\n", {":2:", "'00'"}},
      {"hellaswag", "a\n0\nb\n\nd\ne\n", {":4:", "empty"}},
      {"lambada", R"({"text": "word"})", {":1:", "a blank and a word"}},
      {"lambada", R"({"text": "word "})", {":1:", "a blank and a word"}},
      {"lambada", R"({"text": " word"})", {":1:", "a blank and a word"}},
      {"blimp", R"({"sentence_good": "a", "UID": "x"})", {":1:", "'sentence_bad' is missing"}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.task, c.text);
    const std::string path = folder.write("bad", c.text);
    try {
      read_task(c.task, path, 0);
      FAIL("accepted");
    } catch (const Error& error) {
      const std::string message = error.what();
      CAPTURE(message);
      CHECK(error.code() == ErrorCode::kFormat);
      CHECK(message.starts_with(path));
      CHECK(message.find('\n') == std::string::npos);
      for (const std::string& word : c.words) CHECK(message.find(word) != std::string::npos);
    }
  }
  // A bad line is named even behind good ones, and not met when the limit ends before it.
  const std::string late = folder.write("late.json", arc_text + "{}\n");
  CHECK_THROWS_WITH(read_task("arc-easy", late, 0), Catch::Contains(late + ":2:"));
  CHECK_NOTHROW(read_task("arc-easy", late, 1));

  const std::string piqa = folder.write("p.jsonl", std::string(kPiqa) + kPiqa);
  CHECK_THROWS_WITH(read_task("piqa", piqa, 0),
                    Catch::Contains("p-labels.lst: no such file, expected the labels of " + piqa));
  for (const auto& [labels, found] : {std::pair("0\n", "1 labels"), std::pair("0\n1\n1\n0\n", "4 labels")}) {
    folder.write("p-labels.lst", labels);
    for (const uint64_t n_limit : {0, 1})
      CHECK_THROWS_WITH(
          read_task("piqa", piqa, n_limit),
          Catch::Contains(found) && Catch::Contains("expected 2, one for each item of " + piqa));
  }
  folder.write("p-labels.lst", "0\n2\n");
  CHECK_THROWS_WITH(read_task("piqa", piqa, 0), Catch::Contains("p-labels.lst:2: '2', expected 0 or 1"));

  folder.write("empty/x.txt", "");
  CHECK_THROWS_WITH(read_task("blimp", folder / "empty", 0), Catch::Contains("without a .jsonl"));
  CHECK_THROWS_WITH(read_task("chess", folder / "late.json", 0), Catch::Contains("winogrande"));
}

TEST_CASE("scores of requests are those of each text run alone") {
  const auto model = tiny_model();
  const std::string context = "The quick brown fox jumps over the lazy";
  // The first and the last are the context's own start again: most of a request is shared, and then it is not.
  const std::vector<std::string> continuations = {" dog", " dogs and cats", " dot", "!"};
  const Task task = task_of(context, continuations);
  TaskOptions options;
  options.session.prefill_chunk = GENERATE(1u, 7u, 128u);
  const TaskResult result = evaluate_task(model, task, options);
  const int32_t bos = model->tokenizer().bos_id();
  uint64_t n_scored = 0;
  for (size_t i = 0; i < continuations.size(); ++i) {
    const RequestScore expected = naive_score(model, ids_of(*model, context + continuations[i], bos),
                                              ids_of(*model, context, bos).size());
    CHECK(result.items[0].requests[i].n_tokens == expected.n_tokens);
    CHECK(result.items[0].requests[i].log_likelihood == Approx(expected.log_likelihood).margin(1e-9));
    CHECK(result.items[0].requests[i].is_greedy == expected.is_greedy);
    n_scored += expected.n_tokens;
  }
  CHECK(result.n_tokens == n_scored);
  // The context ran once: all but its last token (whose logits each request needs) are kept.
  CHECK(result.n_run == ids_of(*model, context, bos).size() - 1 + n_scored);
}

TEST_CASE("without a BOS, texts begin with nothing, and texts without context with the end token") {
  const auto model = tiny_model(false);
  REQUIRE(model->tokenizer().eos_ids() == std::vector<int32_t>{2});
  const TaskResult with_context = evaluate_task(model, task_of("ab", {" cd"}), {});
  const RequestScore expected =
      naive_score(model, ids_of(*model, "ab cd", -1), ids_of(*model, "ab", -1).size());
  CHECK(with_context.items[0].requests[0].log_likelihood == Approx(expected.log_likelihood).margin(1e-9));
  const TaskResult alone = evaluate_task(model, task_of("", {"ab cd"}), {});
  const RequestScore whole = naive_score(model, ids_of(*model, "ab cd", 2), 1);
  CHECK(alone.items[0].requests[0].log_likelihood == Approx(whole.log_likelihood).margin(1e-9));
  CHECK(alone.items[0].requests[0].n_tokens == whole.n_tokens);
}

TEST_CASE("blanks at the end of a context belong to the continuation") {
  const auto model = tiny_model();
  const TaskResult ends = evaluate_task(model, task_of("ab  ", {"cd"}), {});
  const TaskResult begins = evaluate_task(model, task_of("ab", {"  cd"}), {});
  CHECK(ends.items[0].requests[0].n_tokens == begins.items[0].requests[0].n_tokens);
  CHECK(ends.items[0].requests[0].log_likelihood == begins.items[0].requests[0].log_likelihood);
}

TEST_CASE("accuracy counts the likeliest answer, acc_norm the likeliest per character") {
  const auto model = tiny_model();
  // One item of different lengths: log-likelihoods fall with length, those per character need not.
  Task task = task_of("Say", {" a", " the longest of the answers"});
  const TaskResult first = evaluate_task(model, task, {});
  const auto& scores = first.items[0].requests;
  REQUIRE(scores[0].log_likelihood > scores[1].log_likelihood);
  CHECK(first.items[0].choice == 0);
  const double per_char[] = {scores[0].log_likelihood / 2, scores[1].log_likelihood / 27};
  CHECK(first.items[0].choice_norm == (per_char[1] > per_char[0] ? 1 : 0));
  CHECK(first.chance == 0.5);

  // Three items with one right: 1/3 with the standard error of three Bernoulli draws.
  task.items.push_back(task.items[0]);
  task.items.push_back(task.items[0]);
  task.items[1].answer = task.items[2].answer = 1;
  task.groups = {"a", "b"};
  task.items[2].group = 1;
  const TaskResult result = evaluate_task(model, task, {});
  CHECK(result.acc.n_items == 3);
  CHECK(result.acc.n_right == 1);
  CHECK(result.acc.value() == Approx(1.0 / 3));
  CHECK(result.acc.standard_error() == Approx(std::sqrt(2.0 / 9 / 2)));
  CHECK(result.groups[0].n_items == 2);
  CHECK(result.groups[0].n_right == 1);
  CHECK(result.groups[1].n_right == 0);
  CHECK(std::isnan(result.groups[1].standard_error()));
  CHECK(same_choices(task, result, result) == 1);
  TaskResult other = result;
  other.items[2].choice = 1;
  CHECK(same_choices(task, result, other) == Approx(2.0 / 3));
}

TEST_CASE("a completion is right when greedy decoding gives it, and its perplexity is per text") {
  const auto model = tiny_model();
  const int32_t bos = model->tokenizer().bos_id();
  // What the model itself says after the context, as far as it is text.
  const std::string context = "Once upon";
  Session session(model, {});
  std::vector<int32_t> ids = ids_of(*model, context, bos);
  session.sync(ids);
  const auto logits = session.logits();
  int32_t likeliest = 3 + ' ';  // of the printable bytes; tokens of bytes begin at 3
  for (int32_t id = 3 + ' '; id < 3 + 127; ++id)
    if (logits[static_cast<size_t>(id)] > logits[static_cast<size_t>(likeliest)]) likeliest = id;
  const bool is_top =
      logits[static_cast<size_t>(likeliest)] == *std::max_element(logits.begin(), logits.end());

  Task task = task_of(context, {std::string(1, static_cast<char>(likeliest - 3))});
  task.completes = true;
  TaskItem unlikely = task.items[0];
  unlikely.requests[0].continuation = "#~#~#~";
  task.items.push_back(unlikely);
  const TaskResult result = evaluate_task(model, task, {});
  CHECK(result.items[0].requests[0].is_greedy == is_top);
  CHECK_FALSE(result.items[1].requests[0].is_greedy);
  CHECK(result.acc.n_right == (is_top ? 1 : 0));
  const double a = result.items[0].requests[0].log_likelihood, b = result.items[1].requests[0].log_likelihood;
  CHECK(result.ppl == Approx(std::exp(-(a + b) / 2)));
  CHECK(result.ppl_se == Approx(result.ppl * std::abs(a - b) / 2));  // of two values
  CHECK(result.chance == 0);
}

TEST_CASE("a text longer than the context loses the start of its context, and the BOS stays") {
  const auto model = tiny_model();
  const int32_t bos = model->tokenizer().bos_id();
  const std::string context = "0123456789abcdefghijklmnopqrstuvwxyz", answer = " ABC";
  Task task = task_of(context, {answer});
  TaskOptions options;
  options.session.n_ctx = 16;
  const TaskResult result = evaluate_task(model, task, options);
  CHECK(result.n_truncated == 1);
  std::vector<int32_t> ids = ids_of(*model, context + answer, bos);
  ids.erase(ids.begin() + 1, ids.end() - 16);  // 17 ids stay: the last is predicted, never run
  const RequestScore expected = naive_score(model, ids, 17 - answer.size());
  CHECK(result.items[0].requests[0].log_likelihood == Approx(expected.log_likelihood).margin(1e-9));
  CHECK(result.items[0].requests[0].n_tokens == answer.size());
  CHECK(evaluate_task(model, task, {}).n_truncated == 0);

  // One token of the context must be left to predict from: the BOS will do.
  options.session.n_ctx = 4;
  CHECK(evaluate_task(model, task, options).items[0].requests[0].n_tokens == 4);
  options.session.n_ctx = 3;
  CHECK_THROWS_WITH(evaluate_task(model, task, options),
                    Catch::Contains("test:1") && Catch::Contains("4 tokens") && Catch::Contains("at most 3"));
}

TEST_CASE("a task without items, or with an empty text, is refused") {
  Task task;
  task.name = "none";
  CHECK_THROWS_WITH(evaluate_task(tiny_model(), task, {}), Catch::Contains("none"));
  CHECK_THROWS_WITH(evaluate_task(tiny_model(), task_of("", {""}), {}), Catch::Contains("test:1"));
}

TEST_CASE("a session scores from a position on and keeps what it had before it") {
  const auto model = tiny_model();
  SessionOptions options;
  options.prefill_chunk = 5;
  Session session(model, options), fresh(model, options);
  const std::vector<int32_t> ids = ids_of(*model, "some text that is longer than a chunk", 1);
  std::vector<std::vector<float>> all;
  fresh.logits_of_all(
      ids, [&](uint32_t, std::span<const float> row) { all.emplace_back(row.begin(), row.end()); });
  std::vector<uint32_t> seen;
  const auto check = [&](uint32_t i, std::span<const float> row) {
    seen.push_back(i);
    CHECK(std::equal(row.begin(), row.end(), all[i].begin(), all[i].end()));  // bit for bit
  };
  const uint32_t n = static_cast<uint32_t>(ids.size());
  CHECK(session.logits_after(ids, 12, check) == n);
  CHECK(seen.size() == n - 12);
  CHECK(seen.front() == 12);
  CHECK(seen.back() == n - 1);
  CHECK(session.tokens() == ids);
  CHECK(session.logits_after(ids, 20, check) == n - 20);
  CHECK(session.logits_after(ids, n - 1, check) == 1);
  std::vector<int32_t> changed = ids;
  changed[8] = 99;
  CHECK(session.logits_after(changed, 20, [](uint32_t, std::span<const float>) {}) == n - 8);
  CHECK_THROWS_WITH(session.logits_after(ids, n, check), Catch::Contains("expected more than"));
}
