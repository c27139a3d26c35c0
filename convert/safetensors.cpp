// The header is parsed by events, straight into entries: what it may hold is checked as it comes, so that a hostile
// header of 100 MB cannot build a tree of gigabytes.
#include "convert/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "format/checked.h"
#include "format/checksum.h"
#include "format/error.h"

namespace pith {

namespace {

constexpr const char* kMetadataKey = "__metadata__";
constexpr size_t kMaxDims = 8;

// Events of the JSON parser. Depth 1: the header; 2: a tensor or __metadata__; 3: an array of a tensor.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderHandler(SafetensorsHeader& header, const std::string& where) : header_(header), where_(where) {}

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { unexpected("a fraction"); }
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ != 3) unexpected("a number");
    if (key_ == "shape") {
      if (entry_.shape.size() == kMaxDims) fail(fmt::format("more than {} dimensions", kMaxDims));
      entry_.shape.push_back(value);
    } else {
      if (offsets_.size() == 2) fail("data_offsets: more than two numbers");
      offsets_.push_back(value);
    }
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      header_.metadata[key_] = value;
    } else if (depth_ == 2 && key_ == "dtype") {
      if (safetensors_dtype_bytes(value) == 0) fail("unknown dtype");
      entry_.dtype = value;
    } else {
      unexpected("a string");
    }
    return true;
  }
  bool start_object(size_t) override {
    if (depth_ == 2 || depth_ == 3) unexpected("an object");
    if (++depth_ == 2) {
      in_metadata_ = name_ == kMetadataKey;
      entry_ = {name_, "", {}, 0, 0};
      offsets_.clear();
      keys_.clear();
    }
    return true;
  }
  bool key(string_t& key) override {
    if (std::any_of(key.begin(), key.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }))
      throw_error(ErrorCode::kFormat, "{}: a name with a control character", where_);
    if (depth_ == 1) {
      name_ = key;
      if (!names_.insert(key).second) fail("appears twice");
      return true;
    }
    key_ = key;
    if (!keys_.insert(key).second) fail(fmt::format("key '{}' appears twice", key));
    if (!in_metadata_ && key != "dtype" && key != "shape" && key != "data_offsets")
      fail(fmt::format("unknown key '{}'", key));
    return true;
  }
  bool end_object() override {
    if (depth_-- == 2 && !in_metadata_) finish_entry();
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || key_ == "dtype") unexpected("an array");
    depth_ = 3;
    return true;
  }
  bool end_array() override {
    depth_ = 2;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw_error(ErrorCode::kFormat, "{}: header is not valid JSON at byte {}", where_, position);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw_error(ErrorCode::kFormat, "{}: tensor '{}': {}", where_, name_, what);
  }
  [[noreturn]] void unexpected(const char* what) const {
    if (depth_ == 0) throw_error(ErrorCode::kFormat, "{}: header is {}, expected an object", where_, what);
    if (depth_ == 1) fail(fmt::format("its entry is {}, expected an object", what));
    fail(fmt::format("key '{}': unexpected {}", key_, what));
  }
  void finish_entry() {
    if (keys_.size() != 3) fail("expected the keys dtype, shape and data_offsets");
    if (offsets_.size() != 2) fail("data_offsets: expected two numbers");
    uint64_t size_bytes = safetensors_dtype_bytes(entry_.dtype);
    try {
      for (uint64_t n : entry_.shape) size_bytes = checked_mul(size_bytes, n);
      entry_.begin = checked_add(offsets_[0], header_.size_bytes);
      entry_.end = checked_add(offsets_[1], header_.size_bytes);
    } catch (const Error& error) {
      fail(error.what());
    }
    if (offsets_[1] < offsets_[0] || offsets_[1] - offsets_[0] != size_bytes)
      fail(fmt::format("data_offsets [{}, {}] do not span the {} bytes of {} {}", offsets_[0], offsets_[1],
                       size_bytes, entry_.dtype, fmt::format("[{}]", fmt::join(entry_.shape, ", "))));
    header_.entries.push_back(std::move(entry_));
  }

  SafetensorsHeader& header_;
  const std::string& where_;
  int depth_ = 0;
  bool in_metadata_ = false;
  std::string name_, key_;
  SafetensorsEntry entry_;
  std::vector<uint64_t> offsets_;
  std::set<std::string> names_, keys_;
};

}  // namespace

uint64_t safetensors_dtype_bytes(const std::string& dtype) {
  struct Dtype {
    const char* name;
    uint64_t n_bytes;
  };
  static constexpr Dtype kDtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                                      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
                                      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  for (const Dtype& known : kDtypes)
    if (dtype == known.name) return known.n_bytes;
  return 0;
}

SafetensorsHeader parse_safetensors_header(std::span<const char> json, uint64_t file_size,
                                           const std::string& where) {
  SafetensorsHeader header;
  header.size_bytes = json.size() + 8;
  if (json.empty() || json[0] != '{')
    throw_error(ErrorCode::kFormat, "{}: header does not start with '{{'", where);
  HeaderHandler handler(header, where);
  nlohmann::json::sax_parse(json.begin(), json.end(), &handler);

  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t expected = header.size_bytes;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.begin != expected)
      throw_error(ErrorCode::kFormat, "{}: tensor '{}' starts at byte {}, expected {} ({})", where,
                  entry.name, entry.begin, expected, entry.begin < expected ? "overlap" : "hole");
    expected = entry.end;
  }
  if (expected != file_size)
    throw_error(ErrorCode::kFormat, "{}: {} bytes, but the header describes {} ({})", where, file_size,
                expected, file_size < expected ? "truncated?" : "trailing data");
  return header;
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  SafetensorsFile file;
  file.path_ = path;
  file.file_ = File(Io::system(), path, O_RDONLY | O_CLOEXEC);
  const uint64_t file_size = file.file_.size_bytes();
  if (file_size < 8) throw_error(ErrorCode::kFormat, "{}: {} bytes, too short for a header", path, file_size);
  uint8_t length_bytes[8];
  file.read(0, length_bytes);
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | length_bytes[i];
  if (length > kMaxSafetensorsHeader)
    throw_error(ErrorCode::kFormat, "{}: header of {} bytes, the limit is {}", path, length,
                kMaxSafetensorsHeader);
  if (length > file_size - 8)
    throw_error(ErrorCode::kFormat, "{}: header of {} bytes in a file of {} (truncated?)", path, length,
                file_size);
  std::vector<char> json(length);
  file.read(8, {reinterpret_cast<uint8_t*>(json.data()), json.size()});
  file.header_ = parse_safetensors_header(json, file_size, path);
  Checksum64 identity(file_size);
  identity.update({reinterpret_cast<const uint8_t*>(json.data()), json.size()});
  struct stat status;
  if (fstat(file.file_.fd(), &status) != 0) throw_io(path, "read the time of change", errno);
  identity.update({reinterpret_cast<const uint8_t*>(&status.st_mtim), sizeof status.st_mtim});
  file.identity_ = identity.value();
  return file;
}

void SafetensorsFile::read(uint64_t offset, std::span<uint8_t> out) const {
  const size_t n = file_.read_at(offset, out.data(), out.size());
  if (n < out.size())
    throw_error(ErrorCode::kIo, "{}: ends at byte {}, it shrank while being read", path_, offset + n);
}

}  // namespace pith
