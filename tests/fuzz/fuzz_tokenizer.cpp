// Fuzzes tokenizers: text over a good one, damaged metadata, damaged tokenizer.json, damaged sentencepiece models.
//
// Oracles: byte-level ids give back every byte; ids equal those of a naive merge loop; plain text makes no special
// token; whatever opens encodes and decodes without touching what it must not, every id below vocab_size.
#include <cstdio>
#include <cstdlib>
#include <map>

#include "convert/json_file.h"
#include "convert/tokenizer_import_parts.h"
#include "format/error.h"
#include "runtime/chat_render.h"

using namespace pith;

namespace {

constexpr uint32_t kVocabSize = 300;

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

void require(bool ok, const char* what) {
  if (!ok) broken(what);
}

// A byte-level vocabulary: 256 bytes, and merges of them.
const std::vector<std::array<uint32_t, 3>> kMerges = {
    {'a', 'b', 256},   {' ', 'a', 257},  {256, 'c', 258},   {'b', 'c', 259},
    {'a', 'a', 260},   {260, 260, 261},  {261, 261, 262},   {' ', ' ', 263},
    {263, 263, 264},   {257, 259, 265},  {'\n', '\n', 266}, {0xc3, 0xa9, 267},
    {0xf0, 0x9f, 268}, {268, 0x98, 269}, {'1', '2', 270},   {'.', '.', 271}};

Metadata good_metadata() {
  BpeTables bpe;
  bpe.byte_level = true;
  bpe.pretokenizer = {"split",
                      "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
                      "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
                      "isolated", "0"};
  for (uint32_t id = 0; id < 256; ++id) bpe.texts.emplace_back(1, static_cast<char>(id));
  for (const auto& [left, right, id] : kMerges) {
    bpe.texts.push_back(bpe.texts[left] + bpe.texts[right]);
    bpe.merges.insert(bpe.merges.end(), {left, right, id});
  }
  bpe.kinds.assign(bpe.texts.size(), static_cast<uint8_t>(TokenKind::kText));
  Metadata metadata;
  bpe.write(metadata);
  metadata.set("tokenizer.added_ids", std::vector<uint32_t>{290, 291, 292});
  metadata.set("tokenizer.added_texts", std::vector<std::string>{"<|a|>", "<|a|><|b|>", "<|b|>"});
  metadata.set("tokenizer.added_flags",
               std::vector<uint32_t>{kAddedSpecial, kAddedSpecial | kAddedRstrip,
                                     kAddedSpecial | kAddedLstrip | kAddedSingleWord});
  return metadata;
}

// Merging as the definition says it: the lowest rank, the leftmost first, until none is left.
std::vector<int32_t> merge_naively(std::vector<uint32_t> symbols) {
  while (true) {
    size_t best_rank = kMerges.size(), best_at = 0;
    for (size_t at = 0; at + 1 < symbols.size(); ++at)
      for (size_t rank = 0; rank < best_rank; ++rank)
        if (kMerges[rank][0] == symbols[at] && kMerges[rank][1] == symbols[at + 1])
          best_rank = rank, best_at = at;
    if (best_rank == kMerges.size()) break;
    symbols[best_at] = kMerges[best_rank][2];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
  return {symbols.begin(), symbols.end()};
}

void exercise(const Tokenizer& tokenizer, const std::string& text) {
  EncodeOptions options;
  for (const int flags : {0, 1, 2, 3}) {
    options.parse_special = (flags & 1) != 0;
    options.continuation = (flags & 2) != 0;
    const auto ids = tokenizer.encode(text, options);
    for (const int32_t id : ids) {
      require(id >= 0 && static_cast<uint32_t>(id) < tokenizer.vocab_size(), "an id beyond the vocabulary");
      tokenizer.token_text(id);
    }
    tokenizer.decode(ids, true);
  }
}

void text_over_a_good_one(const std::string& text) {
  static const auto tokenizer = Tokenizer::open(good_metadata(), kVocabSize);
  const auto ids = tokenizer->encode(text, {});
  require(tokenizer->decode(ids, true) == text, "bytes got lost");
  for (const int32_t id : ids) require(!tokenizer->is_special(id), "plain text made a special token");
  exercise(*tokenizer, text);
  // A word alone: letters only, so that the pattern keeps it whole.
  std::string word;
  for (const char c : text.substr(0, 100)) word.push_back("abc"[static_cast<uint8_t>(c) % 3]);
  require(tokenizer->encode(word, {}) == merge_naively({word.begin(), word.end()}),
          "ids differ from naive merging");
  // The text cut into segments: specials in template segments alone.
  std::vector<ChatSegment> segments;
  size_t n_allowed = 0;
  for (size_t at = 0, k = 0; at < text.size(); at += 5, ++k) {
    segments.push_back({text.substr(at, 5), k % 2 == 0});
    n_allowed += k % 2 == 0;
  }
  size_t n_special = 0;
  for (const int32_t id : encode_chat(*tokenizer, segments)) n_special += tokenizer->is_special(id);
  require(n_special <= n_allowed, "a special token outside the template's text");
}

// Edits as the bytes say: each takes a key and rewrites its value.
void damaged_metadata(const uint8_t* data, size_t size) {
  static const Metadata good = good_metadata();
  std::vector<std::string> keys;
  for (const auto& [key, value] : good.entries()) keys.push_back(key);
  Metadata damaged = good;
  size_t at = 0;
  const auto byte = [&]() -> uint32_t { return at < size ? data[at++] : 0; };
  for (uint32_t n = 1 + byte() % 3; n > 0; --n) {
    const std::string& key = keys[byte() % keys.size()];
    MetadataValue value = damaged.entries().at(key);
    const uint32_t where = byte() | (byte() << 8), what = byte() | (byte() << 8);
    if (auto* numbers = std::get_if<std::vector<uint32_t>>(&value); numbers != nullptr && !numbers->empty())
      what % 7 == 0 ? numbers->resize(where % numbers->size())
                    : void((*numbers)[where % numbers->size()] = what % 400);
    if (auto* bytes = std::get_if<Bytes>(&value); bytes != nullptr && !bytes->empty())
      what % 7 == 0 ? bytes->resize(where % bytes->size())
                    : void((*bytes)[where % bytes->size()] = static_cast<uint8_t>(what));
    if (auto* flag = std::get_if<bool>(&value)) *flag = !*flag;
    if (auto* count = std::get_if<uint64_t>(&value)) *count = what;
    if (auto* texts = std::get_if<std::vector<std::string>>(&value); texts != nullptr) {
      static const char* const kWords[] = {
          "nfc",         "prefix_space", "digits",           "1",           "0",
          "metaspace",   "first",        "replace",          "a",           "strip",
          "punctuation", "contiguous",   "merged_with_next", "white_space", "split",
          "[a-b]|"};
      texts->insert(texts->begin() + where % (texts->size() + 1), kWords[what % std::size(kWords)]);
    }
    damaged.set(key, std::move(value));
  }
  const std::string text(reinterpret_cast<const char*>(data) + at, size - at);
  exercise(*Tokenizer::open(damaged, kVocabSize), text);
}

void damaged_json(const std::string& text) {
  const TokenizerJson read = read_tokenizer_json(parse_json(text, "t", true), "t", 600, true);
  Metadata metadata;
  read.bpe.write(metadata);
  metadata.set("tokenizer.added_ids", std::vector<uint32_t>{});
  metadata.set("tokenizer.added_texts", std::vector<std::string>{});
  metadata.set("tokenizer.added_flags", std::vector<uint32_t>{});
  exercise(*Tokenizer::open(metadata, 600), text.substr(0, 300) + " ab \n12");
}

void damaged_sentencepiece(const std::string& model) {
  Metadata metadata;
  metadata.set("tokenizer.kind", std::string("sentencepiece"));
  metadata.set("tokenizer.sentencepiece", Bytes(model.begin(), model.end()));
  metadata.set("tokenizer.added_ids", std::vector<uint32_t>{7});
  metadata.set("tokenizer.added_texts", std::vector<std::string>{"<|a|>"});
  metadata.set("tokenizer.added_flags", std::vector<uint32_t>{kAddedSpecial});
  exercise(*Tokenizer::open(metadata, 5000), model.substr(0, 300) + "<|a|> a \xff \xef\xac\x81");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    switch (data[0] % 4) {
      case 0:
        text_over_a_good_one(rest);
        break;
      case 1:
        damaged_metadata(data + 1, size - 1);
        break;
      case 2:
        damaged_json(rest);
        break;
      default:
        damaged_sentencepiece(rest);
        break;
    }
  } catch (const Error&) {
    if (data[0] % 4 == 0) broken("a good tokenizer failed");
  }
  return 0;
}
