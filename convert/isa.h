// Functions compiled once for each instruction set, in vectors as wide as its registers; the loader picks. gcc keeps wider
// vectors in memory: the same products took ten times as long with vectors of 16 floats on AVX2.
//
//   PITH_PER_ISA(void f(float* x), { f_of<kWidth>(x); })    kWidth: floats of a register
//
// f_of: a template, PITH_INLINE, and whatever it calls too, or it would be compiled for the least of them.
#pragma once
#include <cstdint>

#define PITH_INLINE inline __attribute__((always_inline))
#define PITH_ISA_VERSION(width, signature, ...)         \
  signature {                                           \
    [[maybe_unused]] constexpr uint32_t kWidth = width; \
    __VA_ARGS__                                         \
  }
#if defined(__x86_64__) && !defined(__clang__)  // clang refuses wide vectors as arguments of the templates
#define PITH_PER_ISA(...)                                                                                  \
  __attribute__((target("avx512f"))) PITH_ISA_VERSION(16, __VA_ARGS__) __attribute__((target("avx2,fma"))) \
  PITH_ISA_VERSION(8, __VA_ARGS__) __attribute__((target("default"))) PITH_ISA_VERSION(4, __VA_ARGS__)
#else
#define PITH_PER_ISA(...) PITH_ISA_VERSION(4, __VA_ARGS__)
#endif

namespace pith {

// Read from and written to anywhere among floats, int32_t or T. Elements: as many T as n floats are long.
template <uint32_t n, typename T = float>
struct VectorOf {
  typedef T Elements __attribute__((vector_size(4 * n), aligned(alignof(T)), may_alias));
  typedef float Floats __attribute__((vector_size(4 * n), aligned(4), may_alias));
  typedef int32_t Ints __attribute__((vector_size(4 * n), aligned(4), may_alias));
};

}  // namespace pith
