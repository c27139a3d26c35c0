// count_kernel KERNELS TOKENS ROUNDS: multiplies a panel of 32 x 2048 weights ROUNDS times. check_instructions.py runs it
// under callgrind twice and takes the difference, so that only the products count. Prints the weights of a round.
#include <cstdlib>
#include <iostream>

#include "random_model.h"
#include "runtime/cpu/kernels.h"

using namespace pith;
using namespace pith::cpu;

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const Kernels& kernels = select_kernels(argv[1]);
  const uint32_t n_tokens = static_cast<uint32_t>(std::atoi(argv[2])), n_lanes = lanes_for(n_tokens);
  const int n_rounds = std::atoi(argv[3]);
  const q24::Shape shape{32, 2048, 16, 256, 8};
  const q24::Layout layout = q24::make_layout(shape);
  std::mt19937_64 rng(1);
  std::vector<uint8_t> storage(layout.size_bytes + 128);
  uint8_t* const data = storage.data() + (128 - reinterpret_cast<uintptr_t>(storage.data()) % 128) % 128;
  q24::pack(test::random_q24(shape, 0.05, rng), {data, layout.size_bytes});
  Matrix m;
  m.kind = TensorKind::kQ24;
  m.n_rows = shape.n_rows;
  m.n_cols = shape.n_cols;
  m.view = q24::make_view(shape, data);
  m.perm = m.view.perm;
  const std::vector<float> col_scale(layout.n_lines, 1.0f);
  m.col_scale = col_scale.data();

  std::vector<int8_t> a(size_t{shape.n_cols} * n_lanes + 128);
  std::vector<int16_t> sums(size_t{m.n_summed_lines()} * n_lanes);
  std::vector<float> line_sums(m.n_summed_lines()), sum_steps(n_lanes);
  std::vector<float> scales(size_t{m.n_blocks()} * n_lanes), x_hat(shape.n_cols), x(shape.n_cols, 0.5f);
  Input in;
  in.n_tokens = n_tokens;
  in.n_lanes = n_lanes;
  in.a = a.data() + (64 - reinterpret_cast<uintptr_t>(a.data()) % 64) % 64;
  in.sums = sums.data();
  in.line_sums = line_sums.data();
  in.sum_steps = sum_steps.data();
  in.scales = scales.data();
  in.x_hat = x_hat.data();
  std::vector<float> y(size_t{kPanelRows} * n_lanes);
  std::vector<uint8_t> scratch(panel_scratch_bytes(layout.padded_cols, shape.n_slots, 0, n_lanes) + 64);
  uint8_t* const aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
  if (n_tokens == 1) {
    kernels.quantize(m, x.data(), 0, m.n_blocks(), in);
    kernels.quantize_sums(m, in);
  }
  for (uint32_t t = 0; n_tokens != 1 && t < n_lanes; t += kLanes)
    kernels.quantize_tile(m, x.data(), 0, kLanes, t, in, reinterpret_cast<float*>(aligned));
  for (int i = 0; i < n_rounds; ++i) kernels.panel(m, 0, in, aligned, y.data());
  std::cout << uint64_t{shape.n_rows} * shape.n_cols * n_tokens << "\n";
}
