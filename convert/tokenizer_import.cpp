// Which file has the vocabulary and which has the last word on BOS, EOS and special tokens; then the keys of
// the container.
#include "convert/tokenizer_import.h"

#include <algorithm>
#include <unordered_map>

#include "convert/json_file.h"
#include "convert/tokenizer_import_parts.h"
#include "format/error.h"
#include "format/utf8.h"
#include "runtime/chat_template.h"
#include "runtime/model.h"
#include "runtime/tokenizer.h"
#include "runtime/tokenizer_proto.h"

namespace pith {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json read_json_if_there(const fs::path& path) {
  return file_exists(path.string()) ? read_json_file(path.string(), true) : json();
}

// A token named by a configuration: "text" or {"content": "text", ...}.
std::optional<std::string> token_name(const json& object, const char* key) {
  if (!object.is_object() || !object.contains(key)) return std::nullopt;
  const json& value = object.at(key);
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value.at("content").is_string())
    return value.at("content").get<std::string>();
  return std::nullopt;
}

uint32_t config_vocab_size(const json& config) {
  const json& text = config.contains("text_config") && config.at("text_config").is_object()
                         ? config.at("text_config")
                         : config;
  const json& from = config.contains("vocab_size") ? config : text;
  const json size = from.contains("vocab_size") ? from.at("vocab_size") : json();
  if (!size.is_number_integer() || size.get<int64_t>() < 1 || size.get<int64_t>() > (1 << 30))
    throw_error(ErrorCode::kFormat, "config.json: vocab_size is {}, expected 1 to {}", size.dump(), 1 << 30);
  return size.get<uint32_t>();
}

class Import {
 public:
  Import(const fs::path& dir, const json& config, Metadata& out)
      : dir_(dir),
        config_(config),
        out_(out),
        // A text_config may leave it to the family's default, which the spec has.
        vocab_size_(out.has("model.vocab_size") ? static_cast<uint32_t>(out.get<uint64_t>("model.vocab_size"))
                                                : config_vocab_size(config)),
        tokenizer_config_(read_json_if_there(dir / "tokenizer_config.json")),
        special_map_(read_json_if_there(dir / "special_tokens_map.json")),
        generation_(read_json_if_there(dir / "generation_config.json")) {}

  void run() {
    read_vocabulary();
    read_added_from_config();
    index_texts();
    mark_named_specials();
    choose_bos();
    collect_eos();
    write();
    check();
    import_template();
    import_generation();
  }

 private:
  std::string path(const char* name) const { return (dir_ / name).string(); }
  std::string model_type() const {
    return config_.contains("model_type") && config_.at("model_type").is_string()
               ? config_.at("model_type").get<std::string>()
               : std::string();
  }
  void read_vocabulary();
  void read_sentencepiece(std::string bytes);
  void read_added_from_config();
  void index_texts();
  void mark_named_specials();
  int32_t find(const std::string& text) const;
  int32_t find_control_piece(const std::string& text) const;
  void mark_special(const std::string& text);
  std::vector<std::pair<std::string, uint32_t>> config_ids(const char* key) const;
  void choose_bos();
  void collect_eos();
  void write();
  void check() const;
  void import_template();
  void import_generation();

  fs::path dir_;
  const json& config_;
  Metadata& out_;
  uint32_t vocab_size_;
  json tokenizer_config_, special_map_, generation_;

  std::optional<BpeTables> bpe_;
  std::string sentencepiece_;  // the model's bytes
  SentencePieceModel pieces_;
  std::string bos_piece_ = "<s>", eos_piece_ = "</s>";  // the library's defaults
  AddedById added_;
  std::unordered_map<std::string, int32_t> ids_;  // of added tokens and of the vocabulary, by text
  bool json_added_wins_ = false;
  std::optional<std::string> first_special_;  // of tokenizer.json's post-processor
  std::optional<bool> prefix_each_;           // what tokenizer.json says beside a sentencepiece model
  bool has_tokenizer_json_ = false;
  int32_t bos_id_ = -1;
  bool adds_bos_ = false;
  std::vector<uint32_t> eos_ids_;
};

void Import::read_vocabulary() {
  const json tokenizer = read_json_if_there(dir_ / "tokenizer.json");
  has_tokenizer_json_ = !tokenizer.is_null();
  std::string model;
  if (file_exists(path("tokenizer.model"))) {
    model = read_text_file(path("tokenizer.model"));
    if (looks_like_sentencepiece(model)) {
      read_sentencepiece(std::move(model));
      if (has_tokenizer_json_) {
        TokenizerJson read = read_tokenizer_json(tokenizer, path("tokenizer.json"), vocab_size_, false);
        added_ = std::move(read.added);
        first_special_ = read.first_special;
        prefix_each_ = read.prefix_each;
      }
      return;
    }
    if (!looks_like_tiktoken(model))
      throw_error(ErrorCode::kFormat, "{}: neither a sentencepiece model nor tiktoken lines",
                  path("tokenizer.model"));
  }
  if (has_tokenizer_json_) {
    TokenizerJson read = read_tokenizer_json(tokenizer, path("tokenizer.json"), vocab_size_, true);
    bpe_ = std::move(read.bpe);
    added_ = std::move(read.added);
    first_special_ = read.first_special;
    json_added_wins_ = true;
  } else if (!model.empty()) {
    bpe_ = read_tiktoken(model, path("tokenizer.model"), model_type(), vocab_size_);
  } else if (file_exists(path("vocab.json")) && file_exists(path("merges.txt"))) {
    const json vocab = read_json_file(path("vocab.json"), true);
    bpe_ = read_vocab_and_merges(vocab, read_text_file(path("merges.txt")), dir_.string(), model_type(),
                                 vocab_size_);
    const json added = read_json_if_there(dir_ / "added_tokens.json");
    for (const auto& [text, id] : added.items()) {
      if (!id.is_number_unsigned())
        throw_error(ErrorCode::kFormat, "{}: id of '{}'", path("added_tokens.json"), printable(text));
      const uint64_t number = id.get<uint64_t>();
      check_vocab_size(number == UINT64_MAX ? number : number + 1, vocab_size_, path("added_tokens.json"));
      added_[id.get<int32_t>()] = {id.get<int32_t>(), text, 0};
    }
  } else {
    throw_error(ErrorCode::kUnsupported,
                "{}: no tokenizer found (tokenizer.model, tokenizer.json, or vocab.json with merges.txt)",
                dir_.string());
  }
}

void Import::read_sentencepiece(std::string bytes) {
  try {
    pieces_ = check_sentencepiece_model(bytes);
  } catch (const Error& error) {
    throw Error(error.code(), path("tokenizer.model") + ": " + error.what());
  }
  check_vocab_size(pieces_.pieces.size(), vocab_size_, path("tokenizer.model"));
  if (!pieces_.bos_piece.empty()) bos_piece_ = pieces_.bos_piece;
  if (!pieces_.eos_piece.empty()) eos_piece_ = pieces_.eos_piece;
  sentencepiece_ = std::move(bytes);
}

void Import::read_added_from_config() {
  const std::string where = path("tokenizer_config.json") + ": added_tokens_decoder";
  if (!tokenizer_config_.is_object() || !tokenizer_config_.contains("added_tokens_decoder")) return;
  const json& decoder = tokenizer_config_.at("added_tokens_decoder");
  if (!decoder.is_object()) throw_error(ErrorCode::kFormat, "{}: expected an object", where);
  for (const auto& [key, value] : decoder.items()) {
    if (key.empty() || key.size() > 9 ||
        !std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; }))
      throw_error(ErrorCode::kFormat, "{}: '{}' is not a token id", where, printable(key));
    const int32_t id = std::stoi(key);
    check_vocab_size(static_cast<uint64_t>(id) + 1, vocab_size_, where);
    AddedToken token = read_added_token(value, id, where);
    if (json_added_wins_) {
      added_.try_emplace(id, std::move(token));
    } else {
      added_[id] = std::move(token);
    }
  }
}

// Added tokens come first, then the lowest id.
void Import::index_texts() {
  for (const auto& [id, token] : added_) ids_.try_emplace(token.text, id);
  for (size_t id = 0; bpe_ && id < bpe_->texts.size(); ++id)
    if (auto name = bpe_->name_of(id)) ids_.try_emplace(std::move(*name), static_cast<int32_t>(id));
  for (size_t id = 0; id < pieces_.pieces.size(); ++id)
    ids_.try_emplace(pieces_.pieces[id].text, static_cast<int32_t>(id));
}

int32_t Import::find(const std::string& text) const {
  const auto found = ids_.find(text);
  return found == ids_.end() ? -1 : found->second;
}

// find() among the control pieces of the sentencepiece model, -1 elsewhere: an added token's id may lie beyond its pieces.
int32_t Import::find_control_piece(const std::string& text) const {
  const int32_t id = find(text);
  const bool is_piece = id >= 0 && static_cast<size_t>(id) < pieces_.pieces.size();
  return is_piece && pieces_.pieces[static_cast<size_t>(id)].type == PieceType::kControl ? id : -1;
}

void Import::mark_special(const std::string& text) {
  const int32_t id = find(text);
  if (id < 0 || text.empty()) return;
  added_.try_emplace(id, AddedToken{id, text, 0}).first->second.flags |= kAddedSpecial;
}

// What a configuration names as bos, eos, ... is a special token, whatever else is said about it.
void Import::mark_named_specials() {
  for (const json* const source : {&tokenizer_config_, &special_map_}) {
    for (const char* const key :
         {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"})
      if (const auto name = token_name(*source, key)) mark_special(*name);
    if (!source->is_object() || !source->contains("additional_special_tokens")) continue;
    const json& more = source->at("additional_special_tokens");
    if (!more.is_array()) continue;
    for (const json& entry : more) {
      const json wrapped = {{"token", entry}};
      if (const auto name = token_name(wrapped, "token")) mark_special(*name);
    }
  }
  // A bare vocab.json says nothing about its specials; the model's own configuration does.
  if (bpe_ && !has_tokenizer_json_ && tokenizer_config_.is_null() && special_map_.is_null() &&
      !bpe_->merge_by_id)
    for (const char* const key : {"bos_token_id", "eos_token_id"})
      for (const auto& [where, id] : config_ids(key))
        if (id < bpe_->texts.size() && is_valid_utf8(bpe_->texts[id]))
          added_
              .try_emplace(static_cast<int32_t>(id), AddedToken{static_cast<int32_t>(id), bpe_->texts[id], 0})
              .first->second.flags |= kAddedSpecial;
}

// Ids under `key` (a number or a list) in generation_config.json and config.json, with their place.
std::vector<std::pair<std::string, uint32_t>> Import::config_ids(const char* key) const {
  std::vector<std::pair<std::string, uint32_t>> found;
  const std::pair<const json*, std::string> sources[] = {{&generation_, path("generation_config.json")},
                                                         {&config_, path("config.json")}};
  for (const auto& [source, where] : sources) {
    if (!source->is_object() || !source->contains(key) || source->at(key).is_null()) continue;
    const json ids = source->at(key).is_array() ? source->at(key) : json::array({source->at(key)});
    for (const json& id : ids) {
      if (id.is_number_integer() && id.get<int64_t>() < 0) continue;  // -1 says "none"
      if (!id.is_number_integer() || id.get<uint64_t>() >= vocab_size_)
        throw_error(ErrorCode::kFormat, "{}: {} is {}, expected ids less than vocab_size {}", where, key,
                    id.dump(), vocab_size_);
      found.emplace_back(where, id.get<uint32_t>());
    }
  }
  return found;
}

void Import::choose_bos() {
  // A null in tokenizer_config.json means "none", and ends the search.
  const bool said = tokenizer_config_.is_object() && tokenizer_config_.contains("bos_token");
  if (const auto name = token_name(tokenizer_config_, "bos_token")) {
    bos_id_ = find(*name);
    if (bos_id_ < 0)
      throw_error(ErrorCode::kFormat, "{}: bos_token '{}' is not in the vocabulary",
                  path("tokenizer_config.json"), printable(*name));
  } else if (!said) {
    if (const auto named = token_name(special_map_, "bos_token")) bos_id_ = find(*named);
    if (bos_id_ < 0 && first_special_) bos_id_ = find(*first_special_);
    if (bos_id_ < 0) bos_id_ = find_control_piece(bos_piece_);
    if (bos_id_ < 0)
      if (const auto ids = config_ids("bos_token_id"); !ids.empty())
        bos_id_ = static_cast<int32_t>(ids[0].second);
  }
  const json* const flag = tokenizer_config_.is_object() && tokenizer_config_.contains("add_bos_token")
                               ? &tokenizer_config_.at("add_bos_token")
                               : nullptr;
  if (flag != nullptr && flag->is_boolean()) {
    adds_bos_ = flag->get<bool>();
  } else if (has_tokenizer_json_) {
    adds_bos_ = first_special_.has_value();
  } else {  // the classes that run bare sentencepiece and Llama-3 tiktoken files add one, GPT-2's does not
    adds_bos_ = !sentencepiece_.empty() || (bpe_ && bpe_->merge_by_id);
  }
  adds_bos_ = adds_bos_ && bos_id_ >= 0;
}

void Import::collect_eos() {
  for (const json* const source : {&tokenizer_config_, &special_map_})
    if (const auto name = token_name(*source, "eos_token"))
      if (const int32_t id = find(*name); id >= 0) eos_ids_.push_back(static_cast<uint32_t>(id));
  for (const auto& [where, id] : config_ids("eos_token_id")) eos_ids_.push_back(id);
  if (const int32_t id = find_control_piece(eos_piece_); id >= 0)
    eos_ids_.push_back(static_cast<uint32_t>(id));
  std::sort(eos_ids_.begin(), eos_ids_.end());
  eos_ids_.erase(std::unique(eos_ids_.begin(), eos_ids_.end()), eos_ids_.end());
}

void Import::write() {
  if (bpe_) {
    bpe_->write(out_);
  } else {
    // Plain text must not become a special token, so the library must not know it as a user-defined piece.
    std::vector<uint32_t> specials;
    for (const auto& [id, token] : added_)
      if (token.special() && static_cast<size_t>(id) < pieces_.pieces.size() &&
          (pieces_.pieces[static_cast<size_t>(id)].type == PieceType::kUserDefined ||
           pieces_.pieces[static_cast<size_t>(id)].type == PieceType::kNormal))
        specials.push_back(static_cast<uint32_t>(id));
    const std::string model = with_control_pieces(sentencepiece_, specials);
    out_.set("tokenizer.kind", std::string("sentencepiece"));
    out_.set("tokenizer.sentencepiece", Bytes(model.begin(), model.end()));
  }
  std::vector<uint32_t> ids, flags;
  std::vector<std::string> texts;
  for (const auto& [id, token] : added_) {
    if (token.text.empty()) continue;
    ids.push_back(static_cast<uint32_t>(id));
    texts.push_back(token.text);
    flags.push_back(token.flags);
  }
  out_.set("tokenizer.added_ids", std::move(ids));
  out_.set("tokenizer.added_texts", std::move(texts));
  out_.set("tokenizer.added_flags", std::move(flags));
  if (bos_id_ >= 0) out_.set("tokenizer.bos_id", static_cast<uint64_t>(bos_id_));
  out_.set("tokenizer.adds_bos", adds_bos_);
  out_.set("tokenizer.eos_ids", eos_ids_);
  // The reference prefers tokenizer.json, so its word on dummy prefixes counts before the sentencepiece class's "legacy".
  bool prefix_each = prefix_each_.value_or(true);
  if (!prefix_each_ && tokenizer_config_.is_object() && tokenizer_config_.contains("legacy") &&
      tokenizer_config_.at("legacy").is_boolean())
    prefix_each = tokenizer_config_.at("legacy").get<bool>();
  out_.set("tokenizer.prefix_each", prefix_each);
}

// What would not open at the end of a conversion is refused at its beginning.
void Import::check() const {
  try {
    Tokenizer::open(out_, vocab_size_);
  } catch (const Error& error) {
    throw Error(error.code(), dir_.string() + ": " + error.what());
  }
}

void Import::import_template() {
  std::string source, where = path("chat_template.jinja");
  if (file_exists(where)) {
    source = read_text_file(where);
  } else if (tokenizer_config_.is_object() && tokenizer_config_.contains("chat_template")) {
    where = path("tokenizer_config.json");
    const json& found = tokenizer_config_.at("chat_template");
    if (found.is_string()) source = found.get<std::string>();
    if (found.is_array())
      for (const json& entry : found)
        if (entry.is_object() && entry.contains("name") && entry.at("name") == "default" &&
            entry.contains("template") && entry.at("template").is_string())
          source = entry.at("template").get<std::string>();
  }
  if (source.empty()) return;
  if (!is_valid_utf8(source)) throw_error(ErrorCode::kFormat, "{}: the chat template is not UTF-8", where);
  const auto text_of = [&](const char* key) {
    if (const auto name = token_name(tokenizer_config_, key)) return *name;
    return token_name(special_map_, key).value_or("");
  };
  try {
    ChatTemplate(source, text_of("bos_token"), text_of("eos_token"));
  } catch (const Error& error) {
    throw Error(error.code(), where + ": " + error.what());
  }
  out_.set("chat.template", source);
  out_.set("chat.bos", text_of("bos_token"));
  out_.set("chat.eos", text_of("eos_token"));
}

// What is absent is transformers 4's default: a temperature of 1, the best 50. Without do_sample the repetition penalty alone counts.
void Import::import_generation() {
  if (!generation_.is_object()) return;
  const auto import = [&](const std::string& key, const json& fallback) {
    const json& value = generation_.contains(key) ? generation_.at(key) : fallback;
    if (value.is_null()) return;
    const std::string name = "generation." + key;
    const bool is_count = key == "top_k";
    if (is_count ? !value.is_number_unsigned() : !value.is_number() || value.get<double>() < 0)
      throw_error(ErrorCode::kFormat, "{}: {} is {}, expected a number of 0 or more",
                  path("generation_config.json"), key, value.dump());
    if (is_count) {
      out_.set(name, value.get<uint64_t>());
    } else {
      out_.set(name, value.get<double>());
    }
  };
  import("repetition_penalty", nullptr);
  if (generation_.contains("do_sample") && generation_.at("do_sample") == true) {
    import("temperature", nullptr);
    if (!out_.has("generation.temperature")) out_.set("generation.temperature", 1.0);
    import("top_k", 50u);
    import("top_p", nullptr);
    import("min_p", nullptr);
  }
  read_generation(out_, path("generation_config.json"));  // its ranges
}

}  // namespace

void import_tokenizer(const fs::path& dir, const json& config, Metadata& out) {
  Import(dir, config, out).run();
}

}  // namespace pith
