// Which pages of a model's file move into huge pages, and when.
#include <catch2/catch.hpp>

#include "file_backed.h"
#include "random_model.h"
#include "runtime/cpu/weight_pages.h"
#include "sample_specs.h"

using namespace pith;
using namespace pith::cpu;
using namespace pith::test;

namespace {

// A system that has huge pages, and a model on it whose matrices are larger than those.
struct Fixture {
  explicit Fixture(bool tied = false) {
    folder.write("root/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    folder.write("root/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n");
    set_memory(1 << 30);
    spec = plain_spec();
    spec.dim = 192, spec.ffn_dim = 3000, spec.vocab_size = 6000, spec.tied_embeddings = tied;
    write_random_model(folder / "m.pith", spec, {});
    open();
  }
  void open(Container::Access access = Container::Access::kMap) {
    model = Model::open(folder / "m.pith", access);
  }
  void set_memory(uint64_t n_bytes, uint64_t n_swap_bytes = 0) const {
    folder.write("root/proc/meminfo", "MemAvailable: " + std::to_string(n_bytes / 1024) +
                                          " kB\nSwapFree: " + std::to_string(n_swap_bytes / 1024) + " kB\n");
  }
  WeightPages pages(uint32_t n_layers) const { return WeightPages(*model, n_layers, folder / "root"); }

  // Of the huge pages that begin in a tensor: how many there are, and how many were moved.
  struct Count {
    size_t all = 0, moved = 0;
  };
  Count pages_in(const Tensor& tensor) const {
    constexpr size_t kHuge = MappedFile::kHugePage;
    const uint8_t* const end = tensor.data - tensor.offset + model->container().file_size();
    const uint8_t* page = tensor.data + (kHuge - reinterpret_cast<uintptr_t>(tensor.data) % kHuge) % kHuge;
    Count n;
    for (; page < tensor.data + tensor.size_bytes && page + kHuge <= end; page += kHuge) {
      ++n.all;
      n.moved += !is_file_backed(page);
    }
    return n;
  }
  // Of those that begin in a tensor whose name has one of these in it.
  Count count(const std::vector<std::string>& parts) const {
    Count sum;
    for (const Tensor& tensor : model->container().tensors())
      for (const std::string& part : parts)
        if (tensor.name.find(part) != std::string::npos) {
          const Count n = pages_in(tensor);
          sum.all += n.all, sum.moved += n.moved;
        }
    return sum;
  }
  uint64_t matrix_bytes() const {
    uint64_t n = 0;
    for (const Tensor& tensor : model->container().tensors())
      if (tensor.n_rows > 1 && tensor.name != "embed") n += tensor.size_bytes;
    return n;
  }

  TempFolder folder;
  ModelSpec spec;
  std::shared_ptr<const Model> model;
  ThreadPool pool{2};
};

const std::vector<std::string> kLayers = {"attn_qkv", "attn_out", "ffn_gate_up", "ffn_down"};

}  // namespace

TEST_CASE("the first batch moves nothing, each token after it a part, and in the end all is moved") {
  Fixture f;
  WeightPages pages = f.pages(2);
  pages.move_some(300, f.pool);
  CHECK(f.model->container().own_bytes() == 0);
  uint64_t before = 0;
  int n_tokens = 0;
  for (; f.count({"head"}).moved < f.count({"head"}).all; ++n_tokens) {
    REQUIRE(n_tokens < 16);
    pages.move_some(1, f.pool);
    const uint64_t now = f.model->container().own_bytes();
    CHECK(now - before <= f.matrix_bytes() / 16 + (3000 * 2 * 192 * 4) + MappedFile::kHugePage);
    before = now;
  }
  CHECK(n_tokens >= 4);
  REQUIRE(f.count(kLayers).all >= 4);
  CHECK(f.count(kLayers).moved == f.count(kLayers).all);
  CHECK(f.count({"embed"}).moved == 0);  // of which a token reads a row
}

TEST_CASE("sessions that are closed after a few tokens go on where others stopped") {
  Fixture f;
  for (int session = 0; session < 16; ++session) {
    WeightPages pages = f.pages(2);
    pages.move_some(1, f.pool);
    pages.move_some(1, f.pool);
  }
  CHECK(f.count(kLayers).moved == f.count(kLayers).all);
  CHECK(f.count({"head"}).moved == f.count({"head"}).all);
}

TEST_CASE("a batch of many tokens moves a quarter") {
  Fixture f;
  WeightPages pages = f.pages(2);
  pages.move_some(256, f.pool);
  pages.move_some(64, f.pool);
  const uint64_t moved = f.model->container().own_bytes();
  CHECK(moved < f.matrix_bytes() / 2);  // one matrix, of a third of all
  pages.move_some(256, f.pool);
  CHECK(f.model->container().own_bytes() - moved > f.matrix_bytes() / 4);
}

TEST_CASE(
    "a tied embedding is the head and moves; layers that run elsewhere do not, and the head with them") {
  Fixture tied(true);
  WeightPages all = tied.pages(2);
  for (int i = 0; i < 17; ++i) all.move_some(1, tied.pool);
  REQUIRE(tied.count({"embed"}).all > 0);
  CHECK(tied.count({"embed"}).moved == tied.count({"embed"}).all);

  Fixture f;
  WeightPages first_layer = f.pages(1);
  for (int i = 0; i < 17; ++i) first_layer.move_some(1, f.pool);
  REQUIRE(f.count({"layers.0.ffn"}).all > 0);
  CHECK(f.count({"layers.0.ffn"}).moved == f.count({"layers.0.ffn"}).all);
  CHECK(f.count({"layers.1.", "head"}).moved == 0);
}

TEST_CASE("nothing moves where memory is not plenty without swap, and no more once it no longer is") {
  Fixture f;
  const uint64_t twice = 2 * f.matrix_bytes();
  f.set_memory(twice - (64 << 10), 1 << 30);
  WeightPages poor = f.pages(2);
  for (int i = 0; i < 17; ++i) poor.move_some(1, f.pool);
  CHECK(f.model->container().own_bytes() == 0);

  f.set_memory(twice + (64 << 10));
  WeightPages pages = f.pages(2);
  pages.move_some(1, f.pool);
  pages.move_some(256, f.pool);
  const uint64_t moved = f.model->container().own_bytes();
  CHECK(moved > 0);
  f.set_memory(f.matrix_bytes());  // others took theirs
  for (int i = 0; i < 17; ++i) pages.move_some(1, f.pool);
  CHECK(f.model->container().own_bytes() == moved);
}

TEST_CASE("nothing moves of a shared mapping, of a file in memory, or without huge pages") {
  Fixture f;
  for (const auto access : {Container::Access::kMapShared, Container::Access::kRead}) {
    f.open(access);
    const uint64_t before = f.model->container().own_bytes();
    WeightPages pages = f.pages(2);
    for (int i = 0; i < 17; ++i) pages.move_some(1, f.pool);
    CHECK(f.model->container().own_bytes() == before);
  }
  f.open();
  f.folder.write("root/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
  WeightPages pages = f.pages(2);
  for (int i = 0; i < 17; ++i) pages.move_some(1, f.pool);
  CHECK(f.model->container().own_bytes() == 0);
}
