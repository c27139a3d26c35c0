// tokenizer.json: each component becomes ops, or is refused by name.
#include "convert/tokenizer_import_parts.h"
#include "format/error.h"
#include "runtime/pretokenizer.h"

namespace pith {
namespace {

using nlohmann::json;

// Typed access to one component, with its place for messages.
class Component {
 public:
  Component(const json& value, std::string where) : value_(value), where_(std::move(where)) {
    if (!value.is_object())
      throw_error(ErrorCode::kFormat, "{}: {}, expected an object", where_, value.type_name());
  }
  const std::string& where() const { return where_; }
  std::string type() const { return text("type"); }
  bool has(const char* key) const { return value_.contains(key) && !value_.at(key).is_null(); }
  const json& at(const char* key) const {
    if (!has(key)) throw_error(ErrorCode::kFormat, "{}: '{}' is missing", where_, key);
    return value_.at(key);
  }
  std::string text(const char* key) const {
    const json& found = at(key);
    if (!found.is_string()) throw_error(ErrorCode::kFormat, "{}: '{}' is not a string", where_, key);
    return found.get<std::string>();
  }
  bool flag_or(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!at(key).is_boolean()) throw_error(ErrorCode::kFormat, "{}: '{}' is not a boolean", where_, key);
    return at(key).get<bool>();
  }
  uint64_t count_or(const char* key, uint64_t fallback) const {
    if (!has(key)) return fallback;
    if (!at(key).is_number_unsigned())
      throw_error(ErrorCode::kFormat, "{}: '{}' is not a count", where_, key);
    return at(key).get<uint64_t>();
  }
  // A Sequence's parts.
  std::vector<Component> parts(const char* key) const {
    if (!at(key).is_array()) throw_error(ErrorCode::kFormat, "{}: '{}' is not a list", where_, key);
    std::vector<Component> found;
    for (const json& part : at(key)) found.emplace_back(part, where_ + "." + key);
    return found;
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw_error(ErrorCode::kUnsupported, "{}: {} is not supported", where_, printable(what));
  }

 private:
  const json& value_;
  std::string where_;
};

const char* digit(bool flag) {
  return flag ? "1" : "0";
}

void push(std::vector<std::string>& ops, std::initializer_list<std::string> op) {
  ops.insert(ops.end(), op);
}

// {"String": s} or {"Regex": r}; true for a regex.
bool read_pattern(const Component& component, std::string& pattern) {
  const Component inner(component.at("pattern"), component.where() + ".pattern");
  if (inner.has("Regex")) {
    pattern = inner.text("Regex");
    return true;
  }
  pattern = inner.text("String");
  return false;
}

void read_normalizer(const Component& component, int depth, std::vector<std::string>& ops) {
  if (depth > 8) component.refuse("nesting this deep");
  const std::string type = component.type();
  if (type == "Sequence") {
    for (const Component& part : component.parts("normalizers")) read_normalizer(part, depth + 1, ops);
  } else if (type == "Prepend") {
    push(ops, {"prepend", component.text("prepend")});
  } else if (type == "Replace") {
    std::string pattern;
    const bool regex = read_pattern(component, pattern);
    push(ops, {regex ? "replace_pattern" : "replace", pattern, component.text("content")});
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    push(ops, {type == "NFC" ? "nfc" : type == "NFD" ? "nfd" : type == "NFKC" ? "nfkc" : "nfkd"});
  } else if (type == "Lowercase") {
    push(ops, {"lowercase"});
  } else if (type == "Strip") {
    push(ops, {"strip", digit(component.flag_or("strip_left", true)),
               digit(component.flag_or("strip_right", true))});
  } else if (type == "Precompiled") {
    push(ops, {"charsmap", component.text("precompiled_charsmap")});
  } else if (type == "StripAccents") {
    push(ops, {"strip_accents"});
  } else {
    component.refuse("type '" + type + "'");
  }
}

std::string read_behavior(const Component& component) {
  const std::string name = component.text("behavior");
  const std::pair<const char*, const char*> names[] = {{"Isolated", "isolated"},
                                                       {"Removed", "removed"},
                                                       {"MergedWithPrevious", "merged_with_previous"},
                                                       {"MergedWithNext", "merged_with_next"},
                                                       {"Contiguous", "contiguous"}};
  for (const auto& [theirs, ours] : names)
    if (name == theirs) return ours;
  component.refuse("behavior '" + name + "'");
}

std::string read_prepend_scheme(const Component& component) {
  if (component.has("prepend_scheme")) {
    const std::string scheme = component.text("prepend_scheme");
    if (scheme != "always" && scheme != "first" && scheme != "never")
      component.refuse("prepend_scheme '" + scheme + "'");
    return scheme;
  }
  return component.flag_or("add_prefix_space", true) ? "always" : "never";
}

void read_pretokenizer(const Component& component, int depth, BpeTables& bpe) {
  if (depth > 8) component.refuse("nesting this deep");
  std::vector<std::string>& ops = bpe.pretokenizer;
  const std::string type = component.type();
  if (bpe.byte_level) component.refuse("'" + type + "' after ByteLevel");
  if (type == "Sequence") {
    for (const Component& part : component.parts("pretokenizers")) read_pretokenizer(part, depth + 1, bpe);
  } else if (type == "ByteLevel") {
    if (component.flag_or("add_prefix_space", true)) push(ops, {"prefix_space"});
    if (component.flag_or("use_regex", true)) push(ops, {"split", kGpt2Pattern, "isolated", "0"});
    bpe.byte_level = true;
  } else if (type == "Split") {
    std::string pattern;
    const bool regex = read_pattern(component, pattern);
    push(ops, {regex ? "split" : "split_text", pattern, read_behavior(component),
               digit(component.flag_or("invert", false))});
  } else if (type == "Digits") {
    push(ops, {"digits", digit(component.flag_or("individual_digits", false))});
  } else if (type == "Punctuation") {
    push(ops, {"punctuation", component.has("behavior") ? read_behavior(component) : "isolated"});
  } else if (type == "Whitespace") {
    // Run by Rust's library, to which the join controls are members of a word.
    push(ops, {"split", "[\\w\\x{200c}\\x{200d}]+|[^\\w\\s\\x{200c}\\x{200d}]+", "removed", "1"});
  } else if (type == "WhitespaceSplit") {
    push(ops, {"white_space"});
  } else if (type == "Metaspace") {
    push(ops, {"metaspace", component.text("replacement"), read_prepend_scheme(component),
               digit(component.flag_or("split", true))});
  } else {
    component.refuse("type '" + type + "'");
  }
}

void read_decoder(const Component& component, int depth, BpeTables& bpe) {
  if (depth > 8) component.refuse("nesting this deep");
  const std::string type = component.type();
  if (type == "Sequence") {
    for (const Component& part : component.parts("decoders")) read_decoder(part, depth + 1, bpe);
  } else if (type == "ByteLevel") {
    if (!bpe.byte_level) component.refuse("type 'ByteLevel' without a ByteLevel pre-tokenizer");
  } else if (type == "Replace") {
    if (read_pattern(component, bpe.space) || component.text("content") != " ")
      component.refuse("a replacement other than of a text by a space");
  } else if (type == "Metaspace") {
    bpe.space = component.text("replacement");
    bpe.decode_strip = read_prepend_scheme(component) == "never" ? 0 : 1;
  } else if (type == "Strip") {
    if (component.text("content") != " " || component.count_or("stop", 0) != 0)
      component.refuse("stripping other than of spaces at the start");
    bpe.decode_strip = component.count_or("start", 0);
  } else if (type == "ByteFallback") {
    bpe.byte_tokens = true;
  } else if (type != "Fuse") {
    component.refuse("type '" + type + "'");
  }
}

// What a post-processor puts in front, in `first`.
void read_post_processor(const Component& component, int depth, std::optional<std::string>& first) {
  if (depth > 8) component.refuse("nesting this deep");
  const std::string type = component.type();
  if (type == "Sequence") {
    for (const Component& part : component.parts("processors")) read_post_processor(part, depth + 1, first);
  } else if (type == "TemplateProcessing") {
    for (const Component& part : component.parts("single")) {
      if (!part.has("SpecialToken")) break;
      if (first) component.refuse("more than one token in front of the text");
      first = Component(part.at("SpecialToken"), part.where()).text("id");
    }
  } else if (type != "ByteLevel") {
    component.refuse("type '" + type + "'");
  }
}

// The normalizer "Prepend" and Metaspace's scheme say where dummy prefixes go.
std::optional<bool> read_prefix_each(const json& component, int depth) {
  std::optional<bool> found;
  if (!component.is_object() || depth > 8) return found;
  const std::string type =
      component.value("type", json()).is_string() ? component.at("type").get<std::string>() : "";
  if (type == "Prepend") return true;
  if (type == "Metaspace") return read_prepend_scheme(Component(component, "Metaspace")) == "always";
  for (const char* const parts : {"normalizers", "pretokenizers"})
    if (type == "Sequence" && component.contains(parts) && component.at(parts).is_array())
      for (const json& part : component.at(parts))
        if (const auto inner = read_prefix_each(part, depth + 1)) found = inner;
  return found;
}

void read_merges(const Component& model, BpeTables& bpe) {
  const std::string where = model.where() + ".merges";
  MergeReader reader(model.at("vocab"), where, bpe);
  if (!model.at("merges").is_array()) throw_error(ErrorCode::kFormat, "{}: expected a list", where);
  for (const json& merge : model.at("merges")) {
    if (merge.is_string()) {
      reader.add_line(merge.get_ref<const std::string&>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      reader.add(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      throw_error(ErrorCode::kFormat, "{}: entry {}, expected two tokens", where, merge.dump().substr(0, 80));
    }
  }
}

// "vocab" is a list of [text, score]; the reference adds up in double what its files hold in float.
void read_unigram(const Component& model, uint32_t vocab_size, BpeTables& bpe) {
  const std::string where = model.where() + ".vocab";
  if (bpe.byte_level) model.refuse("Unigram over bytes");
  bpe.byte_fallback = model.flag_or("byte_fallback", false);
  bpe.byte_tokens = bpe.byte_tokens || bpe.byte_fallback;
  const json& list = model.at("vocab");
  if (!list.is_array()) throw_error(ErrorCode::kFormat, "{}: expected a list", where);
  json ids = json::object();
  for (const json& entry : list) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number())
      throw_error(ErrorCode::kFormat, "{}: entry {}, expected a text and a score", where,
                  entry.dump().substr(0, 80));
    const std::string& text = entry[0].get_ref<const std::string&>();
    const size_t id = bpe.scores.size();
    if (!ids.emplace(text, id).second)
      throw_error(ErrorCode::kFormat, "{}: '{}' is there twice", where, printable(text));
    bpe.scores.push_back(entry[1].get<float>());
  }
  read_vocab(ids, where, vocab_size, bpe);
  if (!model.has("unk_id")) model.refuse("Unigram without unk_id");
  const uint64_t unk_id = model.count_or("unk_id", 0);
  if (unk_id >= bpe.texts.size())
    throw_error(ErrorCode::kFormat, "{}: unk_id is {}, expected less than {}", model.where(), unk_id,
                bpe.texts.size());
  bpe.unk_id = static_cast<uint32_t>(unk_id);
}

void read_model(const Component& model, uint32_t vocab_size, BpeTables& bpe) {
  const std::string type = model.has("type") ? model.type() : model.has("merges") ? "BPE" : "unknown";
  if (type == "Unigram") return read_unigram(model, vocab_size, bpe);
  if (type != "BPE") model.refuse("type '" + type + "' (BPE and Unigram are)");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (model.has(affix) && !model.text(affix).empty())
      model.refuse(fmt::format("{} '{}'", affix, model.text(affix)));
  if (model.has("dropout") && model.at("dropout") != 0.0) model.refuse("dropout");
  bpe.byte_fallback = model.flag_or("byte_fallback", false);
  bpe.byte_tokens = bpe.byte_tokens || bpe.byte_fallback;
  bpe.fuse_unk = model.flag_or("fuse_unk", false);
  bpe.ignore_merges = model.flag_or("ignore_merges", false);
  if (bpe.byte_level && bpe.byte_fallback)
    bpe.byte_fallback = bpe.byte_tokens = false;  // all bytes are symbols
  read_vocab(model.at("vocab"), model.where() + ".vocab", vocab_size, bpe);
  read_merges(model, bpe);
  if (model.has("unk_token")) {
    const auto unk = model.at("vocab").find(model.text("unk_token"));
    if (unk == model.at("vocab").end())
      throw_error(ErrorCode::kFormat, "{}: unk_token '{}' is not in the vocabulary", model.where(),
                  model.text("unk_token"));
    bpe.unk_id = unk->get<uint32_t>();
  }
}

}  // namespace

AddedToken read_added_token(const json& value, int32_t id, const std::string& where) {
  const Component token(value, where);
  const bool special = token.flag_or("special", false);
  AddedToken added{id, token.text("content"), special ? uint32_t{kAddedSpecial} : 0};
  if (token.flag_or("lstrip", false)) added.flags |= kAddedLstrip;
  if (token.flag_or("rstrip", false)) added.flags |= kAddedRstrip;
  if (token.flag_or("single_word", false)) added.flags |= kAddedSingleWord;
  if (token.flag_or("normalized", !special)) added.flags |= kAddedNormalized;
  return added;
}

TokenizerJson read_tokenizer_json(const json& value, const std::string& where, uint32_t vocab_size,
                                  bool with_model) {
  const Component root(value, where);
  TokenizerJson out;
  if (root.has("added_tokens")) {
    const std::string place = where + ": added_tokens";
    if (!root.at("added_tokens").is_array()) throw_error(ErrorCode::kFormat, "{}: expected a list", place);
    for (const json& token : root.at("added_tokens")) {
      const uint64_t id = Component(token, place).count_or("id", UINT64_MAX - 1);
      check_vocab_size(id == UINT64_MAX ? id : id + 1, vocab_size, place);
      out.added[static_cast<int32_t>(id)] = read_added_token(token, static_cast<int32_t>(id), place);
    }
  }
  if (root.has("post_processor"))
    read_post_processor(Component(root.at("post_processor"), where + ": post_processor"), 0,
                        out.first_special);
  for (const char* const key : {"normalizer", "pre_tokenizer"})
    if (root.has(key))
      if (const auto found = read_prefix_each(root.at(key), 0)) out.prefix_each = found;
  if (!with_model) return out;
  if (root.has("normalizer"))
    read_normalizer(Component(root.at("normalizer"), where + ": normalizer"), 0, out.bpe.normalizer);
  if (root.has("pre_tokenizer"))
    read_pretokenizer(Component(root.at("pre_tokenizer"), where + ": pre_tokenizer"), 0, out.bpe);
  read_decoder(Component(root.at("decoder"), where + ": decoder"), 0, out.bpe);
  read_model(Component(root.at("model"), where + ": model"), vocab_size, out.bpe);
  try {
    Normalizer{
        out.bpe.normalizer};  // a pattern that does not compile is found now, not when the model is opened
    PreTokenizer{out.bpe.pretokenizer};
  } catch (const Error& error) {
    throw Error(error.code(), where + ": " + error.what());
  }
  return out;
}

}  // namespace pith
