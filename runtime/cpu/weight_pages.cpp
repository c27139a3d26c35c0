// When which tensor is asked for or moved.
#include "runtime/cpu/weight_pages.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>

#include "runtime/process_limits.h"

namespace pith::cpu {

namespace {

// Each part of a tensor becomes a mapping of its own, of which Linux allows a process 65,530.
constexpr uint32_t kMaxMappings = 8192;

}  // namespace

WeightPages::WeightPages(const Model& model, uint32_t n_layers, std::string root)
    : container_(model.container()), root_(std::move(root)) {
  const auto add = [&](const std::string& name, uint32_t layer) {
    const Tensor* const tensor = container_.find(name);
    if (tensor == nullptr) return;
    tensors_.push_back({tensor, layer});
    n_bytes_ += tensor->size_bytes;
  };
  for (uint32_t layer = 0; layer < n_layers; ++layer)
    for (const char* part : {"attn_qkv", "attn_out", "ffn_gate_up", "ffn_down"})
      add(layer_tensor(layer, part), layer);
  const ModelSpec& spec = model.spec();
  if (n_layers == spec.n_layers) add(spec.tied_embeddings ? "embed" : "head", n_layers);
  const bool moves = container_.can_move() && n_bytes_ >= MappedFile::kHugePage && has_huge_pages(root_);
  n_moved_ = moves ? 0 : tensors_.size();
}

void WeightPages::read_ahead(uint32_t layer) {
  for (; n_asked_ < tensors_.size() && tensors_[n_asked_].layer <= layer; ++n_asked_)
    container_.read_ahead(*tensors_[n_asked_].tensor);
}

// Without swap: a file's pages, which can be dropped at any time, would become some that must be written there.
bool WeightPages::memory_is_plenty() const {
  try {
    const uint64_t available = available_memory(root_, false);
    const uint64_t n_left = n_bytes_ - std::min(n_bytes_, container_.own_bytes());
    return available >= n_bytes_ && available - n_bytes_ >= n_left;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

void WeightPages::move_some(uint32_t n_tokens, ThreadPool& pool) {
  if (n_moved_ == tensors_.size()) return;
  if (is_first_batch_) {
    is_first_batch_ = false;
    return;
  }
  if (!memory_is_plenty()) {  // asked each time: others may be moving theirs
    n_moved_ = tensors_.size();
    return;
  }
  const uint64_t n_wanted = n_bytes_ / 16 * std::clamp(n_tokens / 64, 1u, 4u);
  const auto n_most = std::max<uint32_t>(kMaxMappings / static_cast<uint32_t>(tensors_.size()), 1);
  const uint32_t n_parts = std::min(pool.n_threads(), n_most);
  std::atomic<uint64_t> n_bytes{0};  // nothing where another session has moved them
  for (; n_bytes < n_wanted && n_moved_ < tensors_.size(); ++n_moved_)
    pool.run([&](uint32_t thread) {
      if (thread < n_parts)
        n_bytes += container_.move_to_huge_pages(*tensors_[n_moved_].tensor, thread, n_parts);
    });
}

}  // namespace pith::cpu
