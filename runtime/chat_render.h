// From a container's chat template to ids.
#pragma once
#include <vector>

#include "runtime/chat_template.h"
#include "runtime/tokenizer.h"

namespace pith {

// Ids of a rendered conversation, as the reference gets them from the whole text, except that special tokens are
// recognised in template segments only. Text between two special tokens is encoded in one go, whoever wrote it.
// The template prints the BOS where it wants one; none is added.
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const std::vector<ChatSegment>& segments);

}  // namespace pith
