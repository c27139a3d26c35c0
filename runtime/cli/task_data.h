// Files of zero-shot tasks, as they are published, made into the items that runtime/evaluate_task.h scores.
//
// | task           | file                                                                                   |
// |----------------|----------------------------------------------------------------------------------------|
// | hellaswag      | text, six lines an item: context, number of the right ending, four endings             |
// | arc-easy,      | JSON lines: centerpiece (the question), options, correct_options_idx                   |
// | arc-challenge  |                                                                                        |
// | winogrande     | the same, centerpiece with a _ where one of two options belongs                        |
// | piqa           | JSON lines: goal, sol1, sol2; the labels, 0 or 1 a line, beside it: X.jsonl, X-labels.lst |
// | lambada        | JSON lines: text, whose last word is to be found                                       |
// | blimp          | JSON lines: sentence_good, sentence_bad, UID; a file, or a folder of *.jsonl           |
//
// What is asked follows EleutherAI's lm-evaluation-harness: "Question: ...\nAnswer:" before the options of arc and piqa; of
// winogrande the text after the option is scored, which is the same for both. Hellaswag's contexts are taken as they are.
// Every fault of a file is an Error(kFormat) "file:line: what, expected, found".
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/evaluate_task.h"

namespace pith::cli {

std::vector<std::string> task_names();

// The first n_limit items of a file, 0 = all; of a folder's files each. Throws kInvalidArgument for an unknown name.
Task read_task(const std::string& name, const std::string& path, uint64_t n_limit);

}  // namespace pith::cli
