// The kinds of tokenizer behind Tokenizer::open, one source file each.
#pragma once
#include <memory>

#include "runtime/tokenizer.h"

namespace pith {

std::unique_ptr<Tokenizer> open_sentencepiece_tokenizer(const Metadata& metadata, uint32_t vocab_size);
std::unique_ptr<Tokenizer> open_bpe_tokenizer(const Metadata& metadata, uint32_t vocab_size);

}  // namespace pith
