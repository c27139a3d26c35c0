// Body of the Q24 matrix-vector kernel: norm, quantization of the activations, decode, product, outliers and epilogue.
//
//   y[r] = 0.25 * d[r] * sum_b scale[b] * T[r, b] - dmin[r] * sum_b scale[b] * M[r, b] + sum_slots delta * x'[col]
//   T[r, b] = sum over the 16-column lines of block b of s * sum (4 hi + lo) * a        M[r, b] = sum of m * sum a
//
// Shapes: W [n_rows, n_cols] Q24, x [n_cols] float, out as in kernels.h.
//
// Grid: any number of blocks of n_warps warps. Block i takes the panels i, i + n_blocks, ..., at most kRoundPanels of them a round. The
// quads of a round's panels, one after another, are cut into n_warps equal runs, so that no warp has more than one quad above the
// average; where a run passes from one panel to the next, the warp leaves its part of the rows in shared memory:
//
//   panel 0: | quad 0 1 2 3 4 5 6 7 8 9 |  panel 1: | 0 1 2 3 4 5 6 7 8 9 |  ...        10 quads a panel, 3 panels, 8 warps
//   warp       0 0 0 1 1 1 1 2 2 2                    2 3 3 3 3 4 4 4 5 5
//
// Every warp has a ring of its own in shared memory, filled by itself: with the bulk pipeline, one lane starts 8 copies and an
// mbarrier per stage counts the bytes; no other warp is involved, so the main loop has no block barrier. (A producer warp
// of its own would wait on the slowest consumer of a shared stage; here nobody waits for a neighbour.) The units of a
// stage lie 32 bytes apart from where they would meet in the same banks: 16-byte reads of 4 units x 8 chunks are conflict-free.
// The ring is filled before depend(): the first n_stages quads stream in while the kernel before still runs.
//
// Shared memory: activations | parts [kRoundPanels][n_warps][32] floats | mbarriers [n_warps][n_stages] | ring [n_warps][n_stages]
// x 5376 B
// Preconditions: planes 128-byte aligned; 1 KiB readable after the tensor; n_stages at most 4.
// Order of additions: a lane its units in order, then the lanes t, outliers with their warp's part, then the warps: fixed by shape
// and MatvecShape. Against the CPU's single order the difference is at most about (n_blocks of 128 + n_slots + 16) * 2^-23 *
// the sum of the terms' magnitudes.
// Bound by: device-memory bandwidth by design. Speed: not measured. Instructions a weight, from SASS: README.md of this folder.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/q24_tile.cuh"

namespace pith::cuda {

constexpr uint32_t kRoundPanels = 8;
constexpr uint32_t kRingUnitBytes = kUnitBytes + 32;  // see "banks" above
constexpr uint32_t kRingScaleBytes = 256 + 32;
constexpr uint32_t kRingStageBytes = 4 * (kRingUnitBytes + kRingScaleBytes);
static_assert(kRingStageBytes % 128 == 0);

struct MatvecQ24Shared {
  uint32_t parts, barriers, ring, total;  // byte offsets; activations are at 0

  PITH_SHAPE MatvecQ24Shared(uint32_t padded_cols, uint32_t n_warps, uint32_t n_stages, bool has_ring)
      : parts(SharedActivations::bytes(padded_cols)),
        barriers(parts + kRoundPanels * n_warps * 32 * 4),
        ring((barriers + n_warps * n_stages * 8 + 127) / 128 * 128),
        total(has_ring ? ring + n_warps * n_stages * kRingStageBytes : barriers) {}
};

// How many panels a block has, and which items (panel, quad) of a round are whose.
struct Rounds {
  uint32_t n_quads, n_local, warp, n_warps;

  PITH_DEVICE Rounds(const UnitMap& map, uint32_t n_panels)
      : n_quads(map.n_quads),
        n_local(block_index() < n_panels ? (n_panels - block_index() + n_blocks() - 1) / n_blocks() : 0),
        warp(thread_index() / kWarp),
        n_warps(n_threads() / kWarp) {}
  PITH_DEVICE uint32_t n_panels(uint32_t first_local) const {
    return n_local - first_local < kRoundPanels ? n_local - first_local : kRoundPanels;
  }
  PITH_DEVICE uint32_t cut(uint32_t first_local, uint32_t i) const {
    return n_panels(first_local) * n_quads * i / n_warps;
  }
};
PITH_DEVICE uint32_t panel_of(uint32_t local) {
  return block_index() + local * n_blocks();
}

// A warp's quads, over all rounds, in order.
struct QuadCursor {
  const Rounds& rounds;
  uint32_t round = 0;  // first local panel of
  uint32_t local = 0, quad = 0, left = 0;

  PITH_DEVICE explicit QuadCursor(const Rounds& r) : rounds(r) { begin_round(); }
  PITH_DEVICE bool valid() const { return left != 0; }
  PITH_DEVICE void begin_round() {  // or the next one in which this warp has something to do
    for (; round < rounds.n_local; round += kRoundPanels) {
      const uint32_t begin = rounds.cut(round, rounds.warp);
      left = rounds.cut(round, rounds.warp + 1) - begin;
      local = round + begin / rounds.n_quads;
      quad = begin % rounds.n_quads;
      if (left != 0) return;
    }
  }
  PITH_DEVICE void advance() {
    if (left == 0) return;
    if (--left == 0) {
      round += kRoundPanels;
      begin_round();
    } else if (++quad == rounds.n_quads) {
      quad = 0;
      ++local;
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

  PITH_DEVICE RegisterSource(const Q24Weights& weights, const UnitMap& unit_map, const Rounds& rounds,
                             uint32_t lane, uint8_t*, uint64_t*, uint32_t)
      : w(weights), map(unit_map), next(rounds), g(lane / 4), t(lane % 4) {}

  // After the last quad there is nothing to load: the panel's first unit again, from the cache.
  PITH_DEVICE UnitBytes<kGroup> locate() const {
    return next.valid() ? UnitBytes<kGroup>(w, map, panel_of(next.local), next.quad * 4 + t)
                        : UnitBytes<kGroup>(w, map, 0, 0);
  }
  PITH_DEVICE void load(const UnitBytes<kGroup>& from, uint32_t i) {
    chunk[2 * i] = load_stream16(from.codes + 2 * i * q24::kLineBytes + g * 16);
    chunk[2 * i + 1] = load_stream16(from.codes + (2 * i + 1) * q24::kLineBytes + g * 16);
    scale[i] = step_scales<kGroup>(from.scales, g, i, [](const uint8_t* p) { return load_stream8(p); });
  }
  PITH_DEVICE void load_all() {
    const UnitBytes<kGroup> from = locate();
    PITH_UNROLL
    for (uint32_t i = 0; i < kSteps; ++i) load(from, i);
  }
  PITH_DEVICE void start() {
    if constexpr (!kSynchronous) load_all();
  }
  PITH_DEVICE UnitBytes<kGroup> begin_quad() {
    if constexpr (kSynchronous) load_all();
    next.advance();
    return locate();
  }
  PITH_DEVICE void take(const UnitBytes<kGroup>& following, uint32_t i, U32x4& c0, U32x4& c1, U32x2& s) {
    c0 = chunk[2 * i];
    c1 = chunk[2 * i + 1];
    s = scale[i];
    if constexpr (!kSynchronous) load(following, i);
  }
  PITH_DEVICE void end_quad() {}
};

// A warp's ring. With n_stages = 1 nothing overlaps within the warp: load, wait, decode.
template <uint32_t kGroup, Pipeline kPipeline>
struct RingSource {
  using Bytes = UnitBytes<kGroup>;
  const Q24Weights& w;
  const UnitMap& map;
  QuadCursor ahead;  // the next quad to be fetched
  uint32_t lane, stage = 0, phase = 0, n_stages;
  uint8_t* ring;       // [n_stages] stages of this warp
  uint64_t* barriers;  // [n_stages] of this warp

  PITH_DEVICE RingSource(const Q24Weights& weights, const UnitMap& unit_map, const Rounds& rounds,
                         uint32_t lane_idx, uint8_t* warp_ring, uint64_t* warp_barriers, uint32_t stages)
      : w(weights),
        map(unit_map),
        ahead(rounds),
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

  PITH_DEVICE void fetch_bulk(uint8_t* bytes, uint64_t* barrier) {
    if (lane != 0) return;
    const uint32_t unit = ahead.quad * 4, panel = panel_of(ahead.local);
    const uint32_t n_real = map.n_units - unit < 4 ? map.n_units - unit : 4;
    barrier_arrive_expect(barrier, n_real * (kUnitBytes + Bytes::kScaleBytes));
    // Within a plane the units of a quad follow each other.
    const bool one_plane = map.is_fine(unit) || unit + n_real <= map.n_base;
    Bytes from(w, map, panel, unit);
    PITH_UNROLL
    for (uint32_t t = 0; t < 4; ++t) {
      if (t >= n_real) break;
      if (!one_plane) from = Bytes(w, map, panel, unit + t);
      bulk_copy(unit_at(bytes, t), from.codes, kUnitBytes, barrier);
      bulk_copy(scales_at(bytes, t), from.scales, Bytes::kScaleBytes, barrier);
      from.codes += kUnitBytes;
      from.scales += Bytes::kScaleBytes;
    }
  }
  PITH_DEVICE void fetch_async(uint8_t* bytes) {
    const uint32_t t = lane / 8;  // 8 lanes a unit
    const Bytes from(w, map, panel_of(ahead.local), ahead.quad * 4 + t);
    uint8_t* const codes = unit_at(bytes, t) + lane % 8 * 16;
    PITH_UNROLL
    for (uint32_t i = 0; i < kUnitLines; ++i)
      async_copy16(codes + i * q24::kLineBytes, from.codes + i * q24::kLineBytes + lane % 8 * 16);
    PITH_UNROLL
    for (uint32_t at = 0; at < Bytes::kScaleBytes; at += 128)
      async_copy16(scales_at(bytes, t) + at + lane % 8 * 16, from.scales + at + lane % 8 * 16);
  }
  PITH_DEVICE void fetch(uint32_t to_stage) {
    uint8_t* const bytes = ring + to_stage * kRingStageBytes;
    if (ahead.valid()) {
      if constexpr (kPipeline == Pipeline::kBulkCopy)
        fetch_bulk(bytes, barriers + to_stage);
      else
        fetch_async(bytes);
    }
    if constexpr (kPipeline == Pipeline::kAsyncCopy)
      async_commit();  // also when empty: async_wait counts groups
    ahead.advance();
  }
  PITH_DEVICE void start() {
    for (uint32_t i = 0; i < n_stages; ++i) fetch(i);
  }
  PITH_DEVICE uint8_t* begin_quad() {
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
    return ring + stage * kRingStageBytes;
  }
  PITH_DEVICE void take(uint8_t* bytes, uint32_t i, U32x4& c0, U32x4& c1, U32x2& s) {
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
  const uint32_t g = lane / 4, t = lane % 4, unit = quad * 4 + t;
  const bool exists = unit < map.n_units, fine = map.is_fine(unit);
  const uint32_t zeros = act.n - 1, block = map.block(unit);
  const uint32_t a_block = !exists ? zeros : unit == map.n_base ? act.n - 2 : block;
  const U32x4 line_sums = load16(act.sums + (fine ? zeros : block) * 8);
  // T counts 4 hi + lo; the refinement's codes come out of decode_step times 4 as well.
  const float scale = act.scale[a_block], scale_t = fine ? 0.25f * scale : scale;
  const int8_t* const a = act.a + a_block * 128;

  const auto from = source.begin_quad();
  UnitSums sums;
  PITH_UNROLL
  for (uint32_t i = 0; i < kSteps; ++i) {
    U32x4 c0, c1;
    U32x2 s;
    source.take(from, i, c0, c1, s);
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
  source.end_quad();
  PITH_UNROLL
  for (int k = 0; k < 4; ++k) {
    rows.s[k] = fma_f32(scale_t, static_cast<float>(sums.t[k]), rows.s[k]);
    rows.m[k] = fma_f32(scale, static_cast<float>(sums.m[k]), rows.m[k]);
  }
}

// This warp's slots of a panel, for the row of word `lane`.
PITH_DEVICE float outlier_part(const Q24Weights& w, const SharedActivations& act, uint32_t panel,
                               uint32_t warp, uint32_t n_warps, uint32_t lane) {
  float y = 0;
  const uint32_t* const slots = w.outliers + uint64_t{panel} * w.n_slots * kWarp + lane;
  for (uint32_t i = warp; i < w.n_slots; i += n_warps) {
    const uint32_t slot = load_stream4(slots + i * kWarp), column = slot & 0xffffu;
    if (column >= w.padded_cols) continue;  // the file's data is not trusted with an address
    const float x = act.scale[column / kUnitCols] * static_cast<float>(act.a[word_place(column)]);
    y = fma_f32(f16_to_f32(static_cast<uint16_t>(slot >> 16)), x, y);
  }
  return y;
}

// Asks for what is needed beside the codes, before the kernel may read activations.
PITH_DEVICE void prefetch_rest(const Q24Weights& w, const Rounds& rounds) {
  const uint32_t n_slot_lines = rounds.n_panels(0) * w.n_slots;
  for (uint32_t i = thread_index(); i < n_slot_lines; i += n_threads())
    prefetch_l2(w.outliers + (uint64_t{panel_of(i / w.n_slots)} * w.n_slots + i % w.n_slots) * kWarp);
  for (uint32_t i = thread_index() * 64; i < w.padded_cols; i += n_threads() * 64) prefetch_l2(w.perm + i);
}

template <uint32_t kGroup, Pipeline kPipeline, bool kSynchronous>
PITH_DEVICE void matvec_q24_body(const Q24Weights& w, const Input& input, const Output& output,
                                 uint32_t n_stages, uint8_t* shared) {
  const uint32_t lane = thread_index() % kWarp, warp = thread_index() / kWarp, n_warps = n_threads() / kWarp;
  const MatvecQ24Shared layout(w.padded_cols, n_warps, n_stages, kPipeline != Pipeline::kRegisters);
  const SharedActivations act(shared, w.padded_cols);
  float* const parts = reinterpret_cast<float*>(shared + layout.parts);  // [kRoundPanels][n_warps][32]
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
  const Rounds rounds(map, w.n_panels);
  typename SourceOf<kGroup, kPipeline, kSynchronous>::Type source(
      w, map, rounds, lane, shared + layout.ring + warp * n_stages * kRingStageBytes, barriers, n_stages);
  source.start();
  prefetch_rest(w, rounds);

  depend();  // nothing above reads what an earlier kernel writes
  quantize_token(w, input, act, parts);

  uint32_t b0[4] = {0, 0, 0, 0}, b1[4] = {0, 0, 0, 0};
  Best best;
  QuadCursor cursor(rounds);
  for (uint32_t round = 0; round < rounds.n_local; round += kRoundPanels) {
    const uint32_t n_round_panels = rounds.n_panels(round);
    for (uint32_t i = 0; i < n_round_panels; ++i)
      parts[(i * n_warps + warp) * kWarp + lane] =
          outlier_part(w, act, panel_of(round + i), warp, n_warps, lane);

    RowSums rows;
    while (cursor.valid() && cursor.round == round) {
      const uint32_t local = cursor.local, quad = cursor.quad;
      // Needed at the panel's end only, but asked for now; all but the first time it comes from the cache.
      const uint32_t row_scale = load_stream4(w.row_scale + uint64_t{panel_of(local)} * kWarp + lane);
      cursor.advance();
      decode_quad(source, map, act, quad, lane, b0, b1, rows);
      if (cursor.valid() && cursor.round == round && cursor.local == local) continue;
      const float d = f16_to_f32(static_cast<uint16_t>(row_scale)),
                  dmin = f16_to_f32(static_cast<uint16_t>(row_scale >> 16));
      parts[((local - round) * n_warps + warp) * kWarp + lane] +=
          0.25f * d * sum_rows(rows.s, lane) - 0.0625f * dmin * sum_rows(rows.m, lane);
      rows = RowSums();
    }

    sync_block();
    for (uint32_t i = warp; i < n_round_panels; i += n_warps) {
      float y = 0;
      for (uint32_t k = 0; k < n_warps; ++k) y += parts[(i * n_warps + k) * kWarp + lane];
      finish_rows(output, w.n_rows, panel_of(round + i), lane, y, best);
    }
    sync_block();  // the parts may be written again
  }
  if (output.epilogue == Epilogue::kLogits && output.best != nullptr) finish_best(output, best, parts);
}

}  // namespace pith::cuda
