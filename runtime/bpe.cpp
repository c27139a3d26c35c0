// Vocabulary and merges in open-addressed hash tables; a word's symbols in a linked list with a heap of the
// merges that may apply.
#include "runtime/bpe.h"

#include <algorithm>
#include <bit>

#include "format/checked.h"
#include "format/error.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

uint64_t pair(uint32_t left, uint32_t right) {
  return (uint64_t{left} << 32) | right;
}

bool later(const Bpe::Candidate& a, const Bpe::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.symbol > b.symbol;
}

}  // namespace

Vocabulary::Vocabulary(const Metadata& metadata, uint32_t vocab_size)
    : ends_(metadata.get<std::vector<uint32_t>>("tokenizer.token_ends")),
      kinds_(metadata.get<Bytes>("tokenizer.token_kinds")) {
  const Bytes& bytes = metadata.get<Bytes>("tokenizer.token_bytes");
  bytes_.assign(bytes.begin(), bytes.end());
  if (ends_.empty() || ends_.size() > vocab_size)
    throw_error(ErrorCode::kFormat, "tokenizer.token_ends: {} tokens, expected 1 to vocab_size {}",
                ends_.size(), vocab_size);
  if (kinds_.size() != ends_.size())
    throw_error(ErrorCode::kFormat, "tokenizer.token_kinds: {} entries, expected {}", kinds_.size(),
                ends_.size());
  if (ends_.back() != bytes_.size() || !std::is_sorted(ends_.begin(), ends_.end()))
    throw_error(ErrorCode::kFormat, "tokenizer.token_ends: not ascending to token_bytes' {} bytes",
                bytes_.size());
  slots_.resize(std::bit_ceil(2 * ends_.size()));
  for (uint32_t id = 0; id < ends_.size(); ++id) {
    const std::string_view token = text(id);
    if (kinds_[id] > static_cast<uint8_t>(TokenKind::kEmpty))
      throw_error(ErrorCode::kFormat, "tokenizer.token_kinds: token {} has kind {}, expected 0 to 3", id,
                  kinds_[id]);
    if (token.size() > kMaxTokenBytes)
      throw_error(ErrorCode::kFormat, "tokenizer.token_ends: token {} has {} bytes, at most {}", id,
                  token.size(), kMaxTokenBytes);
    if ((kind(id) == TokenKind::kByte && token.size() != 1) ||
        (kind(id) == TokenKind::kText && token.empty()))
      throw_error(ErrorCode::kFormat, "tokenizer.token_ends: token {} of kind {} has {} bytes", id,
                  kinds_[id], token.size());
    if (kind(id) != TokenKind::kText) continue;
    max_token_bytes_ = std::max(max_token_bytes_, token.size());
    size_t slot = hash_.of(token) & (slots_.size() - 1);
    for (; slots_[slot] != 0; slot = (slot + 1) & (slots_.size() - 1))
      if (text(slots_[slot] - 1) == token)
        throw_error(ErrorCode::kFormat, "tokenizer: tokens {} and {} have the same text", slots_[slot] - 1,
                    id);
    slots_[slot] = id + 1;
  }
}

std::string_view Vocabulary::text(uint32_t id) const {
  const uint32_t begin = id == 0 ? 0 : ends_[id - 1];
  return std::string_view(bytes_).substr(begin, ends_[id] - begin);
}

int32_t Vocabulary::find(std::string_view wanted) const {
  if (wanted.empty() || wanted.size() > max_token_bytes_) return -1;
  for (size_t slot = hash_.of(wanted) & (slots_.size() - 1); slots_[slot] != 0;
       slot = (slot + 1) & (slots_.size() - 1))
    if (text(slots_[slot] - 1) == wanted) return static_cast<int32_t>(slots_[slot] - 1);
  return -1;
}

Bpe::Bpe(const Metadata& metadata, uint32_t vocab_size, const std::vector<bool>& special)
    : vocabulary_(metadata, vocab_size),
      byte_level_(metadata.get<bool>("tokenizer.byte_level")),
      byte_fallback_(metadata.get<bool>("tokenizer.byte_fallback")),
      fuse_unk_(metadata.get<bool>("tokenizer.fuse_unk")),
      ignore_merges_(metadata.get<bool>("tokenizer.ignore_merges")),
      merge_by_id_(metadata.get<bool>("tokenizer.merge_by_id")),
      special_(special),
      byte_ids_(256, -1) {
  if (metadata.has("tokenizer.unk_id")) {
    const uint64_t id = metadata.get<uint64_t>("tokenizer.unk_id");
    if (id >= vocabulary_.size())
      throw_error(ErrorCode::kFormat, "tokenizer.unk_id: {}, expected less than {}", id, vocabulary_.size());
    unk_id_ = static_cast<int32_t>(id);
  }
  for (uint32_t id = 0; id < vocabulary_.size(); ++id)
    if (vocabulary_.kind(id) == TokenKind::kByte && !is_special(static_cast<int32_t>(id)))
      byte_ids_[static_cast<uint8_t>(vocabulary_.text(id)[0])] = static_cast<int32_t>(id);
  if (byte_level_)
    for (int byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      const int32_t id = vocabulary_.find({&text, 1});
      byte_ids_[byte] = is_special(id) ? -1 : id;
    }
  load_merges(metadata.get<std::vector<uint32_t>>("tokenizer.merges"));
}

void Bpe::load_merges(const std::vector<uint32_t>& merges) {
  if (merges.size() % 3 != 0)
    throw_error(ErrorCode::kFormat, "tokenizer.merges: {} numbers, expected triples", merges.size());
  if (merge_by_id_ && !merges.empty())
    throw_error(ErrorCode::kFormat, "tokenizer.merges: {} numbers, expected none with merge_by_id",
                merges.size());
  if (merges.size() / 3 > kNone / 4)
    throw_error(ErrorCode::kFormat, "tokenizer.merges: {} numbers", merges.size());
  merges_.assign(std::bit_ceil(merges.size() / 3 * 2 + 1), Merge{0, 0, 0, -1});
  for (uint32_t rank = 0; rank < merges.size() / 3; ++rank) {
    const uint32_t left = merges[3 * rank], right = merges[3 * rank + 1], result = merges[3 * rank + 2];
    if (std::max({left, right, result}) >= vocabulary_.size())
      throw_error(ErrorCode::kFormat, "tokenizer.merges: merge {} names token {}, expected less than {}",
                  rank, std::max({left, right, result}), vocabulary_.size());
    const std::string_view a = vocabulary_.text(left), b = vocabulary_.text(right),
                           joined = vocabulary_.text(result);
    if (vocabulary_.kind(result) != TokenKind::kText || joined.size() != a.size() + b.size() ||
        !joined.starts_with(a) || !joined.ends_with(b))
      throw_error(ErrorCode::kFormat,
                  "tokenizer.merges: merge {} joins tokens {} and {}, whose text token {} is not", rank, left,
                  right, result);
    if (is_special(static_cast<int32_t>(result))) continue;
    size_t slot = hash_.of(pair(left, right)) & (merges_.size() - 1);
    while (merges_[slot].result >= 0 && (merges_[slot].left != left || merges_[slot].right != right))
      slot = (slot + 1) & (merges_.size() - 1);
    merges_[slot] = {left, right, rank, static_cast<int32_t>(result)};  // of two equal pairs the later counts
  }
}

// The word's first symbols: its bytes, or its code points with byte fallback and unknown tokens. A special token of one symbol is
// no symbol of text.
void Bpe::start(std::string_view word, Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  symbols.clear();
  const auto add = [&](uint32_t begin, uint32_t end, int32_t id) {
    const uint32_t n = static_cast<uint32_t>(symbols.size());
    symbols.push_back({begin, end, n == 0 ? kNone : n - 1, n + 1, id});
  };
  uint32_t unk_begin = 0, unk_end = 0;  // pending unknown text
  const auto flush_unknown = [&] {
    if (unk_end > unk_begin) add(unk_begin, unk_end, unk_id_);
    unk_begin = unk_end = 0;
  };
  for (uint32_t at = 0; at < word.size();) {
    const uint32_t end = at + (byte_level_ ? 1 : code_point_at(word, at).n_bytes);
    int32_t id =
        byte_level_ ? byte_ids_[static_cast<uint8_t>(word[at])] : vocabulary_.find(word.substr(at, end - at));
    if (is_special(id)) id = -1;
    const auto has_byte = [&](char c) { return byte_ids_[static_cast<uint8_t>(c)] >= 0; };
    if (id >= 0) {
      flush_unknown();
      add(at, end, id);
    } else if (byte_fallback_ && std::all_of(word.begin() + at, word.begin() + end, has_byte)) {
      for (uint32_t k = at; k < end; ++k) add(k, k + 1, byte_ids_[static_cast<uint8_t>(word[k])]);
    } else if (unk_id_ >= 0) {
      if (unk_end > unk_begin && fuse_unk_) {
        unk_end = end;
      } else {
        flush_unknown();
        unk_begin = at, unk_end = end;
      }
    }
    at = end;
  }
  flush_unknown();
  if (!symbols.empty()) symbols.back().next = kNone;
}

// The merge of a symbol with its right neighbour; id -1 when there is none.
Bpe::Candidate Bpe::merge_of(std::string_view word, const Scratch& scratch, uint32_t left) const {
  const Symbol& a = scratch.symbols[left];
  if (a.next == kNone) return {0, left, -1};
  const Symbol& b = scratch.symbols[a.next];
  if (merge_by_id_) {
    if (a.end != b.begin) return {0, left, -1};
    const int32_t id = vocabulary_.find(word.substr(a.begin, b.end - a.begin));
    return {static_cast<uint32_t>(id), left, id >= 0 && is_special(id) ? -1 : id};
  }
  const uint32_t right = static_cast<uint32_t>(b.id);
  size_t slot = hash_.of(pair(static_cast<uint32_t>(a.id), right)) & (merges_.size() - 1);
  for (; merges_[slot].result >= 0; slot = (slot + 1) & (merges_.size() - 1))
    if (merges_[slot].left == static_cast<uint32_t>(a.id) && merges_[slot].right == right)
      return {merges_[slot].rank, left, merges_[slot].result};
  return {0, left, -1};
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& ids, Scratch& scratch) const {
  if (word.size() > (1u << 30))
    throw_error(ErrorCode::kInvalidArgument, "word of {} bytes, at most {} can be tokenized", word.size(),
                1u << 30);
  if (ignore_merges_) {
    const int32_t whole = vocabulary_.find(word);
    if (whole >= 0 && !is_special(whole)) {
      ids.push_back(whole);
      return;
    }
  }
  start(word, scratch);
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<Candidate>& queue = scratch.queue;  // a heap, lowest rank first, leftmost among equals
  queue.clear();
  for (uint32_t i = 0; i + 1 < symbols.size(); ++i)
    if (const Candidate candidate = merge_of(word, scratch, i); candidate.id >= 0) queue.push_back(candidate);
  std::make_heap(queue.begin(), queue.end(), later);
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), later);
    const Candidate best = queue.back();
    queue.pop_back();
    Symbol& left = symbols[best.symbol];
    // Stale when the symbol is gone or its neighbour changed; another pair that makes the same token still counts,
    // as in the reference.
    if (left.begin == left.end || merge_of(word, scratch, best.symbol).id != best.id) continue;
    Symbol& right = symbols[left.next];
    left.end = right.end;
    left.id = best.id;
    left.next = right.next;
    right.end = right.begin;
    if (left.next != kNone) symbols[left.next].prev = best.symbol;
    for (const uint32_t changed : {left.prev, best.symbol}) {
      if (changed == kNone) continue;
      const Candidate candidate = merge_of(word, scratch, changed);
      if (candidate.id < 0) continue;
      queue.push_back(candidate);
      std::push_heap(queue.begin(), queue.end(), later);
    }
  }
  for (uint32_t i = symbols.empty() ? kNone : 0; i != kNone; i = symbols[i].next)
    ids.push_back(symbols[i].id);
}

}  // namespace pith
