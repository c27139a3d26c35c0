// Where the layers of a session run: all on one device, or the first ones on the CPU and the last ones on a GPU.
#pragma once
#include <memory>
#include <string>

#include "runtime/backend.h"

namespace pith {

struct Placement {
  std::string device;         // "cpu", "cuda" or "cuda:N"
  uint32_t n_gpu_layers = 0;  // the model's last ones
  MemoryPlan memory{};
  std::string note;  // one line: why "auto" did not put everything on the GPU that is there; else ""
};

// What the options come to. For what does not fit: kOutOfMemory naming need and free bytes; for what the
// device cannot run: kUnsupported. Where options leave it open ("auto"), a placement that works and a note.
Placement place(const Model& model, const SessionOptions& options,
                const std::vector<BackendKind>& kinds = backend_kinds());
// Which layers lie where, for people: "0 to 11 on the CPU, 12 to 31 on the GPU".
std::string describe_layers(uint32_t n_layers, uint32_t n_gpu_layers);
std::unique_ptr<Backend> open_placed(std::shared_ptr<const Model> model, const SessionOptions& options,
                                     const Placement& placement,
                                     const std::vector<BackendKind>& kinds = backend_kinds());

}  // namespace pith
