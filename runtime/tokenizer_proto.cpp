// A reader of protobuf fields that trusts no length, and edits of a model by fields appended or exchanged.
#include "runtime/tokenizer_proto.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <unordered_set>

#include "format/error.h"
#include "format/utf8.h"
#include "runtime/tokenizer_keys.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

constexpr size_t kMaxPieces = 1u << 22;
constexpr size_t kMaxMappedBytes = 64;  // of what replaces a text: NFKC's longest have 33

struct Field {
  uint32_t number = 0;
  uint32_t wire_type = 0;
  uint64_t value = 0;      // varint, or fixed32/64 bits
  std::string_view bytes;  // length-delimited content
  std::string_view whole;  // with its tag
};

// Reads the fields of one message in order. Offsets in errors count from the model's first byte.
class FieldReader {
 public:
  FieldReader(std::string_view message, const char* model_begin) : message_(message), begin_(model_begin) {}

  bool next(Field& field) {
    if (at_ == message_.size()) return false;
    const size_t start = at_;
    field = Field{};
    const uint64_t tag = varint();
    field.number = static_cast<uint32_t>(tag >> 3);
    field.wire_type = static_cast<uint32_t>(tag & 7);
    if (tag > UINT32_MAX || field.number == 0) fail("bad field tag");
    if (field.wire_type == 0) {
      field.value = varint();
    } else if (field.wire_type == 1 || field.wire_type == 5) {
      const size_t n = field.wire_type == 1 ? 8 : 4;
      std::memcpy(&field.value, take(n).data(), n);
    } else if (field.wire_type == 2) {
      field.bytes = take(varint());
    } else {
      fail("wire type is not supported");
    }
    field.whole = message_.substr(start, at_ - start);
    return true;
  }
  [[noreturn]] void fail(const std::string& why) const {
    throw_error(ErrorCode::kFormat, "sentencepiece model, byte {}: {}", message_.data() + at_ - begin_, why);
  }
  void expect(const Field& field, uint32_t wire_type) const {
    if (field.wire_type != wire_type)
      fail(fmt::format("field {} has wire type {}, expected {}", field.number, field.wire_type, wire_type));
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(take(1)[0]);
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    fail("varint of more than 10 bytes");
  }
  std::string_view take(uint64_t n) {
    if (n > message_.size() - at_) fail(fmt::format("{} bytes needed, {} left", n, message_.size() - at_));
    at_ += n;
    return message_.substr(at_ - n, n);
  }
  std::string_view message_;
  const char* begin_;
  size_t at_ = 0;
};

SentencePieceModel::Piece read_piece(std::string_view message, const char* begin) {
  SentencePieceModel::Piece piece;
  FieldReader reader(message, begin);
  for (Field field; reader.next(field);) {
    if (field.number == 1) {
      reader.expect(field, 2);
      piece.text = field.bytes;
    } else if (field.number == 2) {
      reader.expect(field, 5);
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    } else if (field.number == 3) {
      reader.expect(field, 0);
      if (field.value < 1 || field.value > 6)
        reader.fail(fmt::format("piece type {}, expected 1 to 6", field.value));
      piece.type = static_cast<PieceType>(field.value);
    }
  }
  if (piece.text.empty() || piece.text.size() > kMaxTokenBytes)
    reader.fail(fmt::format("piece of {} bytes, expected 1 to {}", piece.text.size(), kMaxTokenBytes));
  if (!is_valid_utf8(piece.text) || piece.text.find('\0') != std::string::npos)
    reader.fail("piece is not UTF-8 text without NUL");
  if (!std::isfinite(piece.score)) reader.fail("score is not finite");
  return piece;
}

// The trie maps texts to offsets in the strings behind it. A node's children lie at (node ^ offset ^ label); every
// place that a walk can reach, and every offset that it can find there, must exist.
void check_charsmap(std::string_view charsmap, const FieldReader& reader) {
  uint32_t trie_bytes = 0;
  if (charsmap.size() < 4) reader.fail("normalization table is cut");
  std::memcpy(&trie_bytes, charsmap.data(), 4);
  if (trie_bytes < 1024 || trie_bytes % 1024 != 0 || trie_bytes >= charsmap.size() - 4)
    reader.fail(fmt::format("normalization trie of {} bytes in a table of {}", trie_bytes, charsmap.size()));
  const std::string_view strings = charsmap.substr(4 + trie_bytes);
  if (strings.back() != '\0') reader.fail("normalization table does not end in NUL");
  const size_t n_units = trie_bytes / 4;
  std::vector<uint32_t> units(n_units);
  std::memcpy(units.data(), charsmap.data() + 4, trie_bytes);
  for (size_t i = 0; i < n_units; ++i) {
    const uint32_t unit = units[i];
    if ((unit >> 31) != 0) continue;  // a value: never walked from
    const size_t child = i ^ ((unit >> 10) << ((unit & 0x200) >> 6));
    if ((child | 0xff) >= n_units) reader.fail(fmt::format("normalization trie unit {} points outside", i));
    if ((unit & 0x100) != 0 && (units[child] & 0x7fffffff) >= strings.size())
      reader.fail(fmt::format("normalization trie unit {} has a value outside", i));
  }
  for (size_t at = 0, end; at < strings.size(); at = end + 1) {
    end = strings.find('\0', at);
    if (end - at > kMaxMappedBytes)
      reader.fail(
          fmt::format("normalization string of {} bytes, expected at most {}", end - at, kMaxMappedBytes));
    if (!is_valid_utf8(strings.substr(at, end - at))) reader.fail("normalization string is not UTF-8");
  }
}

void read_normalizer(std::string_view message, const char* begin, SentencePieceModel& model) {
  FieldReader reader(message, begin);
  for (Field field; reader.next(field);) {
    if (field.number == 2) {
      reader.expect(field, 2);
      if (field.bytes.empty()) continue;
      check_charsmap(field.bytes, reader);
      model.has_charsmap = true;
    } else if (field.number == 3) {
      reader.expect(field, 0);
      model.add_dummy_prefix = field.value != 0;
    } else if (field.number == 4) {
      reader.expect(field, 0);
      model.remove_extra_whitespaces = field.value != 0;
    }
  }
}

void read_trainer(std::string_view message, const char* begin, SentencePieceModel& model) {
  FieldReader reader(message, begin);
  for (Field field; reader.next(field);) {
    if (field.number == 3) {
      reader.expect(field, 0);
      model.model_type = static_cast<uint32_t>(std::min<uint64_t>(field.value, 99));
    } else if (field.number == 35) {
      reader.expect(field, 0);
      model.byte_fallback = field.value != 0;
    } else if (field.number >= 44 && field.number <= 48) {  // unk_surface and the texts of unk, bos, eos, pad
      reader.expect(field, 2);
      if (!is_valid_utf8(field.bytes)) reader.fail("text is not UTF-8");
      if (field.number == 46) model.bos_piece = field.bytes;
      if (field.number == 47) model.eos_piece = field.bytes;
    }
  }
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

}  // namespace

bool looks_like_sentencepiece(std::string_view bytes) {
  try {
    FieldReader reader(bytes, bytes.data());
    Field field;
    return reader.next(field) && field.number == 1 && field.wire_type == 2 && !field.bytes.empty() &&
           field.bytes[0] == '\x0a';
  } catch (const Error&) {
    return false;
  }
}

SentencePieceModel check_sentencepiece_model(std::string_view bytes) {
  SentencePieceModel model;
  FieldReader reader(bytes, bytes.data());
  for (Field field; reader.next(field);) {
    if (field.number > 5) continue;
    reader.expect(field, 2);
    if (field.number == 1) {
      if (model.pieces.size() == kMaxPieces) reader.fail(fmt::format("more than {} pieces", kMaxPieces));
      model.pieces.push_back(read_piece(field.bytes, bytes.data()));
    } else if (field.number == 2) {
      read_trainer(field.bytes, bytes.data(), model);
    } else if (field.number == 3) {
      read_normalizer(field.bytes, bytes.data(), model);
    } else if (!field.bytes.empty() && field.number == 5) {
      SentencePieceModel denormalizer;
      read_normalizer(field.bytes, bytes.data(), denormalizer);
      if (denormalizer.has_charsmap) reader.fail("a denormalization table is not supported");
    } else if (!field.bytes.empty()) {
      reader.fail("self test data is not supported");
    }
  }
  if (model.model_type != 1 && model.model_type != 2)
    throw_error(ErrorCode::kUnsupported,
                "sentencepiece model: model_type {}, expected 1 (unigram) or 2 (BPE)", model.model_type);
  std::unordered_set<std::string_view> texts;
  size_t n_unknown = 0, n_bytes = 0;
  for (const auto& piece : model.pieces) {
    if (!texts.insert(piece.text).second)
      reader.fail(fmt::format("piece '{}' occurs twice", printable(piece.text)));
    n_unknown += piece.type == PieceType::kUnknown;
    n_bytes += piece.type == PieceType::kByte;
  }
  if (n_unknown != 1) reader.fail(fmt::format("{} unknown pieces, expected 1", n_unknown));
  if (n_bytes != (model.byte_fallback ? 256 : 0))
    reader.fail(fmt::format("{} byte pieces, expected {}", n_bytes, model.byte_fallback ? 256 : 0));
  return model;
}

std::string with_control_pieces(std::string_view bytes, const std::vector<uint32_t>& ids) {
  const std::unordered_set<uint32_t> wanted(ids.begin(), ids.end());
  std::string out;
  out.reserve(bytes.size() + 4 * ids.size());
  FieldReader reader(bytes, bytes.data());
  uint32_t id = 0;
  for (Field field; reader.next(field);) {
    if (field.number == 1 && wanted.contains(id++)) {
      out.push_back('\x0a');
      put_varint(out, field.bytes.size() + 2);
      out.append(field.bytes).append("\x18\x03");  // the last value of a field counts
    } else {
      out.append(field.whole);
    }
  }
  return out;
}

std::string without_dummy_prefix(std::string_view bytes) {
  return std::string(bytes).append("\x1a\x02\x18\x00", 4);  // a message field that occurs again is merged
}

}  // namespace pith
