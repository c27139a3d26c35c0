// BPE vocabularies and merges: from {text: id} objects, merges.txt and tiktoken files.
#include <algorithm>

#include "convert/tokenizer_import_parts.h"
#include "format/error.h"
#include "runtime/base64.h"
#include "runtime/tokenizer_bytes.h"
#include "runtime/utf8.h"

namespace pith {

const char* const kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

namespace {

// The splitting patterns that families publish in their source code rather than in a file of the checkpoint.
struct DeclaredPattern {
  const char* model_type;
  const char* pattern;
  const char* normal_form;  // normalizer op, or ""
};
const DeclaredPattern kDeclaredPatterns[] = {
    {"gpt2", kGpt2Pattern, ""},
    // Llama 3
    {"llama",
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     ""},
    // Qwen 1 to 3: single digits, NFC
    {"qwen",
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     "nfc"},
};

void declare_pattern(const std::string& model_type, const std::string& where, BpeTables& bpe) {
  for (const DeclaredPattern& declared : kDeclaredPatterns) {
    const bool family = std::string_view(declared.model_type) == "qwen" && model_type.starts_with("qwen");
    if (model_type != declared.model_type && !family) continue;
    bpe.pretokenizer = {"split", declared.pattern, "isolated", "0"};
    if (*declared.normal_form != '\0') bpe.normalizer = {declared.normal_form};
    return;
  }
  throw_error(ErrorCode::kUnsupported,
              "{}: holds no splitting pattern and none is declared for model_type '{}' (gpt2, llama, qwen*); "
              "a tokenizer.json would say",
              where, model_type);
}

// Calls line(text, number) for every line, without "\n" or "\r\n".
template <typename Line>
void for_each_line(std::string_view text, const Line& line) {
  size_t number = 1;
  for (size_t at = 0; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view found = text.substr(at, end - at);
    if (found.ends_with('\r')) found.remove_suffix(1);
    line(found, number);
    at = end + 1;
  }
}

// One "base64 rank" line. False when it is not of that form.
bool read_rank_line(std::string_view line, std::string_view& base64, uint64_t& rank) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || space == 0) return false;
  base64 = line.substr(0, space);
  const std::string_view digits = line.substr(space + 1);
  rank = 0;
  if (digits.empty() || digits.size() > 9) return false;
  for (const char c : digits) {
    if (c < '0' || c > '9') return false;
    rank = rank * 10 + static_cast<uint64_t>(c - '0');
  }
  return true;
}

}  // namespace

void check_vocab_size(uint64_t n_tokens, uint32_t vocab_size, const std::string& where) {
  if (n_tokens > vocab_size)
    throw_error(ErrorCode::kFormat, "{}: the vocabulary has {} tokens, config.json's vocab_size is {}", where,
                n_tokens, vocab_size);
}

void BpeTables::write(Metadata& out) const {
  Bytes bytes;
  std::vector<uint32_t> ends;
  ends.reserve(texts.size());
  for (const std::string& text : texts) {
    bytes.insert(bytes.end(), text.begin(), text.end());
    ends.push_back(static_cast<uint32_t>(bytes.size()));
  }
  out.set("tokenizer.kind", std::string(scores.empty() ? "bpe" : "unigram"));
  if (!scores.empty()) out.set("tokenizer.scores", scores);
  out.set("tokenizer.token_bytes", std::move(bytes));
  out.set("tokenizer.token_ends", std::move(ends));
  out.set("tokenizer.token_kinds", kinds);
  out.set("tokenizer.merges", merges);
  out.set("tokenizer.merge_by_id", merge_by_id);
  out.set("tokenizer.byte_level", byte_level);
  out.set("tokenizer.byte_fallback", byte_fallback);
  out.set("tokenizer.fuse_unk", fuse_unk);
  out.set("tokenizer.ignore_merges", ignore_merges);
  if (unk_id) out.set("tokenizer.unk_id", uint64_t{*unk_id});
  out.set("tokenizer.normalizer", normalizer);
  out.set("tokenizer.pretokenizer", pretokenizer);
  out.set("tokenizer.space", space);
  out.set("tokenizer.decode_strip", decode_strip);
}

std::optional<std::string> BpeTables::name_of(size_t id) const {
  const auto kind = static_cast<TokenKind>(kinds[id]);
  if (kind == TokenKind::kVerbatim) return texts[id];
  if (kind != TokenKind::kText) return std::nullopt;
  return byte_level ? to_byte_alphabet(texts[id]) : texts[id];
}

void read_vocab(const nlohmann::json& vocab, const std::string& where, uint32_t vocab_size, BpeTables& bpe) {
  if (!vocab.is_object() || vocab.empty())
    throw_error(ErrorCode::kFormat, "{}: expected an object with tokens", where);
  uint64_t n_tokens = 0;
  for (const auto& [text, id] : vocab.items()) {
    if (!id.is_number_unsigned())
      throw_error(ErrorCode::kFormat, "{}: id of '{}' is {}", where, printable(text), id.dump());
    n_tokens = std::max(n_tokens, id.get<uint64_t>() == UINT64_MAX ? UINT64_MAX : id.get<uint64_t>() + 1);
  }
  check_vocab_size(n_tokens, vocab_size, where);
  bpe.texts.assign(n_tokens, {});
  bpe.kinds.assign(n_tokens, static_cast<uint8_t>(TokenKind::kEmpty));
  for (const auto& [text, id_json] : vocab.items()) {
    const size_t id = id_json.get<size_t>();
    if (text.empty()) continue;  // an empty token can never be made
    if (static_cast<TokenKind>(bpe.kinds[id]) != TokenKind::kEmpty)
      throw_error(ErrorCode::kFormat, "{}: id {} belongs to '{}' and to '{}'", where, id,
                  printable(bpe.texts[id]), printable(text));
    TokenKind kind = TokenKind::kText;
    std::string bytes = text;
    if (bpe.byte_level && !from_byte_alphabet(text, bytes)) {
      kind = TokenKind::kVerbatim;
      bytes = text;
    }
    const bool is_byte = text.size() == 6 && text.starts_with("<0x") && text[5] == '>' &&
                         std::all_of(text.begin() + 3, text.begin() + 5,
                                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); });
    if (bpe.byte_tokens && is_byte) {
      kind = TokenKind::kByte;
      bytes.assign(1, static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16)));
    }
    bpe.texts[id] = std::move(bytes);
    bpe.kinds[id] = static_cast<uint8_t>(kind);
  }
}

MergeReader::MergeReader(const nlohmann::json& vocab, std::string where, BpeTables& bpe)
    : vocab_(vocab), where_(std::move(where)), bpe_(bpe) {}

uint32_t MergeReader::id_of(const std::string& text) const {
  const auto found = vocab_.find(text);
  if (found == vocab_.end())
    throw_error(ErrorCode::kFormat, "{}: merge {} needs token '{}', which is not in the vocabulary", where_,
                bpe_.merges.size() / 3, printable(text));
  return found->get<uint32_t>();
}

void MergeReader::add(const std::string& left, const std::string& right) {
  bpe_.merges.insert(bpe_.merges.end(), {id_of(left), id_of(right), id_of(left + right)});
}

void MergeReader::add_line(std::string_view line) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || space == 0 || space + 1 == line.size() ||
      line.find(' ', space + 1) != std::string_view::npos)
    throw_error(ErrorCode::kFormat, "{}: merge {} is '{}', expected two tokens and a space", where_,
                bpe_.merges.size() / 3, printable(line));
  add(std::string(line.substr(0, space)), std::string(line.substr(space + 1)));
}

bool looks_like_tiktoken(std::string_view bytes) {
  std::string_view base64;
  uint64_t rank;
  std::string_view line = bytes.substr(0, bytes.find('\n'));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line.size() < 4096 && read_rank_line(line, base64, rank) && base64.size() % 4 == 0;
}

BpeTables read_tiktoken(std::string_view bytes, const std::string& where, const std::string& model_type,
                        uint32_t vocab_size) {
  BpeTables bpe;
  bpe.byte_level = bpe.merge_by_id = bpe.ignore_merges = true;
  declare_pattern(model_type, where, bpe);
  for_each_line(bytes, [&](std::string_view line, size_t number) {
    if (line.empty()) return;
    std::string_view base64;
    uint64_t rank;
    if (!read_rank_line(line, base64, rank))
      throw_error(ErrorCode::kFormat, "{}, line {}: expected a base64 token and its rank", where, number);
    check_vocab_size(rank + 1, vocab_size, where);
    std::string token = decode_base64(base64, where);
    if (token.empty()) throw_error(ErrorCode::kFormat, "{}, line {}: empty token", where, number);
    if (bpe.texts.size() <= rank) {
      bpe.texts.resize(rank + 1);
      bpe.kinds.resize(rank + 1, static_cast<uint8_t>(TokenKind::kEmpty));
    }
    if (static_cast<TokenKind>(bpe.kinds[rank]) != TokenKind::kEmpty)
      throw_error(ErrorCode::kFormat, "{}, line {}: rank {} occurs twice", where, number, rank);
    bpe.texts[rank] = std::move(token);
    bpe.kinds[rank] = static_cast<uint8_t>(TokenKind::kText);
  });
  return bpe;
}

BpeTables read_vocab_and_merges(const nlohmann::json& vocab, std::string_view merges, const std::string& dir,
                                const std::string& model_type, uint32_t vocab_size) {
  BpeTables bpe;
  bpe.byte_level = true;
  declare_pattern(model_type, dir + "/vocab.json", bpe);
  read_vocab(vocab, dir + "/vocab.json", vocab_size, bpe);
  MergeReader reader(vocab, dir + "/merges.txt", bpe);
  for_each_line(merges, [&](std::string_view line, size_t number) {
    if (line.empty() || (number == 1 && line.starts_with("#version"))) return;
    reader.add_line(line);
  });
  return bpe;
}

}  // namespace pith
