// The pages of a mapped file's weights: asked for ahead of the first batch, then moved into huge pages (MappedFile).
//
// Moving costs what copying costs, so it is spread: from the second batch on each moves a part, which takes about two fifths
// of a token's time, or a twentieth of that of 256. After some sixteen tokens, of one session or of several, every token reads
// huge pages. Memory must be plenty: what is moved belongs to this process alone, and as much as all of it must stay free. One
// thread at a time, as a backend.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/model.h"
#include "runtime/thread_pool.h"

namespace pith::cpu {

class WeightPages {
 public:
  // Of the model's first n_layers, and of the head after all of them. Not of experts: most are not needed.
  // root: process_limits.h
  WeightPages(const Model& model, uint32_t n_layers, std::string root = "");

  // From a cold file the first batch finds the pages of a layer on their way while it computes those before: page faults
  // alone read 128 KB at a time and wait for each.
  void read_ahead(uint32_t layer);
  // Before each batch. Every thread moves a part of each tensor, about that which it will multiply with: on a machine of
  // several memories the pages come to lie near it.
  void move_some(uint32_t n_tokens, ThreadPool& pool);

 private:
  struct Streamed {
    const Tensor* tensor;
    uint32_t layer;  // the head's: n_layers
  };
  bool memory_is_plenty() const;

  const Container& container_;
  const std::string root_;
  std::vector<Streamed> tensors_;  // in the order in which a token reads them
  uint64_t n_bytes_ = 0;           // of all
  size_t n_asked_ = 0, n_moved_;   // of tensors_: how far each has come
  bool is_first_batch_ = true;
};

}  // namespace pith::cpu
