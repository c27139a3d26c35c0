// Writing a session's file a layer at a time, reading it as a whole.
#include "runtime/session_file.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "format/atomic_file.h"
#include "format/checked.h"
#include "format/checksum.h"
#include "format/io.h"

namespace pith {

namespace {

constexpr std::array<uint8_t, 8> kMagic = {0x89, 'P', 'T', 'H', 'S', 0x0d, 0x0a, 0x1a};
constexpr uint32_t kVersion = 1;

struct HeaderRecord {
  std::array<uint8_t, 8> magic;
  uint32_t version, header_size;
  uint64_t file_size, fingerprint;
  uint32_t n_tokens, n_layers, n_kv_heads, head_dim;
  uint32_t kv_type, n_ctx;
  uint64_t payload_checksum;
  std::array<uint64_t, 7> zeros;
  uint64_t header_checksum;
};
static_assert(sizeof(HeaderRecord) == 128);

template <typename T>
std::span<const uint8_t> bytes_of(const T* data, size_t count = 1) {
  return {reinterpret_cast<const uint8_t*>(data), count * sizeof(T)};
}

uint64_t header_checksum(const HeaderRecord& header) {
  return checksum64(bytes_of(&header).first(sizeof header - sizeof header.header_checksum));
}

const char* kv_name(uint32_t kv_type) {
  return kv_type == static_cast<uint32_t>(KvType::kF16)  ? "f16"
         : kv_type == static_cast<uint32_t>(KvType::kI8) ? "i8"
                                                         : nullptr;
}

bool depends_on_context(const ModelSpec& spec) {
  return std::any_of(spec.ropes.begin(), spec.ropes.end(),
                     [](const RopeSpec& rope) { return rope.depends_on_context(); });
}

bool same_angles(const ModelSpec& spec, uint32_t n_ctx, uint32_t other_n_ctx) {
  return std::all_of(spec.ropes.begin(), spec.ropes.end(), [&](const RopeSpec& rope) {
    return rope.frequencies(n_ctx) == rope.frequencies(other_n_ctx);
  });
}

// Everything of the header that follows from the session and n_tokens.
HeaderRecord make_header(const Model& model, const SessionOptions& options, uint64_t n_tokens) {
  const ModelSpec& spec = model.spec();
  HeaderRecord h{};
  h.magic = kMagic;
  h.version = kVersion;
  h.header_size = sizeof h;
  h.file_size = checked_add(
      sizeof h, checked_add(checked_mul(n_tokens, sizeof(int32_t)),
                            checked_mul(spec.n_layers, kv_layer_bytes(spec, options.kv, n_tokens))));
  h.fingerprint = model.container().fingerprint();
  h.n_tokens = static_cast<uint32_t>(n_tokens);
  h.n_layers = spec.n_layers;
  h.n_kv_heads = spec.n_kv_heads;
  h.head_dim = spec.head_dim;
  h.kv_type = static_cast<uint32_t>(options.kv);
  h.n_ctx = depends_on_context(spec) ? options.n_ctx : 0;
  return h;
}

void read_exactly(const File& file, const std::string& path, uint64_t offset, void* data, size_t size) {
  if (file.read_at(offset, data, size) != size)
    throw_error(ErrorCode::kFormat, "{}: the file ends inside byte {} to {}", path, offset, offset + size);
}

// Reads and checks header and ids.
HeaderRecord read_header(const File& file, const std::string& path, const Model& model,
                         const SessionOptions& options) {
  const auto refuse = [&](const char* what, auto found, auto expected) {
    throw_error(ErrorCode::kFormat, "{}: {} is {}, expected {}", path, what, found, expected);
  };
  const uint64_t size = file.size_bytes();
  HeaderRecord h;
  if (size < sizeof h) refuse("size", size, "at least 128");
  read_exactly(file, path, 0, &h, sizeof h);
  if (h.magic != kMagic) throw_error(ErrorCode::kFormat, "{}: not a pith session file", path);
  if (h.version != kVersion) refuse("version", h.version, kVersion);
  if (h.header_checksum != header_checksum(h))
    throw_error(ErrorCode::kFormat, "{}: the header's checksum is wrong", path);
  if (h.fingerprint != model.container().fingerprint())
    throw_error(ErrorCode::kFormat, "{}: saved with another model (fingerprint {:016x}, expected {:016x})",
                path, h.fingerprint, model.container().fingerprint());
  if (kv_name(h.kv_type) == nullptr) refuse("cache type", h.kv_type, "1 or 2");
  if (const auto kv = static_cast<uint32_t>(options.kv); h.kv_type != kv)
    throw_error(ErrorCode::kInvalidArgument, "{}: saved with kv {}, this session has {}", path,
                kv_name(h.kv_type), kv_name(kv));
  if (h.n_tokens > options.n_ctx)
    throw_error(ErrorCode::kContextFull, "{}: {} tokens, expected at most the context's {}", path, h.n_tokens,
                options.n_ctx);
  HeaderRecord expected = make_header(model, options, h.n_tokens);
  if (depends_on_context(model.spec())) {  // 0: of a version that did not store it
    if (h.n_ctx < h.n_tokens || h.n_ctx > model.spec().max_context)
      throw_error(ErrorCode::kFormat, "{}: n_ctx is {}, expected {} to {}", path, h.n_ctx, h.n_tokens,
                  model.spec().max_context);
    if (!same_angles(model.spec(), h.n_ctx, options.n_ctx))
      throw_error(ErrorCode::kInvalidArgument,
                  "{}: saved in a context of {} tokens, with other RoPE angles than this session's of {}",
                  path, h.n_ctx, options.n_ctx);
    expected.n_ctx = h.n_ctx;
  }
  if (size != expected.file_size) refuse("size", size, expected.file_size);
  expected.payload_checksum = h.payload_checksum;
  expected.header_checksum = h.header_checksum;
  if (std::memcmp(&expected, &h, sizeof h) != 0)
    throw_error(ErrorCode::kFormat, "{}: the header does not fit the model", path);
  return h;
}

// Only a session's file is replaced, or an empty one.
void check_replaceable(const std::string& path) {
  struct stat info;
  if (Io::system().stat(path.c_str(), &info) != 0) return;
  const File file(Io::system(), path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  std::array<uint8_t, kMagic.size()> magic{};
  if (file.size_bytes() > 0 &&
      (file.read_at(0, magic.data(), magic.size()) != magic.size() || magic != kMagic))
    throw_error(ErrorCode::kInvalidArgument, "{}: not a pith session file, so it is not replaced", path);
}

}  // namespace

void save_session(const std::string& path, const Model& model, const SessionOptions& options,
                  const std::vector<int32_t>& tokens, const Backend& backend) {
  check_replaceable(path);
  HeaderRecord header = make_header(model, options, tokens.size());
  const uint32_t n_tokens = header.n_tokens;
  std::vector<uint8_t> layer(kv_layer_bytes(model.spec(), options.kv, n_tokens));
  AtomicFile out(path, 0600);  // ids are text
  Checksum64 checksum;
  uint64_t at = sizeof header;
  const auto write = [&](std::span<const uint8_t> bytes) {
    if (bytes.empty()) return;
    out.file().write_at(at, bytes.data(), bytes.size());
    checksum.update(bytes);
    at += bytes.size();
  };
  write(bytes_of(tokens.data(), tokens.size()));
  for (uint32_t i = 0; i < model.spec().n_layers; ++i) {
    backend.read_kv(i, n_tokens, layer.data());
    write(layer);
  }
  header.payload_checksum = checksum.value();
  header.header_checksum = header_checksum(header);
  out.file().write_at(0, &header, sizeof header);
  out.commit();
}

SavedSession read_session(const std::string& path, const Model& model, const SessionOptions& options) {
  const File file(Io::system(), path, O_RDONLY | O_CLOEXEC);
  const HeaderRecord header = read_header(file, path, model, options);
  SavedSession saved{std::vector<int32_t>(header.n_tokens), {}};
  const uint64_t ids_bytes = header.n_tokens * sizeof(int32_t);
  saved.cache.resize(header.file_size - sizeof header - ids_bytes);  // file_size is the file's, checked
  read_exactly(file, path, sizeof header, saved.tokens.data(), ids_bytes);
  read_exactly(file, path, sizeof header + ids_bytes, saved.cache.data(), saved.cache.size());
  Checksum64 checksum;
  checksum.update(bytes_of(saved.tokens.data(), saved.tokens.size()));
  checksum.update(saved.cache);
  if (checksum.value() != header.payload_checksum)
    throw_error(ErrorCode::kFormat, "{}: the checksum of ids and cache is wrong", path);
  for (size_t i = 0; i < saved.tokens.size(); ++i)
    if (saved.tokens[i] < 0 || static_cast<uint32_t>(saved.tokens[i]) >= model.spec().vocab_size)
      throw_error(ErrorCode::kFormat, "{}: token {} is {}, expected less than {}", path, i, saved.tokens[i],
                  model.spec().vocab_size);
  return saved;
}

}  // namespace pith
