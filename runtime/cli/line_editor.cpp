// The libedit side of line_editor.h.
#include "runtime/cli/line_editor.h"

#include <fcntl.h>
#include <histedit.h>
#include <langinfo.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cwchar>
#include <filesystem>

namespace pith::cli {

namespace {
constexpr int kHistoryLines = 1000;
}

struct LineEditor::Impl {
  EditLine* editor = nullptr;
  History* history = nullptr;
  std::string history_file, prompt;
  bool (*interrupted)() = nullptr;
  bool saw_interrupt = false;

  static Impl& of(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return *static_cast<Impl*>(self);
  }

  static char* show_prompt(EditLine* editor) { return of(editor).prompt.data(); }

  // libedit's own reader swallows the first EINTR; this one ends the line when the signal was Ctrl-C.
  static int read_char(EditLine* editor, wchar_t* out) {
    Impl& self = of(editor);
    std::mbstate_t state{};
    while (true) {
      char byte;
      const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
      if (n < 0 && errno == EINTR) {
        if (self.interrupted()) {
          self.saw_interrupt = true;
          return -1;
        }
        el_set(editor, EL_REFRESH);  // back from a stop: draw the line again
        continue;
      }
      if (n <= 0) return n < 0 ? -1 : 0;
      const size_t used = std::mbrtowc(out, &byte, 1, &state);
      if (used == static_cast<size_t>(-2)) continue;  // inside a character
      if (used == static_cast<size_t>(-1)) {
        state = {};
        continue;  // not a character in this locale: ignored, as the terminal could not show it either
      }
      return 1;
    }
  }
};

LineEditor::LineEditor(const std::string& history_path) : impl_(std::make_unique<Impl>()) {
  if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
  impl_->editor = el_init("pith", stdin, stderr, stderr);
  impl_->history = history_init();
  if (impl_->editor == nullptr || impl_->history == nullptr) return;
  el_set(impl_->editor, EL_CLIENTDATA, impl_.get());
  el_set(impl_->editor, EL_PROMPT, Impl::show_prompt);
  el_set(impl_->editor, EL_EDITOR, "emacs");
  el_set(impl_->editor, EL_GETCFN, Impl::read_char);
  el_set(impl_->editor, EL_HIST, ::history, impl_->history);
  el_set(impl_->editor, EL_BIND, "\x12", "em-inc-search-prev", nullptr);  // Ctrl-R
  el_source(impl_->editor, nullptr);                                      // ~/.editrc
  HistEvent event;
  ::history(impl_->history, &event, H_SETSIZE, kHistoryLines);
  ::history(impl_->history, &event, H_SETUNIQUE, 1);
  impl_->history_file = history_path;
  if (!history_path.empty()) ::history(impl_->history, &event, H_LOAD, history_path.c_str());
}

LineEditor::~LineEditor() {
  if (impl_->editor != nullptr) el_end(impl_->editor);
  if (impl_->history != nullptr) history_end(impl_->history);
}

LineEditor::Event LineEditor::read(const std::string& prompt, std::string& line, bool (*interrupted)()) {
  line.clear();
  if (impl_->editor == nullptr) return Event::kEnd;
  impl_->prompt = prompt;
  impl_->interrupted = interrupted;
  impl_->saw_interrupt = false;
  el_resize(impl_->editor);
  int n = 0;
  const char* const text = el_gets(impl_->editor, &n);
  if (impl_->saw_interrupt) return Event::kInterrupt;
  if (text == nullptr || n <= 0) return Event::kEnd;
  line.assign(text, static_cast<size_t>(n));
  if (line.ends_with('\n')) line.pop_back();
  return Event::kLine;
}

void LineEditor::remember(const std::string& line) {
  if (impl_->history == nullptr || line.find_first_not_of(" \t") == std::string::npos) return;
  HistEvent event;
  ::history(impl_->history, &event, H_ENTER, line.c_str());
  if (impl_->history_file.empty()) return;
  // Made with its final mode, so that what was typed is never readable by others, not even for a moment.
  const int fd = ::open(impl_->history_file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return;
  ::close(fd);
  ::history(impl_->history, &event, H_SAVE, impl_->history_file.c_str());
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
