// See text_input.h.
#include "runtime/cli/text_input.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "format/error.h"

namespace pith::cli {

constexpr size_t kMaxTextBytes = 1 << 30;  // as much as can be tokenized

std::string read_text(const std::string& path) {
  if (path.empty())
    throw_error(ErrorCode::kInvalidArgument, "the name of the text's file is empty, expected a file or -");
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

}  // namespace pith::cli
