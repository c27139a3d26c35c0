// Fuzzes loading a session file. Oracle: what is accepted, saved again, gives the same bytes, and the session can go on from
// it; what is refused leaves the session as it was.
//
// The first byte of an input chooses the cache's type; the rest is the file. The mutator begins with files that a session has
// saved, edits header, ids or cache, and nearly always makes sizes and checksums right again.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "random_model.h"
#include "runtime/session.h"

using namespace pith;
using namespace pith::test;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// As session_file.h lays the header out.
constexpr size_t kHeaderSize = 128, kFileSizeAt = 16, kTokensAt = 32, kPayloadSumAt = 56, kHeaderSumAt = 120;
constexpr uint32_t kContext = 24;

std::string scratch_path(const char* name) {
  const char* const folder = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  return fmt::format("{}/pith-fuzz-{}-{}", folder, getpid(), name);
}

std::shared_ptr<const Model> model() {
  static const std::shared_ptr<const Model> one = [] {
    ModelSpec spec;
    spec.family = "fuzz";
    spec.vocab_size = 32;
    spec.dim = 32;
    spec.ffn_dim = 32;
    spec.n_layers = 2;
    spec.n_heads = 2;
    spec.n_kv_heads = 1;
    spec.head_dim = 16;
    spec.max_context = 64;
    spec.norm_eps = 1e-5f;
    spec.attn_scale = 0.25f;
    spec.ropes = {{.inv_freq = std::vector<float>(8, 0.1f)}};
    spec.layers.resize(2);
    const std::string path = scratch_path("model");
    write_random_model(path, spec, {});
    auto opened = Model::open(path);
    ::unlink(path.c_str());
    return opened;
  }();
  return one;
}

SessionOptions options_for(uint8_t choice) {
  SessionOptions options;
  options.n_ctx = kContext;
  options.n_threads = 1;
  options.device = "cpu";
  options.kv = choice % 2 == 0 ? KvType::kF16 : KvType::kI8;
  return options;
}

Session& session_for(uint8_t choice) {
  static Session f16(model(), options_for(0)), i8(model(), options_for(1));
  return choice % 2 == 0 ? f16 : i8;
}

// The choice, then what a session of n_tokens saves.
Bytes seed(uint8_t choice, uint32_t n_tokens) {
  Session session(model(), options_for(choice));
  std::vector<int32_t> ids;
  for (uint32_t i = 0; i < n_tokens; ++i) ids.push_back(static_cast<int32_t>(i * 7 % 32));
  session.sync(ids);
  const std::string path = scratch_path("seed");
  session.save(path);
  Bytes bytes = read_file(path);
  ::unlink(path.c_str());
  bytes.insert(bytes.begin(), choice);
  return bytes;
}

template <typename T>
T get(const Bytes& file, size_t at) {
  T value;
  std::memcpy(&value, file.data() + at, sizeof value);
  return value;
}
template <typename T>
void put(Bytes& file, size_t at, T value) {
  std::memcpy(file.data() + at, &value, sizeof value);
}

void write_input(const std::string& path, std::span<const uint8_t> bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  require(fd >= 0 && ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()),
          "cannot write the input");
  ::close(fd);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  static const std::string path = scratch_path("in"), again = scratch_path("out");
  const Bytes file(data + 1, data + size);
  write_input(path, file);
  Session& session = session_for(data[0]);
  const std::vector<int32_t> start = {1, 2, 3};
  session.sync(start);
  try {
    session.load(path);
  } catch (const Error& error) {
    require(error.code() == ErrorCode::kFormat || error.code() == ErrorCode::kContextFull ||
                error.code() == ErrorCode::kInvalidArgument,  // of the other cache type
            "refused with another code");
    require(session.tokens() == start, "refused, but the session has changed");
    require(session.sync(start) == start.size(), "refused, but the logits are gone");
    return 0;
  }
  session.save(again);
  require(read_file(again) == file, "accepted, but its bytes are not those of its content");
  // Whatever the cache holds, the session goes on.
  if (session.tokens().size() < kContext) session.append(5);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed_number) {
  static const std::vector<Bytes> seeds = {seed(0, 1), seed(1, 1), seed(0, 5), seed(1, 6), seed(0, kContext)};
  std::mt19937 rng(seed_number);
  Bytes input(data, data + size);
  if (input.size() < 1 + kHeaderSize || rng() % 32 == 0) input = seeds[rng() % seeds.size()];
  const uint8_t choice = rng() % 64 == 0 ? static_cast<uint8_t>(rng()) : input[0];
  Bytes file(input.begin() + 1, input.end());
  switch (rng() % 6) {
    case 0:  // a field of the header
      put(file, rng() % (kHeaderSize / 4) * 4, static_cast<uint32_t>(rng() % 4 == 0 ? rng() : rng() % 40));
      break;
    case 1: {  // more or fewer tokens than there are
      put(file, kTokensAt, get<uint32_t>(file, kTokensAt) + static_cast<uint32_t>(rng() % 5) - 2);
      break;
    }
    case 2:  // an id or a piece of the cache
      if (file.size() >= kHeaderSize + 4)
        put(file, kHeaderSize + rng() % ((file.size() - kHeaderSize) / 4) * 4, static_cast<uint32_t>(rng()));
      break;
    case 3:  // another length
      file.resize(
          std::max<size_t>(kHeaderSize, file.size() + rng() % 64 - std::min<size_t>(32, file.size())));
      break;
    case 4: {  // the whole of another
      const Bytes& other = seeds[rng() % seeds.size()];
      const size_t n = kHeaderSize + rng() % (other.size() - kHeaderSize);
      file.resize(std::max(file.size(), n));
      std::copy(other.begin() + 1, other.begin() + 1 + static_cast<ptrdiff_t>(n - 1), file.begin());
      break;
    }
    default: {
      const size_t n = file.size();
      file.resize(n + 64);
      file.resize(LLVMFuzzerMutate(file.data(), n, file.size()));
    }
  }
  if (file.size() >= kHeaderSize && rng() % 16 != 0) {
    if (rng() % 4 != 0) put(file, kFileSizeAt, static_cast<uint64_t>(file.size()));
    put(file, kPayloadSumAt, checksum64(std::span(file).subspan(kHeaderSize)));
    put(file, kHeaderSumAt, checksum64(std::span(file).first(kHeaderSumAt)));
  }
  file.insert(file.begin(), choice);
  if (file.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::copy(file.begin(), file.end(), data);
  return file.size();
}
