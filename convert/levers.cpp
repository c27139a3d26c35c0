// One table of levers and their words serves parsing, the presets and the text that a file keeps of them.
#include "convert/levers.h"

#include <fmt/ranges.h>

#include <charconv>
#include <optional>
#include <vector>

#include "format/error.h"

namespace pith {

namespace {

constexpr int kMaxDescent = 64;

// A lever and the words it takes: their index is the value.
struct Lever {
  const char* name;
  std::vector<const char*> words;
  void (*set)(Levers& levers, size_t value);
  size_t (*get)(const Levers& levers);
};

template <bool Levers::*kMember>
Lever on_off(const char* name) {
  return {name,
          {"off", "on"},
          [](Levers& levers, size_t value) { levers.*kMember = value == 1; },
          [](const Levers& levers) { return size_t{levers.*kMember}; }};
}

template <auto kMember>
Lever choice(const char* name, std::vector<const char*> words) {
  return {name, std::move(words),
          [](Levers& levers, size_t value) {
            levers.*kMember = static_cast<std::remove_reference_t<decltype(levers.*kMember)>>(value);
          },
          [](const Levers& levers) { return static_cast<size_t>(levers.*kMember); }};
}

const std::vector<Lever>& all_levers() {
  static const std::vector<Lever> all = {
      on_off<&Levers::search>("search"),
      {"minimum",
       {"integer", "free"},
       [](Levers& levers, size_t value) { levers.free_minimum = value == 1; },
       [](const Levers& levers) { return size_t{levers.free_minimum}; }},
      on_off<&Levers::compensate>("compensate"),
      {"hessian",
       {"plain", "shrunk"},
       [](Levers& levers, size_t value) { levers.shrunk_hessian = value == 1; },
       [](const Levers& levers) { return size_t{levers.shrunk_hessian}; }},
      on_off<&Levers::sort>("sort"),
      choice<&Levers::sensitivity>("sensitivity", {"random", "range", "diagonal", "inverse"}),
      choice<&Levers::outliers>("outliers", {"auto", "none", "coarse", "everywhere"}),
      choice<&Levers::outlier_choice>("outlier-by", {"error", "size"}),
      on_off<&Levers::correct>("correct"),
      on_off<&Levers::shrink>("shrink"),
      on_off<&Levers::head>("head"),
      choice<&Levers::budget>("budget", {"measured", "parts", "even"}),
      {"group",
       {"auto", "16", "32"},
       [](Levers& levers, size_t value) { levers.group = static_cast<uint32_t>(16 * value); },
       [](const Levers& levers) { return size_t{levers.group / 16}; }},
      on_off<&Levers::fine>("fine"),
  };
  return all;
}

void apply_one(std::string_view text, Levers& levers) {
  const size_t equals = std::min(text.find('='), text.size());
  const std::string_view name = text.substr(0, equals), word = text.substr(std::min(equals + 1, text.size()));
  if (name == "descent") {
    int rounds = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), rounds);
    if (error != std::errc() || end != word.data() + word.size() || rounds < 0 || rounds > kMaxDescent)
      throw_error(ErrorCode::kInvalidArgument, "--ablate descent={}: expected 0 to {}", word, kMaxDescent);
    levers.descent = rounds;
    return;
  }
  std::vector<const char*> names = {"descent"};
  for (const Lever& lever : all_levers()) {
    names.push_back(lever.name);
    if (name != lever.name) continue;
    for (size_t i = 0; i < lever.words.size(); ++i)
      if (word == lever.words[i]) return lever.set(levers, i);
    throw_error(ErrorCode::kInvalidArgument, "--ablate {}={}: expected {}", name, word,
                fmt::join(lever.words, ", "));
  }
  throw_error(ErrorCode::kInvalidArgument, "--ablate {}: expected LEVER=VALUE of {}", text,
              fmt::join(names, ", "));
}

}  // namespace

Levers Levers::paper() {
  Levers levers;
  levers.search = levers.free_minimum = levers.compensate = levers.shrunk_hessian = levers.sort =
      levers.correct = levers.head = false;
  levers.sensitivity = Sensitivity::kRange;
  levers.outliers = Outliers::kCoarse;
  levers.budget = Budget::kEven;
  levers.group = 16;
  levers.descent = 0;
  return levers;
}

void Levers::apply_to(QuantizeOptions& options) const {
  options.sensitivity = sensitivity;
  options.outliers = outliers == Outliers::kEverywhere ? OutlierPlace::kEverywhere : OutlierPlace::kCoarse;
  options.outlier_choice = outlier_choice;
  options.sort_columns = sort;
  options.search_scales = search;
  options.integer_zero = !free_minimum;
  options.compensate = compensate;
  if (!shrunk_hessian) options.shrinkage = 0;
  if (descent >= 0) options.descent_rounds = static_cast<uint32_t>(descent);
}

void apply_levers(std::string_view text, Levers& levers) {
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    apply_one(text.substr(0, comma), levers);
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
}

std::string describe(const Levers& levers) {
  std::string text = fmt::format("descent={}", levers.descent);
  for (const Lever& lever : all_levers())
    text += fmt::format(",{}={}", lever.name, lever.words[lever.get(levers)]);
  return text;
}

}  // namespace pith
