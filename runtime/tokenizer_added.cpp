// A trie over the added tokens' bytes finds the longest at each position; the flags decide what it takes with
// it.
#include "runtime/tokenizer_added.h"

#include <unordered_set>

#include "format/error.h"
#include "runtime/unicode.h"
#include "runtime/utf8.h"

namespace pith {

std::vector<AddedToken> read_added_tokens(const Metadata& metadata, uint32_t vocab_size) {
  const auto& ids = metadata.get<std::vector<uint32_t>>("tokenizer.added_ids");
  const auto& texts = metadata.get<std::vector<std::string>>("tokenizer.added_texts");
  const auto& flags = metadata.get<std::vector<uint32_t>>("tokenizer.added_flags");
  if (texts.size() != ids.size() || flags.size() != ids.size())
    throw_error(ErrorCode::kFormat, "tokenizer.added_ids: {} entries, added_texts {}, added_flags {}",
                ids.size(), texts.size(), flags.size());
  std::vector<AddedToken> tokens;
  std::unordered_set<uint32_t> seen;
  tokens.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= vocab_size)
      throw_error(ErrorCode::kFormat, "tokenizer.added_ids: id {}, expected less than vocab_size {}", ids[i],
                  vocab_size);
    if (!seen.insert(ids[i]).second)
      throw_error(ErrorCode::kFormat, "tokenizer.added_ids: id {} occurs twice", ids[i]);
    if (flags[i] >= kAddedFlagsEnd)
      throw_error(ErrorCode::kFormat, "tokenizer.added_flags: {:#x} of id {} has unknown bits", flags[i],
                  ids[i]);
    if (texts[i].size() > kMaxTokenBytes)
      throw_error(ErrorCode::kFormat, "tokenizer.added_texts: id {} has {} bytes, at most {}", ids[i],
                  texts[i].size(), kMaxTokenBytes);
    tokens.push_back({static_cast<int32_t>(ids[i]), texts[i], flags[i]});
  }
  return tokens;
}

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens) : node_match_{-1} {
  for (const AddedToken& token : tokens) {
    if (token.text.empty()) continue;
    uint32_t node = 0;
    for (const char c : token.text) {
      const auto [child, added] = children_.try_emplace((uint64_t{node} << 8) | static_cast<uint8_t>(c),
                                                        static_cast<uint32_t>(node_match_.size()));
      if (added) node_match_.push_back(-1);
      node = child->second;
    }
    first_byte_[static_cast<uint8_t>(token.text[0])] = true;
    node_match_[node] = static_cast<int32_t>(matches_.size());
    matches_.push_back({token.id, token.flags});
  }
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text, bool specials,
                                                  std::span<const TextRange> special_ranges) const {
  std::vector<Part> parts;
  size_t range = 0;  // the first that does not end before `at`
  size_t done = 0;   // everything before is in parts
  for (size_t at = 0; at < text.size();) {
    if (!first_byte_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    while (range < special_ranges.size() && special_ranges[range].end <= at) ++range;
    const bool in_range = range < special_ranges.size() && special_ranges[range].begin <= at;
    const size_t special_end = special_ranges.empty() ? text.size()
                               : in_range             ? special_ranges[range].end
                                                      : 0;
    const Match* best = nullptr;
    size_t end = 0;
    uint32_t node = 0;
    for (size_t k = at; k < text.size(); ++k) {
      const auto child = children_.find((uint64_t{node} << 8) | static_cast<uint8_t>(text[k]));
      if (child == children_.end()) break;
      node = child->second;
      if (node_match_[node] < 0) continue;
      const Match& match = matches_[node_match_[node]];
      if ((match.flags & kAddedSpecial) != 0 && (!specials || k >= special_end)) continue;
      best = &match;
      end = k + 1;
    }
    if (best == nullptr) {
      ++at;
      continue;
    }
    if ((best->flags & kAddedSingleWord) != 0 &&
        ((at > 0 && is_word(code_point_before(text, at).value)) ||
         (end < text.size() && is_word(code_point_at(text, end).value)))) {
      at = end;
      continue;
    }
    size_t begin = at;
    if ((best->flags & kAddedLstrip) != 0)
      while (begin > done) {
        const CodePoint point = code_point_before(text, begin);
        if (!is_white_space(point.value)) break;
        begin -= point.n_bytes;
      }
    if ((best->flags & kAddedRstrip) != 0)
      while (end < text.size()) {
        const CodePoint point = code_point_at(text, end);
        if (!is_white_space(point.value)) break;
        end += point.n_bytes;
      }
    if (done < begin) parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({text.substr(begin, end - begin), best->id});
    done = at = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
  return parts;
}

}  // namespace pith
