// What all kinds share, BOS, EOS and the choice of the kind; the kinds are in tokenizer_sentencepiece.cpp and
// tokenizer_bpe.cpp.
#include "runtime/tokenizer.h"

#include <algorithm>

#include "format/error.h"
#include "runtime/tokenizer_kinds.h"

namespace pith {

Tokenizer::Tokenizer(const Metadata& metadata, uint32_t vocab_size)
    : adds_bos_(metadata.get_or<bool>("tokenizer.adds_bos", false)),
      prefix_each_(metadata.get_or<bool>("tokenizer.prefix_each", true)) {
  const auto checked = [&](const char* key, uint64_t id) {
    if (id >= vocab_size)
      throw_error(ErrorCode::kFormat, "{}: id {}, expected less than vocab_size {}", key, id, vocab_size);
    return static_cast<int32_t>(id);
  };
  if (metadata.has("tokenizer.bos_id"))
    bos_id_ = checked("tokenizer.bos_id", metadata.get<uint64_t>("tokenizer.bos_id"));
  if (adds_bos_ && bos_id_ < 0)
    throw_error(ErrorCode::kFormat, "tokenizer.adds_bos: true without tokenizer.bos_id");
  for (const uint32_t id : metadata.get_or<std::vector<uint32_t>>("tokenizer.eos_ids", {}))
    eos_ids_.push_back(checked("tokenizer.eos_ids", id));
}

bool Tokenizer::is_eos(int32_t id) const {
  return std::find(eos_ids_.begin(), eos_ids_.end(), id) != eos_ids_.end();
}

std::unique_ptr<Tokenizer> Tokenizer::open(const Metadata& metadata, uint32_t vocab_size) {
  if (vocab_size == 0 || vocab_size > (1u << 31) - 1)
    throw_error(ErrorCode::kFormat, "vocab_size {}, expected 1 to {}", vocab_size, (1u << 31) - 1);
  const std::string& kind = metadata.get<std::string>("tokenizer.kind");
  if (kind == "sentencepiece") return open_sentencepiece_tokenizer(metadata, vocab_size);
  if (kind == "bpe" || kind == "unigram") return open_bpe_tokenizer(metadata, vocab_size);
  throw_error(ErrorCode::kFormat, "tokenizer.kind: '{}', expected sentencepiece, bpe or unigram", kind);
}

}  // namespace pith
