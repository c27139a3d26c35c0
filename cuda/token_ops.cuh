// Bodies of the small kernels: embedding rows, norms, quantization and cache rows of many tokens. Latency-bound; not measured.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/matvec_plain.cuh"
#include "cuda/rows.cuh"

namespace pith::cuda {

// One block a token. A Q24 row is decoded element by element (format/q24.h): it is one row a token.
PITH_DEVICE void embed_body(const Embed& args, uint8_t*) {
  launch_dependents();
  depend();
  const uint32_t token = block_index();
  const uint32_t row = static_cast<uint32_t>(args.ids[token]);
  if (args.plain.n_rows != 0) {
    const PlainWeights& w = args.plain;
    for (uint32_t c = thread_index(); c < w.n_cols; c += n_threads()) {
      const uint64_t at = uint64_t{row} * w.n_cols + c;
      float v = 0;
      switch (w.kind) {
        case PlainKind::kF32:
          v = reinterpret_cast<const float*>(w.data)[at];
          break;
        case PlainKind::kF16:
          v = f16_to_f32(reinterpret_cast<const uint16_t*>(w.data)[at]);
          break;
        case PlainKind::kBF16:
          v = bf16_to_f32(reinterpret_cast<const uint16_t*>(w.data)[at]);
          break;
      }
      args.x[uint64_t{token} * w.n_cols + c] = v * args.scale;
    }
    return;
  }
  const Q24Weights& w = args.q24;
  float* const x = args.x + uint64_t{token} * w.n_cols;
  const uint32_t panel = row / q24::kPanelRows, word = q24::row_word(row % q24::kPanelRows);
  const uint32_t n_lines = w.padded_cols / q24::kLineCols, n_fine_lines = w.n_fine / q24::kLineCols;
  const uint32_t d_dmin = w.row_scale[uint64_t{panel} * kWarp + word];
  const float d = f16_to_f32(static_cast<uint16_t>(d_dmin)),
              dmin = f16_to_f32(static_cast<uint16_t>(d_dmin >> 16));
  for (uint32_t c = thread_index(); c < w.padded_cols; c += n_threads()) {
    const uint32_t to = w.perm[c];
    if (to >= w.n_cols) continue;
    const uint32_t line = c / q24::kLineCols, in_line = c % q24::kLineCols;
    const uint32_t shift = in_line % 4 * 8 + in_line / 4 * 2;
    const uint8_t* const at = w.base + (uint64_t{panel} * n_lines + line) * q24::kLineBytes + word * 4;
    float code = static_cast<float>(load4(at) >> shift & 3);
    if (line >= n_lines - n_fine_lines) {
      const uint8_t* const fine =
          w.fine + (uint64_t{panel} * n_fine_lines + (line - (n_lines - n_fine_lines))) * q24::kLineBytes +
          word * 4;
      code += 0.25f * static_cast<float>(load4(fine) >> shift & 3);
    }
    const uint32_t group = c / w.group;
    const uint32_t sm = w.scales[uint64_t{panel} * w.scales_stride + group / 2 * 64 + 2 * word + group % 2];
    float v = d * static_cast<float>(sm & 15) * code - dmin * static_cast<float>(sm >> 4);
    for (uint32_t i = 0; i < w.n_slots; ++i) {
      const uint32_t slot = w.outliers[(uint64_t{panel} * w.n_slots + i) * kWarp + word];
      if ((slot & 0xffffu) == c) v += f16_to_f32(static_cast<uint16_t>(slot >> 16));
    }
    x[to] = v * f16_to_f32(w.col_scale[line]) * args.scale;
  }
}

// One block a token. `shared`: [n_warps] floats.
PITH_DEVICE void norm_tokens_body(const NormTokens& args, uint8_t* shared) {
  launch_dependents();
  depend();
  const uint32_t token = block_index();
  const int32_t row = args.rows != nullptr ? args.rows[token] : static_cast<int32_t>(token);
  if (row < 0) return;
  const float* const x = args.x + static_cast<uint64_t>(row) * args.x_stride;
  float* const out = args.out + uint64_t{token} * args.out_stride;
  float scale = args.scale;
  if (args.norm != nullptr)
    scale *= inverse_rms(x, args.n_cols, args.norm_eps, reinterpret_cast<float*>(shared));
  for (uint32_t c = thread_index(); c < args.n_cols; c += n_threads())
    out[c] = fma_f32(x[c] * scale, args.norm != nullptr ? args.norm[c] : 1.0f, args.add ? out[c] : 0.0f);
}

// The whole block turns one token's x into row `row`; a warp a block of 128 columns. `shared`: [n_warps] floats.
PITH_DEVICE void quantize_row(const Q24Weights& w, const Input& input, const QuantizedTokens& to,
                              uint32_t row, uint8_t* shared) {
  const uint32_t lane = thread_index() % kWarp;
  const float norm_scale =
      input.norm != nullptr ? inverse_rms(input.x, w.n_cols, input.norm_eps, reinterpret_cast<float*>(shared))
                            : 1.0f;
  const uint32_t n_blocks_of_columns = (w.padded_cols + kUnitCols - 1) / kUnitCols;
  for (uint32_t block = thread_index() / kWarp; block < n_blocks_of_columns; block += n_threads() / kWarp) {
    const QuantizedColumns q = quantize_columns(w, input.x, input.norm, norm_scale, block, lane);
    const uint64_t at = uint64_t{block} * to.n_padded + row;
    store4(to.a + at * kUnitCols + word_place(lane * 4), q.a);
    if (lane % 4 == 0) {  // line_sum = 16 h + l, 0 <= l < 16, |h| <= 127
      to.sums[at * 16 + lane / 4 * 2] = static_cast<uint8_t>(static_cast<uint32_t>(q.line_sum >> 4));
      to.sums[at * 16 + lane / 4 * 2 + 1] = static_cast<uint8_t>(q.line_sum & 15);
    }
    if (lane == 0) to.scale[at] = q.scale;
    if (to.columns != nullptr) {
      PITH_UNROLL
      for (uint32_t j = 0; j < 4; ++j) {
        const uint32_t c = block * kUnitCols + lane * 4 + j;
        if (c < w.padded_cols)
          to.columns[uint64_t{c} * to.n_padded + row] =
              q.scale * static_cast<float>(static_cast<int8_t>(q.a >> 8 * j));
      }
    }
  }
}

// One block a token.
PITH_DEVICE void quantize_tokens_body(const QuantizeTokens& args, uint8_t* shared) {
  launch_dependents();
  depend();
  const uint32_t token = block_index();
  Input input = args.input;
  input.x += uint64_t{token} * args.x_stride;
  quantize_row(args.w, input, args.to, token, shared);
}

// Grid (n_tokens, ceil((n_heads + 2 n_kv_heads) / n_warps)); one warp a row: q in place, k and v into the cache.
// `shared`: [n_warps][head_dim] floats.
PITH_DEVICE void append_tokens_body(const AttentionPrefill& a, uint8_t* shared) {
  launch_dependents();
  depend();
  const uint32_t token = block_index(), lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  const uint32_t row = block_index_y() * (n_threads() / kWarp) + warp, n_rows = a.n_heads + 2 * a.n_kv_heads;
  if (row >= n_rows) return;
  const uint32_t position = static_cast<uint32_t>(*a.position) + token;
  float* const from = a.qkv + (uint64_t{token} * n_rows + row) * a.head_dim;
  if (row < a.n_heads) {
    prepare_head(from, a.q_norm, a.norm_eps, a.rope, position, a.head_dim, lane, from);
    return;
  }
  const bool is_v = row >= a.n_heads + a.n_kv_heads;
  const uint64_t rows_before = uint64_t{row - a.n_heads - (is_v ? a.n_kv_heads : 0)} * a.n_ctx;
  float* const ready = reinterpret_cast<float*>(shared) + warp * a.head_dim;
  prepare_head(from, is_v ? nullptr : a.k_norm, a.norm_eps, is_v ? Rotation{} : a.rope, position, a.head_dim,
               lane, ready);
  sync_warp();
  const bool i8 = a.k_scale != nullptr;
  store_cache_row(ready, (is_v ? a.v : a.k) + rows_before * a.head_dim * (i8 ? 1 : 2),
                  i8 ? (is_v ? a.v_scale : a.k_scale) + rows_before : nullptr, position, a.head_dim, lane);
}

}  // namespace pith::cuda
