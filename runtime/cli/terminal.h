// Standard output that notices failures, messages, and a progress display. Line editing is in line_editor.h.
#pragma once
#include <chrono>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

namespace pith::cli {

bool is_terminal(int fd);

// The reader of standard output went away: the program ends quietly.
struct BrokenPipe {};

// Writes and flushes. Throws BrokenPipe, or Error(kIo) when the disk is full. On a terminal, control characters other
// than newline and tab are left out: a model's text must not steer the terminal.
void write_output(std::string_view text);

// One line on standard error: "pith: ...", control characters replaced.
void print_message(std::string_view text);
void print_note(std::string_view text);  // not with --quiet
void set_quiet(bool quiet);

// A reply's callback (pith_text_fn with user = ReplyWriter*) that writes to standard output. Exceptions must not pass
// through the C API, so it keeps one and stops; call finish() after the reply.
class ReplyWriter {
 public:
  static int callback(const char* text, size_t n_bytes, void* self) noexcept;
  void finish();  // rethrows
  void put(std::string_view text);
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::exception_ptr failure_;
};

// On a terminal a bar with rate and time left, redrawn at most ten times a second; elsewhere a line at every tenth.
// Nothing with --quiet. Draws on standard error.
class Progress {
 public:
  // unit: what `done` counts, shown as a rate ("weights", "tokens").
  explicit Progress(std::string unit);
  ~Progress();
  void update(std::string_view what, uint64_t done, uint64_t total);
  void clear();  // takes the bar away, for a message

 private:
  void draw(std::string_view what, uint64_t done, uint64_t total);
  using Clock = std::chrono::steady_clock;
  std::string unit_;
  bool on_terminal_;
  bool drawn_ = false;
  uint64_t first_done_ = 0;  // a resumed job starts above 0: the rate must not count that
  int last_tenth_ = -1;
  std::string last_what_;
  Clock::time_point start_, last_draw_;
};

}  // namespace pith::cli
