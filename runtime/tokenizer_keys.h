// What the converter stores for a tokenizer and the run time reads back: the metadata keys and the op lists.
//
//   tokenizer.kind            string  "sentencepiece", "bpe" or "unigram"
//   tokenizer.bos_id          u64     absent when there is none
//   tokenizer.adds_bos        bool    encode() with add_bos puts it in front
//   tokenizer.eos_ids         u32[]
//   tokenizer.added_ids       u32[]   added tokens: id, text and flags, in step
//   tokenizer.added_texts     string[]
//   tokenizer.added_flags     u32[]   AddedFlag bits
//   tokenizer.prefix_each     bool    chat: each text between special tokens begins with the dummy prefix
// kind sentencepiece:
//   tokenizer.sentencepiece   bytes   the serialized ModelProto, run by the sentencepiece library
// kind bpe:
//   tokenizer.token_bytes     bytes   all token texts one after another; raw bytes where the token is byte-level
//   tokenizer.token_ends      u32[]   end of token i in token_bytes, ascending
//   tokenizer.token_kinds     bytes   TokenKind of token i
//   tokenizer.merges          u32[]   left id, right id, result id; rank = position. Empty: merge_by_id
//   tokenizer.merge_by_id     bool    tiktoken's rule: any two neighbours whose joined bytes are a token, lowest id first
//   tokenizer.byte_level      bool    symbols are bytes, not code points
//   tokenizer.byte_fallback   bool    a code point without token becomes its bytes' tokens
//   tokenizer.fuse_unk        bool    neighbouring unknown code points are one token
//   tokenizer.ignore_merges   bool    a word that is a token needs no merges
//   tokenizer.scores          f32[]   kind unigram: of token i; then merges are empty, and unknown code points are one token
//   tokenizer.unk_id          u64     absent when there is none
//   tokenizer.normalizer      string[] ops in order, each followed by its arguments (see pretokenizer.h)
//   tokenizer.pretokenizer    string[] likewise
//   tokenizer.space           string  the text that stands for a space in tokens, "" or "▁"
//   tokenizer.decode_strip    u64     spaces that decode() removes at the start
//
// Also for chat (read by model.cpp):
//   chat.template             string  Jinja source
//   chat.bos, chat.eos        string  texts of bos_token and eos_token for it
// and generation.temperature, .top_p, .min_p, .repetition_penalty (double), generation.top_k (u64).
#pragma once
#include <cstddef>
#include <cstdint>

namespace pith {

constexpr size_t kMaxTokenBytes = 4096;  // of any token: bounds the work per position of text

enum AddedFlag : uint32_t {
  kAddedSpecial =
      1,  // a control token: recognised only with EncodeOptions::parse_special, invisible in output
  kAddedLstrip = 2,       // swallows white space before it
  kAddedRstrip = 4,       // and after it
  kAddedSingleWord = 8,   // only between non-word characters
  kAddedNormalized = 16,  // looked for after the normalizer, in its normalized form
  kAddedFlagsEnd = 32,
};

enum class TokenKind : uint8_t {
  kText = 0,      // its bytes are its text
  kByte = 1,      // "<0x0A>" of byte fallback: its text is one byte
  kVerbatim = 2,  // not byte-level text in a byte-level vocabulary: only reachable as an added token
  kEmpty = 3,     // no token has this id
};

}  // namespace pith
