// Op lists read with their arguments, then run: the normalizer over the text, each pre-tokenizer op over the
// words of the last.
#include "runtime/pretokenizer.h"

#include <algorithm>

#include "format/error.h"
#include "runtime/base64.h"
#include "runtime/unicode.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

// Reads an op list: names and their arguments, in a flat list of strings.
class OpReader {
 public:
  OpReader(const std::vector<std::string>& list, const char* where) : list_(list), where_(where) {}
  bool done() const { return at_ == list_.size(); }
  const std::string& next() {
    if (done()) throw_error(ErrorCode::kFormat, "{}: the op list ends inside an op", where_);
    return list_[at_++];
  }
  bool flag() {
    const std::string& text = next();
    if (text != "0" && text != "1")
      throw_error(ErrorCode::kFormat, "{}: flag '{}', expected 0 or 1", where_, text);
    return text == "1";
  }

 private:
  const std::vector<std::string>& list_;
  const char* where_;
  size_t at_ = 0;
};

std::string replace_all(std::string_view text, std::string_view from, std::string_view to,
                        EncodeBudget& budget) {
  std::string out;
  out.reserve(text.size());
  size_t at = 0;
  while (true) {
    const size_t found = text.find(from, at);
    if (found == std::string_view::npos) break;
    budget.add(to.size());
    out.append(text, at, found - at).append(to);
    at = found + from.size();
  }
  return out.append(text, at, text.size() - at);
}

std::string strip_white_space(std::string_view text, bool left, bool right) {
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    const CodePoint point = code_point_at(text, begin);
    if (!is_white_space(point.value)) break;
    begin += point.n_bytes;
  }
  while (right && end > begin) {
    const CodePoint point = code_point_before(text, end);
    if (!is_white_space(point.value)) break;
    end -= point.n_bytes;
  }
  return std::string(text.substr(begin, end - begin));
}

// Maximal runs (or single code points) of one class.
template <typename InClass>
std::vector<TextRange> class_matches(std::string_view text, bool single, const InClass& in_class) {
  std::vector<TextRange> found;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    if (in_class(point.value)) {
      if (!single && !found.empty() && found.back().end == at) {
        found.back().end += point.n_bytes;
      } else {
        found.push_back({at, at + point.n_bytes});
      }
    }
    at += point.n_bytes;
  }
  return found;
}

}  // namespace

Normalizer::Normalizer(const std::vector<std::string>& ops) {
  OpReader reader(ops, "tokenizer.normalizer");
  while (!reader.done()) {
    const std::string& name = reader.next();
    Op op{};
    if (name == "prepend") {
      op.kind = Op::kPrepend, op.a = reader.next();
    } else if (name == "replace") {
      op.kind = Op::kReplace, op.a = reader.next(), op.b = reader.next();
      if (op.a.empty()) throw_error(ErrorCode::kFormat, "tokenizer.normalizer: replace of an empty text");
    } else if (name == "replace_pattern") {
      op.kind = Op::kReplacePattern;
      op.pattern = std::make_shared<const Pattern>(reader.next());
      op.b = reader.next();
    } else if (name == "charsmap") {
      op.kind = Op::kCharsMap;
      op.charsmap =
          std::make_shared<const CharsMap>(decode_base64(reader.next(), "tokenizer.normalizer: charsmap"));
    } else if (name == "strip") {
      op.kind = Op::kStrip, op.left = reader.flag(), op.right = reader.flag();
    } else {
      const std::pair<const char*, Op::Kind> plain[] = {{"nfc", Op::kNfc},
                                                        {"nfd", Op::kNfd},
                                                        {"nfkc", Op::kNfkc},
                                                        {"nfkd", Op::kNfkd},
                                                        {"lowercase", Op::kLowercase},
                                                        {"strip_accents", Op::kStripAccents}};
      const auto* const known =
          std::find_if(std::begin(plain), std::end(plain), [&](auto& p) { return name == p.first; });
      if (known == std::end(plain))
        throw_error(ErrorCode::kFormat, "tokenizer.normalizer: unknown op '{}'", name);
      op.kind = known->second;
    }
    ops_.push_back(std::move(op));
  }
}

std::string Normalizer::apply(std::string_view text, bool with_prefix, EncodeBudget& budget) const {
  std::string out(text);
  const auto put = [&](std::string form) {
    budget.add(form.size() - std::min(form.size(), out.size()));
    out = std::move(form);
  };
  for (const Op& op : ops_) {
    switch (op.kind) {
      case Op::kPrepend:
        if (!with_prefix || out.empty()) break;
        budget.add(op.a.size());
        out.insert(0, op.a);
        break;
      case Op::kReplace:
        out = replace_all(out, op.a, op.b, budget);
        break;
      case Op::kReplacePattern: {
        std::string replaced;
        size_t at = 0;
        for (const TextRange match : op.pattern->find_all(out, budget)) {
          budget.add(op.b.size());
          replaced.append(out, at, match.begin - at).append(op.b);
          at = match.end;
        }
        out = replaced.append(out, at, out.size() - at);
        break;
      }
      case Op::kNfc:
        put(to_normal_form(out, NormalForm::kNfc));
        break;
      case Op::kNfd:
        put(to_normal_form(out, NormalForm::kNfd));
        break;
      case Op::kNfkc:
        put(to_normal_form(out, NormalForm::kNfkc));
        break;
      case Op::kNfkd:
        put(to_normal_form(out, NormalForm::kNfkd));
        break;
      case Op::kLowercase:
        put(to_lower(out));
        break;
      case Op::kStrip:
        out = strip_white_space(out, op.left, op.right);
        break;
      case Op::kStripAccents:
        out = without_accents(out);
        break;
      case Op::kCharsMap:
        out = op.charsmap->apply(out, budget);
        break;
    }
  }
  return out;
}

PreTokenizer::Behavior PreTokenizer::behavior_of(const std::string& name) {
  const std::pair<const char*, Behavior> names[] = {{"isolated", Behavior::kIsolated},
                                                    {"removed", Behavior::kRemoved},
                                                    {"merged_with_previous", Behavior::kMergedWithPrevious},
                                                    {"merged_with_next", Behavior::kMergedWithNext},
                                                    {"contiguous", Behavior::kContiguous}};
  for (const auto& [text, behavior] : names)
    if (name == text) return behavior;
  throw_error(ErrorCode::kFormat, "tokenizer.pretokenizer: unknown behavior '{}'", name);
}

PreTokenizer::PreTokenizer(const std::vector<std::string>& ops) {
  OpReader reader(ops, "tokenizer.pretokenizer");
  while (!reader.done()) {
    const std::string& name = reader.next();
    Op op{};
    if (name == "split" || name == "split_text") {
      op.kind = name == "split" ? Op::kSplit : Op::kSplitText;
      op.text = reader.next();
      if (op.text.empty()) throw_error(ErrorCode::kFormat, "tokenizer.pretokenizer: split at an empty text");
      if (op.kind == Op::kSplit) op.pattern = std::make_shared<const Pattern>(op.text);
      op.behavior = behavior_of(reader.next());
      op.flag = reader.flag();
    } else if (name == "prefix_space") {
      op.kind = Op::kPrefixSpace, op.text = " ", op.scheme = "always";
    } else if (name == "digits") {
      op.kind = Op::kDigits, op.flag = reader.flag();
    } else if (name == "punctuation") {
      op.kind = Op::kPunctuation, op.behavior = behavior_of(reader.next());
    } else if (name == "white_space") {
      op.kind = Op::kWhiteSpace, op.behavior = Behavior::kRemoved;
    } else if (name == "metaspace") {
      op.kind = Op::kMetaspace, op.text = reader.next(), op.scheme = reader.next(), op.flag = reader.flag();
      op.behavior = Behavior::kMergedWithNext;
      if (op.text.empty() || (op.scheme != "always" && op.scheme != "first" && op.scheme != "never"))
        throw_error(ErrorCode::kFormat, "tokenizer.pretokenizer: metaspace '{}' scheme '{}'", op.text,
                    op.scheme);
    } else {
      throw_error(ErrorCode::kFormat, "tokenizer.pretokenizer: unknown op '{}'", name);
    }
    ops_.push_back(std::move(op));
  }
}

std::vector<TextRange> PreTokenizer::matches(const Op& op, std::string_view word, EncodeBudget& budget) {
  switch (op.kind) {
    case Op::kSplit:
      return op.pattern->find_all(word, budget);
    case Op::kDigits:
      return class_matches(word, op.flag, is_number);
    case Op::kPunctuation:
      return class_matches(word, true, is_punctuation);
    case Op::kWhiteSpace:
      return class_matches(word, true, is_white_space);
    case Op::kSplitText:
    case Op::kMetaspace:
    case Op::kPrefixSpace:
      break;
  }
  std::vector<TextRange> found;
  for (size_t at = word.find(op.text); at != std::string_view::npos;
       at = word.find(op.text, at + op.text.size()))
    found.push_back({at, at + op.text.size()});
  return found;
}

// The parts of `word`, matches and what lies between them, joined as the behavior says.
void PreTokenizer::split_word(const Op& op, std::string_view text, TextRange word,
                              std::vector<TextRange>& out, EncodeBudget& budget) {
  struct Part {
    TextRange range;
    bool is_match;
  };
  std::vector<Part> parts;
  size_t at = word.begin;
  for (TextRange match : matches(op, text.substr(word.begin, word.end - word.begin), budget)) {
    match.begin += word.begin, match.end += word.begin;
    if (at < match.begin) parts.push_back({{at, match.begin}, false});
    parts.push_back({match, true});
    at = match.end;
  }
  if (at < word.end) parts.push_back({{at, word.end}, false});
  if ((op.kind == Op::kSplit || op.kind == Op::kSplitText) && op.flag)
    for (Part& part : parts) part.is_match = !part.is_match;

  const size_t first = out.size();
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const bool after_match = i > 0 && parts[i - 1].is_match;
    bool join = false;
    switch (op.behavior) {
      case Behavior::kIsolated:
        break;
      case Behavior::kRemoved:
        if (part.is_match) continue;
        break;
      case Behavior::kContiguous:
        join = i > 0 && part.is_match == after_match;
        break;
      case Behavior::kMergedWithPrevious:
        join = part.is_match && i > 0 && !after_match;
        break;
      case Behavior::kMergedWithNext:  // a match joins what follows, unless that is a match too
        join = !part.is_match && after_match;
        break;
    }
    if (join && out.size() > first) {
      out.back().end = part.range.end;
    } else {
      out.push_back(part.range);
    }
  }
  out.erase(std::remove_if(out.begin() + static_cast<std::ptrdiff_t>(first), out.end(),
                           [](TextRange r) { return r.begin == r.end; }),
            out.end());
}

// Puts op.text in front of every word that does not begin with it (scheme "first": only where the input begins).
void PreTokenizer::prefix(const Op& op, bool at_start, Words& words, EncodeBudget& budget) {
  std::string text;
  text.reserve(words.text.size());
  for (size_t i = 0; i < words.ranges.size(); ++i) {
    TextRange& range = words.ranges[i];
    const std::string_view word = std::string_view(words.text).substr(range.begin, range.end - range.begin);
    const size_t begin = text.size();
    if (!word.starts_with(op.text) && (op.scheme == "always" || (at_start && i == 0))) {
      budget.add(op.text.size());
      text += op.text;
    }
    text += word;
    range = {begin, text.size()};
  }
  words.text = std::move(text);
}

Words PreTokenizer::split(std::string text, bool with_prefix, bool at_start, EncodeBudget& budget) const {
  Words words{std::move(text), {}};
  if (!words.text.empty()) words.ranges.push_back({0, words.text.size()});
  for (const Op& op : ops_) {
    if (op.kind == Op::kMetaspace) {
      Words replaced;
      for (const TextRange range : words.ranges) {
        const size_t begin = replaced.text.size();
        replaced.text += replace_all(
            std::string_view(words.text).substr(range.begin, range.end - range.begin), " ", op.text, budget);
        replaced.ranges.push_back({begin, replaced.text.size()});
      }
      words = std::move(replaced);
    }
    if ((op.kind == Op::kMetaspace && op.scheme != "never") || op.kind == Op::kPrefixSpace)
      if (with_prefix) prefix(op, at_start, words, budget);
    if (op.kind == Op::kPrefixSpace || (op.kind == Op::kMetaspace && !op.flag)) continue;
    std::vector<TextRange> parts;
    parts.reserve(words.ranges.size());
    for (const TextRange word : words.ranges) split_word(op, words.text, word, parts, budget);
    words.ranges = std::move(parts);
  }
  return words;
}

}  // namespace pith
