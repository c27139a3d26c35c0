// How far apart two models' predictions are, while a conversion runs (`pith eval` has its own, over sessions). Results do
// not depend on the number of threads.
#pragma once
#include <cstdint>
#include <vector>

namespace pith {

// Mean KL(p || q) in nats over rows of logits, and the mean NLL of `next` under each.
struct Divergence {
  double kl = 0, nll_p = 0, nll_q = 0;  // sums
  uint64_t n_tokens = 0;
};
// log_p: [n_tokens, vocab], log_probabilities of logits. q: logits, likewise. next: [n_tokens - 1], of all rows but the
// last, which is not counted.
void log_probabilities(std::vector<float>& logits, uint32_t vocab, uint32_t n_threads);  // in place
void add_divergence(const std::vector<float>& log_p, const std::vector<float>& q, uint32_t vocab,
                    const int32_t* next, uint32_t n_threads, Divergence& sums);

}  // namespace pith
