// Text to token ids and back.
//
// A Tokenizer runs what the converter stored in the container (keys "tokenizer.*"): a sentencepiece model executed by
// the sentencepiece library, or a BPE described by a Hugging Face tokenizer.json, a tiktoken file, or vocab.json +
// merges.txt (convert/tokenizer_import.h), executed here: normalizer, pre-tokenizer patterns, merges, byte fallback,
// added tokens. Nothing is recognised by name or hash; what is not understood is refused at conversion.
//
// Text never becomes a special token unless asked: encode() parses special tokens only with parse_special, which chat
// rendering sets for template segments and never for what a user typed.
// Immutable after open; any thread may use it. Linear or n log n time in the text's length, bounded stack.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/metadata.h"
#include "runtime/utf8.h"

namespace pith {

struct EncodeOptions {
  bool add_bos = false;        // prepend bos_id() when the model wants one (adds_bos())
  bool parse_special = false;  // recognise special tokens' texts, e.g. "<|user|>"
  // With parse_special: recognise them only inside these ranges of text (ascending, apart); empty: everywhere.
  std::span<const TextRange> special_ranges = {};
  bool continuation = false;  // the text goes on mid-stream: no dummy prefix space (sentencepiece style)
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Throws Error(kFormat) when the metadata breaks a rule (ids >= vocab_size, merges of absent tokens, ...).
  static std::unique_ptr<Tokenizer> open(const Metadata& metadata, uint32_t vocab_size);

  // Invalid UTF-8 is encoded through byte tokens or U+FFFD, as the reference library does; it never fails.
  // Throws Error where a text is too long, or the file's replacements and patterns take more than any honest
  // ones would (runtime/encode_budget.h).
  virtual std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const = 0;

  // The bytes that a token contributes mid-text: a leading "▁" is a space, "<0x0A>" is one byte; specials are "" unless
  // show_special. Concatenated bytes may end inside a code point: hold back with Utf8Holder (runtime/utf8.h).
  virtual std::string piece(int32_t id, bool show_special = false) const = 0;
  // Pieces joined; the dummy prefix space of a sentencepiece-style start is removed.
  virtual std::string decode(const std::vector<int32_t>& ids, bool show_special = false) const = 0;

  virtual uint32_t vocab_size() const = 0;
  virtual bool is_special(int32_t id) const = 0;
  virtual int32_t find(std::string_view token) const = 0;  // id of an exact token text, or -1
  virtual std::string token_text(int32_t id) const = 0;    // as in the vocabulary, e.g. "▁the", "<0x0A>"

  int32_t bos_id() const { return bos_id_; }  // -1 when there is none
  bool adds_bos() const { return adds_bos_; }
  // What a text of its own begins with: bos_id() where the model wants one, else -1. Windows of evaluation and of
  // calibration follow it.
  int32_t first_id() const { return adds_bos_ ? bos_id_ : -1; }
  const std::vector<int32_t>& eos_ids() const { return eos_ids_; }  // union of every source
  bool is_eos(int32_t id) const;
  // Chat: whether each text between special tokens begins with the dummy prefix, or only the first (checkpoints say).
  bool prefix_each() const { return prefix_each_; }

 protected:
  int32_t bos_id_ = -1;
  bool adds_bos_ = false;
  std::vector<int32_t> eos_ids_;

  Tokenizer(const Metadata& metadata, uint32_t vocab_size);  // reads the three and "tokenizer.prefix_each"
  bool prefix_each_ = true;
};

}  // namespace pith
