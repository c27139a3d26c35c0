// Lines from a person at a terminal: editing and history by libedit, everything shown on standard error so that standard
// output stays the model's. One at a time in a program (it owns the terminal's mode while reading).
#pragma once
#include <memory>
#include <string>

namespace pith::cli {

class LineEditor {
 public:
  enum class Event { kLine, kInterrupt /* Ctrl-C */, kEnd /* Ctrl-D on an empty line */ };

  // history_path: read now; remember() adds a line to what is in it then, other chats' lines too, and writes it with mode
  // 0600. A line that could not be saved goes out with the next one, or at the end. "", or what is neither a file nor absent =
  // history in memory only.
  explicit LineEditor(const std::string& history_path);
  ~LineEditor();

  // line is without its newline. interrupt_fd becomes readable when SIGINT comes (the caller owns the signal handler and
  // empties the descriptor after kInterrupt).
  Event read(const std::string& prompt, std::string& line, int interrupt_fd);
  void remember(const std::string& line);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// $XDG_STATE_HOME/pith/history or ~/.local/state/pith/history; its folder is made. "" when that fails.
std::string history_path();

}  // namespace pith::cli
