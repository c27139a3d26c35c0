// A BPE or Unigram tokenizer as a tokenizer.json describes it: added tokens, normalizer, added tokens again, words, and what cuts
// a word into tokens.
#include <optional>

#include "format/error.h"
#include "format/utf8.h"
#include "runtime/bpe.h"
#include "runtime/pretokenizer.h"
#include "runtime/tokenizer_added.h"
#include "runtime/tokenizer_bytes.h"
#include "runtime/tokenizer_kinds.h"
#include "runtime/unigram.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

std::vector<bool> special_ids(const std::vector<AddedToken>& added, uint32_t vocab_size) {
  std::vector<bool> special(vocab_size);
  for (const AddedToken& token : added) special[static_cast<size_t>(token.id)] = token.special();
  return special;
}

// The tokens to look for in raw text: those that are not `normalized`, and with all_specials every special one.
std::vector<AddedToken> sought_in_raw(const std::vector<AddedToken>& added, bool all_specials) {
  std::vector<AddedToken> sought;
  for (const AddedToken& token : added)
    if ((token.flags & kAddedNormalized) == 0 || (all_specials && token.special())) sought.push_back(token);
  return sought;
}

// The rest, in the form that normalization gives them.
std::vector<AddedToken> sought_in_normalized(const std::vector<AddedToken>& added,
                                             const Normalizer& normalizer) {
  std::vector<AddedToken> sought;
  size_t n_bytes = 0;
  for (const AddedToken& token : added) n_bytes += token.text.size();
  EncodeBudget budget(n_bytes);
  for (const AddedToken& token : added) {
    if ((token.flags & kAddedNormalized) == 0) continue;
    sought.push_back({token.id, normalizer.apply(token.text, true, budget), token.flags});
    if (const size_t n = sought.back().text.size(); n > kMaxTokenBytes)
      throw_error(ErrorCode::kFormat, "tokenizer.added_texts: id {} has {} bytes when normalized, at most {}",
                  token.id, n, kMaxTokenBytes);
  }
  return sought;
}

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(const Metadata& metadata, uint32_t vocab_size);

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override;
  std::string piece(int32_t id, bool show_special) const override;
  std::string decode(const std::vector<int32_t>& ids, bool show_special) const override;
  uint32_t vocab_size() const override { return vocab_size_; }
  bool is_special(int32_t id) const override;
  int32_t find(std::string_view token) const override;
  std::string token_text(int32_t id) const override;

 private:
  struct Run {  // where one encode() stands
    EncodeOptions options;
    bool at_start = true;
    std::vector<int32_t> ids;
    Bpe::Scratch scratch;
    Unigram::Scratch unigram_scratch;
    EncodeBudget budget;
  };
  const AddedToken* added(int32_t id) const;
  bool is_token(int32_t id) const { return id >= 0 && static_cast<uint32_t>(id) < bpe_.vocabulary().size(); }
  void encode_text(std::string_view text, Run& run) const;
  void encode_valid(std::string_view text, Run& run) const;
  void encode_words(std::string_view text, bool with_prefix, Run& run) const;

  uint32_t vocab_size_;
  std::vector<AddedToken> added_tokens_;
  std::unordered_map<int32_t, size_t> added_by_id_;
  Bpe bpe_;
  std::optional<Unigram> unigram_;  // then bpe_ is its vocabulary alone
  Normalizer normalizer_;
  PreTokenizer pretokenizer_;
  AddedTokens raw_splitter_, normalized_splitter_, ranged_splitter_;
  std::string space_;
  uint64_t decode_strip_;
};

BpeTokenizer::BpeTokenizer(const Metadata& metadata, uint32_t vocab_size)
    : Tokenizer(metadata, vocab_size),
      vocab_size_(vocab_size),
      added_tokens_(read_added_tokens(metadata, vocab_size)),
      bpe_(metadata, vocab_size, special_ids(added_tokens_, vocab_size)),
      normalizer_(metadata.get<std::vector<std::string>>("tokenizer.normalizer")),
      pretokenizer_(metadata.get<std::vector<std::string>>("tokenizer.pretokenizer")),
      raw_splitter_(sought_in_raw(added_tokens_, false)),
      normalized_splitter_(sought_in_normalized(added_tokens_, normalizer_)),
      ranged_splitter_(sought_in_raw(added_tokens_, true)),
      space_(metadata.get<std::string>("tokenizer.space")),
      decode_strip_(metadata.get<uint64_t>("tokenizer.decode_strip")) {
  for (size_t i = 0; i < added_tokens_.size(); ++i) added_by_id_[added_tokens_[i].id] = i;
  if (metadata.get<std::string>("tokenizer.kind") == "unigram") {
    if (bpe_.byte_level())
      throw_error(ErrorCode::kFormat, "tokenizer.byte_level: true, expected false for a unigram tokenizer");
    unigram_.emplace(metadata, bpe_.vocabulary(), special_ids(added_tokens_, vocab_size));
  }
}

const AddedToken* BpeTokenizer::added(int32_t id) const {
  const auto found = added_by_id_.find(id);
  return found == added_by_id_.end() ? nullptr : &added_tokens_[found->second];
}

void BpeTokenizer::encode_words(std::string_view text, bool with_prefix, Run& run) const {
  const Words words = pretokenizer_.split(std::string(text), with_prefix, run.at_start, run.budget);
  for (const TextRange range : words.ranges) {
    const std::string_view word = std::string_view(words.text).substr(range.begin, range.end - range.begin);
    if (unigram_)
      unigram_->encode(word, run.ids, run.unigram_scratch);
    else
      bpe_.encode(word, run.ids, run.scratch);
  }
}

// Text between added tokens; valid UTF-8.
void BpeTokenizer::encode_valid(std::string_view text, Run& run) const {
  const bool with_prefix = !(run.at_start && run.options.continuation);
  const bool specials = run.options.parse_special && run.options.special_ranges.empty();
  const std::string normalized = normalizer_.apply(text, with_prefix, run.budget);
  for (const AddedTokens::Part& part : normalized_splitter_.split(normalized, specials)) {
    if (part.id >= 0) {
      run.ids.push_back(part.id);
    } else {
      encode_words(part.text, !(run.at_start && run.options.continuation), run);
    }
    run.at_start = false;
  }
}

// Text between added tokens. Invalid bytes: a word of their own where symbols are bytes, U+FFFD each elsewhere.
void BpeTokenizer::encode_text(std::string_view text, Run& run) const {
  if (is_valid_utf8(text)) return encode_valid(text, run);
  std::string valid, invalid;
  const auto flush = [&] {
    if (!valid.empty()) encode_valid(valid, run);
    bpe_.encode(invalid, run.ids, run.scratch);
    run.at_start = run.at_start && invalid.empty();
    valid.clear(), invalid.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    if (!bpe_.byte_level()) {
      append_utf8(valid, point.value);
    } else if (point.valid) {
      if (!invalid.empty()) flush();
      valid.append(text, at, point.n_bytes);
    } else {
      invalid.push_back(text[at]);
    }
    at += point.n_bytes;
  }
  flush();
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  if (text.size() > (1u << 30))
    throw_error(ErrorCode::kInvalidArgument, "text of {} bytes, at most {} can be tokenized", text.size(),
                1u << 30);
  Run run{options, true, {}, {}, {}, EncodeBudget(text.size())};
  if (options.add_bos && adds_bos_) run.ids.push_back(bos_id_);
  // Ranges count bytes of the raw text, so inside them every special token is looked for there.
  const AddedTokens& splitter = options.special_ranges.empty() ? raw_splitter_ : ranged_splitter_;
  for (const AddedTokens::Part& part : splitter.split(text, options.parse_special, options.special_ranges)) {
    if (part.id >= 0) {
      run.ids.push_back(part.id);
      run.at_start = false;
    } else {
      encode_text(part.text, run);
    }
  }
  return std::move(run.ids);
}

bool BpeTokenizer::is_special(int32_t id) const {
  const AddedToken* const token = added(id);
  return token != nullptr && token->special();
}

std::string BpeTokenizer::token_text(int32_t id) const {
  if (const AddedToken* const token = added(id)) return token->text;
  if (!is_token(id)) return {};
  const std::string_view text = bpe_.vocabulary().text(static_cast<uint32_t>(id));
  switch (bpe_.vocabulary().kind(static_cast<uint32_t>(id))) {
    case TokenKind::kByte:
      return fmt::format("<0x{:02X}>", static_cast<uint8_t>(text[0]));
    case TokenKind::kText:
      return bpe_.byte_level() ? to_byte_alphabet(text) : std::string(text);
    case TokenKind::kVerbatim:
      return std::string(text);
    case TokenKind::kEmpty:
      break;
  }
  return {};
}

int32_t BpeTokenizer::find(std::string_view text) const {
  for (const AddedToken& token : added_tokens_)
    if (token.text == text) return token.id;
  std::string bytes(text);
  if (bpe_.byte_level() && !from_byte_alphabet(text, bytes)) return -1;
  const int32_t id = bpe_.vocabulary().find(bytes);
  if (id >= 0 || text.size() != 6 || !text.starts_with("<0x")) return id;
  for (uint32_t other = 0; other < bpe_.vocabulary().size(); ++other)
    if (bpe_.vocabulary().kind(other) == TokenKind::kByte && token_text(static_cast<int32_t>(other)) == text)
      return static_cast<int32_t>(other);
  return -1;
}

std::string BpeTokenizer::piece(int32_t id, bool show_special) const {
  if (const AddedToken* const token = added(id))
    return token->special() && !show_special ? std::string() : token->text;
  if (!is_token(id)) return {};
  const std::string_view text = bpe_.vocabulary().text(static_cast<uint32_t>(id));
  const bool plain = space_.empty() || bpe_.vocabulary().kind(static_cast<uint32_t>(id)) == TokenKind::kByte;
  return plain ? std::string(text) : with_blanks(text, space_);
}

std::string BpeTokenizer::decode(const std::vector<int32_t>& ids, bool show_special) const {
  std::string out;
  for (const int32_t id : ids) out += piece(id, show_special);
  size_t n_strip = 0;
  while (n_strip < decode_strip_ && n_strip < out.size() && out[n_strip] == ' ') ++n_strip;
  return out.substr(n_strip);
}

}  // namespace

std::unique_ptr<Tokenizer> open_bpe_tokenizer(const Metadata& metadata, uint32_t vocab_size) {
  return std::make_unique<BpeTokenizer>(metadata, vocab_size);
}

}  // namespace pith
