// Sizes as people read them.
#pragma once
#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace pith::cli {

// "1.50 GB", "3.2 MB": powers of 1000.
inline std::string human_bytes(uint64_t n_bytes) {
  const double n = static_cast<double>(n_bytes);
  if (n >= 1e9) return fmt::format("{:.2f} GB", n / 1e9);
  if (n >= 1e6) return fmt::format("{:.1f} MB", n / 1e6);
  if (n >= 1e3) return fmt::format("{:.1f} kB", n / 1e3);
  return fmt::format("{} bytes", n_bytes);
}

}  // namespace pith::cli
