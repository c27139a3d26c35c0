// Mixture of experts: the router's choice, and products with the matrices that it chose. What was chosen stays on the device, so that
// one recorded graph serves every token and nothing waits for the host.
//
// A slot is the work of one expert on one token. Of a single token slot i is its i-th expert. Slots of several tokens are sorted by expert,
// tokens ascending; each expert's begin at a multiple of kSlotAlign, and what lies between belongs to nobody.
#pragma once
#include "cuda/kernels.h"

namespace pith::cuda {

constexpr uint32_t kSlotAlign = 8;  // of HalfTokens: a chunk's place depends on row % 8

// Room for the slots of n_tokens, whatever is chosen.
inline uint64_t n_slots_for(uint64_t n_tokens, uint64_t n_active, uint64_t n_experts) {
  const uint64_t n = n_tokens * n_active, n_pads = (n < n_experts ? n : n_experts) * (kSlotAlign - 1);
  return (n + n_pads + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
}

struct ExpertMatrix {
  Q24Weights q24;
  PlainWeights plain;
  const float* bias;  // [n_rows] or null
};

// One matrix of each of a layer's experts: all of one shape, and Q24 or plain of one type.
struct ExpertStack {
  const ExpertMatrix* experts = nullptr;  // [n_experts] in device memory
  ExpertMatrix like{};                    // one of them, for its shape
  uint32_t n_experts = 0;
  bool is_q24 = false;
};

// For each token the n_active experts of the largest logits, the lower one where they are equal, and their shares: the softmax over all
// experts, or over the chosen ones (renormalize).
struct ChooseExperts {
  const float* logits;  // [n_tokens, n_experts]
  int32_t* expert;      // [n_tokens, n_active] ascending, no two alike
  float* share;         // [n_tokens, n_active]
  uint32_t n_tokens, n_experts, n_active;
  bool renormalize;
};
void launch_choose_experts(const ChooseExperts& args, const Launch& how);

struct ExpertSlots {
  int32_t* begin;   // [n_experts] first slot
  int32_t* count;   // [n_experts] tokens
  int32_t* token;   // [n_slots] whose it is, -1: nobody's
  int32_t* expert;  // [n_slots], -1: nobody's
  int32_t* of;      // [n_tokens, n_active] the slot of a choice
  uint32_t n_slots;
};
struct SortSlots {
  const int32_t* expert;  // ChooseExperts::expert
  uint32_t n_tokens, n_experts, n_active;
  ExpertSlots to;
};
void launch_sort_slots(const SortSlots& args, const Launch& how);
uint64_t sort_slots_shared_bytes(uint32_t n_experts);

// One token: row i of out = expert i's matrix times row i of x.
struct MatvecExperts {
  ExpertStack stack;
  const int32_t* expert;  // [n_active]
  uint32_t n_active;
  Input input;  // x [n_active, x_stride]
  uint32_t x_stride;
  Output output;  // without bias, which is the experts'; out [n_active, out_stride]; kStore or kGlu
  uint32_t out_stride;
  MatvecShape shape;  // for each expert
};
void launch_matvec_experts(Pipeline pipeline, const MatvecExperts& args, const Launch& how);

// Several tokens: row s of out = slot s's expert times row s of x.
struct ProductExperts {
  ExpertStack stack;
  ExpertSlots slots;
  uint32_t n_tokens;  // no expert has more
  const float* x;     // [n_slots, x_stride]
  uint32_t x_stride;
  QuantizedTokens tokens;  // scratch of n_slots + kTokenTile rows or more, for Q24 without warpgroups
  HalfTokens half;         // the same for 16-bit products
  bool warpgroups;
  Output output;  // as above; out [n_slots, out_stride]
  uint32_t out_stride;
  uint32_t n_blocks;  // for each expert, of matrices that are multiplied as vectors: 32-bit ones
};
// Whether the product is one in 16 bits: gemm_half.cuh.
inline bool multiplies_halves(const ProductExperts& args) {
  return args.stack.is_q24 ? args.warpgroups : halves_weights(args.stack.like.plain);
}
void launch_product_experts(const ProductExperts& args, const Launch& how);

// out[t] = (add ? out[t] : 0) + scale * sum over the token's experts of share * y[slot]
struct CombineExperts {
  const float* y;       // [n_slots, n_cols]
  const float* share;   // [n_tokens, n_active]
  const int32_t* slot;  // ExpertSlots::of; null: one token's
  float* out;           // [n_tokens, n_cols]
  float scale;
  bool add;
  uint32_t n_cols, n_tokens, n_active;
};
void launch_combine_experts(const CombineExperts& args, const Launch& how);

}  // namespace pith::cuda
