// From logits to a token: penalties, then a chain of filters, then one draw. Same seed, same logits, same token.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace pith {

struct SamplerOptions {
  float temperature = 0;  // 0 = greedy
  uint32_t top_k = 0;     // 0 = off
  float top_p = 1;        // 1 = off
  float min_p = 0;        // 0 = off
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  uint32_t penalty_last_n = 64;  // tokens looked back
  uint64_t seed = 0;
};

// One option as it is named outside: what pith_set, pith_session_get, the flags and `/set` know of it. A new option is a
// member above and a row of the table.
struct SamplerOption {
  const char* key;  // "top_k"
  std::variant<float SamplerOptions::*, uint32_t SamplerOptions::*, uint64_t SamplerOptions::*> field;
  double low, high;   // allowed values; whole numbers begin at 0, and 64 bits are allowed whole
  const char* value;  // how the help names a value, "K"
  const char* help;
};
std::span<const SamplerOption> sampler_options();

// The option's value as text.
std::string sampler_option_text(const SamplerOptions& options, const SamplerOption& option);

// Sets one option from text, as `pith_set` and the command line do ("temp", "0.7"). Throws kInvalidArgument naming the
// key, the allowed range and what was found. other_keys: what else the caller takes, for the message ("ctx, threads, ").
void set_sampler_option(SamplerOptions& options, std::string_view key, std::string_view value,
                        std::string_view other_keys = "");

class Sampler {
 public:
  Sampler(const SamplerOptions& options, uint32_t vocab_size);
  // history: the timeline so far (penalties). Non-finite logits throw Error(kFormat): a model that makes them is damaged.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history);

 private:
  SamplerOptions options_;
  uint64_t rng_state_;
  struct Candidate {
    int32_t id;
    float value;
  };
  uint32_t vocab_size_;
  std::vector<Candidate> candidates_;  // scratch, [vocab_size]
  std::vector<uint32_t> counts_;       // scratch, [vocab_size], zero between calls

  float largest() const;
  void penalize(std::span<const int32_t> history);
  void keep_top_k();
  void keep_top_p();
  void keep_min_p();
  int32_t draw();
};

}  // namespace pith
