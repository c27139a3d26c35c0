// Body of the Q24 matrix-vector kernel: norm, quantization of the activations, decode, product, outliers and epilogue.
//
//   y[r] = 0.25 * d[r] * sum_b scale[b] * T[r, b] - dmin[r] * sum_b scale[b] * M[r, b] + sum_slots delta * x'[col]
//   T[r, b] = sum over the 16-column lines of block b of s * sum (4 hi + lo) * a        M[r, b] = sum of m * sum a
//
// Shapes: W [n_rows, n_cols] Q24, x [n_cols] float, out as in kernels.h.
//
// Grid: any number of blocks of n_warps warps. The warps of a block form groups of `warps_per_panel`; group i of the grid takes
// panels i, i + n_groups, ...; within a group, warp k takes quads k, k + warps_per_panel, ... of the panel (q24_tile.cuh):
//
//   panel (32 rows)   | quad 0   | quad 1   | quad 2   | ...   512 columns each: 4 units, one for each t = lane % 4
//                       warp 0     warp 1     warp 0           (warps_per_panel = 2)
//
// Every warp has a ring of its own in shared memory, filled by itself: with the bulk pipeline, one lane starts 8 copies and an
// mbarrier per stage counts the bytes; no other warp is involved, so the main loop has no block barrier. (A producer warp
// of its own would wait on the slowest consumer of a shared stage; here nobody waits for a neighbour.) The units of a
// stage lie 32 bytes apart from where they would meet in the same banks: 16-byte reads of 4 units x 8 chunks are conflict-free.
// The ring is filled before depend(): the first n_stages quads stream in while the kernel before still runs.
//
// Shared memory: activations | partial sums [2][n_warps][32] floats | mbarriers [n_warps][n_stages] | ring [n_warps][n_stages] x 5376 B
// Preconditions (the launcher's): n_warps <= 8, warps_per_panel divides n_warps, planes 128-byte aligned.
// Order of additions: a lane its units in order, then lanes t, then warps of the group, then outliers with their warp's part:
// fixed by shape and MatvecShape. Against the CPU's single order the difference is at most about
// (n_blocks of 128 + 8) * 2^-24 * sum_b |terms| per row.
// Bound by: device-memory bandwidth by design. Speed: not measured. From SASS: see cuda/INSTRUCTIONS.md.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/q24_tile.cuh"

namespace pith::cuda {

constexpr uint32_t kRingUnitBytes = kUnitBytes + 32;  // see "banks" above
constexpr uint32_t kRingScaleBytes = 256 + 32;
constexpr uint32_t kRingStageBytes = 4 * (kRingUnitBytes + kRingScaleBytes);
static_assert(kRingStageBytes % 128 == 0);

struct MatvecQ24Shared {
  uint32_t partial, barriers, ring, total;  // byte offsets; activations are at 0

  PITH_SHAPE MatvecQ24Shared(uint32_t padded_cols, uint32_t n_warps, uint32_t n_stages, bool has_ring)
      : partial(SharedActivations::bytes(padded_cols)),
        barriers(partial + 2 * n_warps * 32 * 4),
        ring((barriers + n_warps * n_stages * 8 + 127) / 128 * 128),
        total(has_ring ? ring + n_warps * n_stages * kRingStageBytes : barriers) {}
};

// The quads of one warp, over all panels of its group, in order.
struct QuadCursor {
  uint32_t panel, quad;
  uint32_t first_quad, quad_step, panel_step, n_quads, n_panels;

  PITH_DEVICE bool valid() const { return panel < n_panels; }
  PITH_DEVICE void advance() {
    quad += quad_step;
    if (quad >= n_quads) {
      quad = first_quad;
      panel += panel_step;
    }
  }
};

// ---- Sources: where the main loop finds the chunks and scales of a quad ----

// A lane's loads go to registers; each step's are issued again, for the warp's next quad, as soon as they are used.
template <uint32_t kGroup, bool kSynchronous>
struct RegisterSource {
  const Q24Weights& w;
  const UnitMap& map;
  QuadCursor next;
  uint32_t g, t;
  U32x4 chunk[2 * kSteps];
  U32x2 scale[kSteps];
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  uint32_t first_line = 0, end_line = 0;

  PITH_DEVICE RegisterSource(const Q24Weights& weights, const UnitMap& unit_map, const QuadCursor& cursor,
                             uint32_t lane, uint8_t*, uint64_t*, uint32_t)
      : w(weights), map(unit_map), next(cursor), g(lane / 4), t(lane % 4) {}

  PITH_DEVICE void locate() {
    const Unit u(map, next.valid() ? next.quad * 4 + t : map.n_units);
    first_line = u.first_line;
    end_line = u.end_line;
    if (u.empty()) return;
    codes = unit_codes(w, map, u, next.panel);
    scales = unit_scales<kGroup>(w, u, next.panel);
  }
  PITH_DEVICE U32x4 load_line(uint32_t line) const {
    if (line < first_line || line >= end_line) return {0, 0, 0, 0};
    return load_stream16(codes + (line - first_line) * q24::kLineBytes + g * 16);
  }
  PITH_DEVICE void load(uint32_t i) {
    chunk[2 * i] = load_line(2 * i);
    chunk[2 * i + 1] = load_line(2 * i + 1);
    scale[i] = {0, 0};
    if (2 * i < end_line)
      scale[i] = step_scales<kGroup>(scales, g, i, [](const uint8_t* p) { return load_stream8(p); });
  }
  PITH_DEVICE void start() {
    if constexpr (kSynchronous) return;
    locate();
    PITH_UNROLL
    for (uint32_t i = 0; i < kSteps; ++i) load(i);
  }
  PITH_DEVICE void begin_quad() {
    if constexpr (kSynchronous) {
      locate();
      PITH_UNROLL
      for (uint32_t i = 0; i < kSteps; ++i) load(i);
      next.advance();
    } else {
      next.advance();
      locate();
    }
  }
  PITH_DEVICE void take(uint32_t i, U32x4& c0, U32x4& c1, U32x2& s) {
    c0 = chunk[2 * i];
    c1 = chunk[2 * i + 1];
    s = scale[i];
    if constexpr (!kSynchronous) load(i);
  }
  PITH_DEVICE void end_quad() {}
};

// A warp's ring. With n_stages = 1 nothing overlaps within the warp: load, wait, decode.
template <uint32_t kGroup, Pipeline kPipeline>
struct RingSource {
  const Q24Weights& w;
  const UnitMap& map;
  QuadCursor ahead;  // the next quad to be fetched
  uint32_t lane, stage = 0, phase = 0, n_stages;
  uint8_t* ring;       // [n_stages] stages of this warp
  uint64_t* barriers;  // [n_stages] of this warp

  PITH_DEVICE RingSource(const Q24Weights& weights, const UnitMap& unit_map, const QuadCursor& cursor,
                         uint32_t lane_idx, uint8_t* warp_ring, uint64_t* warp_barriers, uint32_t stages)
      : w(weights),
        map(unit_map),
        ahead(cursor),
        lane(lane_idx),
        n_stages(stages),
        ring(warp_ring),
        barriers(warp_barriers) {}

  static PITH_DEVICE uint8_t* unit_at(uint8_t* stage_bytes, uint32_t t) {
    return stage_bytes + t * kRingUnitBytes;
  }
  static PITH_DEVICE uint8_t* scales_at(uint8_t* stage_bytes, uint32_t t) {
    return stage_bytes + 4 * kRingUnitBytes + t * kRingScaleBytes;
  }

  // 16-byte pieces with cp.async: lane `part` of `n_parts`; whole with the copy engine.
  PITH_DEVICE void copy(uint8_t* to, const uint8_t* from, uint32_t n_bytes, uint32_t part, uint32_t n_parts,
                        uint64_t* barrier) {
    if constexpr (kPipeline == Pipeline::kBulkCopy) {
      bulk_copy(to, from, n_bytes, barrier);
    } else {
      PITH_UNROLL
      for (uint32_t at = part * 16; at < n_bytes; at += n_parts * 16) async_copy16(to + at, from + at);
    }
  }
  // Most quads: four whole units of the base plane, 4 KiB of codes and their scales in one piece each.
  PITH_DEVICE void fetch_whole_quad(uint8_t* bytes, uint64_t* barrier) {
    constexpr uint32_t kScaleBytes = kUnitCols / (2 * kGroup) * 64;
    const uint8_t* const codes =
        w.base + (uint64_t{ahead.panel} * map.n_lines + ahead.quad * 4 * kUnitLines) * q24::kLineBytes;
    const uint8_t* const scales =
        w.scales + uint64_t{ahead.panel} * w.scales_stride + ahead.quad * 4 * kScaleBytes;
    if constexpr (kPipeline == Pipeline::kBulkCopy) {
      if (lane != 0) return;
      barrier_arrive_expect(barrier, 4 * (kUnitBytes + kScaleBytes));
    }
    PITH_UNROLL
    for (uint32_t t = 0; t < 4; ++t)
      copy(unit_at(bytes, t), codes + t * kUnitBytes, kUnitBytes, lane, kWarp, barrier);
    if constexpr (kPipeline == Pipeline::kBulkCopy) {
      PITH_UNROLL
      for (uint32_t t = 0; t < 4; ++t)
        copy(scales_at(bytes, t), scales + t * kScaleBytes, kScaleBytes, 0, 1, barrier);
    } else {
      copy(scales_at(bytes, lane / 8), scales + lane / 8 * kScaleBytes, kScaleBytes, lane % 8, 8, barrier);
    }
  }
  PITH_DEVICE void fetch_quad(uint8_t* bytes, uint64_t* barrier) {
    if constexpr (kPipeline == Pipeline::kBulkCopy) {
      if (lane != 0) return;
      uint32_t n_bytes = 0;
      for (uint32_t t = 0; t < 4; ++t) {
        const Unit u(map, ahead.quad * 4 + t);
        n_bytes += (u.end_line - u.first_line) * q24::kLineBytes + unit_scale_bytes<kGroup>(u);
      }
      barrier_arrive_expect(barrier, n_bytes);
    }
    PITH_ROLLED
    for (uint32_t t = 0; t < 4; ++t) {
      const Unit u(map, ahead.quad * 4 + t);
      if (u.empty()) continue;
      copy(unit_at(bytes, t) + u.first_line * q24::kLineBytes, unit_codes(w, map, u, ahead.panel),
           (u.end_line - u.first_line) * q24::kLineBytes, lane, kWarp, barrier);
      copy(scales_at(bytes, t), unit_scales<kGroup>(w, u, ahead.panel), unit_scale_bytes<kGroup>(u), lane,
           kWarp, barrier);
    }
  }
  PITH_DEVICE void fetch(uint32_t to_stage) {
    uint8_t* const bytes = ring + to_stage * kRingStageBytes;
    if (ahead.valid()) {
      if ((ahead.quad + 1) * 4 * kUnitLines <= map.n_lines)
        fetch_whole_quad(bytes, barriers + to_stage);
      else
        fetch_quad(bytes, barriers + to_stage);
    }
    if constexpr (kPipeline == Pipeline::kAsyncCopy)
      async_commit();  // also when empty: async_wait counts groups
    ahead.advance();
  }
  PITH_DEVICE void start() {
    for (uint32_t i = 0; i < n_stages; ++i) fetch(i);
  }
  PITH_DEVICE void begin_quad() {
    if constexpr (kPipeline == Pipeline::kBulkCopy) {
      barrier_wait(barriers + stage, phase);
    } else {
      // The groups that may stay under way: those of the stages behind this one.
      if (n_stages == 1)
        async_wait<0>();
      else if (n_stages == 2)
        async_wait<1>();
      else if (n_stages == 3)
        async_wait<2>();
      else
        async_wait<3>();
      sync_warp();
    }
  }
  PITH_DEVICE void take(uint32_t i, U32x4& c0, U32x4& c1, U32x2& s) {
    uint8_t* const bytes = ring + stage * kRingStageBytes;
    const uint32_t g = lane / 4, t = lane % 4;
    const uint8_t* const lines = unit_at(bytes, t) + 2 * i * q24::kLineBytes + g * 16;
    c0 = load16(lines);
    c1 = load16(lines + q24::kLineBytes);
    s = step_scales<kGroup>(scales_at(bytes, t), g, i, [](const uint8_t* p) { return load8(p); });
  }
  PITH_DEVICE void end_quad() {
    sync_warp();  // every lane has read the stage
    fetch(stage);
    if (++stage == n_stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <uint32_t kGroup, Pipeline kPipeline, bool kSynchronous>
struct SourceOf {
  using Type = RingSource<kGroup, kPipeline>;
};
template <uint32_t kGroup, bool kSynchronous>
struct SourceOf<kGroup, Pipeline::kRegisters, kSynchronous> {
  using Type = RegisterSource<kGroup, kSynchronous>;
};

// ---- One quad: 32 rows x 4 units ----

struct RowSums {
  float s[4] = {0, 0, 0, 0},
        m[4] = {0, 0, 0, 0};  // sum_b scale[b] * T, * 16 M for rows g, g + 8, g + 16, g + 24
};

template <typename Source>
PITH_DEVICE void decode_quad(Source& source, const UnitMap& map, const SharedActivations& act, uint32_t quad,
                             uint32_t lane, uint32_t (&b0)[4], uint32_t (&b1)[4], RowSums& rows) {
  const uint32_t g = lane / 4, t = lane % 4;
  const uint32_t idx = quad * 4 + t;
  const Unit u(map, idx);
  const uint32_t zeros = act.n - 1;
  const uint32_t a_block = u.empty() ? zeros : idx == map.n_base_units ? act.n - 2 : u.block;
  const U32x4 line_sums = load16(act.sums + (u.empty() || u.fine ? zeros : u.block) * 8);
  // T counts 4 hi + lo; the refinement's codes come out of decode_step times 4 as well.
  const float scale = act.scale[a_block], scale_t = u.fine ? 0.25f * scale : scale;
  const int8_t* const a = act.a + a_block * 128;

  UnitSums sums;
  PITH_UNROLL
  for (uint32_t i = 0; i < kSteps; ++i) {
    U32x4 c0, c1;
    U32x2 s;
    source.take(i, c0, c1, s);
    if (g == 2 * t) {  // the other lanes' b0 stays zero
      const U32x4 v = load16(a + 32 * i);
      b0[0] = v.x, b0[1] = v.y, b0[2] = v.z, b0[3] = v.w;
    }
    if (g == 2 * t + 1) {
      const U32x4 v = load16(a + 32 * i + 16);
      b1[0] = v.x, b1[1] = v.y, b1[2] = v.z, b1[3] = v.w;
    }
    const uint32_t step_sums = i == 0   ? line_sums.x
                               : i == 1 ? line_sums.y
                               : i == 2 ? line_sums.z
                                        : line_sums.w;
    decode_step(c0, c1, s, b0, b1, step_sums, sums);
  }
  PITH_UNROLL
  for (int k = 0; k < 4; ++k) {
    rows.s[k] = fma_f32(scale_t, static_cast<float>(sums.t[k]), rows.s[k]);
    rows.m[k] = fma_f32(scale, static_cast<float>(sums.m[k]), rows.m[k]);
  }
}

PITH_DEVICE float outlier_term(const SharedActivations& act, uint32_t padded_cols, uint32_t slot) {
  const uint32_t column = slot & 0xffffu;
  if (column >= padded_cols) return 0;  // the file's data is not trusted with an address
  return f16_to_f32(static_cast<uint16_t>(slot >> 16)) *
         (act.scale[column / 128] * static_cast<float>(act.a[word_place(column)]));
}

template <uint32_t kGroup, Pipeline kPipeline, bool kSynchronous>
PITH_DEVICE void matvec_q24_body(const MatvecQ24& args, uint8_t* shared) {
  const Q24Weights& w = args.w;
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, n_warps = n_threads() / kWarp;
  const uint32_t n_stages = args.shape.n_stages, group_warps = args.shape.warps_per_panel;
  const uint32_t groups_per_block = n_warps / group_warps, group = warp / group_warps,
                 member = warp % group_warps;
  constexpr bool kHasRing = kPipeline != Pipeline::kRegisters;
  const MatvecQ24Shared layout(w.padded_cols, n_warps, n_stages, kHasRing);
  const SharedActivations act(shared, w.padded_cols);
  float* const partial = reinterpret_cast<float*>(shared + layout.partial);  // [2][n_warps][32]
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + layout.barriers) + warp * n_stages;

  launch_dependents();
  if constexpr (kPipeline == Pipeline::kBulkCopy) {
    if (lane == 0) {
      for (uint32_t i = 0; i < n_stages; ++i) barrier_init(barriers + i, 1);
      barrier_init_fence();
    }
    sync_warp();
  }
  const UnitMap map(w);
  // A warp without a quad (a narrow matrix) still takes part in its panel's sum: its cursor begins at the end.
  const uint32_t first_panel = block_index() * groups_per_block + group,
                 panel_step = n_blocks() * groups_per_block;
  const QuadCursor cursor{member < map.n_quads ? first_panel : w.n_panels,
                          member,
                          member,
                          group_warps,
                          panel_step,
                          map.n_quads,
                          w.n_panels};
  typename SourceOf<kGroup, kPipeline, kSynchronous>::Type source(
      w, map, cursor, lane, shared + layout.ring + warp * n_stages * kRingStageBytes, barriers, n_stages);
  source.start();

  depend();  // nothing above reads what an earlier kernel writes
  quantize_token(w, args.input, act, partial);

  uint32_t b0[4] = {0, 0, 0, 0}, b1[4] = {0, 0, 0, 0};
  Best best;
  uint32_t turn = 0;
  for (uint32_t panel = first_panel; panel < w.n_panels; panel += panel_step, ++turn) {
    // Slots member, member + group_warps, ...: the first two are asked for now, so that they are here at the end.
    const uint32_t* const slots = w.outliers + uint64_t{panel} * w.n_slots * kWarp + lane;
    const uint32_t slot0 = member < w.n_slots ? load_stream4(slots + member * kWarp) : 0;
    const uint32_t slot1 =
        member + group_warps < w.n_slots ? load_stream4(slots + (member + group_warps) * kWarp) : 0;
    const uint32_t row_scale = load_stream4(w.row_scale + uint64_t{panel} * kWarp + lane);

    RowSums rows;
    for (uint32_t quad = member; quad < map.n_quads; quad += group_warps) {
      source.begin_quad();
      decode_quad(source, map, act, quad, lane, b0, b1, rows);
      source.end_quad();
    }

    const float d = f16_to_f32(static_cast<uint16_t>(row_scale)),
                dmin = f16_to_f32(static_cast<uint16_t>(row_scale >> 16));
    float y = 0.25f * d * sum_rows(rows.s, lane) - 0.0625f * dmin * sum_rows(rows.m, lane);
    y += outlier_term(act, w.padded_cols, slot0);
    y += outlier_term(act, w.padded_cols, slot1);
    for (uint32_t i = member + 2 * group_warps; i < w.n_slots; i += group_warps)
      y += outlier_term(act, w.padded_cols, load_stream4(slots + i * kWarp));

    // One warp of the group, in turn, adds the parts; the others go on. Two buffers: who writes this one again has passed the
    // next panel's barrier, and so has, after reading it, the warp that added.
    float* const parts = partial + (turn % 2) * n_warps * kWarp + group * group_warps * kWarp;
    parts[member * kWarp + lane] = y;
    if (group_warps == 1)
      sync_warp();
    else
      sync_named(1 + group, group_warps * kWarp);
    if (turn % group_warps == member) {
      y = 0;
      for (uint32_t i = 0; i < group_warps; ++i) y += parts[i * kWarp + lane];
      finish_rows(args.output, w.n_rows, panel, lane, y, best);
    }
  }
  if (args.output.epilogue == Epilogue::kLogits && args.output.best != nullptr) {
    sync_block();
    finish_best(args.output, best, partial);
  }
}

}  // namespace pith::cuda
