// Parts of the C API that stand on their own: stop texts, the warning of too little memory.
#include <catch2/catch.hpp>

#include "runtime/capi.h"

using namespace pith;
using Catch::Matchers::Contains;

TEST_CASE(
    "a stop text is found however the stream is cut, and what only begins one is kept back and comes later") {
  const auto run = [](const std::vector<std::string>& stops, std::string_view text, size_t n_bytes_each) {
    StopTexts holder;
    for (const std::string& stop : stops) holder.add(stop);
    std::string out;
    bool found = false;
    for (size_t at = 0; at < text.size() && !found; at += n_bytes_each)
      out += holder.push(text.substr(at, n_bytes_each), found);
    return out + (found ? "|" : "") + holder.flush();
  };
  for (const size_t n : {1, 2, 3, 100}) {
    CAPTURE(n);
    CHECK(run({"ab"}, "xaab", n) == "xa|");
    CHECK(run({"aab"}, "xaaab", n) == "xa|");
    CHECK(run({"abc", "bx"}, "ababx", n) == "aba|");
    CHECK(run({"abc"}, "xabab", n) == "xabab");
    CHECK(run({}, "xabab", n) == "xabab");
    CHECK(run({"abcd", "bc"}, "xabcd", n) == "xa|");     // the one that ends first
    CHECK(run({"bc", "abc", "c"}, "xabcd", n) == "x|");  // of several that end there the longest
    CHECK(run({"cde", "bc", "abcde"}, "abcde", n) == "a|");
  }
  StopTexts holder;
  holder.add("User:");
  bool found = false;
  CHECK(holder.push("Hi.Us", found) == "Hi.");
  CHECK(holder.held() == "Us");
  CHECK(holder.push("a", found) == "Usa");
  CHECK_THROWS_WITH(holder.add(std::string(257, 'x')), Contains("stop: a text of 257 bytes"));
  CHECK_THROWS_WITH(holder.add("a\xc3"), "stop: byte 1 of 'a\\xc3' is not UTF-8");
  for (int i = 1; i < 16; ++i) holder.add("x");
  CHECK_THROWS_WITH(holder.add("x"), Contains("stop: more than 16 texts"));
  holder.add("");
  CHECK(holder.push("User:", found) == "User:");
}

TEST_CASE("a session that takes more memory than is free is warned of") {
  const MemoryPlan plan{.weights_bytes = 3'000'000'000,
                        .kv_bytes = 2'000'000'000,
                        .scratch_bytes = 1'000'000'000,
                        .gpu_bytes = 2'500'000'000,
                        .gpu_weights_bytes = 2'000'000'000};
  CHECK(capi::memory_warning(plan, 0, 3'500'000'000) == "");
  CHECK(capi::memory_warning(plan, 0, UINT64_MAX) == "");
  CHECK_THAT(capi::memory_warning(plan, 0, 3'400'000'000),
             Contains("takes 3.50 GB of memory") && Contains("3.40 are free"));
  CHECK(capi::memory_warning(plan, 3'000'000'000, 2'500'000'000) == "");
  CHECK(capi::memory_warning(plan, 600'000'000, 2'900'000'000) == "");
  CHECK_THAT(capi::memory_warning(plan, 600'000'000, 2'800'000'000), Contains("takes 2.90 GB of memory"));
  CHECK_THAT(capi::memory_warning(plan, 3'000'000'000, 2'400'000'000), Contains("takes 2.50 GB of memory"));
  const MemoryPlan on_gpu{.weights_bytes = 3'000'000'000,
                          .kv_bytes = 2'000'000'000,
                          .scratch_bytes = 1'000'000'000,
                          .gpu_bytes = 6'000'000'000,
                          .gpu_weights_bytes = 3'000'000'000};
  CHECK(capi::memory_warning(on_gpu, 0, 0) == "");
  CHECK(capi::memory_warning(on_gpu, 3'000'000'000, 0) == "");
}
