// Kernels of whole tokens: embedding rows, norms; what the kernels' memory is filled with.
//
// Built twice: linked with the emulated device (bodies as C++, under ASan and UBSan in the sanitizer build),
// and into gpu_kernels with the real one (tests/gpu_check.sh). Outputs are poisoned before every launch.
#include <catch2/catch.hpp>
#include <chrono>
#include <thread>

#include "cuda_testing.h"

namespace pith::cuda {

TEST_CASE("embed equals the scalar decode of a row") {
  const Matrix m = random_matrix({50, 300, 16, 96, 2});
  const std::vector<int32_t> ids = {49, 0, 31, 32};
  const DeviceBuffer device_ids = to_device(ids), x = poisoned(ids.size() * 300);
  Embed args{};
  args.q24 = m.weights;
  args.ids = device_ids.as<int32_t>();
  args.x = x.as<float>();
  args.scale = 1;
  args.n_tokens = static_cast<uint32_t>(ids.size());
  launch_embed(args, how());
  const std::vector<float> found = to_host<float>(x, ids.size() * 300);
  std::vector<uint8_t> aligned(m.packed.size() + 128);
  uint8_t* const packed = aligned.data() + (128 - reinterpret_cast<uintptr_t>(aligned.data()) % 128);
  std::copy(m.packed.begin(), m.packed.end(), packed);
  const q24::View view = q24::make_view(m.unpacked.shape, packed);
  for (size_t t = 0; t < ids.size(); ++t) {
    std::vector<float> row(300);
    q24::dequantize_row(view, static_cast<uint32_t>(ids[t]), row.data());
    for (uint32_t c = 0; c < 300; ++c)
      REQUIRE(found[t * 300 + c] == Approx(row[c]).epsilon(1e-6).margin(1e-6));
  }
}

// Streams do not wait for the stream that fills. On a GPU a fill of this size takes longer than the copy
// behind it; before it is looked at, a fill that was still under way has had the time to end.
TEST_CASE("a buffer is filled when fill returns") {
  DeviceBuffer buffer(size_t{256} << 20);
  const std::vector<uint32_t> expected(64, 0x12345678);
  const size_t at = buffer.size_bytes() - expected.size() * 4;
  buffer.fill(0);
  stream().copy_to_device(buffer.data() + at, expected.data(), expected.size() * 4);
  stream().wait();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::vector<uint32_t> found(expected.size());
  stream().copy_to_host(found.data(), buffer.data() + at, found.size() * 4);
  stream().wait();
  CHECK(found == expected);
}

TEST_CASE("norm_tokens normalizes, scales and adds") {
  const std::vector<float> x = random_vector(2 * 100), norm = random_vector(100);
  const DeviceBuffer input = to_device(x), weights = to_device(norm),
                     out = to_device(std::vector<float>(200, 2.0f));
  launch_norm_tokens(
      {input.as<float>(), weights.as<float>(), 1e-5f, 0.5f, out.as<float>(), true, 100, 2, 100, 100}, how());
  const std::vector<float> found = to_host<float>(out, 200);
  for (uint32_t t = 0; t < 2; ++t) {
    double squares = 0;
    for (uint32_t c = 0; c < 100; ++c) squares += double{x[t * 100 + c]} * x[t * 100 + c];
    for (uint32_t c = 0; c < 100; ++c)
      REQUIRE(found[t * 100 + c] ==
              Approx(2 + 0.5 * x[t * 100 + c] / std::sqrt(squares / 100 + 1e-5) * norm[c]).margin(1e-5));
  }
}

}  // namespace pith::cuda
