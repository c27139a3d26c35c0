// What forward.cpp and forward_attention.cpp are written with.
#pragma once
#include <algorithm>
#include <cstdint>

#include "convert/parallel_for.h"
#include "runtime/cpu/kernels.h"

namespace pith {

// Calls body(token) for every token, on all threads.
template <typename Body>
void for_tokens(uint32_t n_tokens, uint32_t n_threads, Body&& body) {
  constexpr uint32_t kTokensPerTask = 64;
  parallel_for((n_tokens + kTokensPerTask - 1) / kTokensPerTask, n_threads, [&](uint32_t task) {
    const uint32_t end = std::min(n_tokens, (task + 1) * kTokensPerTask);
    for (uint32_t t = task * kTokensPerTask; t < end; ++t) body(t);
  });
}

// The runtime's kernels for norms, rotation and activations.
const cpu::Kernels& forward_kernels();

// y [n] += a * x [n]. Compiled for each instruction set; never fused, so that all give the same bits.
void add_scaled(float* y, float a, const float* x, uint32_t n);

}  // namespace pith
