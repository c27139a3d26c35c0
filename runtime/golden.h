// Golden vectors: what a model must answer, stored in its file, so that `pith verify` proves on any machine that
// tokenizer, template and kernels do what they did where the file was made.
//
// Metadata keys, each group optional as a whole:
//   golden.texts [string]  golden.text_ids [u32], all texts' ids one after another  golden.text_lens [u32]
//   golden.chat_ids [u32]                     ids of kChat through the chat template
//   golden.prompt [u32]  golden.top_ids [u32]  golden.top_logits [f32]   the largest logits after the prompt
#pragma once
#include <memory>
#include <vector>

#include "format/metadata.h"
#include "runtime/model.h"

namespace pith {

// Adds texts and chat: needs no weights, so a converter can do it before the tensors are there. chat may be null.
void store_golden_text(Metadata& metadata, const Tokenizer& tokenizer, const ChatTemplate* chat);
// Adds prompt and logits, from a session over the finished model.
void store_golden_logits(Metadata& metadata, const std::shared_ptr<const Model>& model);

// Replays whatever the file has. Throws Error(kFormat) naming the vector, what was expected and found.
void check_golden(const std::shared_ptr<const Model>& model);

}  // namespace pith
