// A tokenizer run by the sentencepiece library (this file alone includes it), with added tokens around it.
#include <sentencepiece_processor.h>

#include <mutex>

#include "format/error.h"
#include "runtime/tokenizer_added.h"
#include "runtime/tokenizer_bytes.h"
#include "runtime/tokenizer_kinds.h"
#include "runtime/tokenizer_proto.h"

namespace pith {
namespace {

constexpr size_t kMaxTextBytes = 16 << 20;
constexpr std::string_view kSpace = "\xe2\x96\x81";  // "▁"

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(const Metadata& metadata, uint32_t vocab_size);

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override;
  std::string piece(int32_t id, bool show_special) const override;
  std::string decode(const std::vector<int32_t>& ids, bool show_special) const override;
  uint32_t vocab_size() const override { return vocab_size_; }
  bool is_special(int32_t id) const override;
  int32_t find(std::string_view token) const override;
  std::string token_text(int32_t id) const override;

 private:
  static void load(sentencepiece::SentencePieceProcessor& processor, std::string_view model);
  const AddedToken* added(int32_t id) const;
  bool is_piece(int32_t id) const { return id >= 0 && id < n_pieces_; }
  void encode_text(std::string_view text, bool with_prefix, std::vector<int32_t>& ids) const;

  uint32_t vocab_size_;
  int32_t n_pieces_ = 0;
  sentencepiece::SentencePieceProcessor with_prefix_;
  // The same model without dummy prefix, loaded by the first text that goes on mid-stream: it doubles time and memory.
  std::string model_;
  mutable std::once_flag without_prefix_loaded_;
  mutable sentencepiece::SentencePieceProcessor without_prefix_;
  bool has_prefix_ = false;  // else without_prefix_ is not loaded: both would do the same
  bool strips_blanks_ = false;
  std::vector<AddedToken> added_tokens_;
  std::unordered_map<int32_t, size_t> added_by_id_;
  AddedTokens splitter_;
};

// What to look for in text: all added tokens, and the model's control pieces as special tokens. (User-defined pieces
// are the library's own.)
std::vector<AddedToken> sought_tokens(const std::vector<AddedToken>& added,
                                      const sentencepiece::SentencePieceProcessor& processor) {
  std::vector<AddedToken> sought;
  for (int id = 0; id < processor.GetPieceSize(); ++id)
    if (processor.IsControl(id)) sought.push_back({id, processor.IdToPiece(id), kAddedSpecial});
  sought.insert(sought.end(), added.begin(), added.end());
  return sought;
}

void SentencePieceTokenizer::load(sentencepiece::SentencePieceProcessor& processor, std::string_view model) {
  const auto status = processor.LoadFromSerializedProto(model);
  if (!status.ok()) throw_error(ErrorCode::kFormat, "sentencepiece model: {}", status.ToString());
}

SentencePieceTokenizer::SentencePieceTokenizer(const Metadata& metadata, uint32_t vocab_size)
    : Tokenizer(metadata, vocab_size),
      vocab_size_(vocab_size),
      added_tokens_(read_added_tokens(metadata, vocab_size)),
      splitter_({}) {
  const Bytes& bytes = metadata.get<Bytes>("tokenizer.sentencepiece");
  const std::string_view model(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const SentencePieceModel checked = check_sentencepiece_model(model);
  if (checked.pieces.size() > vocab_size)
    throw_error(ErrorCode::kFormat, "tokenizer.sentencepiece: {} pieces, vocab_size is {}",
                checked.pieces.size(), vocab_size);
  load(with_prefix_, model);
  n_pieces_ = with_prefix_.GetPieceSize();
  has_prefix_ = checked.add_dummy_prefix;
  strips_blanks_ = checked.remove_extra_whitespaces;
  if (has_prefix_) model_ = model;
  for (size_t i = 0; i < added_tokens_.size(); ++i) added_by_id_[added_tokens_[i].id] = i;
  splitter_ = AddedTokens(sought_tokens(added_tokens_, with_prefix_));
}

const AddedToken* SentencePieceTokenizer::added(int32_t id) const {
  const auto found = added_by_id_.find(id);
  return found == added_by_id_.end() ? nullptr : &added_tokens_[found->second];
}

void SentencePieceTokenizer::encode_text(std::string_view text, bool with_prefix,
                                         std::vector<int32_t>& ids) const {
  // The library counts in int, and takes up to 280 bytes for each of the text's.
  if (text.size() > kMaxTextBytes)
    throw_error(ErrorCode::kInvalidArgument, "text of {} bytes, at most {} can be tokenized", text.size(),
                kMaxTextBytes);
  const bool plain = with_prefix || !has_prefix_;
  if (!plain)
    std::call_once(without_prefix_loaded_, [&] { load(without_prefix_, without_dummy_prefix(model_)); });
  std::vector<int> found;
  const auto status = (plain ? with_prefix_ : without_prefix_).Encode(text, &found);
  if (!status.ok()) throw_error(ErrorCode::kInternal, "sentencepiece: {}", status.ToString());
  ids.insert(ids.end(), found.begin(), found.end());
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text,
                                                    const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  if (options.add_bos && adds_bos_) ids.push_back(bos_id_);
  bool at_start = true;
  for (const AddedTokens::Part& part : splitter_.split(text, options.parse_special, options.special_ranges)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      encode_text(part.text, at_start ? !options.continuation : prefix_each_, ids);
    }
    at_start = false;
  }
  return ids;
}

bool SentencePieceTokenizer::is_special(int32_t id) const {
  if (const AddedToken* const token = added(id)) return token->special();
  return is_piece(id) && (with_prefix_.IsControl(id) || with_prefix_.IsUnknown(id));
}

std::string SentencePieceTokenizer::token_text(int32_t id) const {
  if (const AddedToken* const token = added(id)) return token->text;
  return is_piece(id) ? with_prefix_.IdToPiece(id) : std::string();
}

int32_t SentencePieceTokenizer::find(std::string_view text) const {
  for (const AddedToken& token : added_tokens_)
    if (token.text == text) return token.id;
  const int id = with_prefix_.PieceToId(text);
  return is_piece(id) && with_prefix_.IdToPiece(id) == text ? id : -1;
}

std::string SentencePieceTokenizer::piece(int32_t id, bool show_special) const {
  if (is_special(id) || added(id) != nullptr)
    return is_special(id) && !show_special ? std::string() : token_text(id);
  if (!is_piece(id)) return {};
  const std::string& text = with_prefix_.IdToPiece(id);
  if (with_prefix_.IsByte(id))
    return {static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16))};  // "<0x0A>"
  return with_blanks(text, kSpace);
}

std::string SentencePieceTokenizer::decode(const std::vector<int32_t>& ids, bool show_special) const {
  std::string out;
  bool at_start = has_prefix_ || strips_blanks_;
  for (const int32_t id : ids) {
    std::string text = piece(id, show_special);
    if (at_start && text.starts_with(' ') && added(id) == nullptr && !with_prefix_.IsByte(id)) {
      text.erase(0,
                 1);  // the dummy prefix; a model that removes extra blanks has no others at the start either
      at_start = strips_blanks_ && text.empty();
    } else if (!text.empty()) {
      at_start = false;
    }
    out += text;
  }
  return out;
}

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece_tokenizer(const Metadata& metadata, uint32_t vocab_size) {
  return std::make_unique<SentencePieceTokenizer>(metadata, vocab_size);
}

}  // namespace pith
