// Rewriting of what Oniguruma and Rust mean otherwise than PCRE2, and matching under limits.
#include "runtime/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <new>

#include "format/error.h"
#include "runtime/utf8.h"

namespace pith {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
constexpr uint32_t kHeapLimitKib = 128 << 10;

// The members of a class, without its brackets. PCRE2's own \s adds U+180E, its \w lacks marks and connectors.
constexpr const char* kSpaceMembers =
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
// Letters by the property Alphabetic: with Roman numerals and the letters in circles and squares. (PCRE2 has it since 10.40 only.)
constexpr const char* kWordMembers =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}"
    "-\\x{1f189}";

// Of \w outside a class Oniguruma takes these, too: superscripts and fractions of Latin-1.
constexpr const char* kLatin1WordMembers = "\\xb2\\xb3\\xb9\\xbc-\\xbe";

[[noreturn]] void refuse(const std::string& source, const std::string& why) {
  throw_error(ErrorCode::kUnsupported, "pattern '{}': {}", printable(source), why);
}

bool is_one_of(char c, std::string_view chars) {
  return chars.find(c) != std::string_view::npos;
}

// The length of the quantifier at `at`, as "{2}", "{2,}", "{,3}" or "{2,3}"; 0 when there is none.
size_t interval_bytes(std::string_view source, size_t at) {
  const size_t close = source.find('}', at);
  if (close == std::string_view::npos) return 0;
  const std::string_view inside = source.substr(at + 1, close - at - 1);
  const bool is_interval = inside.find_first_of("0123456789") != inside.npos &&
                           inside.find_first_not_of("0123456789,") == inside.npos &&
                           inside.find(',') == inside.rfind(',');
  return is_interval ? close + 1 - at : 0;
}

// Rewrites or refuses what means something else to PCRE2 than to Oniguruma, which the tokenizers library runs.
class ToPcre2 {
 public:
  explicit ToPcre2(const std::string& source) : source_(source) {}

  std::string run() {
    for (; at_ < source_.size(); ++at_) {
      const char c = source_[at_];
      if (!in_class_ && !is_one_of(c, "*+?{") && (static_cast<unsigned char>(c) & 0xc0) != 0x80)
        atom_ = out_.size();
      if (c == '\\')
        escape();
      else if (in_class_)
        member(c);
      else if (const size_t n = c == '{' ? interval_bytes(source_, at_) : 0; n > 0)
        interval(n);
      else
        other(c);
    }
    return std::move(out_);
  }

 private:
  // Each leaves at_ at the last byte that it has read.
  char next() const { return at_ + 1 < source_.size() ? source_[at_ + 1] : '\0'; }

  void escape() {
    const char c = next();
    ++at_;
    const bool upper = c == 'S' || c == 'W';
    const char* const members = c == 's' || c == 'S'   ? kSpaceMembers
                                : c == 'w' || c == 'W' ? kWordMembers
                                                       : nullptr;
    if (c == 'h' || c == 'H') refuse(source_, "'\\h' means a hexadecimal digit there and a blank here");
    if (c == 'W' && in_class_) refuse(source_, "'\\W' in a class is not supported");
    if (members == nullptr ||
        (upper && in_class_)) {  // [\S] keeps PCRE2's meaning: it differs in U+180E alone
      const bool has_braces = is_one_of(c, "pPx") && source_[at_ + 1] == '{';
      const size_t end = has_braces ? std::min(source_.find('}', at_), source_.size() - 1) : at_;
      out_.append(source_, at_ - 1, end + 2 - at_);
      at_ = end;
    } else if (in_class_) {
      out_ += members;
    } else {
      out_ += upper ? "[^" : "[";
      out_ += members;
      if (c == 'w' || c == 'W') out_ += kLatin1WordMembers;
      out_ += ']';
    }
  }

  // A byte of a class, or its end.
  void member(char c) {
    if (c == '&' && next() == '&') refuse(source_, "class intersection '&&' is not supported");
    if (c == '[' && next() != ':') refuse(source_, "a class inside a class is not supported");
    if (c == '[') {  // a POSIX class: [:alpha:]
      const size_t close = source_.find(":]", at_ + 2);
      if (close == std::string::npos) refuse(source_, "a class inside a class is not supported");
      out_.append(source_, at_, close + 2 - at_);
      at_ = close + 1;
      return;
    }
    in_class_ = c != ']';
    out_ += c;
  }

  void interval(size_t n) {
    std::string interval = source_.substr(at_, n);
    if (interval[1] == ',') interval.insert(1, 1, '0');
    at_ += n - 1;
    if (next() == '+') {  // there it is repeated; to PCRE2 it would be possessive
      out_.insert(atom_, "(?:");
      interval += ')';
    }
    out_ += interval;
  }

  void other(char c) {
    out_ += c;
    if (c == '(') {
      groups_.push_back(atom_);
      if (next() == '?') options();
    } else if (c == ')' && !groups_.empty()) {
      atom_ = groups_.back();
      groups_.pop_back();
    } else if (c == '[') {
      in_class_ = true;
      if (next() == '^') out_ += source_[++at_];
      if (next() == ']') {  // a first ']' is a member
        out_ += "\\]";
        ++at_;
      }
    }
  }

  // The m of there, a dot that is any character, is the s of here.
  void options() {
    for (out_ += source_[++at_]; at_ + 1 < source_.size() && is_one_of(source_[at_ + 1], "imxs-");)
      out_ += source_[++at_] == 'm' ? 's' : source_[at_];
  }

  const std::string& source_;
  size_t at_ = 0;
  std::string out_;
  bool in_class_ = false;
  size_t atom_ = 0;             // where in out_ the item begins that a quantifier would repeat
  std::vector<size_t> groups_;  // where the open ones begin
};

}  // namespace

struct Pattern::Compiled {
  pcre2_code* code = nullptr;
  ~Compiled() { pcre2_code_free(code); }
};

Pattern::Pattern(const std::string& source) : compiled_(std::make_unique<Compiled>()), source_(source) {
  if (source.size() > kMaxPatternBytes) refuse(source, "longer than 64 KiB");
  // A callout in front is called wherever a match is tried: each try has a limit of steps, all of them together the time.
  const std::string rewritten = "(?C)" + ToPcre2(source).run();
  int error = 0;
  size_t offset = 0;
  compiled_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                                  &offset, nullptr);
  if (compiled_->code == nullptr) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    refuse(source, reinterpret_cast<const char*>(message));
  }
}

Pattern::~Pattern() = default;
Pattern::Pattern(Pattern&&) noexcept = default;

std::vector<TextRange> Pattern::find_all(std::string_view text, EncodeBudget& budget) const {
  const std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(
      pcre2_match_data_create_from_pattern(compiled_->code, nullptr), pcre2_match_data_free);
  if (context == nullptr || data == nullptr) throw std::bad_alloc();
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  // A greedy run that fails steps back once per character: linear in the text is what honest patterns need.
  pcre2_set_match_limit(context.get(),
                        static_cast<uint32_t>(std::min<uint64_t>(1000000 + 16 * text.size(), 1u << 31)));
  pcre2_set_callout(
      context.get(),
      [](pcre2_callout_block*, void* user) {
        return static_cast<EncodeBudget*>(user)->out_of_time() ? PCRE2_ERROR_CALLOUT : 0;
      },
      &budget);
  std::vector<TextRange> matches;
  const auto next_code_point = [&](size_t at) {
    return at < text.size() ? at + code_point_at(text, at).n_bytes : at + 1;
  };
  size_t last_end = std::string_view::npos;
  for (size_t from = 0; from <= text.size();) {
    const int rc = pcre2_match(compiled_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                               PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0)
      refuse(source_,
             fmt::format("{} on a text of {} bytes at byte {} (code {})",
                         rc == PCRE2_ERROR_CALLOUT ? "ran out of time" : "gave up", text.size(), from, rc));
    const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(data.get());
    const TextRange match{range[0], range[1]};
    if (match.begin < from || match.end < match.begin) refuse(source_, "'\\K' is not supported");
    if (match.begin < match.end) {
      matches.push_back(match);
      from = last_end = match.end;
    } else {
      if (match.begin != last_end) matches.push_back(match);
      from = next_code_point(match.begin);
    }
  }
  return matches;
}

}  // namespace pith
