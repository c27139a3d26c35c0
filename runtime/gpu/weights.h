// A model's tensors on the device, and where the kernels find them.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/experts.h"
#include "cuda/kernels.h"
#include "runtime/gpu/memory.h"
#include "runtime/model.h"

namespace pith::gpu {

struct Linear {
  bool is_q24 = false;
  cuda::Q24Weights q24{};
  cuda::PlainWeights plain;
  cuda::MatvecShape shape{};  // of its matrix-vector product
  uint32_t n_rows = 0, n_cols = 0;
};

struct ExpertLinear {
  cuda::ExpertStack stack;
  cuda::MatvecShape shape{};              // for each expert
  std::vector<cuda::ExpertMatrix> table;  // as it is to be at ...
  cuda::ExpertMatrix* place = nullptr;    // ... this place of the device
};

struct LayerWeights {
  const float *attn_norm, *q_norm, *k_norm, *attn_post_norm, *ffn_norm, *ffn_post_norm;  // null when absent
  const float *qkv_bias, *attn_out_bias, *gate_up_bias, *down_bias, *sinks, *router_bias;
  Linear qkv, attn_out, gate_up, down, router;  // gate_up and down without experts, router with them
  ExpertLinear expert_gate_up, expert_down;
};

// The tensors that the last layers need, in file order: with all layers the embedding too.
struct Weights {
  Weights(const Model& model, const LayerRange& layer_range, DeviceArena& arena);
  void upload(const Model& model) const;
  void sort_outliers(const cuda::Launch& how) const;  // after upload
  // How matrix-vector products are cut up on this device. Throws kUnsupported where a block lacks the shared memory for one.
  void choose_shapes(cuda::Pipeline pipeline, bool synchronous, const cuda::DeviceInfo& device);
  const LayerWeights& layer(uint32_t i) const { return layers[i - range.begin]; }

  LayerRange range;
  std::vector<LayerWeights> layers;
  const float* norm = nullptr;
  Linear embed, head;
  uint32_t max_padded_cols = 0, max_outlier_cols = 0;  // of Q24 tensors; of those with outliers
  uint32_t max_half_cols = 0;                          // of 16-bit tensors that launch_gemm_half takes
  bool has_f32 = false;                                // or 16-bit ones that it does not

 private:
  bool needs(const std::string& name) const;
  const float* vector(const std::string& name, bool present) const;
  Linear matrix(const Model& model, const std::string& name);
  ExpertLinear experts(const Model& model, uint32_t layer, const char* part, const char* bias,
                       DeviceArena& arena);
  LayerWeights layer_weights(const Model& model, uint32_t i, DeviceArena& arena);

  bool tied_, pre_norms_;
  uint32_t n_active_;
  std::unordered_map<std::string, uint8_t*> places_;
};

}  // namespace pith::gpu
