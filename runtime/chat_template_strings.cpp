// Each operation charges for the bytes that it makes before it makes them, and copies the marks with the
// bytes.
#include "runtime/chat_template_strings.h"

#include <algorithm>

#include "runtime/unicode.h"

namespace pith {
namespace {

using Text = TemplateText;

void check_length(const Text& text) {
  if (text.size() > TemplateHeap::kMaxTextBytes)
    fault("text longer than {} bytes", TemplateHeap::kMaxTextBytes);
}

}  // namespace

Text change_case(TemplateHeap& heap, const Text& text, Case to) {
  heap.charge_text(text.memory_bytes());
  heap.charge_look(text.size());
  Text out;
  bool word_begins = true;
  text.for_each([&](char32_t c, std::string_view bytes, bool from_message) {
    const bool upper = to == Case::kUpper || (to != Case::kLower && word_begins);
    out.append(upper ? to_upper(bytes) : to_lower(bytes), from_message);
    if (to == Case::kCapitalized) word_begins = false;
    if (to == Case::kTitle) word_begins = to_upper(bytes) == to_lower(bytes);
    if (to == Case::kTitleFilter)
      word_begins = is_blank(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  });
  return out;
}

bool is_cased(const std::string& text, bool upper) {
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = code_point_at(text, at);
    if (is_upper(point.value) || is_lower(point.value)) {
      if (is_upper(point.value) != upper) return false;
      any = true;
    }
    at += point.n_bytes;
  }
  return any;
}

Text strip(TemplateHeap& heap, const Text& text, const std::string* chars, bool left, bool right) {
  heap.charge_text(text.memory_bytes());
  heap.charge((1 + text.size() / 1024) *
              (chars != nullptr ? chars->size() : 0));  // each is compared with each
  const std::string& bytes = text.bytes();
  const auto strips = [&](char32_t c) {
    if (chars == nullptr) return is_blank(c);
    for (size_t at = 0; at < chars->size();) {
      const CodePoint point = code_point_at(*chars, at);
      if (point.value == c) return true;
      at += point.n_bytes;
    }
    return false;
  };
  size_t begin = 0, end = bytes.size();
  while (left && begin < end) {
    const CodePoint point = code_point_at(bytes, begin);
    if (!strips(point.value)) break;
    begin += point.n_bytes;
  }
  while (right && end > begin) {
    const CodePoint point = code_point_before(bytes, end);
    if (!strips(point.value)) break;
    end -= point.n_bytes;
  }
  return text.slice(begin, end);
}

Text replace(TemplateHeap& heap, const Text& text, const Text& from, const Text& to, int64_t count) {
  heap.charge_search(text.size(), from.size());
  heap.charge_text(text.memory_bytes());
  Text out;
  uint64_t left = count < 0 ? UINT64_MAX : static_cast<uint64_t>(count);
  if (from.empty()) {
    text.for_each([&](char32_t, std::string_view bytes, bool from_message) {
      if (left > 0) {
        heap.charge_text(to.memory_bytes());
        out.append(to);
        --left;
      }
      out.append(bytes, from_message);
      check_length(out);
    });
    if (left > 0) out.append(to);
    check_length(out);
    return out;
  }
  size_t at = 0;
  for (; left > 0; --left) {
    const size_t found = text.bytes().find(from.bytes(), at);
    if (found == std::string::npos) break;
    heap.charge_text(to.memory_bytes());
    out.append(text, at, found);
    out.append(to);
    check_length(out);
    at = found + from.size();
  }
  out.append(text, at, text.size());
  check_length(out);
  return out;
}

std::vector<Text> split(TemplateHeap& heap, const Text& text, const Text* separator, int64_t count,
                        bool from_right) {
  if (separator != nullptr)
    heap.charge_search(text.size(), separator->size());
  else
    heap.charge_look(text.size());
  heap.charge_text(text.memory_bytes());
  if (separator != nullptr && separator->empty()) fault("split at an empty text");
  // All places to cut, each a range to drop; then as many as wanted from the side asked for.
  std::vector<std::pair<size_t, size_t>> cuts;
  const std::string& bytes = text.bytes();
  if (separator != nullptr && !from_right) {
    for (size_t at = bytes.find(separator->bytes()); at != std::string::npos;) {
      heap.charge(1);
      cuts.emplace_back(at, at + separator->size());
      at = bytes.find(separator->bytes(), at + separator->size());
    }
  } else if (separator != nullptr) {
    for (size_t end = bytes.size(); end >= separator->size();) {
      const size_t at = bytes.rfind(separator->bytes(), end - separator->size());
      if (at == std::string::npos) break;
      heap.charge(1);
      cuts.emplace_back(at, at + separator->size());
      end = at;
    }
    std::reverse(cuts.begin(), cuts.end());
  } else {
    for (size_t at = 0; at < bytes.size();) {
      const CodePoint point = code_point_at(bytes, at);
      if (is_blank(point.value)) {
        if (!cuts.empty() && cuts.back().second == at) {
          cuts.back().second += point.n_bytes;
        } else {
          heap.charge(1);
          cuts.emplace_back(at, at + point.n_bytes);
        }
      }
      at += point.n_bytes;
    }
  }
  size_t begin = 0, end = bytes.size();
  if (separator ==
      nullptr) {  // blanks at the edges cut nothing; those at the far one stay when the count ends before
    const auto trim = [&](bool right) {
      if (cuts.empty()) return;
      if (right && cuts.back().second == end) {
        end = cuts.back().first;
        cuts.pop_back();
      } else if (!right && cuts.front().first == 0) {
        begin = cuts.front().second;
        cuts.erase(cuts.begin());
      }
    };
    trim(from_right);
    if (count < 0 || cuts.size() <= static_cast<size_t>(count)) trim(!from_right);
    if (begin >= end) return {};
  }
  if (count >= 0 && cuts.size() > static_cast<size_t>(count)) {
    const auto n = static_cast<std::ptrdiff_t>(count);
    cuts = from_right ? decltype(cuts)(cuts.end() - n, cuts.end())
                      : decltype(cuts)(cuts.begin(), cuts.begin() + n);
  }
  std::vector<Text> parts;
  for (const auto& [cut_begin, cut_end] : cuts) {
    parts.push_back(text.slice(begin, cut_begin));
    begin = cut_end;
  }
  parts.push_back(text.slice(begin, end));
  return parts;
}

std::vector<Text> split_lines(TemplateHeap& heap, const Text& text) {
  heap.charge_look(text.size());
  heap.charge_text(text.memory_bytes());
  std::vector<Text> lines;
  const std::string& bytes = text.bytes();
  size_t begin = 0;
  for (size_t at = 0; at < bytes.size();) {
    const CodePoint point = code_point_at(bytes, at);
    size_t next = at + point.n_bytes;
    const char32_t c = point.value;
    const bool ends =
        (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (ends) {
      if (c == '\r' && next < bytes.size() && bytes[next] == '\n') ++next;
      heap.charge(1);
      lines.push_back(text.slice(begin, at));
      begin = next;
    }
    at = next;
  }
  if (begin < bytes.size()) lines.push_back(text.slice(begin, bytes.size()));
  return lines;
}

Text indent(TemplateHeap& heap, const Text& text, const Text& by, bool first, bool blank) {
  heap.charge_text(text.memory_bytes());
  Text out;
  size_t begin = 0;
  for (bool is_first = true; begin <= text.size(); is_first = false) {
    const size_t end = std::min(text.bytes().find('\n', begin), text.size());
    heap.charge_text(by.memory_bytes());
    if (is_first ? first : (blank || end > begin)) out.append(by);
    out.append(text, begin, std::min(end + 1, text.size()));
    check_length(out);
    begin = end + 1;
  }
  return out;
}

}  // namespace pith
