// See choice.h.
#include "runtime/gpu/choice.h"

#include "cuda/experts.h"
#include "format/error.h"

namespace pith::gpu {

using namespace cuda;

DeviceInfo find_device(const std::string& device) {
  const DeviceList list = list_devices();
  if (list.devices.empty()) throw_error(ErrorCode::kUnsupported, "device: '{}': {}", device, list.problem);
  const size_t colon = device.find(':');
  if (colon == std::string::npos) return list.devices.front();
  std::string known;
  for (const DeviceInfo& info : list.devices) {
    if (std::to_string(info.idx) == device.substr(colon + 1)) return info;
    known += fmt::format("{}cuda:{}", known.empty() ? "" : " or ", info.idx);
  }
  throw_error(ErrorCode::kInvalidArgument, "device: '{}', expected {}{}", device, known,
              list.problem.empty() ? "" : fmt::format(" ({})", list.problem));
}

Kernels choose_kernels(const std::string& name, const DeviceInfo& device) {
  const bool synchronous = name.ends_with("-sync");
  const std::string base = synchronous ? name.substr(0, name.size() - 5) : name;
  const auto need = [&](int sm, Pipeline pipeline) -> Kernels {
    if (device.sm() < sm)
      throw_error(ErrorCode::kUnsupported, "kernels: '{}' need compute capability {}.{}, {} has {}.{}", name,
                  sm / 10, sm % 10, device.name, device.compute_major, device.compute_minor);
    const bool warpgroups =
        pipeline == Pipeline::kBulkCopy && has_warpgroups(device.compute_major, device.compute_minor);
    return {pipeline, synchronous, warpgroups};
  };
  if (base == "auto")
    return device.sm() >= 90   ? need(90, Pipeline::kBulkCopy)
           : device.sm() >= 80 ? need(80, Pipeline::kAsyncCopy)
                               : need(75, Pipeline::kRegisters);
  if (base == "bulk") return need(90, Pipeline::kBulkCopy);
  if (base == "async") return need(80, Pipeline::kAsyncCopy);
  if (base == "registers") return need(75, Pipeline::kRegisters);
  throw_error(ErrorCode::kInvalidArgument,
              "kernels: '{}', expected auto, registers, async or bulk, with or without -sync", name);
}

void check_supported(const ModelSpec& spec, const DeviceInfo& device) {
  constexpr uint32_t kMaxKernelHeadDim = 256;  // launch_attention_prefill has none for longer heads
  if (spec.head_dim % 8 != 0 || spec.head_dim > kMaxKernelHeadDim)
    throw_error(ErrorCode::kUnsupported, "cuda: head_dim of {}, expected a multiple of 8 up to {}",
                spec.head_dim, kMaxKernelHeadDim);
  AttentionLayer attention{};
  attention.n_heads = spec.n_heads;
  attention.n_kv_heads = spec.n_kv_heads;
  attention.head_dim = spec.head_dim;
  require_shared(attention_decode_shared_bytes(attention),
                 fmt::format("attention of {} heads of {} for each KV head", spec.n_heads / spec.n_kv_heads,
                             spec.head_dim),
                 device);
  require_shared(sort_slots_shared_bytes(spec.n_experts),
                 fmt::format("a choice of {} experts", spec.n_experts), device);
}

void require_shared(uint64_t n_bytes, const std::string& what, const DeviceInfo& device) {
  if (n_bytes > device.max_shared_bytes)
    throw_error(ErrorCode::kUnsupported, "cuda: {} takes {} bytes of shared memory a block, {} has {}", what,
                n_bytes, device.name, device.max_shared_bytes);
}

}  // namespace pith::gpu
