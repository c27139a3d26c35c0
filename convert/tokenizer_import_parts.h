// Inside tokenizer import: what the readers of single files hand to tokenizer_import.cpp.
#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "format/metadata.h"
#include "runtime/tokenizer_added.h"

namespace pith {

using AddedById = std::map<int32_t, AddedToken>;

// A BPE before it is written: the metadata of kind "bpe", and the tokens by text for looking names up.
struct BpeTables {
  std::vector<std::string> texts;  // by id, in the form of token_bytes
  Bytes kinds;                     // TokenKind by id
  std::vector<uint32_t> merges;
  bool merge_by_id = false, byte_level = false, byte_fallback = false, fuse_unk = false,
       ignore_merges = false;
  bool byte_tokens = false;  // tokens like "<0x0A>" stand for bytes
  std::optional<uint32_t> unk_id;
  std::vector<float> scores;  // by id: a Unigram model; without merges
  std::vector<std::string> normalizer, pretokenizer;
  std::string space;
  uint64_t decode_strip = 0;

  void write(Metadata& out) const;
  // A token as the vocabulary writes it; none where it has no text.
  std::optional<std::string> name_of(size_t id) const;
};

// tokenizer.json, parsed and checked.
struct TokenizerJson {
  BpeTables bpe;
  AddedById added;
  std::optional<std::string> first_special;  // what the post-processor puts in front of every text
  std::optional<bool>
      prefix_each;  // whether text after a special token gets the dummy prefix; unset: no word
};
// with_model: false reads added tokens and post-processor only.
TokenizerJson read_tokenizer_json(const nlohmann::json& json, const std::string& where, uint32_t vocab_size,
                                  bool with_model);
// "content" and flags of an added token. Defaults as in the reference library.
AddedToken read_added_token(const nlohmann::json& json, int32_t id, const std::string& where);

bool looks_like_tiktoken(std::string_view bytes);
BpeTables read_tiktoken(std::string_view bytes, const std::string& where, const std::string& model_type,
                        uint32_t vocab_size);
BpeTables read_vocab_and_merges(const nlohmann::json& vocab, std::string_view merges, const std::string& dir,
                                const std::string& model_type, uint32_t vocab_size);

// Fills texts and kinds from a {text: id} object. where: "path: model.vocab".
void read_vocab(const nlohmann::json& vocab, const std::string& where, uint32_t vocab_size, BpeTables& bpe);
// Looks merges up by text. Throws when a part or the result is not in the vocabulary.
class MergeReader {
 public:
  MergeReader(const nlohmann::json& vocab, std::string where, BpeTables& bpe);
  void add(const std::string& left, const std::string& right);
  void add_line(std::string_view line);  // "left right"

 private:
  uint32_t id_of(const std::string& text) const;
  const nlohmann::json& vocab_;
  std::string where_;
  BpeTables& bpe_;
};

// Throws naming both when `n_tokens` > vocab_size.
void check_vocab_size(uint64_t n_tokens, uint32_t vocab_size, const std::string& where);

extern const char* const kGpt2Pattern;

}  // namespace pith
