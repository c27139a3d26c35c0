// Fuzzes the header of a safetensors file. Oracle, from the accepted entries alone: names are unique, sizes are products
// of dtype and shape in wide arithmetic, and the ranges tile the file. The first two bytes of the input choose the size of
// the data, so that truncation and trailing bytes are tried too; the rest is the JSON.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "convert/json_file.h"
#include "convert/safetensors.h"
#include "format/error.h"

using namespace pith;

namespace {

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "accepted, but: %s\n", what);
  std::abort();
}

void check(const SafetensorsHeader& header, uint64_t file_size) {
  std::set<std::string> names;
  uint64_t at = header.size_bytes;
  for (const SafetensorsEntry& entry : header.entries) {
    require(names.insert(entry.name).second, "a name is there twice");
    unsigned __int128 n_bytes = safetensors_dtype_bytes(entry.dtype);
    require(n_bytes > 0, "a dtype is unknown");
    for (const uint64_t n : entry.shape) {
      n_bytes *= n;
      require(n_bytes >> 64 == 0, "a size overflows");
    }
    require(entry.begin == at, "a tensor does not begin where the one before it ends");
    require(entry.end - entry.begin == static_cast<uint64_t>(n_bytes), "a range is not its shape's");
    at = entry.end;
  }
  require(at == file_size, "the ranges do not end with the file");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const uint64_t n_data = uint64_t{data[0]} | uint64_t{data[1]} << 8;
  const std::span<const char> json(reinterpret_cast<const char*>(data + 2), size - 2);
  const uint64_t file_size = 8 + json.size() + n_data;
  try {
    check(parse_safetensors_header(json, file_size, "fuzz"), file_size);
  } catch (const Error& error) {
    require(std::strchr(error.what(), '\n') == nullptr, "the message has two lines");
  }
  try {
    parse_json({json.data(), json.size()}, "fuzz");
  } catch (const Error&) {
  }
  return 0;
}
