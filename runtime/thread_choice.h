// With how many threads to go on where other processes may want the same CPUs.
//
// Threads that meet after every matrix wait for the slowest. When the system gives one's CPU to somebody else, all stand
// still for its time slice, some milliseconds, again and again: two threads are then slower than one (a model of 4 MB on
// two cores, two busy processes beside it: 1,240 tokens/s instead of 4,760). No rule knows beforehand, so this tries:
// when threads slept at barriers for a fifth of the time, half as many get a turn, and the faster choice stays. While
// fewer than all work, more get a turn now and then. Without stalls nothing is ever tried, so a quiet machine pays nothing.
//
// Rates are compared over turns of 10 ms and more; one object for each kind of work (prompts, single tokens).
#pragma once
#include <algorithm>
#include <cstdint>

namespace pith {

class ThreadChoice {
 public:
  explicit ThreadChoice(uint32_t n_threads) : n_all_(n_threads), n_now_(n_threads) {}

  uint32_t n_threads() const { return n_now_; }

  // What a batch with n_threads() threads achieved: `work` in any unit, the time it took, and the time that its threads
  // slept at barriers, all together.
  void record(double work, uint64_t busy_ns, uint64_t stalled_ns) {
    if (n_all_ == 1) return;
    work_ += work;
    busy_ns_ += busy_ns;
    stalled_ns_ += stalled_ns;
    if (busy_ns_ < kTurnNs) return;
    const double rate = work_ / static_cast<double>(busy_ns_);
    if (n_before_ != 0)
      end_trial(rate);
    else if (n_turns_++ >= n_patience_)
      begin_trial(rate);
    work_ = 0;
    busy_ns_ = stalled_ns_ = 0;
  }

 private:
  static constexpr uint64_t kTurnNs = 10'000'000;
  static constexpr uint32_t kMaxPatience =
      64;  // turns: a trial that costs threefold time then takes 3 % of it

  void begin_trial(double rate) {
    uint32_t n = n_now_;
    if (n_now_ > 1 && stalled_ns_ * 5 > busy_ns_ * (n_now_ - 1))
      n = n_now_ / 2;
    else if (n_now_ < n_all_)
      n = std::min(n_now_ * 2, n_all_);
    if (n == n_now_) return;
    n_before_ = n_now_;
    n_now_ = n;
    rate_before_ = rate;
  }

  void end_trial(double rate) {
    const bool better = rate > rate_before_ * 1.05;
    if (!better) n_now_ = n_before_;
    n_patience_ = better ? 2 : std::min(n_patience_ * 2 + 2, kMaxPatience);
    n_before_ = n_turns_ = 0;
  }

  const uint32_t n_all_;
  uint32_t n_now_, n_before_ = 0;  // before the trial under way; 0: there is none
  double rate_before_ = 0, work_ = 0;
  uint64_t busy_ns_ = 0, stalled_ns_ = 0;
  uint32_t n_turns_ = 0, n_patience_ = 0;  // since the last trial; before the next
};

}  // namespace pith
