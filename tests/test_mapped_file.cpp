// A mapping whose pages move into the process's own memory: same addresses, same bytes, whatever fails.
#include <sys/mman.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "file_backed.h"
#include "format/container.h"
#include "format/mapped_file.h"
#include "format_samples.h"

using namespace pith;
using namespace pith::test;

namespace {

constexpr size_t kHuge = MappedFile::kHugePage;
constexpr size_t kSize = 4 * kHuge + 12345;

// Bytes that differ from page to page.
Bytes sample(size_t size = kSize) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(i % 251 + i / kHuge);
  return bytes;
}

bool same(const MappedFile& file, const Bytes& expected) {
  return file.bytes().size() == expected.size() &&
         std::memcmp(file.bytes().data(), expected.data(), expected.size()) == 0;
}

// The addresses of the file's whole huge pages.
std::vector<const uint8_t*> huge_pages(const MappedFile& file) {
  const uint8_t* const data = file.bytes().data();
  const uint8_t* const first = data + (kHuge - reinterpret_cast<uintptr_t>(data) % kHuge) % kHuge;
  std::vector<const uint8_t*> pages;
  for (const uint8_t* page = first; page + kHuge <= data + file.bytes().size(); page += kHuge)
    pages.push_back(page);
  return pages;
}

void move_all(const MappedFile& file) {
  file.move_to_huge_pages(file.bytes().data(), file.bytes().size());
}

}  // namespace

TEST_CASE("whole huge pages of a mapping become the process's own, with the same bytes") {
  const TempFolder folder;
  const Bytes content = sample();
  write_file(folder / "f", content);
  const MappedFile file = MappedFile::map(folder / "f");
  const std::vector<const uint8_t*> pages = huge_pages(file);
  REQUIRE(pages.size() >= 3);
  for (const uint8_t* page : pages) CHECK(is_file_backed(page));
  CHECK(file.own_bytes() == 0);
  move_all(file);
  CHECK(same(file, content));
  CHECK(file.own_bytes() == pages.size() * kHuge);
  for (const uint8_t* page : pages) {
    CHECK_FALSE(is_file_backed(page));
    CHECK_FALSE(is_file_backed(page + kHuge - 1));
  }
  CHECK(is_file_backed(pages.back() + kHuge));  // the rest of the file, and what comes before the first
  if (pages[0] > file.bytes().data()) CHECK(is_file_backed(file.bytes().data()));
  move_all(file);
  CHECK(same(file, content));
}

TEST_CASE("the huge pages that begin among the bytes move, and no others") {
  const TempFolder folder;
  write_file(folder / "f", sample());
  for (const size_t before :
       {size_t{0}, size_t{1}, kHuge - 1})  // of the first byte, to the page that begins next
    for (const size_t size : {size_t{1}, kHuge, kHuge + 1}) {
      CAPTURE(before, size);
      const MappedFile file = MappedFile::map(folder / "f");
      const std::vector<const uint8_t*> pages = huge_pages(file);
      const uint8_t* const begin = pages[1] - before;
      file.move_to_huge_pages(begin, size);
      for (const uint8_t* page : pages) CHECK(is_file_backed(page) != (begin <= page && page < begin + size));
    }
}

TEST_CASE("a file without a whole huge page, a heap copy and no file stay as they are") {
  const TempFolder folder;
  const Bytes content = sample(kHuge - 1);
  write_file(folder / "small", content);
  const MappedFile small = MappedFile::map(folder / "small");
  move_all(small);
  CHECK(same(small, content));
  CHECK(is_file_backed(small.bytes().data()));
  write_file(folder / "f", sample());
  const MappedFile copy = MappedFile::read(folder / "f");
  move_all(copy);
  CHECK(copy.own_bytes() == kSize);
  CHECK(same(copy, sample()));
  move_all(MappedFile());
}

TEST_CASE("what others read while pages move is the same") {
  const TempFolder folder;
  const Bytes content = sample();
  write_file(folder / "f", content);
  for (int round = 0; round < 5; ++round) {
    const MappedFile file = MappedFile::map(folder / "f");
    std::atomic<bool> moved{false};
    std::atomic<int> n_wrong{0}, n_reads{0};
    std::vector<std::thread> readers, movers;
    for (int i = 0; i < 2; ++i)
      readers.emplace_back([&] {
        while (!moved) {
          n_wrong += !same(file, content);
          ++n_reads;
        }
      });
    for (int i = 0; i < 2; ++i)
      movers.emplace_back([&] {
        while (n_reads < 2) std::this_thread::yield();  // until somebody reads
        move_all(file);
      });
    for (std::thread& mover : movers) mover.join();
    moved = true;
    for (std::thread& reader : readers) reader.join();
    CHECK(n_wrong == 0);
    for (const uint8_t* page : huge_pages(file)) CHECK_FALSE(is_file_backed(page));
  }
}

TEST_CASE("where the system refuses, the file's pages stay and no memory is kept") {
  class RefusingIo : public Io {
   public:
    bool refuses_memory = false;
    size_t n_mapped = 0, n_unmapped = 0;

   private:
    void* map_memory(size_t size) override {
      errno = ENOMEM;
      if (refuses_memory) return nullptr;
      n_mapped += size;
      return Io::map_memory(size);
    }
    int unmap(void* data, size_t size) override {
      n_unmapped += size;
      return Io::unmap(data, size);
    }
    int move_pages(void*, void*, size_t) override {
      errno = ENOMEM;
      return -1;
    }
  };
  const TempFolder folder;
  const Bytes content = sample();
  write_file(folder / "f", content);
  for (const bool refuses_memory : {true, false}) {
    RefusingIo io;
    io.refuses_memory = refuses_memory;
    const MappedFile file = MappedFile::map(folder / "f", io);
    move_all(file);
    CHECK((io.n_mapped > 0) != refuses_memory);
    CHECK(io.n_unmapped == io.n_mapped);
    CHECK(file.own_bytes() == 0);
    CHECK(same(file, content));
    for (const uint8_t* page : huge_pages(file)) CHECK(is_file_backed(page));
  }
}

TEST_CASE("moved pages outlive what others do to the file, and go with the mapping") {
  const TempFolder folder;
  const Bytes content = sample();
  write_file(folder / "f", content);
  const uint8_t* page = nullptr;
  {
    MappedFile moved_from = MappedFile::map(folder / "f");
    move_all(moved_from);
    const MappedFile file = std::move(moved_from);
    page = huge_pages(file)[1];
    std::filesystem::resize_file(folder / "f", 0);
    const size_t offset = static_cast<size_t>(page - file.bytes().data());
    CHECK(std::memcmp(page, content.data() + offset, kHuge) == 0);
  }
  unsigned char resident = 0;
  CHECK(mincore(const_cast<uint8_t*>(page), 4096, &resident) == -1);
  CHECK(errno == ENOMEM);  // not mapped
}

TEST_CASE("parts of a tensor move each of its pages once; a container opened as shared moves none") {
  const TempFolder folder;
  Writer writer(folder / "f", 1);
  const Bytes content = sample(3 * kHuge);
  writer.add("t", TensorKind::kF32, static_cast<uint32_t>(kHuge / 1024), 768, content);
  writer.finish({});
  for (const auto access :
       {Container::Access::kMap, Container::Access::kMapShared, Container::Access::kRead}) {
    const Container file = Container::open(folder / "f", access);
    const Tensor& tensor = file.get("t");
    CHECK(file.can_move() == (access == Container::Access::kMap));
    for (uint32_t part = 0; part < 5; ++part) file.move_to_huge_pages(tensor, part, 5);
    CHECK(std::memcmp(tensor.data, content.data(), content.size()) == 0);
    const uint8_t* const page = tensor.data + kHuge - reinterpret_cast<uintptr_t>(tensor.data) % kHuge;
    for (const size_t i : {0, 1})
      CHECK(is_file_backed(page + i * kHuge) == (access == Container::Access::kMapShared));
  }
}
