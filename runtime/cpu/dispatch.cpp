// Which kernels this CPU can run, and what they share whatever the instruction set.
#include <algorithm>
#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "format/float16.h"
#include "runtime/cpu/panel_scratch.h"
#include "runtime/cpu/tables.h"

namespace pith::cpu {

namespace {

bool always() {
  return true;
}

#if defined(__x86_64__)
// What __builtin_cpu_supports does not know in every compiler is asked of the CPU; it covers what the system must save.
bool has_avx2() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
}
bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
bool has_avx512() {
  return has_avx512_vnni() && __builtin_cpu_supports("gfni");
}
// The system keeps tiles only for a process that asks (Linux 5.16 and later), and may refuse.
bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kTileAndInt8 = 3u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
         (edx & kTileAndInt8) == kTileAndInt8 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#elif defined(__aarch64__)
bool has_dot_product() {
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}
#endif

struct Entry {
  const Kernels* kernels;
  bool (*supported)();
};

const Entry kEntries[] = {
    {&kScalarKernels, always},
#if defined(__x86_64__)
    {&kAvx2Kernels, has_avx2},     {&kAvxVnniKernels, has_avx_vnni}, {&kAvx512PlainKernels, has_avx512_vnni},
    {&kAvx512Kernels, has_avx512}, {&kAmxKernels, has_amx},
#elif defined(__aarch64__)
    {&kNeonKernels, has_dot_product},
#endif
};

}  // namespace

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> list;
  for (const Entry& entry : kEntries)
    if (entry.supported()) list.push_back(entry.kernels);
  return list;
}

const Kernels& select_kernels(const std::string& name) {
  const std::vector<const Kernels*> supported = supported_kernels();
  if (name == "auto") return *supported.back();
  for (const Kernels* kernels : supported)
    if (name == kernels->name) return *kernels;
  std::string known, usable;
  for (const Kernels* kernels : supported) usable.append(", ").append(kernels->name);
  for (const Entry& entry : kEntries) {
    if (name == entry.kernels->name)
      throw_error(ErrorCode::kUnsupported,
                  "kernels: '{}', whose instructions this CPU lacks, expected auto{}", name, usable);
    known.append(", ").append(entry.kernels->name);
  }
  throw_error(ErrorCode::kInvalidArgument, "kernels: '{}', expected auto{}", name, known);
}

uint64_t panel_scratch_bytes(uint32_t q24_padded_cols, uint32_t n_slots, uint32_t plain_cols,
                             uint32_t n_lanes) {
  if (n_lanes == 1) return 0;
  const uint64_t panel = PanelScratch::bytes((q24_padded_cols + kBlock - 1) / kBlock, n_slots, n_lanes);
  // Of quantize_tile(): the columns, and the lines' sums.
  const uint64_t columns = (uint64_t{q24_padded_cols} + q24_padded_cols / 16) * kLanes * sizeof(float);
  const uint64_t wide = (uint64_t{plain_cols} + kLanes - 1) / kLanes * kLanes * kPanelRows * sizeof(float);
  const uint64_t sums = uint64_t{kPlainTokens} * kPanelRows * kLanes * sizeof(float);
  return std::max({panel, columns, plain_cols == 0 ? 0 : wide + sums});
}

void embedding_row(const Matrix& m, uint32_t row, float scale, float* out) {
  if (m.is_q24()) return q24::dequantize_row(m.view, row, out, scale);
  const size_t first = size_t{row} * m.n_cols;
  for (uint32_t c = 0; c < m.n_cols; ++c) {
    const size_t i = first + c;
    float value = 0;
    if (m.kind == TensorKind::kF32)
      value = reinterpret_cast<const float*>(m.data)[i];
    else if (m.kind == TensorKind::kF16)
      value = f16_to_float(reinterpret_cast<const uint16_t*>(m.data)[i]);
    else
      value = bf16_to_float(reinterpret_cast<const uint16_t*>(m.data)[i]);
    out[c] = value * scale;
  }
}

}  // namespace pith::cpu
