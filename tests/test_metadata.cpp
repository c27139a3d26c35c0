// Metadata: types, rules, and what its parser must refuse.
#include <catch2/catch.hpp>
#include <limits>

#include "count_allocations.h"
#include "format/utf8.h"
#include "format_samples.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

namespace {

// One serialized entry, by hand.
Bytes entry(const std::string& key, uint8_t type, const Bytes& payload) {
  Bytes out(16);
  out[0] = static_cast<uint8_t>(key.size());
  out[1] = static_cast<uint8_t>(key.size() >> 8);
  out[2] = type;
  out[8] = static_cast<uint8_t>(payload.size());
  const auto put = [&out](auto begin, auto end) {
    out.insert(out.end(), begin, end);
    while (out.size() % 16 != 0) out.push_back(0);
  };
  put(key.begin(), key.end());
  put(payload.begin(), payload.end());
  return out;
}

Bytes blob(const std::vector<Bytes>& entries) {
  Bytes out(16);
  out[0] = static_cast<uint8_t>(entries.size());
  for (const Bytes& e : entries) out.insert(out.end(), e.begin(), e.end());
  return out;
}

std::string fault(const Bytes& bytes) {
  try {
    Metadata::parse(bytes);
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kFormat);
    return error.what();
  }
}

std::string fault_of_entry(uint8_t type, const Bytes& payload) {
  return fault(blob({entry("k", type, payload)}));
}

template <typename T>
Bytes bytes_of_value(T value) {
  const auto bytes = pith::bytes_of(value);
  return {bytes.begin(), bytes.end()};
}

}  // namespace

TEST_CASE("every type comes back from its bytes") {
  const Metadata m = SampleFile::metadata();
  CHECK(Metadata::parse(m.serialize()).entries() == m.entries());
  CHECK(Metadata::parse(Metadata().serialize()).entries().empty());
  Metadata empty;
  empty.set("a", std::string());
  empty.set("b", Bytes());
  empty.set("c", std::vector<float>());
  empty.set("d", std::vector<std::string>());
  empty.set("e", std::vector<std::string>{"", ""});
  CHECK(Metadata::parse(empty.serialize()).entries() == empty.entries());
}

TEST_CASE("type ids are the ones of FORMAT.md") {
  const Metadata m = SampleFile::metadata();
  const std::map<std::string, int> ids = {{"a.bool", 1}, {"a.u64", 2},    {"a.i64", 3},
                                          {"a.f64", 4},  {"a.text", 5},   {"a.bytes", 6},
                                          {"a.ids", 7},  {"a.floats", 8}, {"a.texts", 9}};
  for (const auto& [key, id] : ids)
    CHECK(m.entries().find(key)->second.index() + 1 == static_cast<size_t>(id));
  CHECK(fault(blob({entry("k", 2, bytes_of_value(uint64_t{5}))})) == "");
  CHECK(Metadata::parse(blob({entry("k", 2, bytes_of_value(uint64_t{5}))})).get<uint64_t>("k") == 5);
}

TEST_CASE("typed access names the key, the expected and the found type") {
  const Metadata m = SampleFile::metadata();
  CHECK(m.has("a.u64"));
  CHECK(!m.has("a.u6"));
  CHECK(m.get<std::vector<uint32_t>>("a.ids") == std::vector<uint32_t>{1, 2, 3});
  CHECK_THROWS_WITH(m.get<bool>("a.u64"), "metadata 'a.u64': type u64, expected bool");
  CHECK_THROWS_WITH(m.get<double>("b"), "metadata 'b' is missing, expected a f64");
  CHECK(m.get_or<double>("b", 2.5) == 2.5);
  CHECK(m.get_or<double>("a.f64", 2.5) == 0.5);
  CHECK_THROWS_AS(m.get_or<double>("a.text", 2.5), Error);
}

TEST_CASE("set refuses what could not be read back") {
  Metadata m;
  for (const char* const key : {"", "A", "a b", "a-b", "\xc3\xbc"}) CHECK_THROWS_AS(m.set(key, true), Error);
  CHECK_THROWS_AS(m.set(std::string(256, 'a'), true), Error);
  CHECK_NOTHROW(m.set(std::string(255, 'a'), true));
  CHECK_THROWS_AS(m.set("a", std::numeric_limits<double>::infinity()), Error);
  CHECK_THROWS_AS(m.set("a", std::vector<float>{1, std::numeric_limits<float>::quiet_NaN()}), Error);
  CHECK_THROWS_AS(m.set("a", std::string("\xff")), Error);
  CHECK_THROWS_AS(m.set("a", std::vector<std::string>{"ok", "\x80"}), Error);
  CHECK(Metadata::parse(m.serialize()).entries() == m.entries());
}

TEST_CASE("UTF-8 is well-formed only without overlong forms, surrogates and values above U+10FFFF") {
  for (const char* const good : {"", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
                                 "\xee\x80\x80", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    CHECK(is_valid_utf8(good));
  for (const char* const bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xe1\x80", "\xe1\x80\x41",
        "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf1\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"})
    CHECK_FALSE(is_valid_utf8(bad));
}

TEST_CASE("parser refuses each broken rule") {
  const Bytes one = bytes_of_value(uint8_t{1});
  CHECK(fault(blob({entry("a", 1, one), entry("b", 1, one)})) == "");
  CHECK_THAT(fault(blob({entry("b", 1, one), entry("a", 1, one)})), Contains("not sorted and unique"));
  CHECK_THAT(fault(blob({entry("a", 1, one), entry("a", 1, one)})), Contains("not sorted and unique"));
  CHECK_THAT(fault(blob({entry("A", 1, one)})), Contains("a key that is not"));
  CHECK_THAT(fault(blob({entry("", 1, one)})), Contains("a key that is not"));
  CHECK_THAT(fault(blob({entry(std::string(256, 'a'), 1, one)})), Contains("a key that is not"));
  CHECK_THAT(fault_of_entry(0, one), Contains("unknown value type"));
  CHECK_THAT(fault_of_entry(10, one), Contains("unknown value type"));
  CHECK_THAT(fault_of_entry(1, {2}), Contains("neither 0 nor 1"));
  CHECK_THAT(fault_of_entry(1, {}), Contains("a scalar of the wrong size"));
  CHECK_THAT(fault_of_entry(1, {1, 0}), Contains("a scalar of the wrong size"));
  CHECK_THAT(fault_of_entry(2, Bytes(7)), Contains("a scalar of the wrong size"));
  CHECK_THAT(fault_of_entry(3, Bytes(9)), Contains("a scalar of the wrong size"));
  CHECK_THAT(fault_of_entry(4, bytes_of_value(std::numeric_limits<double>::infinity())),
             Contains("not a finite"));
  CHECK_THAT(fault_of_entry(5, {0xff}), Contains("not UTF-8"));
  CHECK_THAT(fault_of_entry(7, Bytes(6)), Contains("ends inside an element"));
  CHECK_THAT(fault_of_entry(8, bytes_of_value(0x7f800000)), Contains("not all finite"));
  CHECK_THAT(fault_of_entry(9, {1, 0, 0, 0, 0xff, 0, 0, 0}), Contains("not UTF-8"));
  CHECK_THAT(fault_of_entry(9, {9, 0, 0, 0, 'a', 0, 0, 0}), Contains("a length beyond the end"));
  CHECK_THAT(fault_of_entry(9, {1, 0, 0, 0, 'a', 0, 0, 1}), Contains("not zero"));
  CHECK_THAT(fault_of_entry(9, {1, 0, 0, 0, 'a'}), Contains("a length beyond the end"));
}

TEST_CASE("parser refuses each broken rule of the frame") {
  const Bytes good = blob({entry("k", 1, {1})});
  REQUIRE(fault(good) == "");
  const auto after = [&good](size_t at, uint8_t value) {
    Bytes bytes = good;
    bytes[at] = value;
    return fault(bytes);
  };
  CHECK_THAT(after(0, 2), Contains("more entries than fit"));
  CHECK_THAT(after(3, 0xff), Contains("more entries than fit"));
  CHECK_THAT(after(0, 0), Contains("bytes after the last entry"));
  CHECK_THAT(after(15, 1), Contains("not zero"));                         // the head's padding
  CHECK_THAT(after(16 + 3, 1), Contains("not zero"));                     // reserved
  CHECK_THAT(after(16 + 7, 1), Contains("not zero"));                     // reserved
  CHECK_THAT(after(16 + 1, 0x7f), Contains("a length beyond the end"));   // key size
  CHECK_THAT(after(16 + 15, 0x7f), Contains("a length beyond the end"));  // payload size
  CHECK_THAT(after(16 + 17, 1), Contains("not zero"));                    // the key's padding
  CHECK_THAT(after(good.size() - 1, 1), Contains("not zero"));            // the payload's padding
  for (size_t size = 0; size < good.size(); ++size)
    CHECK(fault(Bytes(good.begin(), good.begin() + static_cast<ptrdiff_t>(size))) != "");
}

TEST_CASE("parsing allocates at most four times the bytes") {
  std::vector<Bytes> smallest, strings;
  for (char a = 'a'; a <= 'p'; ++a)
    for (char b = 'a'; b <= 'o'; ++b) smallest.push_back(entry({a, b}, 5, {}));
  const Bytes many_entries = blob(smallest);
  const Bytes long_keys = blob({entry(std::string(16, 'a'), 5, Bytes(16, 'a'))});
  Bytes empty_strings(8 * 31);
  for (const Bytes& bytes : {many_entries, long_keys, blob({entry("k", 9, empty_strings)}),
                             blob({entry("k", 6, Bytes(255))}), SampleFile::metadata().serialize()}) {
    allocations = {};
    const Metadata m = Metadata::parse(bytes);
    CHECK(allocations.total_bytes <= 4 * bytes.size());
    CHECK(m.serialize() == bytes);
  }
}

TEST_CASE("a count of entries or a length allocates nothing before it is checked") {
  Bytes bytes = blob({entry("k", 9, Bytes(64))});
  bytes[16 + 13] = 0xff;  // payload size
  allocations = {};
  CHECK(fault(bytes) != "");
  CHECK(allocations.largest_bytes < 4096);
}
