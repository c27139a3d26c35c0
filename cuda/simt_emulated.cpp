// The fiber scheduler behind simt_emulated.h.
//
// A block's threads run in turn; each runs until it must wait, then the next one that need not goes on. When nobody can, the block is
// deadlocked. Warp collectives check that all lanes are at the same one.
#include <array>
#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/fiber.h"
#include "cuda/simt.cuh"

namespace pith::cuda {
namespace emulation {
namespace {

constexpr uint8_t kGarbage = 0xa5;

struct PendingCopy {
  void* to;
  const void* from;
  size_t n_bytes;
};

struct Product {
  float (*sums)[4];  // [16][4] of one thread
  uint64_t a, b;
};

// As an mbarrier: a phase ends when all arrivals are in and as many bytes came as were announced.
struct CopyBarrier {
  uint32_t n_arrivals = 0, arrived = 0;
  int64_t bytes_missing = 0;
  uint32_t phase = 0;
  std::vector<PendingCopy> copies;

  void end_phase_if_done() {
    if (arrived != n_arrivals || bytes_missing != 0) return;
    arrived = 0;
    ++phase;
  }
};

struct WarpState {
  const char* what = nullptr;
  uint32_t arrived = 0;
  uint64_t generation = 0;
  alignas(16) uint8_t values[2][kWarp * kLaneBytes];  // of even and odd generations
};

struct BlockBarrier {
  uint32_t arrived = 0;
  uint64_t generation = 0;
};

struct Thread {
  Fiber* fiber = nullptr;
  bool done = false;
  // What it waits for, on its own stack: asked by the scheduler, which spares the switch there and back.
  bool (*may_go_on)(const void* condition) = nullptr;
  const void* condition = nullptr;
  std::vector<std::vector<PendingCopy>> groups{1};  // cp.async: the last one is still open
  std::vector<std::pair<size_t, size_t>>
      stored;  // offset and size in shared memory, since its last proxy fence
  // Warpgroup products: batches, the last one still open; what the sums under way are worth.
  std::vector<std::vector<Product>> batches{1};
  std::unordered_map<float (*)[4], std::array<float, 64>> sums;
  bool may_multiply = false;  // a warpgroup_fence() since the last batch
};

struct Machine {
  Grid grid;
  uint32_t block = 0, block_y = 0, current = 0;
  const std::function<void(uint8_t*)>* body = nullptr;
  uint8_t* shared = nullptr;
  std::vector<uint8_t>
      async_view;  // shared memory as the asynchronous proxy sees it; 0xff (fp16 NaN): not at all
  std::vector<Thread> threads;
  std::vector<WarpState> warps;
  BlockBarrier block_barrier;
  std::unordered_map<const uint64_t*, CopyBarrier> barriers;
  std::exception_ptr failure;
};

Machine* machine = nullptr;

Thread& self() {
  return machine->threads[machine->current];
}
WarpState& my_warp() {
  return machine->warps[machine->current / kWarp];
}

// Offset in the block's shared memory; false where p is not in it.
bool shared_offset(const void* p, size_t& offset) {
  offset = static_cast<size_t>(static_cast<const uint8_t*>(p) - machine->shared);
  return static_cast<const uint8_t*>(p) >= machine->shared && offset < machine->async_view.size();
}
void hide_from_async(const void* p, size_t n_bytes) {
  if (size_t at; shared_offset(p, at)) std::memset(machine->async_view.data() + at, 0xff, n_bytes);
}

// cp.async is a store of the thread that waits for it, a bulk copy one of the asynchronous proxy.
void finish(std::vector<PendingCopy>& copies, bool by_async_proxy) {
  for (const PendingCopy& c : copies) {
    std::memcpy(c.to, c.from, c.n_bytes);
    size_t at;
    if (!by_async_proxy)
      note_store(c.to, c.n_bytes);
    else if (shared_offset(c.to, at))
      std::memcpy(machine->async_view.data() + at, c.from, c.n_bytes);
  }
  copies.clear();
}

template <typename Condition>
void wait_until(const Condition& condition) {
  if (condition()) return;
  Thread& thread = self();
  thread.condition = &condition;
  thread.may_go_on = [](const void* c) { return (*static_cast<const Condition*>(c))(); };
  thread.fiber->yield();
  thread.may_go_on = nullptr;
}

void thread_main() {
  self().fiber->entered();
  try {
    (*machine->body)(machine->shared);
    for (const auto& group : self().groups)
      if (!group.empty()) fail("a thread ended with asynchronous copies that nobody waited for");
    if (!self().sums.empty()) fail("a thread ended with products that nobody waited for");
  } catch (...) {
    machine->failure = std::current_exception();
  }
  self().done = true;
  self().fiber->finish();
}

void run_block(size_t n_shared_bytes) {
  void* shared = nullptr;
  if (posix_memalign(&shared, 1024, n_shared_bytes + (n_shared_bytes == 0)) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, decltype(&std::free)> owner(shared, &std::free);
  std::memset(shared, kGarbage, n_shared_bytes);
  Machine& m = *machine;
  m.shared = static_cast<uint8_t*>(shared);
  m.async_view.assign(n_shared_bytes, 0xff);
  m.warps.assign(m.grid.n_threads / kWarp, WarpState{});
  m.barriers.clear();
  m.block_barrier = {};
  for (Thread& t : m.threads) {
    t.done = false;
    t.may_go_on = nullptr;
    t.groups.assign(1, {});
    t.stored.clear();
    t.batches.assign(1, {});
    t.sums.clear();
    t.may_multiply = false;
    t.fiber->reset(thread_main);
  }
  for (uint32_t n_done = 0; n_done < m.grid.n_threads;) {
    bool somebody_ran = false;
    n_done = 0;
    for (m.current = 0; m.current < m.grid.n_threads; ++m.current) {
      Thread& t = self();
      if (!t.done && (t.may_go_on == nullptr || t.may_go_on(t.condition))) {
        somebody_ran = true;
        t.fiber->resume();
        if (m.failure) std::rethrow_exception(m.failure);
      }
      n_done += t.done;
    }
    if (!somebody_ran && n_done < m.grid.n_threads)
      throw std::runtime_error("emulation: the block is deadlocked");
  }
  for (const auto& [address, barrier] : m.barriers)
    if (!barrier.copies.empty()) throw std::runtime_error("emulation: bulk copies outlived their block");
}

}  // namespace

void fail(const char* what) {
  throw std::runtime_error(std::string("emulation: ") + what + " (block " + std::to_string(block_index()) +
                           ", thread " + std::to_string(thread_index()) + ")");
}

void note_store(const void* p, size_t n_bytes) {
  size_t at;
  if (!shared_offset(p, at)) return;
  hide_from_async(p, n_bytes);
  self().stored.emplace_back(at, n_bytes);
}

void run(const Grid& grid, size_t n_shared_bytes, const std::function<void(uint8_t*)>& body) {
  Machine m;
  m.grid = grid;
  m.body = &body;
  m.threads.resize(grid.n_threads);
  // Stacks are kept: a test launches thousands of small grids.
  static std::vector<Fiber> fibers;
  while (fibers.size() < m.threads.size()) fibers.emplace_back();
  for (size_t i = 0; i < m.threads.size(); ++i) m.threads[i].fiber = &fibers[i];
  machine = &m;
  struct Reset {
    ~Reset() { machine = nullptr; }
  } reset;
  for (m.block_y = 0; m.block_y < grid.n_blocks_y; ++m.block_y)
    for (m.block = 0; m.block < grid.n_blocks; ++m.block) run_block(n_shared_bytes);
}

const uint8_t* exchange(const char* what, const void* value, size_t n_bytes) {
  WarpState& warp = my_warp();
  if (n_bytes > kLaneBytes) fail("a value too large to exchange");
  if (warp.arrived == 0) warp.what = what;
  if (warp.what != what && std::strcmp(warp.what, what) != 0)
    fail("the lanes of a warp are at different collectives");
  const uint64_t generation = warp.generation;
  uint8_t* const values = warp.values[generation % 2];
  if (n_bytes) std::memcpy(values + machine->current % kWarp * kLaneBytes, value, n_bytes);
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    ++warp.generation;
  } else {
    wait_until([&] { return warp.generation != generation; });
  }
  return values;
}

}  // namespace emulation

using emulation::machine;

uint32_t thread_index() {
  return machine->current;
}
uint32_t n_threads() {
  return machine->grid.n_threads;
}
uint32_t block_index() {
  return machine->block;
}
uint32_t block_index_y() {
  return machine->block_y;
}
uint32_t n_blocks() {
  return machine->grid.n_blocks;
}
uint32_t n_blocks_y() {
  return machine->grid.n_blocks_y;
}

namespace {

struct Fragments {
  uint32_t a[4], b0, b1;
};
static_assert(sizeof(Fragments) <= emulation::kLaneBytes);

Fragments fragments_of(const uint8_t* all, uint32_t lane) {
  Fragments f;
  std::memcpy(&f, all + lane * emulation::kLaneBytes, sizeof f);
  return f;
}

}  // namespace

void mma_u8s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Fragments mine{{a[0], a[1], a[2], a[3]}, b0, b1};
  const uint8_t* const all = emulation::exchange("mma_u8s8", &mine, sizeof mine);
  const uint32_t lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t column = 2 * t + i % 2;
    for (uint32_t quad = 0; quad < 4; ++quad) {
      const Fragments fa = fragments_of(all, g * 4 + quad), fb = fragments_of(all, column * 4 + quad);
      for (uint32_t j = 0; j < 4; ++j) {
        c[i] += static_cast<uint8_t>(fa.a[i / 2] >> 8 * j) * static_cast<int8_t>(fb.b0 >> 8 * j);
        c[i] += static_cast<uint8_t>(fa.a[2 + i / 2] >> 8 * j) * static_cast<int8_t>(fb.b1 >> 8 * j);
      }
    }
  }
}

void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Fragments mine{{a[0], a[1], a[2], a[3]}, b0, b1};
  const uint8_t* const all = emulation::exchange("mma_f16", &mine, sizeof mine);
  const uint32_t lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t column = 2 * t + i % 2;
    for (uint32_t pair = 0; pair < 4; ++pair) {
      const Fragments fa = fragments_of(all, g * 4 + pair), fb = fragments_of(all, column * 4 + pair);
      for (uint32_t j = 0; j < 2; ++j) {
        const auto half = [j](uint32_t word) { return f16_to_float(static_cast<uint16_t>(word >> 16 * j)); };
        c[i] += half(fa.a[i / 2]) * half(fb.b0) + half(fa.a[2 + i / 2]) * half(fb.b1);
      }
    }
  }
}

void sync_block() {
  emulation::BlockBarrier& barrier = machine->block_barrier;
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == n_threads()) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    emulation::wait_until([&] { return barrier.generation != generation; });
  }
}

void async_copy16(void* to, const void* from) {
  emulation::require_aligned(to, 16);
  emulation::require_aligned(from, 16);
  std::memset(to, emulation::kGarbage, 16);
  emulation::hide_from_async(to, 16);
  emulation::self().groups.back().push_back({to, from, 16});
}

void async_commit() {
  emulation::self().groups.emplace_back();
}

void async_wait_pending(uint32_t n_pending) {
  auto& groups = emulation::self().groups;
  while (groups.size() > n_pending + 1) {
    emulation::finish(groups.front(), false);
    groups.erase(groups.begin());
  }
}

void barrier_init(uint64_t* barrier, uint32_t n_arrivals) {
  emulation::require_aligned(barrier, 8);
  machine->barriers[barrier] = {n_arrivals, 0, 0, 0, {}};
}

static emulation::CopyBarrier& find_barrier(uint64_t* address) {
  const auto it = machine->barriers.find(address);
  if (it == machine->barriers.end()) emulation::fail("a barrier was used before barrier_init");
  return it->second;
}

void barrier_arrive_expect(uint64_t* address, uint32_t n_bytes) {
  emulation::CopyBarrier& barrier = find_barrier(address);
  if (barrier.arrived == barrier.n_arrivals) emulation::fail("too many arrivals at a copy barrier");
  ++barrier.arrived;
  barrier.bytes_missing += n_bytes;
  barrier.end_phase_if_done();
}

void bulk_copy(void* to, const void* from, uint32_t n_bytes, uint64_t* address) {
  emulation::require_aligned(to, 16);
  emulation::require_aligned(from, 16);
  if (n_bytes == 0 || n_bytes % 16 != 0) emulation::fail("bulk_copy of a size that is not a multiple of 16");
  std::memset(to, emulation::kGarbage, n_bytes);
  emulation::hide_from_async(to, n_bytes);
  find_barrier(address).copies.push_back({to, from, n_bytes});
}

void barrier_wait(uint64_t* address, uint32_t parity) {
  emulation::wait_until([&] {
    emulation::CopyBarrier& barrier = find_barrier(address);
    if ((barrier.phase & 1) != parity) return true;
    if (barrier.arrived == barrier.n_arrivals) {
      for (const emulation::PendingCopy& c : barrier.copies)
        barrier.bytes_missing -= static_cast<int64_t>(c.n_bytes);
      emulation::finish(barrier.copies, true);
      barrier.end_phase_if_done();
    }
    return (barrier.phase & 1) != parity;
  });
}

namespace {

constexpr uint32_t kSharedBase = 1024;  // as on sm_90, where the first KiB is the system's

// Where fp16 (row, column) of a descriptor's matrix lies: 8 rows of 128 bytes every `stride` bytes, address bits 4..6 exclusive-ored with
// bits 7..9.
float matrix_value(uint64_t descriptor, uint32_t row, uint32_t column) {
  const uint32_t begin = static_cast<uint32_t>(descriptor & 0x3fff) << 4,
                 stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  uint32_t at = begin + row / 8 * stride + row % 8 * 128 + column * 2;
  at ^= (at >> 7 & 7) << 4;
  if (at < kSharedBase || at - kSharedBase + 2 > machine->async_view.size())
    emulation::fail("a matrix outside of shared memory");
  uint16_t half;
  std::memcpy(&half, machine->async_view.data() + (at - kSharedBase), 2);
  return f16_to_float(half);
}

void multiply(const emulation::Product& p, std::array<float, 64>& sums) {
  const uint32_t lane = thread_index() % kWarp, g = lane / 4, t = lane % 4,
                 row = thread_index() / kWarp % 4 * 16 + g;
  float a[2][16];
  for (uint32_t i = 0; i < 2; ++i)
    for (uint32_t k = 0; k < 16; ++k) a[i][k] = matrix_value(p.a, row + 8 * i, k);
  for (uint32_t n = 0; n < 32; ++n) {  // this thread's columns
    const uint32_t column = n / 2 * 8 + 2 * t + n % 2;
    for (uint32_t k = 0; k < 16; ++k) {
      const float b = matrix_value(p.b, column, k);
      sums[n / 2 * 4 + n % 2] += a[0][k] * b;
      sums[n / 2 * 4 + 2 + n % 2] += a[1][k] * b;
    }
  }
}

}  // namespace

uint32_t shared_address(const void* p) {
  size_t at;
  if (!emulation::shared_offset(p, at)) emulation::fail("a shared address that is none");
  return kSharedBase + static_cast<uint32_t>(at);
}

void fence_async_proxy() {
  emulation::Thread& thread = emulation::self();
  for (const auto& [at, n_bytes] : thread.stored)
    std::memcpy(machine->async_view.data() + at, machine->shared + at, n_bytes);
  thread.stored.clear();
}

void warpgroup_fence() {
  emulation::exchange("warpgroup_fence", nullptr, 0);
  emulation::self().may_multiply = true;
}

void warpgroup_mma(float (&c)[16][4], uint64_t a, uint64_t b) {
  const uint64_t mine[2] = {a, b};
  const uint8_t* const all = emulation::exchange("warpgroup_mma", mine, sizeof mine);
  for (uint32_t lane = 0; lane < kWarp; ++lane)
    if (std::memcmp(all + lane * emulation::kLaneBytes, mine, sizeof mine) != 0)
      emulation::fail("the lanes of a warp name different matrices");
  emulation::Thread& thread = emulation::self();
  if (!thread.may_multiply) emulation::fail("warpgroup_mma without a warpgroup_fence before its batch");
  for (const uint64_t d : mine)  // 128-byte swizzle, no base offset, rows from a multiple of a KiB
    if (d >> 62 != 1 || (d >> 49 & 7) != 0 || (d & 0x38) != 0)
      emulation::fail("a matrix descriptor of another form than simt.cuh has");
  const auto [found, is_first] = thread.sums.try_emplace(c);
  if (is_first) std::memcpy(found->second.data(), c, sizeof c);
  for (auto& tile : c)
    for (float& v : tile) {
      if (!is_first && !std::isnan(v))
        emulation::fail("sums were written while their products were under way");
      v = std::numeric_limits<float>::quiet_NaN();
    }
  thread.batches.back().push_back({c, a, b});
}

void warpgroup_commit() {
  emulation::exchange("warpgroup_commit", nullptr, 0);
  emulation::self().batches.emplace_back();
  emulation::self().may_multiply = false;
}

void warpgroup_wait_pending(uint32_t n_pending) {
  emulation::Thread& thread = emulation::self();
  while (thread.batches.size() > n_pending + 1) {
    for (const emulation::Product& p : thread.batches.front()) multiply(p, thread.sums.at(p.sums));
    thread.batches.erase(thread.batches.begin());
  }
  for (auto it = thread.sums.begin(); it != thread.sums.end();) {
    bool is_under_way = false;
    for (const auto& batch : thread.batches)
      for (const emulation::Product& p : batch) is_under_way |= p.sums == it->first;
    if (!is_under_way) std::memcpy(it->first, it->second.data(), sizeof it->second);
    it = is_under_way ? std::next(it) : thread.sums.erase(it);
  }
  emulation::exchange("warpgroup_wait", nullptr, 0);
}

}  // namespace pith::cuda
