// The emulation that the CUDA kernels are tested with (cuda/simt_emulated.h) notices what it is there to notice.
#include <catch2/catch.hpp>
#include <stdexcept>

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

}  // namespace pith::cuda
