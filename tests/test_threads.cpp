// The thread pool's promises, and how many threads a session of changing fortune uses.
#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>

#include "runtime/thread_choice.h"
#include "runtime/thread_pool.h"

using namespace pith;

TEST_CASE("a thread pool deals out every item once, also when threads meet in different calls") {
  for (const auto& [n_threads, n_used] :
       {std::pair(1u, 1u), {2u, 2u}, {3u, 3u}, {8u, 8u}, {3u, 1u}, {8u, 3u}}) {
    ThreadPool pool(n_threads);
    pool.run([](uint32_t) {});
    pool.use(n_used);
    CHECK(pool.n_threads() == n_used);
    for (const uint32_t n_items : {0u, 1u, 2u, 7u, 1000u}) {
      std::vector<std::atomic<uint32_t>> n_done(n_items), n_done_next(n_items);
      pool.run([&](uint32_t thread) {
        pool.for_each(thread, n_items, [&](uint32_t item) { ++n_done[item]; });
        pool.for_each(thread, n_items, [&](uint32_t item) { ++n_done_next[item]; });  // no barrier between
      });
      CAPTURE(n_threads, n_used, n_items);
      CHECK(std::all_of(n_done.begin(), n_done.end(), [](const auto& n) { return n == 1; }));
      CHECK(std::all_of(n_done_next.begin(), n_done_next.end(), [](const auto& n) { return n == 1; }));
    }
  }
}

TEST_CASE("a thread pool runs what is asked for with all, some and one of its threads in turn") {
  ThreadPool pool(4);
  for (uint32_t i = 0; i < 300; ++i) {
    const uint32_t n_used = 1 + i * 7 % 4;
    std::atomic<uint32_t> called{0}, seen{0};
    pool.use(n_used);
    pool.run([&](uint32_t thread) {
      called |= 1u << thread;
      pool.barrier();
      if (called == (1u << n_used) - 1) ++seen;
    });
    REQUIRE(seen == n_used);
  }
}

TEST_CASE("fewer threads are chosen where stalls make them faster, more again when they are") {
  constexpr uint64_t kTurn = 20'000'000;  // ns
  struct Machine {
    double rate[5];  // by the number of threads
    bool stalls;
  };
  const Machine quiet = {{0, 1, 1.9, 0, 3.6}, false}, crowded = {{0, 0.6, 0.4, 0, 0.2}, true},
                uneven = {{0, 1, 1.9, 0, 3.6}, true};
  const auto run = [](ThreadChoice& choice, const Machine& machine, uint32_t n_turns) {
    uint32_t n_with_all = 0;
    for (uint32_t i = 0; i < n_turns; ++i) {
      const uint32_t n = choice.n_threads();
      n_with_all += n == 4;
      choice.record(machine.rate[n] * 1000, kTurn, machine.stalls ? kTurn / 2 * (n - 1) : 0);
    }
    return n_with_all;
  };
  ThreadChoice choice(4);
  CHECK(run(choice, quiet, 100) == 100);
  run(choice, crowded, 20);
  CHECK(choice.n_threads() <= 2);
  CHECK(run(choice, crowded, 1000) < 10);
  run(choice, quiet, 150);  // two trials, with patience between
  CHECK(choice.n_threads() == 4);
  CHECK(run(choice, quiet, 100) == 100);
  CHECK(run(choice, uneven, 1000) > 950);  // stalls that fewer threads do not mend

  ThreadChoice alone(1);
  run(alone, crowded, 10);
  CHECK(alone.n_threads() == 1);
}
