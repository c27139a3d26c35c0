// The emulation that the CUDA kernels are tested with (cuda/simt_emulated.h) notices what it is there to notice.
#include <catch2/catch.hpp>
#include <stdexcept>
#include <vector>

#include "cuda/simt.cuh"

namespace pith::cuda {

TEST_CASE("the emulation notices divergent collectives, deadlocks and reads before a wait") {
  const auto fails = [](const std::function<void(uint8_t*)>& body) {
    REQUIRE_THROWS_AS(emulation::run({1, 1, 32}, 256, body), std::runtime_error);
  };
  fails([](uint8_t*) {
    if (thread_index() < 16)
      sync_warp();
    else
      shuffle(1, 0);
  });
  fails([](uint8_t*) {
    if (thread_index() != 3) sync_block();
  });
  alignas(16) static const uint8_t source[16] = {1};
  emulation::run({1, 1, 32}, 1024, [](uint8_t* shared) {
    uint8_t* const to = shared + thread_index() * 16;
    async_copy16(to, source);
    if (to[0] == 1) emulation::fail("the copy was there before the wait");
    async_commit();
    async_wait<0>();
    if (to[0] != 1) emulation::fail("the copy was not there after the wait");
  });
}

namespace {

// One warpgroup: A [64, 16] of (row + 2 k), B [128, 16] of (column - k), written where the swizzle wants
// them, then multiplied.
enum class Mistake : uint8_t { kNone, kNoProxyFence, kNoFence, kEarlyStore, kOddRows, kEarlyRead };

void multiply_once(Mistake mistake, float* found) {
  emulation::run({1, 1, 128}, 3 * 8192, [&](uint8_t* shared) {
    const auto put = [&](uint32_t at, uint32_t row, uint32_t k, float v) {
      const uint32_t place = at + row * 128 + (((k / 8) ^ row % 8) * 16) + k % 8 * 2;
      store2(shared + place, f32_to_f16(v));
    };
    for (uint32_t k = 0; k < 16; ++k) {
      if (thread_index() < 64) put(0, thread_index(), k, static_cast<float>(thread_index() + 2 * k));
      put(8192, thread_index(), k, static_cast<float>(thread_index()) - static_cast<float>(k));
    }
    if (mistake != Mistake::kNoProxyFence) fence_async_proxy();
    sync_block();
    float c[16][4] = {};
    uint64_t a = matrix_descriptor(shared);
    if (mistake == Mistake::kOddRows) a += 128 / 16;
    if (mistake != Mistake::kNoFence) warpgroup_fence();
    warpgroup_mma(c, a, matrix_descriptor(shared + 8192));
    warpgroup_commit();
    if (mistake == Mistake::kEarlyStore) put(0, 0, 0, 99);
    if (mistake != Mistake::kEarlyRead) warpgroup_wait<0>();
    const uint32_t lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
    for (uint32_t n = 0; n < 16; ++n)
      for (uint32_t i = 0; i < 4; ++i)
        found[(thread_index() / kWarp * 16 + g + i / 2 * 8) * 128 + n * 8 + 2 * t + i % 2] = c[n][i];
    warpgroup_wait<0>();
  });
}

}  // namespace

TEST_CASE("the emulation's warpgroup products are right, and wrong where a fence, a wait or the layout is") {
  std::vector<float> found(64 * 128);
  const auto n_wrong = [&] {
    int n = 0;
    for (int row = 0; row < 64; ++row)
      for (int column = 0; column < 128; ++column) {
        float y = 0;
        for (int k = 0; k < 16; ++k) y += static_cast<float>((row + 2 * k) * (column - k));
        n += found[static_cast<size_t>(row * 128 + column)] != y;
      }
    return n;
  };
  multiply_once(Mistake::kNone, found.data());
  REQUIRE(n_wrong() == 0);
  multiply_once(Mistake::kNoProxyFence, found.data());
  REQUIRE(n_wrong() == 64 * 128);
  multiply_once(Mistake::kEarlyStore, found.data());
  REQUIRE(n_wrong() == 128);  // the row that was stored to
  multiply_once(Mistake::kEarlyRead, found.data());
  REQUIRE(n_wrong() == 64 * 128);
  REQUIRE_THROWS_WITH(multiply_once(Mistake::kNoFence, found.data()),
                      Catch::Contains("without a warpgroup_fence"));
  REQUIRE_THROWS_WITH(multiply_once(Mistake::kOddRows, found.data()), Catch::Contains("another form"));
}

}  // namespace pith::cuda
