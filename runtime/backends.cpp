// The list of backends.
#include "runtime/backend.h"
#ifdef PITH_HAS_CUDA
#include "runtime/gpu/cuda_backend.h"
#endif
#include "runtime/cpu/cpu_backend.h"

namespace pith {

void Backend::receive(std::span<const float>, uint32_t) {
  throw_error(ErrorCode::kInternal, "a backend without layers before it was handed their result");
}
std::span<const float> Backend::residual() {
  throw_error(ErrorCode::kInternal, "a backend with the last layer was asked for its residual stream");
}

const std::vector<BackendKind>& backend_kinds() {
  static const std::vector<BackendKind> kinds = {
#ifdef PITH_HAS_CUDA
      cuda_backend_kind(),
#endif
      cpu::backend_kind()};
  return kinds;
}

const BackendKind& backend_for(const std::string& device, const std::vector<BackendKind>& kinds) {
  const std::string name = device.substr(0, device.find(':'));
  if (name != device && name != "cuda")
    throw_error(ErrorCode::kInvalidArgument, "device: '{}', only cuda takes a number, as in cuda:0", device);
  std::string known, why;
  for (const BackendKind& kind : kinds) {
    const bool usable = kind.available();
    if (usable && (name == "auto" || name == kind.device)) return kind;
    if (!usable && name == kind.device && kind.describe != nullptr)
      why.append(" (").append(kind.describe()).append(")");
    if (usable) known.append(known.empty() ? "" : ", ").append(kind.device);
  }
  const bool is_name = name == "cpu" || name == "cuda";
  throw_error(is_name ? ErrorCode::kUnsupported : ErrorCode::kInvalidArgument,
              "device: '{}' is not available here{}, expected auto or {}", device, why, known);
}

}  // namespace pith
