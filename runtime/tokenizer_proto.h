// The serialized model of the sentencepiece library, looked into before the library gets it.
//
// The library trusts parts of a model (its normalization trie is walked without bounds, some faults abort the
// process), so check_sentencepiece_model() must accept a model that comes from a file before it is loaded. The
// fields are those of sentencepiece_model.proto: ModelProto{pieces = 1, trainer_spec = 2, normalizer_spec = 3,
// self_test_data = 4, denormalizer_spec = 5}. (Field 4 holds sentences that the library would encode on loading;
// they are refused with the rest of what no released model has.)
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pith {

enum class PieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct SentencePieceModel {
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };
  std::vector<Piece> pieces;
  uint32_t model_type = 1;  // 1 unigram, 2 BPE, 3 word, 4 char
  bool byte_fallback = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool has_charsmap = false;
  std::string bos_piece, eos_piece;  // empty: the library's defaults
};

// Whether bytes begin like a ModelProto with a piece; tells a sentencepiece model from other files.
bool looks_like_sentencepiece(std::string_view bytes);

// Throws Error(kFormat) with offset and cause, kUnsupported for word and char models.
SentencePieceModel check_sentencepiece_model(std::string_view bytes);

// The same model with the type of pieces `ids` (each < pieces.size()) set to control, so that plain text never
// becomes one of them.
std::string with_control_pieces(std::string_view bytes, const std::vector<uint32_t>& ids);
// The same model without the space that it puts in front of every text.
std::string without_dummy_prefix(std::string_view bytes);

}  // namespace pith
