// gpu_bench's table of the float32 product that calibration runs on.
#include "gpu_bench.h"

namespace pith::cuda {

// Products of the 7B shape as calibration has them, beside what the float32 units can do at the highest clock.
void table_float(Bench& b) {
  const int sm = b.device.sm();
  const double lanes = sm == 75 || sm == 80 ? 64 : 128;
  const double peak = 2e-6 * lanes * b.device.n_multiprocessors * b.device.clock_mhz;  // TFLOP/s
  fmt::print("\n## Float32 products of calibration (peak {:.0f} TFLOP/s)\n\n", peak);
  fmt::print(
      "| product | rows | columns | depth | us | TFLOP/s | of the peak |\n|---|---|---|---|---|---|---|\n");
  struct Product {
    const char* name;
    uint32_t n_rows, n_cols, depth;
    bool symmetric;
  };
  for (const Product& wanted : {Product{"7B gate and up, a chunk of tokens", 768, 22016, 4096, false},
                                {"7B down, a chunk of tokens", 1536, 4096, 11008, false},
                                {"7B second moments of 4096 inputs", 4096, 4096, 4096, true},
                                {"7B second moments of 11008 inputs", 11008, 11008, 1536, true}}) {
    const Product p = tiny ? Product{wanted.name, 128, 256, 32, false} : wanted;
    const DeviceBuffer x = b.random_floats(size_t{p.depth} * p.n_rows),
                       y = b.random_floats(size_t{p.depth} * p.n_cols),
                       c(size_t{p.n_rows} * p.n_cols * 4, "output");
    const float* const right = p.symmetric ? x.as<float>() : y.as<float>();
    const double time = b.seconds(4, [&](uint32_t) {
      launch_gemm_float(
          {x.as<float>(), right, c.as<float>(), p.depth, p.n_rows, p.n_cols, false, p.symmetric},
          b.how(false));
    });
    // Of a symmetric one the tiles on and below the diagonal.
    const double n_tiles = p.n_rows / kFloatTile, share = p.symmetric ? (n_tiles + 1) / (2 * n_tiles) : 1;
    const double rate = 2e-12 * share * p.n_rows * p.n_cols * p.depth / time;
    fmt::print("| {} | {} | {} | {} | {:.0f} | {:.1f} | {:.0f} % |\n", p.name, p.n_rows, p.n_cols, p.depth,
               1e6 * time, rate, 100 * rate / peak);
    std::fflush(stdout);
  }
}

}  // namespace pith::cuda
