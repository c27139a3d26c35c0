// The container, its metadata, the writer and layout Q24.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <random>

#include "format/container.h"
#include "format/float16.h"
#include "format/writer.h"

using namespace pith;

TEST_CASE("a file reads back as written") {
  const std::string path =
      std::filesystem::temp_directory_path() / fmt::format("pith-format-{}.pith", getpid());
  std::vector<float> v{1, 2, 3};
  q24::Unpacked u;
  u.shape = {33, 65, 16, 32, 2};
  u.perm.assign(128, 0xffff);
  for (int i = 0; i < 65; ++i) u.perm[i] = static_cast<uint16_t>(64 - i);
  u.col_scale.assign(8, 0x3c00);
  u.col_scale[5] = u.col_scale[6] = u.col_scale[7] = 0;
  u.d.assign(33, 0x3c00);
  u.dmin.assign(33, 0x3c00);
  u.codes.assign(33 * 128, 0);
  std::mt19937 rng(1);
  for (int r = 0; r < 33; ++r)
    for (int c = 0; c < 65; ++c) u.codes[r * 128 + c] = static_cast<uint8_t>(rng() % (c >= 96 ? 16 : 4));
  u.s.assign(33 * 8, 0);
  u.m.assign(33 * 8, 0);
  for (int r = 0; r < 33; ++r)
    for (int g = 0; g < 5; ++g) u.s[r * 8 + g] = static_cast<uint8_t>(rng() % 16);
  u.outlier_col.assign(66, 3);
  u.outlier_delta.assign(66, 0x3c00);
  {
    Writer w(path, 1);
    w.add("v", TensorKind::kF32, 1, 3, {reinterpret_cast<uint8_t*>(v.data()), 12});
    w.add("m", u);
    Metadata m;
    m.set("a.b", std::string("x"));
    m.set("n", uint64_t{7});
    m.set("toks", std::vector<std::string>{"", "abc", "a long string of bytes"});
    w.finish(m);
  }
  for (auto access : {Container::Access::kMap, Container::Access::kRead}) {
    const Container c = Container::open(path, access);
    REQUIRE(c.tensors().size() == 2);
    for (const Tensor& t : c.tensors()) c.verify_tensor(t);
    REQUIRE(c.metadata().get<uint64_t>("n") == 7);
    REQUIRE(c.metadata().get<std::vector<std::string>>("toks")[1] == "abc");
    const q24::Unpacked back = q24::unpack(c.get("m").q24_view());
    REQUIRE(back.codes == u.codes);
    REQUIRE(back.s == u.s);
    std::vector<float> row(65);
    q24::dequantize_row(c.get("m").q24_view(), 32, row.data());
  }
  std::filesystem::remove(path);
}
