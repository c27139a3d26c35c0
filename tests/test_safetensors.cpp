// The safetensors reader against the format's rules: every broken header is refused with one clear line.
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "convert/checkpoint.h"
#include "convert/json_file.h"
#include "convert/safetensors.h"
#include "format/error.h"
#include "temp_folder.h"

using namespace pith;
using Catch::Matchers::Contains;

namespace {

std::string error_of(const std::string& json, uint64_t n_data) {
  try {
    parse_safetensors_header({json.data(), json.size()}, json.size() + 8 + n_data, "f");
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
  return "";
}

std::string safetensors(const std::string& json, const std::string& data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(json.size() >> 8 * i & 255);
  return file + json + data;
}

}  // namespace

TEST_CASE("a header gives its tensors in the order of their data") {
  const std::string json =
      R"({"b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}  )";
  const SafetensorsHeader header =
      parse_safetensors_header({json.data(), json.size()}, json.size() + 16, "f");
  REQUIRE(header.entries.size() == 2);
  CHECK(header.entries[0].name == "a");
  CHECK(header.entries[1].begin == json.size() + 8 + 4);
  CHECK(header.metadata.at("format") == "pt");
}

TEST_CASE("a broken header is refused, naming what is wrong") {
  const auto tensor = [](const std::string& body) { return fmt::format("{{\"t\":{{{}}}}}", body); };
  struct Case {
    std::string json;
    uint64_t n_data;
    const char* message;
  };
  const std::string good = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  const Case cases[] = {
      {"[1]", 0, "does not start with '{'"},
      {"", 0, "does not start with '{'"},
      {"{\"t\":", 0, "not valid JSON at byte"},
      {"{} x", 0, "not valid JSON at byte"},
      {"{\"t\":\"\xff\"}", 0, "not valid JSON at byte"},
      {"{\"t\":3}", 0, "'t': its entry is a number"},
      {"{\"t\":[]}", 0, "'t': its entry is an array"},
      {"{\"t\":null}", 0, "'t': its entry is null"},
      {fmt::format("{{\"t\":{{{0}}},\"t\":{{{0}}}}}", good), 4, "'t': appears twice"},
      {tensor(R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])"), 4,
       "key 'dtype' appears twice"},
      {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1)"), 4, "unknown key 'x'"},
      {tensor(R"("dtype":"F32","shape":[1])"), 4, "expected the keys dtype, shape and data_offsets"},
      {tensor(R"("dtype":"F33","shape":[1],"data_offsets":[0,4])"), 4, "unknown dtype"},
      {tensor(R"("dtype":["F32"],"shape":[1],"data_offsets":[0,4])"), 4, "key 'dtype': unexpected an array"},
      {tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4,
       "key 'shape': unexpected a negative number"},
      {tensor(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), 4,
       "key 'shape': unexpected a fraction"},
      {tensor(R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])"), 4, "key 'shape': unexpected an array"},
      {tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), 4,
       "more than 8 dimensions"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4, "do not span the 8 bytes of F32 [2]"},
      {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4, "do not span the 4 bytes"},
      {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4, "expected two numbers"},
      {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,8])"), 4, "more than two numbers"},
      {tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0,
       "tensor 't': size overflow: 17179869184 * 4294967296"},
      {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,18446744073709551616])"), 4,
       "unexpected a fraction"},
      {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[18446744073709551600,18446744073709551604])"), 4,
       "tensor 't': size overflow"},
      {tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), 8, "starts at byte"},
      {fmt::format("{{\"a\":{{{0}}},\"b\":{{{0}}}}}", good), 4, "(overlap)"},
      {R"({"a\nb":{}})", 0, "a name with a control character"},
      {tensor(good), 3, "(truncated?)"},
      {tensor(good), 5, "(trailing data)"},
      {R"({"__metadata__":{"a":1}})", 0, "key 'a': unexpected a number"},
      {R"({"__metadata__":{"a":{}}})", 0, "unexpected an object"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "key 'a' appears twice"},
  };
  for (const Case& bad : cases) {
    INFO(bad.json);
    CHECK_THAT(error_of(bad.json, bad.n_data), Contains(bad.message));
  }
}

TEST_CASE("a nest of brackets as deep as the header is refused without recursion") {
  CHECK_THAT(error_of(std::string("{\"t\":").append(1'000'000, '['), 0), Contains("its entry is an array"));
}

TEST_CASE("a file whose header length is out of bounds is refused") {
  const test::TempFolder dir;
  const std::string path = dir / "f";
  const auto opening = [&](const std::string& bytes) {
    dir.write("f", bytes);
    return SafetensorsFile::open(path);
  };
  CHECK_THROWS_WITH(opening("1234567"), Contains("too short for a header"));
  CHECK_THROWS_WITH(opening(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10)),
                    Contains("the limit is 100000000"));
  CHECK_THROWS_WITH(opening(std::string("\x03\0\0\0\0\0\0\0{}", 10)), Contains("truncated?"));
  CHECK_THROWS_WITH(SafetensorsFile::open(dir.path()), Contains("a folder, expected a file"));
  REQUIRE(mkfifo((dir / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH(SafetensorsFile::open(dir / "pipe"), Contains("not a regular file"));
  CHECK_THROWS_WITH(SafetensorsFile::open(dir / "none"), Contains("cannot open"));
  CHECK_NOTHROW(opening(std::string("\x02\0\0\0\0\0\0\0{}", 10)));
}

TEST_CASE("every truncation of a real file is refused") {
  const std::string whole =
      safetensors(R"({"t":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})", std::string(16, 'x'));
  const test::TempFolder dir;
  for (size_t n = 0; n < whole.size(); ++n) {
    dir.write("f", whole.substr(0, n));
    CHECK_THROWS_AS(SafetensorsFile::open(dir / "f"), Error);
  }
}

TEST_CASE("a sharded checkpoint must agree with its index") {
  const test::TempFolder dir;
  const auto shard = [](const std::string& name) {
    return safetensors(fmt::format(R"({{"{}":{{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}}})", name),
                       "abcd");
  };
  dir.write("config.json", "{}");
  dir.write("one.safetensors", shard("a"));
  dir.write("two.safetensors", shard("b"));
  const auto open_with = [&](const std::string& map) {
    dir.write("model.safetensors.index.json", fmt::format("{{\"weight_map\":{}}}", map));
    return Checkpoint::open(dir.path());
  };
  const Checkpoint checkpoint = open_with(R"({"a":"one.safetensors","b":"two.safetensors"})");
  CHECK(checkpoint.get("b").n_cols == 2);
  CHECK_THROWS_WITH(checkpoint.get("c"), Contains("tensor 'c' is missing"));
  CHECK_THROWS_WITH(open_with(R"({"a":"one.safetensors"})").get("b"), Contains("'b' is missing"));
  CHECK_THROWS_WITH(open_with(R"({"a":"one.safetensors","c":"two.safetensors"})"),
                    Contains("'b' is not in the index"));
  CHECK_THROWS_WITH(open_with(R"({"a":"one.safetensors","b":"two.safetensors","c":"one.safetensors"})"),
                    Contains("'c' is in the index, but not in one.safetensors"));
  CHECK_THROWS_WITH(open_with(R"({"a":"three.safetensors"})"), Contains("cannot open"));
  for (const char* path : {"../one.safetensors", "/etc/passwd", "", ".hidden", "a\\\\b"})
    CHECK_THROWS_WITH(open_with(std::string("{\"a\":\"") + path + "\"}"), Contains("not a plain file name"));
  CHECK_THROWS_WITH(open_with("{}"), Contains("0 shards"));
  CHECK_THROWS_WITH(open_with("[]"), Contains("no object 'weight_map'"));
}

TEST_CASE("a name in __metadata__ that stands for a tensor is that tensor") {
  const test::TempFolder dir;
  dir.write("config.json", "{}");
  dir.write("model.safetensors", safetensors(R"({"__metadata__":{"format":"pt","embed":"head"},)"
                                             R"("head":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}})",
                                             "abcd"));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  CHECK(checkpoint.has("embed"));
  CHECK(checkpoint.get("embed").offset == checkpoint.get("head").offset);
  CHECK_FALSE(checkpoint.has("format"));
}

TEST_CASE("dtypes and shapes that no weight has are refused by name") {
  const test::TempFolder dir;
  dir.write("config.json", "{}");
  dir.write("model.safetensors", safetensors(R"({"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                                             R"("s":{"dtype":"F32","shape":[],"data_offsets":[8,12]},)"
                                             R"("z":{"dtype":"F32","shape":[0],"data_offsets":[12,12]}})",
                                             std::string(12, 'x')));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  CHECK_THROWS_WITH(checkpoint.get("i"), Contains("tensor 'i': dtype I64, expected F32, F16 or BF16"));
  CHECK_THROWS_WITH(checkpoint.get("s"), Contains("tensor 's': 0 dimensions"));
  CHECK_THROWS_WITH(checkpoint.get("z"), Contains("tensor 'z': shape [0]"));
}

TEST_CASE("JSON files are refused for duplicate keys, depth and size") {
  CHECK_THROWS_WITH(parse_json(R"({"a":1,"b":{"a":1,"a":2}})", "c"), Contains("c: key 'a' appears twice"));
  CHECK_THROWS_WITH(parse_json(std::string(100'000, '['), "c"), Contains("c: nested deeper than 64"));
  CHECK_THROWS_WITH(parse_json("{", "c"), Contains("c: not valid JSON at byte"));
  CHECK_THROWS_WITH(parse_json(R"({"a\nb":1})", "c"), Contains("c: a key with a control character"));
  CHECK(parse_json(R"({"a":[1,2]})", "c")["a"][1] == 2);
  const test::TempFolder dir;
  dir.write("big", std::string(11, ' '));
  CHECK_THROWS_WITH(read_text_file(dir / "big", 10), Contains("11 bytes, the limit is 10"));
}
