// Two passes: events first (depth, duplicate keys), then the tree.
#include "convert/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>
#include <vector>

#include "format/error.h"
#include "format/io.h"

namespace pith {

namespace {

class LimitHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  LimitHandler(const std::string& where, bool any_key) : where_(where), any_key_(any_key) {}
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override {
    keys_.emplace_back();
    return enter();
  }
  bool end_object() override {
    keys_.pop_back();
    return leave();
  }
  bool start_array(size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool key(string_t& key) override {
    if (!any_key_ &&
        std::any_of(key.begin(), key.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; }))
      throw_error(ErrorCode::kFormat, "{}: a key with a control character", where_);
    if (!keys_.back().insert(key).second)
      throw_error(ErrorCode::kFormat, "{}: key '{}' appears twice", where_, key);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw_error(ErrorCode::kFormat, "{}: not valid JSON at byte {}", where_, position);
  }

 private:
  bool enter() {
    if (++depth_ > kMaxJsonDepth)
      throw_error(ErrorCode::kFormat, "{}: nested deeper than {}", where_, kMaxJsonDepth);
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }
  const std::string& where_;
  bool any_key_;
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;
};

}  // namespace

std::string read_text_file(const std::string& path, uint64_t max_bytes) {
  const File file(Io::system(), path, O_RDONLY | O_CLOEXEC);
  const uint64_t size = file.size_bytes();
  if (size > max_bytes)
    throw_error(ErrorCode::kFormat, "{}: {} bytes, the limit is {}", path, size, max_bytes);
  std::string text(static_cast<size_t>(size), '\0');
  if (file.read_at(0, text.data(), text.size()) < text.size())
    throw_error(ErrorCode::kIo, "{}: shrank while being read", path);
  return text;
}

bool file_exists(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

nlohmann::json parse_json(std::string_view text, const std::string& where, bool any_key) {
  LimitHandler limits(where, any_key);
  nlohmann::json::sax_parse(text.begin(), text.end(), &limits);
  return nlohmann::json::parse(text.begin(), text.end());
}

nlohmann::json read_json_file(const std::string& path, bool any_key) {
  return parse_json(read_text_file(path), path, any_key);
}

}  // namespace pith
