// Reads a checkpoint's tokenizer, chat template and generation defaults into container metadata
// (keys: runtime/tokenizer_keys.h).
//
// Files of `dir`, each used when there: tokenizer.model (a sentencepiece model or tiktoken lines, told apart by
// content), tokenizer.json, vocab.json + merges.txt, tokenizer_config.json, special_tokens_map.json,
// added_tokens.json, chat_template.jinja, generation_config.json.
//   A sentencepiece model is preferred to tokenizer.json, from which added tokens are then taken; tokenizer.json is
//   preferred to a tiktoken file, which lacks the pattern. A tiktoken file or vocab.json alone declares no pattern:
//   config.json's model_type does (declared_pattern()).
//   EOS is the union of every source that names one. A BOS comes from the first source that speaks of it.
// Throws Error(kFormat | kUnsupported) naming file and component, when the vocabulary exceeds config's vocab_size
// too. A tokenizer that does not open, a chat template that pith cannot run and a default out of range are errors.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>

#include "format/metadata.h"

namespace pith {

void import_tokenizer(const std::filesystem::path& dir, const nlohmann::json& config, Metadata& out);

}  // namespace pith
