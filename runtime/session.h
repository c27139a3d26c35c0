// A session: one timeline of tokens over a model, with its KV cache, scratch and worker threads.
//
// One thread at a time, except interrupt(), which any thread may call, and only in the process that made it: after a fork, what runs
// tokens throws kInvalidArgument. All memory of sync and append is taken on construction; nothing is allocated per token, except
// while weights move into huge pages (runtime/cpu/weight_pages.h). The same ids give the same logits whatever the thread count and however
// they were fed (one by one, in chunks, after a rewind): bit for bit.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/model.h"

namespace pith {

enum class KvType : uint8_t { kF16 = 1, kI8 = 2 };

constexpr uint32_t kMaxThreads = 1024, kMaxPrefillChunk = 1024;

// SessionOptions::gpu_layers beside a count.
constexpr int32_t kGpuLayersAll = -1, kGpuLayersAuto = -2, kGpuLayersDefault = -3;

struct SessionOptions {
  uint32_t n_ctx = 0;      // tokens; 0 = the model's, at most 4096. More than the model's maximum is an error
  uint32_t n_threads = 0;  // at most kMaxThreads; 0 = physical cores
  KvType kv = KvType::kF16;
  uint32_t prefill_chunk = 256;  // tokens per batched pass, 1 .. kMaxPrefillChunk
  std::string device = "auto";   // "cpu", "cuda", "cuda:N"
  // The model's last layers on the GPU, the others on the CPU: a count (at most all), all, or as many as fit. Default: all
  // with device "cuda", as many as fit with "auto".
  int32_t gpu_layers = kGpuLayersDefault;
  std::string kernels = "auto";  // those of the device (pith.h); force an instruction set (tests)
  // On a CPU one thread works alone where a step of a layer multiplies fewer weights than this (2-bit ones; wider ones
  // count fourfold), about a microsecond's work: another would not hear of it in time. 0 (tests): all threads always.
  uint32_t small_step = 64 << 10;
};

// What the zeros in the options come to. Throws kInvalidArgument on a value out of range.
SessionOptions resolve_options(const Model& model, SessionOptions options);

// Exact bytes that a session will take, without taking them.
struct MemoryPlan {
  uint64_t weights_bytes, kv_bytes, scratch_bytes;  // on all devices together
  uint64_t gpu_bytes = 0, gpu_weights_bytes = 0;    // of them, on the GPU: of all, and of the weights
  uint32_t n_gpu_layers = 0;
  uint64_t total() const { return weights_bytes + kv_bytes + scratch_bytes; }
};
MemoryPlan plan_memory(const Model& model, const SessionOptions& options);

class Session {
 public:
  Session(std::shared_ptr<const Model> model, const SessionOptions& options);
  ~Session();

  const Model& model() const;
  const SessionOptions& options() const;  // as resolved
  const MemoryPlan& memory() const;       // what it took
  const std::string& note() const;  // one line for the user: why "auto" left the GPU (partly) unused; else ""
  uint32_t n_ctx() const;
  const std::vector<int32_t>& tokens() const;  // the timeline

  // Makes the timeline equal `ids`, keeping the longest common prefix's cache and running the rest (batched).
  // Afterwards logits() are those after the last id. Returns how many ids' results were kept. Throws
  // kInvalidArgument (empty, id out of range), kContextFull, kInterrupted (the timeline then holds what was
  // finished; before anything ran, it and the logits are as they were).
  uint32_t sync(std::span<const int32_t> ids);
  void append(int32_t id) { append(std::span<const int32_t>(&id, 1)); }
  void append(std::span<const int32_t> ids);
  void append_uninterrupted(int32_t id);  // an interrupt stays for the next sync/append, until begin_call()
  // Keeps only the first n_tokens; logits() are invalid until the next sync/append.
  void rewind(uint32_t n_tokens);

  std::span<const float> logits() const;  // [vocab_size], valid after sync/append

  // Runs ids from an empty timeline and calls row(i, logits after ids[i]) for every position, in order (evaluation).
  void logits_of_all(std::span<const int32_t> ids,
                     const std::function<void(uint32_t position, std::span<const float> logits)>& row);

  // Makes the timeline equal `ids`, keeping at most its first `first` ids of what they have in common, and calls row(i, logits
  // after ids[i]) for i = first, first + 1, ... (scoring several continuations of one context). Returns how many ids ran.
  uint32_t logits_after(std::span<const int32_t> ids, uint32_t first,
                        const std::function<void(uint32_t position, std::span<const float> logits)>& row);

  void interrupt();  // any thread; makes a running or the next sync/append throw kInterrupted, once
  // What begins here stops for no interrupt that came before. Throws kInvalidArgument after a fork.
  void begin_call();

  // Timeline and cache to a file and back, bound to the model's fingerprint; files obey the container's discipline
  // (checked sizes, checksum, atomic write). load holds the file in memory until it is checked; it throws kIo, kFormat,
  // kContextFull or kInvalidArgument (session_file.h) and leaves the session as it was. Should a device then fail, the session is empty.
  void save(const std::string& path) const;
  void load(const std::string& path);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pith
