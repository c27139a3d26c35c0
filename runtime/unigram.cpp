// Viterbi over the word's bytes: the vocabulary is a trie whose edges lie in one hash table.
#include "runtime/unigram.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "format/error.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

constexpr uint32_t kNone = UINT32_MAX;
constexpr double kUnknownPenalty = 10;

}  // namespace

Unigram::Unigram(const Metadata& metadata, const Vocabulary& vocabulary, const std::vector<bool>& special)
    : scores_(metadata.get<std::vector<float>>("tokenizer.scores")) {
  if (scores_.size() != vocabulary.size())
    throw_error(ErrorCode::kFormat, "tokenizer.scores: {} entries, expected {}", scores_.size(),
                vocabulary.size());
  if (!std::all_of(scores_.begin(), scores_.end(), [](float s) { return std::isfinite(s); }))
    throw_error(ErrorCode::kFormat, "tokenizer.scores: an entry is not finite");
  const uint64_t unk_id = metadata.get<uint64_t>("tokenizer.unk_id");
  if (unk_id >= vocabulary.size())
    throw_error(ErrorCode::kFormat, "tokenizer.unk_id: {}, expected less than {}", unk_id, vocabulary.size());
  unk_id_ = static_cast<int32_t>(unk_id);
  unknown_score_ = double{*std::min_element(scores_.begin(), scores_.end())} - kUnknownPenalty;

  const auto is_special = [&](uint32_t id) { return id < special.size() && special[id]; };
  const bool byte_fallback = metadata.get<bool>("tokenizer.byte_fallback");
  if (byte_fallback) byte_ids_.assign(256, -1);
  size_t n_bytes = 0;
  for (uint32_t id = 0; id < vocabulary.size(); ++id) {
    n_bytes += std::max<size_t>(vocabulary.text(id).size(), 6);
    if (byte_fallback && vocabulary.kind(id) == TokenKind::kByte && !is_special(id))
      byte_ids_[static_cast<uint8_t>(vocabulary.text(id)[0])] = static_cast<int32_t>(id);
  }
  edges_.resize(std::bit_ceil(2 * n_bytes + 1));
  token_of_.assign(1, -1);
  for (uint32_t id = 0; id < vocabulary.size(); ++id)
    if (!is_special(id) && vocabulary.kind(id) == TokenKind::kText)
      insert(vocabulary.text(id), id);
    else if (!is_special(id) &&
             vocabulary.kind(id) == TokenKind::kByte)  // also found by its name, as in the reference
      insert(fmt::format("<0x{:02X}>", static_cast<uint8_t>(vocabulary.text(id)[0])), id);
}

// The edge of `parent` by c, or the free slot where it would be.
size_t Unigram::slot(uint32_t parent, char c) const {
  size_t at = hash_.of(uint64_t{parent} << 8 | static_cast<uint8_t>(c)) & (edges_.size() - 1);
  while (edges_[at].child != 0 && (edges_[at].parent != parent || edges_[at].byte != static_cast<uint8_t>(c)))
    at = (at + 1) & (edges_.size() - 1);
  return at;
}

void Unigram::insert(std::string_view text, uint32_t id) {
  uint32_t node = 0;
  for (const char c : text) {
    Edge& edge = edges_[slot(node, c)];
    if (edge.child == 0) {
      edge = {node, static_cast<uint32_t>(token_of_.size()), static_cast<uint8_t>(c)};
      token_of_.push_back(-1);
    }
    node = edge.child;
  }
  token_of_[node] = static_cast<int32_t>(id);
}

void Unigram::encode(std::string_view word, std::vector<int32_t>& ids, Scratch& scratch) const {
  if (word.size() > (1u << 30))
    throw_error(ErrorCode::kInvalidArgument, "word of {} bytes, at most {} can be tokenized", word.size(),
                1u << 30);
  const uint32_t n = static_cast<uint32_t>(word.size());
  std::vector<Step>& steps = scratch.steps;
  steps.assign(n + 1, Step{0, kNone, -1});
  const auto offer = [&](uint32_t end, const Step& step) {
    if (steps[end].begin == kNone || step.score > steps[end].score) steps[end] = step;
  };
  for (uint32_t at = 0, n_bytes = 0; at < n; at += n_bytes) {
    n_bytes = static_cast<uint32_t>(code_point_at(word, at).n_bytes);
    const double here = steps[at].score;
    bool covered = false;
    uint32_t node = 0;
    for (uint32_t end = at; end < n;) {
      const Edge& edge = edges_[slot(node, word[end++])];
      if (edge.child == 0) break;
      node = edge.child;
      const int32_t id = token_of_[node];
      if (id < 0) continue;
      offer(end, {here + double{scores_[static_cast<size_t>(id)]}, at, id});
      covered = covered || end - at == n_bytes;
    }
    if (!covered) offer(at + n_bytes, {here + unknown_score_, at, unk_id_});
  }
  std::vector<int32_t>& reversed = scratch.ids;
  reversed.clear();
  for (uint32_t end = n; end > 0;) {
    uint32_t begin = steps[end].begin;
    if (steps[end].id != unk_id_) {
      reversed.push_back(steps[end].id);
    } else {
      while (begin > 0 && steps[begin].id == unk_id_) begin = steps[begin].begin;
      append_unknown(word.substr(begin, end - begin), reversed);
    }
    end = begin;
  }
  ids.insert(ids.end(), reversed.rbegin(), reversed.rend());
}

void Unigram::append_unknown(std::string_view text, std::vector<int32_t>& reversed) const {
  const auto has_byte = [&](char c) { return byte_ids_[static_cast<uint8_t>(c)] >= 0; };
  if (byte_ids_.empty() || !std::all_of(text.begin(), text.end(), has_byte)) {
    reversed.push_back(unk_id_);
    return;
  }
  for (size_t i = text.size(); i > 0; --i) reversed.push_back(byte_ids_[static_cast<uint8_t>(text[i - 1])]);
}

}  // namespace pith
