// Rows in parallel, their sums added in order: exponentials in float, everything that is added up in double.
#include "convert/divergence.h"

#include <algorithm>
#include <cmath>

#include "convert/parallel_for.h"

namespace pith {

namespace {

double log_sum_exp(const float* x, size_t n) {
  const double top = double{*std::max_element(x, x + n)};
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += double{std::exp(static_cast<float>(double{x[i]} - top))};
  return top + std::log(sum);
}

}  // namespace

void log_probabilities(std::vector<float>& logits, uint32_t vocab, uint32_t n_threads) {
  parallel_for(static_cast<uint32_t>(logits.size() / vocab), n_threads, [&](uint32_t t) {
    float* const row = logits.data() + size_t{t} * vocab;
    const double log_sum = log_sum_exp(row, vocab);
    for (uint32_t i = 0; i < vocab; ++i) row[i] = static_cast<float>(double{row[i]} - log_sum);
  });
}

void add_divergence(const std::vector<float>& log_p, const std::vector<float>& q_rows, uint32_t vocab,
                    const int32_t* next, uint32_t n_threads, Divergence& sums) {
  const uint32_t n = static_cast<uint32_t>(log_p.size() / vocab) - 1;
  struct Row {
    double kl, nll_p, nll_q;
  };
  std::vector<Row> rows(n);
  parallel_for(n, n_threads, [&](uint32_t t) {
    const float *p = log_p.data() + size_t{t} * vocab, *q = q_rows.data() + size_t{t} * vocab;
    const double log_q = log_sum_exp(q, vocab);
    const size_t id = static_cast<size_t>(next[t]);
    double kl = 0;
    for (size_t i = 0; i < vocab; ++i) kl += double{std::exp(p[i])} * (double{p[i]} - (double{q[i]} - log_q));
    rows[t] = {kl, -double{p[id]}, log_q - double{q[id]}};
  });
  for (const Row& row : rows) {
    sums.kl += row.kl;
    sums.nll_p += row.nll_p;
    sums.nll_q += row.nll_q;
  }
  sums.n_tokens += n;
}

}  // namespace pith
