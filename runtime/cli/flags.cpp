// Options shared by commands, and small helpers of the command line.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "format/error.h"
#include "runtime/capi.h"
#include "runtime/cli/cli.h"

namespace pith::cli {

CLI::Option* SessionFlags::add(CLI::App& app, const std::string& flags, const char* key,
                               const std::string& help) {
  names_.emplace_back(key, flags.substr(flags.find("--")));
  return app.add_option_function<std::string>(
      flags, [this, key](const std::string& value) { set(key, value); }, help);
}

void SessionFlags::add_session(CLI::App& app) {
  add(app, "-c,--ctx", "ctx", "Context in tokens (default: the model's, at most 4096)")->type_name("N");
  add(app, "-t,--threads", "threads", "Threads (default: physical cores)")->type_name("N");
  add(app, "--kv", "kv", "Key/value cache: f16 or i8")->type_name("TYPE");
  add(app, "--chunk", "prefill_chunk", "Tokens of a prompt run at once (default: 256)")->type_name("N");
  add(app, "--device", "device", "auto, cpu, cuda or cuda:N")->type_name("NAME");
  add(app, "--gpu-layers", "gpu_layers",
      "Last layers on the GPU, the others on the CPU: N, all (default with --device cuda) or auto (what "
      "fits)")
      ->type_name("N");
  add(app, "--kernels", "kernels",
      "auto, scalar, avx2, avxvnni, avx512-plain, avx512, amx, neon; on cuda registers, async, bulk")
      ->type_name("NAME");
  app.add_flag_function(
      "--no-mmap", [this](std::int64_t) { mmap_ = false; },
      "Read the file into memory (huge pages) instead of mapping it");
}

void SessionFlags::add_sampling(CLI::App& app) {
  for (const SamplerOption& option : sampler_options()) {
    std::string flag = fmt::format("--{}", option.key);
    std::replace(flag.begin(), flag.end(), '_', '-');
    add(app, flag, option.key, option.help)->type_name(option.value);
  }
}

bool SessionFlags::has(std::string_view key) const {
  return std::any_of(values_.begin(), values_.end(), [&](const auto& value) { return value.first == key; });
}

void SessionFlags::set(const std::string& key, const std::string& value) {
  values_.emplace_back(key, value);
}

std::vector<const char*> SessionFlags::options() const {
  std::vector<const char*> list;
  for (const auto& [key, value] : values_) {
    list.push_back(key.c_str());
    list.push_back(value.c_str());
  }
  list.push_back(nullptr);
  return list;
}

SessionOptions SessionFlags::session_options() const {
  SessionOptions options;
  try {
    for (const auto& [key, value] : values_) capi::set_session_option(options, key, value);
  } catch (const Error& error) {
    throw in_flags(error);
  }
  return options;
}

Error SessionFlags::in_flags(const Error& error) const {
  const std::string_view message = error.what();
  for (const auto& [key, flag] : names_)
    for (const std::string& begin : {fmt::format("option '{}': ", key), fmt::format("{}: ", key)})
      if (message.starts_with(begin))
        return Error(error.code(), fmt::format("{}: {}", flag, message.substr(begin.size())));
  return error;
}

double parse_bits(const std::string& text) {
  double bits = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bits);
  const bool parsed = error == std::errc() && end == text.data() + text.size();
  if (!parsed || !(bits == 16 || bits == 32 || (bits >= 2.3 && bits <= 4.5)))
    throw_error(ErrorCode::kInvalidArgument, "--bits {}: expected 2.3 to 4.5, 16 or 32", text);
  return bits;
}

constexpr size_t kMaxTextBytes = 1 << 30;  // as much as can be tokenized

std::string read_text(const std::string& path) {
  const bool is_stdin = path == "-";
  const std::string name = is_stdin ? "standard input" : path;
  const int fd = is_stdin ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw_error(ErrorCode::kIo, "{}: {}", name, std::strerror(errno));
  std::string text;
  char buffer[65536];
  ssize_t n;
  while ((n = ::read(fd, buffer, sizeof buffer)) != 0) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) break;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > kMaxTextBytes) break;
  }
  const int failure = n < 0 ? errno : 0;
  if (!is_stdin) ::close(fd);
  if (failure != 0) throw_error(ErrorCode::kIo, "{}: {}", name, std::strerror(failure));
  if (text.size() > kMaxTextBytes)
    throw_error(ErrorCode::kIo, "{}: more than {} bytes, expected a text", name, kMaxTextBytes);
  return text;
}

void refuse_nul(std::string_view text, const std::string& what) {
  if (const size_t at = text.find('\0'); at != text.npos)
    throw_error(ErrorCode::kInvalidArgument, "{}: byte {} is 0, expected text", what, at);
}

std::string human_bytes(uint64_t n_bytes) {
  const double n = static_cast<double>(n_bytes);
  if (n >= 1e9) return fmt::format("{:.2f} GB", n / 1e9);
  if (n >= 1e6) return fmt::format("{:.1f} MB", n / 1e6);
  if (n >= 1e3) return fmt::format("{:.1f} kB", n / 1e3);
  return fmt::format("{} bytes", n_bytes);
}

namespace {

// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j - 1] + (a[i - 1] != b[j - 1]), d[i - 1][j] + 1, d[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  if (word.size() > 64) return "";  // no slip of a key
  std::string best;
  size_t best_distance = std::max<size_t>(word.size() / 3, 1) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace pith::cli
