// See placement.h.
#include "runtime/placement.h"

#include <algorithm>

#include "format/checked.h"
#include "runtime/split_backend.h"

namespace pith {

namespace {

// What "auto" leaves free: graphs, the driver's own, what others take in the meantime.
constexpr uint64_t kReserveBytes = uint64_t{256} << 20;

const BackendKind& cpu_of(const std::vector<BackendKind>& kinds) {
  return backend_for("cpu", kinds);
}

SessionOptions cpu_options(SessionOptions options) {
  options.device = "cpu";
  options.kernels = "auto";  // a name is of the GPU's
  return options;
}

// The first layers on the CPU, n_gpu of them on the device.
MemoryPlan plan_split(const Model& model, const SessionOptions& options, uint32_t n_gpu,
                      const BackendKind& gpu, const std::vector<BackendKind>& kinds) {
  const uint32_t n_layers = model.spec().n_layers, cut = n_layers - n_gpu;
  MemoryPlan plan = gpu.plan(model, options, {cut, n_layers});
  plan.gpu_bytes = plan.total();
  plan.gpu_weights_bytes = plan.weights_bytes;
  plan.n_gpu_layers = n_gpu;
  if (cut == 0) return plan;
  const MemoryPlan cpu = cpu_of(kinds).plan(model, cpu_options(options), {0, cut});
  plan.weights_bytes = checked_add(plan.weights_bytes, cpu.weights_bytes);
  plan.kv_bytes = checked_add(plan.kv_bytes, cpu.kv_bytes);
  plan.scratch_bytes = checked_add(plan.scratch_bytes, cpu.scratch_bytes);
  return plan;
}

Placement on_cpu(const Model& model, SessionOptions options, std::string note,
                 const std::vector<BackendKind>& kinds) {
  options.device = "cpu";
  return {"cpu", 0, cpu_of(kinds).plan(model, options, all_layers(model.spec())), std::move(note)};
}

}  // namespace

Placement place(const Model& model, const SessionOptions& options, const std::vector<BackendKind>& kinds) {
  const BackendKind& kind = backend_for(options.device, kinds);
  const bool open = options.device == "auto";
  const uint32_t n_layers = model.spec().n_layers;
  const bool is_default = options.gpu_layers == kGpuLayersDefault;
  const int32_t wanted = !is_default ? options.gpu_layers : open ? kGpuLayersAuto : kGpuLayersAll;
  if (kind.is_cpu() && wanted != 0 && wanted != kGpuLayersAuto && !is_default)
    throw_error(ErrorCode::kUnsupported, "gpu_layers: {} on the CPU, expected a GPU",
                wanted == kGpuLayersAll ? "all" : std::to_string(wanted));
  if (kind.is_cpu() || wanted == 0) return on_cpu(model, options, "", kinds);

  Placement placed{open ? kind.device : options.device, 0, {}, ""};
  SessionOptions on_gpu = options;
  on_gpu.device = placed.device;
  const auto plan = [&](uint32_t n) { return plan_split(model, on_gpu, n, kind, kinds); };
  if (wanted != kGpuLayersAuto) {
    placed.n_gpu_layers =
        wanted == kGpuLayersAll ? n_layers : std::min(static_cast<uint32_t>(wanted), n_layers);
    placed.memory = plan(placed.n_gpu_layers);
    return placed;  // whether it fits is seen, and said, when it is taken
  }

  const uint64_t free_bytes = kind.free_bytes(placed.device);
  const auto fits = [&](uint32_t n) { return checked_add(plan(n).gpu_bytes, kReserveBytes) <= free_bytes; };
  MemoryPlan all{};
  try {
    all = plan(n_layers);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported || !open) throw;
    return on_cpu(model, options, fmt::format("runs on the CPU: {}", error.what()), kinds);
  }
  uint32_t low = 0, high = n_layers;  // low fit
  if (checked_add(all.gpu_bytes, kReserveBytes) <= free_bytes) low = n_layers;
  while (low + 1 < high && low != n_layers) {
    const uint32_t middle = (low + high) / 2;
    (fits(middle) ? low : high) = middle;
  }
  if (low < n_layers)
    placed.note =
        fmt::format("{} of {} layers on {}: all of them need {} MB and {} MB to spare, {} MB are free", low,
                    n_layers, placed.device, all.gpu_bytes >> 20, kReserveBytes >> 20, free_bytes >> 20);
  if (low == 0) return on_cpu(model, options, placed.note, kinds);
  placed.n_gpu_layers = low;
  placed.memory = plan(low);
  return placed;
}

std::string describe_layers(uint32_t n_layers, uint32_t n_gpu_layers) {
  if (n_gpu_layers == 0) return fmt::format("all {} on the CPU", n_layers);
  if (n_gpu_layers == n_layers) return fmt::format("all {} on the GPU", n_layers);
  const auto range = [](uint32_t begin, uint32_t end) {
    return end - begin == 1 ? std::to_string(begin) : fmt::format("{} to {}", begin, end - 1);
  };
  const uint32_t cut = n_layers - n_gpu_layers;
  return fmt::format("{} on the CPU, {} on the GPU", range(0, cut), range(cut, n_layers));
}

std::unique_ptr<Backend> open_placed(std::shared_ptr<const Model> model, const SessionOptions& options,
                                     const Placement& placement, const std::vector<BackendKind>& kinds) {
  SessionOptions own = options;
  own.device = placement.device;
  const BackendKind& kind = backend_for(placement.device, kinds);
  const uint32_t n_layers = model->spec().n_layers, cut = n_layers - placement.n_gpu_layers;
  if (kind.is_cpu() || cut == 0) return kind.create(std::move(model), own, {0, n_layers});
  auto back = kind.create(model, own, {cut, n_layers});  // what may not fit comes first
  auto front = cpu_of(kinds).create(std::move(model), cpu_options(own), {0, cut});
  return std::make_unique<SplitBackend>(std::move(front), std::move(back), cut);
}

}  // namespace pith
