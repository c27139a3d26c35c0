// Small JSON files beside a checkpoint (config.json, index, ...), read with limits: size, nesting, no duplicate keys.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace pith {

constexpr uint64_t kMaxJsonBytes = 64 << 20;
constexpr int kMaxJsonDepth = 64;

// Throws Error(kIo) when the file cannot be read or is no regular file, Error(kFormat) when it is larger than max_bytes.
std::string read_text_file(const std::string& path, uint64_t max_bytes = kMaxJsonBytes);
bool file_exists(const std::string& path);

// Throws Error(kFormat) naming `where`, byte and cause. Keys with control characters are refused, unless any_key: a
// vocabulary has them.
nlohmann::json parse_json(std::string_view text, const std::string& where, bool any_key = false);
nlohmann::json read_json_file(const std::string& path, bool any_key = false);

}  // namespace pith
