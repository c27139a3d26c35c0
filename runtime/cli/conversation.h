// A conversation of `pith chat`: the list of messages, and one turn through the C API. Nothing is dropped unless asked for.
//
// With a chat template each turn is rendered whole and the cache's common prefix is kept. Without one there is nothing that
// makes a reply of it: the texts are joined as they stand and the model continues them (completion).
#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/cli/handles.h"
#include "runtime/cli/terminal.h"

namespace pith::cli {

class Conversation {
 public:
  // Neither is owned.
  Conversation(const pith_model* model, pith_session* session);

  bool has_template() const { return has_template_; }
  uint32_t n_ctx() const { return n_ctx_; }
  size_t n_turns() const { return turns_.size(); }
  const std::string& system() const { return system_; }
  void set_system(const std::string& text) { system_ = text; }

  // Whether an interrupt waits: asked where the session would forget it, as it begins a call.
  void set_interrupted(std::function<bool()> is_interrupted) { is_interrupted_ = std::move(is_interrupted); }

  // One turn; the reply streams to standard output. Throws Error: kContextFull when the conversation leaves no room
  // (with both numbers), kInterrupted before the first token. The turn is then not part of the conversation.
  pith_reply ask(const std::string& text);
  // The last question once more, for another reply; there must be one. On an Error the turn is as it was.
  pith_reply ask_again();
  // Takes the last turn away and returns its question; "" when there is none.
  std::string undo();
  // Takes the n oldest turns away; returns how many there were to take.
  size_t forget(size_t n);

  // JSON: {"pith_chat": 1, "model": fingerprint, "system": ..., "turns": [{"user": ..., "assistant": ...}]}, mode 0600,
  // written beside and renamed. save refuses to replace a file that is not a conversation. load throws kFormat and changes
  // nothing on a bad file; returns whether the model was the same.
  void save(const std::string& path) const;
  bool load(const std::string& path);

 private:
  struct Turn {
    std::string user, assistant;
  };
  // Points into *this and its arguments.
  std::vector<pith_message> messages_with(const std::vector<Turn>& turns, const std::string& question) const;
  std::vector<int32_t> ids_of(const std::vector<Turn>& turns, const std::string& text) const;

  void check_interrupt() const;

  const pith_model* model_;
  pith_session* session_;
  std::function<bool()> is_interrupted_ = [] { return false; };
  bool has_template_;
  uint32_t n_ctx_;
  std::string system_;
  std::vector<Turn> turns_;
};

}  // namespace pith::cli
