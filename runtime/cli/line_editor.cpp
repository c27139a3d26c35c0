// The libedit side of line_editor.h.
#include "runtime/cli/line_editor.h"

#include <fcntl.h>
#include <histedit.h>
#include <langinfo.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cwchar>
#include <filesystem>
#include <string_view>
#include <vector>

#include "format/error.h"

namespace pith::cli {

namespace {

constexpr int kHistoryLines = 1000;

// Terminals that know bracketed paste put these around what is pasted, so that its newlines are not Enter.
constexpr std::string_view kPasteBegin = "\x1b[200~", kPasteEnd = "\x1b[201~";
constexpr const char* kPasteOn = "\x1b[?2004h";
constexpr const char* kPasteOff = "\x1b[?2004l";
constexpr char kCtrlD = '\x04';
// How a newline inside the line looks while it is edited and in the history.
constexpr wchar_t kNewlineSign = L'\u23ce';
constexpr std::string_view kNewlineSignUtf8 = "\u23ce";

bool terminal_takes_escapes() {
  const char* const term = std::getenv("TERM");
  return term != nullptr && std::strcmp(term, "dumb") != 0;
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

History* new_history() {
  History* const history = history_init();
  if (history == nullptr) return nullptr;
  HistEvent event;
  ::history(history, &event, H_SETSIZE, kHistoryLines);
  ::history(history, &event, H_SETUNIQUE, 1);
  return history;
}

// Whether `fd` is still the file of this name, not one that another chat has put its own in place of.
bool is_named(int fd, const std::string& path) {
  struct stat opened, named;
  return fstat(fd, &opened) == 0 && stat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

// Where the history is kept, links followed, so that the link stays and what it leads to is replaced. "" where that is no file
// that can be read to its end and replaced: a pipe, a device, a link that leads nowhere.
std::string resolved(const std::string& path) {
  if (path.empty()) return "";
  std::error_code error;
  const std::filesystem::path file = std::filesystem::weakly_canonical(path, error);
  if (error) return "";
  const std::filesystem::file_type type = std::filesystem::symlink_status(file, error).type();
  const bool is_fit =
      type == std::filesystem::file_type::regular || type == std::filesystem::file_type::not_found;
  return is_fit ? file.string() : "";
}

// False while another chat writes the file, after a moment's wait: the prompt does not wait for one that was stopped while it
// wrote. Otherwise none does until `fd` is closed; -1 where the file cannot be opened, though it may still be replaced. It is
// made when absent.
bool open_alone(const std::string& path, int& fd) {
  constexpr int kAttempts = 30, kPauseMs = 10;
  for (int i = 0; i < kAttempts; ++i) {
    fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EACCES) fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);  // enough for the lock
    if (fd < 0) return true;
    const bool is_alone = flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;  // or no locks here
    if (is_alone && is_named(fd, path)) return true;
    ::close(fd);
    if (!is_alone) poll(nullptr, 0, kPauseMs);
  }
  return false;
}

// Written beside it and renamed, so that the old one is there until the new one is whole; made with its final mode, so that
// what was typed is never readable by others, not even for a moment. False when that fails.
bool save_history(History* history, const std::string& path) {
  const std::string beside = fmt::format("{}.{}", path, getpid());
  const int fd = ::open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  std::FILE* const file = ::fdopen(fd, "w");
  if (file == nullptr) {
    ::close(fd);
    ::unlink(beside.c_str());
    return false;
  }
  HistEvent event;
  const bool written = ::history(history, &event, H_SAVE_FP, file) >= 0 && std::ferror(file) == 0;
  if (std::fclose(file) == 0 && written && std::rename(beside.c_str(), path.c_str()) == 0) return true;
  ::unlink(beside.c_str());
  return false;
}

}  // namespace

struct LineEditor::Impl {
  EditLine* editor = nullptr;
  History* history = nullptr;
  std::string history_file, prompt;
  std::vector<std::string> unsaved;  // lines of this chat that are not in the file yet
  int interrupt_fd = -1;
  bool saw_interrupt = false;
  std::string pending;  // read ahead of what libedit was given
  bool pasting = false, after_return = false;

  static Impl& of(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return *static_cast<Impl*>(self);
  }

  static char* show_prompt(EditLine* editor) { return of(editor).prompt.data(); }

  // 1, 0 at the end, -1 on Ctrl-C or failure. Waiting for both at once leaves no moment at which Ctrl-C is missed, as
  // there is one between looking at a flag and a read that the signal was to break.
  int next_byte(char& byte) {
    if (!pending.empty()) {
      byte = pending.front();
      pending.erase(0, 1);
      return 1;
    }
    pollfd inputs[] = {{interrupt_fd, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    while (poll(inputs, 2, -1) < 0)
      if (errno != EINTR) return -1;
    if (inputs[0].revents != 0) {
      saw_interrupt = true;
      return -1;
    }
    const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
    return n < 0 ? -1 : n > 0;
  }

  // After an escape: true when it begins or ends a paste; otherwise its other bytes are pending.
  bool take_paste_mark() {
    std::string mark = "\x1b";
    const auto may_become = [&](std::string_view whole) { return whole.starts_with(mark) && whole != mark; };
    pollfd input{STDIN_FILENO, POLLIN, 0};
    while ((may_become(kPasteBegin) || may_become(kPasteEnd)) && poll(&input, 1, 20) == 1) {
      char byte;
      if (::read(STDIN_FILENO, &byte, 1) != 1) break;
      mark += byte;
    }
    if (mark == kPasteBegin || mark == kPasteEnd) {
      pasting = mark == kPasteBegin;
      return true;
    }
    pending = mark.substr(1);
    return false;
  }

  static int read_char(EditLine* editor, wchar_t* out) {
    Impl& self = of(editor);
    std::mbstate_t state{};
    while (true) {
      char byte;
      const int n = self.next_byte(byte);
      if (n <= 0) return n;
      if (byte == '\0') byte = kCtrlD;  // typed before libedit took the terminal over, Ctrl-D arrives as this
      if (byte == '\x1b' && self.take_paste_mark()) continue;
      if (self.pasting && static_cast<unsigned char>(byte) < 0x20) {
        const bool second = byte == '\n' && self.after_return;  // of \r\n
        self.after_return = byte == '\r';
        if (second || (byte != '\n' && byte != '\r' && byte != '\t'))
          continue;  // controls are text, not commands
        *out = byte == '\t' ? L' ' : kNewlineSign;
        return 1;
      }
      self.after_return = false;
      const size_t used = std::mbrtowc(out, &byte, 1, &state);
      if (used == static_cast<size_t>(-2)) continue;  // inside a character
      if (used == static_cast<size_t>(-1)) {
        state = {};
        continue;  // not a character in this locale: ignored, as the terminal could not show it either
      }
      return 1;
    }
  }

  // What is in the file by now, and the lines that are not. Where that is no history, or an empty file, what this chat knows.
  void save() {
    if (history_file.empty() || unsaved.empty()) return;
    int lock;
    if (!open_alone(history_file, lock)) return;
    HistEvent event;
    const std::unique_ptr<History, void (*)(History*)> all(new_history(), history_end);
    const bool is_read = all != nullptr && ::history(all.get(), &event, H_LOAD, history_file.c_str()) >= 0;
    if (is_read)
      for (const std::string& entry : unsaved) ::history(all.get(), &event, H_ENTER, entry.c_str());
    if (save_history(is_read ? all.get() : history, history_file)) unsaved.clear();
    if (lock >= 0) ::close(lock);
  }
};

LineEditor::LineEditor(const std::string& history_path) : impl_(std::make_unique<Impl>()) {
  if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
  impl_->editor = el_init("pith", stdin, stderr, stderr);
  impl_->history = new_history();
  if (impl_->editor == nullptr || impl_->history == nullptr) return;
  el_set(impl_->editor, EL_CLIENTDATA, impl_.get());
  el_set(impl_->editor, EL_PROMPT, Impl::show_prompt);
  el_set(impl_->editor, EL_EDITOR, "emacs");
  el_set(impl_->editor, EL_GETCFN, Impl::read_char);
  el_set(impl_->editor, EL_HIST, ::history, impl_->history);
  el_set(impl_->editor, EL_BIND, "\x12", "em-inc-search-prev", nullptr);  // Ctrl-R
  el_source(impl_->editor, nullptr);                                      // ~/.editrc
  HistEvent event;
  impl_->history_file = resolved(history_path);
  if (!impl_->history_file.empty()) ::history(impl_->history, &event, H_LOAD, impl_->history_file.c_str());
}

LineEditor::~LineEditor() {
  if (impl_->editor != nullptr) el_end(impl_->editor);
  if (impl_->history == nullptr) return;
  impl_->save();
  history_end(impl_->history);
}

LineEditor::Event LineEditor::read(const std::string& prompt, std::string& line, int interrupt_fd) {
  line.clear();
  if (impl_->editor == nullptr) return Event::kEnd;
  impl_->prompt = prompt;
  impl_->interrupt_fd = interrupt_fd;
  impl_->saw_interrupt = false;
  el_resize(impl_->editor);
  const bool escapes = terminal_takes_escapes();
  if (escapes) std::fputs(kPasteOn, stderr);
  int n = 0;
  const char* const text = el_gets(impl_->editor, &n);
  if (escapes) std::fputs(kPasteOff, stderr);
  impl_->pasting = false;
  if (impl_->saw_interrupt) return Event::kInterrupt;
  if (text == nullptr || n <= 0) return Event::kEnd;
  line = replaced(std::string(text, static_cast<size_t>(n)), kNewlineSignUtf8, "\n");
  while (line.ends_with('\n')) line.pop_back();
  return Event::kLine;
}

void LineEditor::remember(const std::string& line) {
  if (impl_->history == nullptr || line.find_first_not_of(" \t") == std::string::npos) return;
  HistEvent event;
  const std::string entry = replaced(line, "\n", kNewlineSignUtf8);
  ::history(impl_->history, &event, H_ENTER, entry.c_str());
  impl_->unsaved.push_back(entry);
  impl_->save();
}

std::string history_path() {
  const char* const state = std::getenv("XDG_STATE_HOME");
  const char* const home = std::getenv("HOME");
  std::filesystem::path folder;
  if (state != nullptr && state[0] == '/')
    folder = state;
  else if (home != nullptr && home[0] == '/')
    folder = std::filesystem::path(home) / ".local" / "state";
  else
    return "";
  folder /= "pith";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? "" : (folder / "history").string();
}

}  // namespace pith::cli
