// See did_you_mean.h.
#include "runtime/cli/did_you_mean.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <utility>

namespace pith::cli {

namespace {

// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j - 1] + (a[i - 1] != b[j - 1]), d[i - 1][j] + 1, d[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

// The options of llama.cpp, ollama and Hugging Face that people type from memory.
constexpr std::pair<const char*, const char*> kForeign[] = {
    {"--n-predict", "--tokens"},
    {"--predict", "--tokens"},
    {"--num-predict", "--tokens"},
    {"--num_predict", "--tokens"},
    {"--max-tokens", "--tokens"},
    {"--max-new-tokens", "--tokens"},
    {"-c", "--ctx"},
    {"--ctx-size", "--ctx"},
    {"--n-ctx", "--ctx"},
    {"--num-ctx", "--ctx"},
    {"--num_ctx", "--ctx"},
    {"--temperature", "--temp"},
    {"-s", "--seed"},
    {"--repetition-penalty", "--repeat-penalty"},
    {"-r", "--stop"},
    {"--reverse-prompt", "--stop"},
    {"-sys", "--system"},
    {"--system-prompt", "--system"},
    {"-cnv", "--chat"},
    {"--conversation", "--chat"},
    {"-st", "--once"},
    {"--single-turn", "--once"},
    {"--num-thread", "--threads"},
    {"--num_thread", "--threads"},
    {"-b", "--chunk"},
    {"-ub", "--chunk"},
    {"--batch-size", "--chunk"},
    {"--ubatch-size", "--chunk"},
    {"-ctk", "--kv"},
    {"-ctv", "--kv"},
    {"--cache-type-k", "--kv"},
    {"--cache-type-v", "--kv"},
    {"-dev", "--device"},
    {"-ngl", "--gpu-layers"},
    {"--n-gpu-layers", "--gpu-layers"},
    {"--num-gpu", "--gpu-layers"},
    {"--num_gpu", "--gpu-layers"},
};

}  // namespace

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  if (word.size() > 64 || word.size() <= 2)
    return "";  // no slip of a key; every short one is near to every other
  std::string best;
  size_t best_distance = std::max<size_t>(word.size() / 3, 1) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string our_name(const std::string& option, const std::vector<std::string>& candidates) {
  if (option == "-m" || option == "--model") return "takes the model's FILE without an option";
  for (const auto& [theirs, ours] : kForeign)
    if (option == theirs && std::find(candidates.begin(), candidates.end(), ours) != candidates.end())
      return fmt::format("calls it {}", ours);
  return "";
}

}  // namespace pith::cli
