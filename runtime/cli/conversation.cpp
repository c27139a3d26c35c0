// Turns, undo, save and load of a conversation.
#include "runtime/cli/conversation.h"

#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "convert/json_file.h"
#include "format/atomic_file.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/text_input.h"

namespace pith::cli {
namespace {

// Throws kFormat naming the path and what is wrong, kIo for what is no regular file: a pipe would be waited for.
nlohmann::json parse_conversation(const std::string& path) {
  const nlohmann::json in = nlohmann::json::parse(read_text_file(path), nullptr, false);
  // Looked at where they lie: a copy of what is nested 200,000 deep would take all of the stack.
  const auto version = in.find("pith_chat"), turns = in.find("turns");
  if (!in.is_object() || version == in.end() || *version != 1 || turns == in.end() || !turns->is_array())
    throw_error(ErrorCode::kFormat, "{}: not a conversation saved by pith chat", path);
  return in;
}

std::string text_of(const nlohmann::json& object, const char* key, const std::string& path) {
  if (!object.is_object() || !object.contains(key) || !object[key].is_string())
    throw_error(ErrorCode::kFormat, "{}: '{}' is missing or not a string", path, key);
  std::string text = object[key].get<std::string>();
  if (const size_t at = text.find('\0'); at != text.npos)
    throw_error(ErrorCode::kFormat, "{}: byte {} of '{}' is 0, expected text", path, at, key);
  return text;
}

constexpr mode_t kPrivate = 0600;

// A model may write a byte 0, which would end a message.
std::string without_nul(std::string text) {
  for (size_t at = 0; (at = text.find('\0', at)) != text.npos;) text.replace(at, 1, "\ufffd");
  return text;
}

}  // namespace

Conversation::Conversation(const pith_model* model, pith_session* session)
    : model_(model),
      session_(session),
      has_template_(get(model, "chat_template") == "yes"),
      n_ctx_(static_cast<uint32_t>(std::stoul(get(session, "ctx")))) {}

std::vector<pith_message> Conversation::messages_with(const std::vector<Turn>& turns,
                                                      const std::string& question) const {
  std::vector<pith_message> messages;
  if (!system_.empty()) messages.push_back({"system", system_.c_str()});
  for (const Turn& turn : turns) {
    messages.push_back({"user", turn.user.c_str()});
    messages.push_back({"assistant", turn.assistant.c_str()});
  }
  messages.push_back({"user", question.c_str()});
  return messages;
}

std::vector<int32_t> Conversation::ids_of(const std::vector<Turn>& turns, const std::string& text) const {
  if (has_template_) return render(model_, messages_with(turns, text));
  std::string all;
  for (const Turn& turn : turns) all += turn.user + turn.assistant + "\n";
  return tokenize(model_, all + text, PITH_ADD_BOS);
}

void Conversation::check_interrupt() const {
  if (is_interrupted_()) throw_error(ErrorCode::kInterrupted, "interrupted before the reply");
}

pith_reply Conversation::ask(const std::string& text) {
  refuse_nul(text, "the message");
  const std::vector<pith_message> messages = messages_with(turns_, text);
  const std::vector<int32_t> ids = ids_of(turns_, text);
  if (ids.size() >= n_ctx_) {
    const size_t n_alone = ids_of({}, text).size();
    if (n_alone >= n_ctx_)
      throw_error(ErrorCode::kContextFull, "the message has {} tokens, the context {}: {}", n_alone, n_ctx_,
                  context_hint(model_, n_alone));
    throw_error(ErrorCode::kContextFull,
                "the conversation has {} tokens, the context {}: /forget or /undo makes room", ids.size(),
                n_ctx_);
  }
  ReplyWriter writer;
  pith_reply reply{};
  reply.size = sizeof reply;
  check_interrupt();
  if (has_template_) {
    check(pith_chat(session_, messages.data(), messages.size(), ReplyWriter::callback, &writer, &reply));
  } else {
    check(pith_sync(session_, ids.data(), ids.size()));
    check_interrupt();
    check(pith_generate(session_, ReplyWriter::callback, &writer, &reply));
    reply.n_prompt = static_cast<uint32_t>(ids.size());
  }
  writer.finish();
  writer.put(get(session_, "held_text"));  // nothing goes on from here
  turns_.push_back({text, without_nul(writer.text())});
  return reply;
}

pith_reply Conversation::ask_again() {
  Turn last = std::move(turns_.back());
  turns_.pop_back();
  try {
    return ask(last.user);
  } catch (...) {
    turns_.push_back(std::move(last));
    throw;
  }
}

std::string Conversation::undo() {
  if (turns_.empty()) return "";
  std::string question = std::move(turns_.back().user);
  turns_.pop_back();
  return question;
}

size_t Conversation::forget(size_t n) {
  n = std::min(n, turns_.size());
  turns_.erase(turns_.begin(), turns_.begin() + static_cast<ptrdiff_t>(n));
  return n;
}

void Conversation::save(const std::string& path) const {
  struct stat info;
  if (::stat(path.c_str(), &info) == 0) parse_conversation(path);  // never over a model or a text
  nlohmann::ordered_json out;
  out["pith_chat"] = 1;
  out["model"] = get(model_, "fingerprint");
  out["system"] = system_;
  out["turns"] = nlohmann::ordered_json::array();
  for (const Turn& turn : turns_)
    out["turns"].push_back({{"user", turn.user}, {"assistant", turn.assistant}});
  write_atomically(path, out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n", kPrivate);
}

bool Conversation::load(const std::string& path) {
  const nlohmann::json in = parse_conversation(path);
  std::vector<Turn> turns;
  for (const nlohmann::json& turn : in["turns"])
    turns.push_back({text_of(turn, "user", path), text_of(turn, "assistant", path)});
  const std::string model = text_of(in, "model", path);
  system_ = text_of(in, "system", path);
  turns_ = std::move(turns);
  return model == get(model_, "fingerprint");
}

}  // namespace pith::cli
