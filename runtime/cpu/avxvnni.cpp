// The AVX2 kernels for CPUs with AVX-VNNI (Alder Lake and later, Zen 5): compiled with it.
#include "runtime/cpu/avx2.cpp"
