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
std::string to_pcre2(const std::string& source) {
  std::string out;
  bool in_class = false;
  size_t atom = 0;             // where in out the item begins that a quantifier would repeat
  std::vector<size_t> groups;  // where the open ones begin
  for (size_t i = 0; i < source.size(); ++i) {
    const char c = source[i];
    const char next = i + 1 < source.size() ? source[i + 1] : '\0';
    if (!in_class && !is_one_of(c, "*+?{") && (static_cast<unsigned char>(c) & 0xc0) != 0x80)
      atom = out.size();
    if (c == '\\') {
      ++i;
      const bool upper = next == 'S' || next == 'W';
      const char* const members = next == 's' || next == 'S'   ? kSpaceMembers
                                  : next == 'w' || next == 'W' ? kWordMembers
                                                               : nullptr;
      if (next == 'h' || next == 'H')
        refuse(source, "'\\h' means a hexadecimal digit there and a blank here");
      if (next == 'W' && in_class) refuse(source, "'\\W' in a class is not supported");
      if (members == nullptr ||
          (upper && in_class)) {  // [\S] keeps PCRE2's meaning: it differs in U+180E alone
        const bool has_braces = is_one_of(next, "pPx") && source[i + 1] == '{';
        const size_t end = has_braces ? std::min(source.find('}', i), source.size() - 1) : i;
        out.append(source, i - 1, end + 2 - i);
        i = end;
      } else if (in_class) {
        out += members;
      } else {
        out += upper ? "[^" : "[";
        out += members;
        if (next == 'w' || next == 'W') out += kLatin1WordMembers;
        out += ']';
      }
    } else if (in_class) {
      if (c == '&' && next == '&') refuse(source, "class intersection '&&' is not supported");
      if (c == '[' && next != ':') refuse(source, "a class inside a class is not supported");
      if (c == '[') {  // a POSIX class: [:alpha:]
        const size_t close = source.find(":]", i + 2);
        if (close == std::string::npos) refuse(source, "a class inside a class is not supported");
        out.append(source, i, close + 2 - i);
        i = close + 1;
        continue;
      }
      in_class = c != ']';
      out += c;
    } else if (const size_t n = c == '{' ? interval_bytes(source, i) : 0; n > 0) {
      std::string interval = source.substr(i, n);
      if (interval[1] == ',') interval.insert(1, 1, '0');
      i += n - 1;
      if (source[i + 1] == '+') {  // there it is repeated; to PCRE2 it would be possessive
        out.insert(atom, "(?:");
        interval += ')';
      }
      out += interval;
    } else {
      out += c;
      if (c == '(') groups.push_back(atom);
      if (c == '(' && next == '?')  // options: the m of there, a dot that is any character, is the s of here
        for (out += source[++i]; i + 1 < source.size() && is_one_of(source[i + 1], "imxs-");)
          out += source[++i] == 'm' ? 's' : source[i];
      if (c == ')' && !groups.empty()) {
        atom = groups.back();
        groups.pop_back();
      }
      if (c == '[') {
        in_class = true;
        if (next == '^') out += source[++i];
        if (i + 1 < source.size() && source[i + 1] == ']') {  // a first ']' is a member
          out += "\\]";
          ++i;
        }
      }
    }
  }
  return out;
}

}  // namespace

struct Pattern::Compiled {
  pcre2_code* code = nullptr;
  ~Compiled() { pcre2_code_free(code); }
};

Pattern::Pattern(const std::string& source) : compiled_(std::make_unique<Compiled>()), source_(source) {
  if (source.size() > kMaxPatternBytes) refuse(source, "longer than 64 KiB");
  // A callout in front is called wherever a match is tried: each try has a limit of steps, all of them together the time.
  const std::string rewritten = "(?C)" + to_pcre2(source);
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
