// Standard output, messages, progress.
#include "runtime/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "format/error.h"
#include "runtime/utf8.h"

namespace pith::cli {
namespace {

bool quiet = false;

bool is_control(char32_t value) {
  return (value < 0x20 && value != '\n' && value != '\t') || (value >= 0x7f && value < 0xa0);
}

std::string without_controls(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    if (!is_control(point.value)) append_utf8(out, point.value);
    at += point.n_bytes;
  }
  return out;
}

// 1234567 -> "1.2 M"
std::string human_count(double n) {
  if (n >= 1e9) return fmt::format("{:.1f} G", n / 1e9);
  if (n >= 1e6) return fmt::format("{:.1f} M", n / 1e6);
  if (n >= 1e3) return fmt::format("{:.1f} k", n / 1e3);
  return fmt::format("{:.0f} ", n);
}

std::string human_time(double seconds) {
  const auto s = static_cast<uint64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

int terminal_width() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace

bool is_terminal(int fd) {
  return isatty(fd) == 1;
}

void write_output(std::string_view text) {
  static const bool filtered = is_terminal(STDOUT_FILENO);
  const std::string shown = filtered ? without_controls(text) : std::string(text);
  if (std::fwrite(shown.data(), 1, shown.size(), stdout) == shown.size() && std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw BrokenPipe();
  throw_error(ErrorCode::kIo, "standard output: {}", std::strerror(errno));
}

void set_quiet(bool value) {
  quiet = value;
}

void print_message(std::string_view text) {
  std::string line;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    append_utf8(line, point.value < 0x20 || is_control(point.value) ? '?' : point.value);
    at += point.n_bytes;
  }
  std::fprintf(stderr, "%s\n", line.c_str());
}

void print_note(std::string_view text) {
  if (!quiet) print_message(text);
}

int ReplyWriter::callback(const char* text, size_t n_bytes, void* self) noexcept {
  auto* const writer = static_cast<ReplyWriter*>(self);
  try {
    writer->put({text, n_bytes});
    return 0;
  } catch (...) {
    writer->failure_ = std::current_exception();
    return 1;
  }
}

void ReplyWriter::put(std::string_view text) {
  text_ += text;
  write_output(text);
}

void ReplyWriter::finish() {
  if (failure_) std::rethrow_exception(failure_);
}

Progress::Progress(std::string unit) : unit_(std::move(unit)), on_terminal_(is_terminal(STDERR_FILENO)) {}

Progress::~Progress() {
  clear();
}

void Progress::clear() {
  if (drawn_) std::fprintf(stderr, "\r\033[K");
  drawn_ = false;
}

void Progress::update(std::string_view what, uint64_t done, uint64_t total) {
  if (quiet || total == 0) return;
  const Clock::time_point now = Clock::now();
  if (last_what_ != what) {  // a new stage
    last_what_ = what;
    last_tenth_ = -1;
    start_ = now;
    first_done_ = done;
    last_draw_ = {};
  }
  if (on_terminal_) {
    if (now - last_draw_ < std::chrono::milliseconds(100) && done < total) return;
    last_draw_ = now;
    draw(what, done, total);
    return;
  }
  const int tenth = static_cast<int>(10.0 * static_cast<double>(done) / static_cast<double>(total));
  if (tenth == last_tenth_) return;
  last_tenth_ = tenth;
  std::fprintf(stderr, "%.*s: %d %%\n", static_cast<int>(what.size()), what.data(), 10 * tenth);
}

void Progress::draw(std::string_view what, uint64_t done, uint64_t total) {
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  const double rate = elapsed > 0.5 ? static_cast<double>(done - std::min(done, first_done_)) / elapsed : 0;
  std::string figures = fmt::format(" {:3.0f} %", 100 * share);
  if (rate > 0)
    figures += fmt::format("  {}{}/s  {} left", human_count(rate), unit_,
                           human_time(static_cast<double>(total - done) / rate));
  const int room = terminal_width() - static_cast<int>(what.size() + figures.size()) - 4;
  const int width = std::clamp(room, 0, 30), filled = static_cast<int>(share * width);
  std::fprintf(stderr, "\r%.*s [%s%s]%s\033[K", static_cast<int>(what.size()), what.data(),
               std::string(static_cast<size_t>(filled), '=').c_str(),
               std::string(static_cast<size_t>(width - filled), ' ').c_str(), figures.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace pith::cli
