// The AVX-512 kernels for CPUs with VNNI but without GFNI (Cascade Lake, Cooper Lake): compiled without it.
#include "runtime/cpu/avx512.cpp"
