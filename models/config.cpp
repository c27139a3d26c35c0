// config.json with book-keeping of what was read.
#include "models/family.h"

namespace pith {

namespace {

constexpr double kMaxCount = 2147483648.0;

[[noreturn]] void wrong_type(const Config& config, const std::string& key, const char* expected,
                             const nlohmann::json& found) {
  throw_error(ErrorCode::kFormat, "{}: '{}' is {}, expected {}", config.where(), key, found.type_name(),
              expected);
}

}  // namespace

Config::Config(nlohmann::json json, std::string where) : json_(std::move(json)), where_(std::move(where)) {
  if (!json_.is_object())
    throw_error(ErrorCode::kFormat, "{}: {}, expected a JSON object", where_, json_.type_name());
}

bool Config::has(const std::string& key) {
  used_.insert(key);
  return json_.contains(key) && !json_.at(key).is_null();
}

bool Config::is_null(const std::string& key) const {
  return json_.contains(key) && json_.at(key).is_null();
}

uint32_t Config::count(const std::string& key) {
  if (!has(key)) throw_error(ErrorCode::kFormat, "{}: '{}' is missing, expected a count", where_, key);
  const nlohmann::json& value = json_.at(key);
  if (!value.is_number()) wrong_type(*this, key, "a count", value);
  const double number = value.get<double>();
  if (!(number >= 1 && number <= kMaxCount) || number != static_cast<double>(static_cast<uint32_t>(number)))
    throw_error(ErrorCode::kFormat, "{}: '{}' is {}, expected a whole number from 1 to 2^31", where_, key,
                value.dump());
  return static_cast<uint32_t>(number);
}

uint32_t Config::count_or(const std::string& key, uint32_t fallback) {
  return has(key) ? count(key) : fallback;
}

double Config::number(const std::string& key) {
  if (!has(key)) throw_error(ErrorCode::kFormat, "{}: '{}' is missing, expected a number", where_, key);
  const nlohmann::json& value = json_.at(key);
  if (!value.is_number()) wrong_type(*this, key, "a number", value);
  return value.get<double>();
}

double Config::number_or(const std::string& key, double fallback) {
  return has(key) ? number(key) : fallback;
}

bool Config::flag_or(const std::string& key, bool fallback) {
  if (!has(key)) return fallback;
  const nlohmann::json& value = json_.at(key);
  if (!value.is_boolean()) wrong_type(*this, key, "true or false", value);
  return value.get<bool>();
}

std::string Config::text_or(const std::string& key, const std::string& fallback) {
  if (!has(key)) return fallback;
  const nlohmann::json& value = json_.at(key);
  if (!value.is_string()) wrong_type(*this, key, "a string", value);
  return value.get<std::string>();
}

std::vector<std::string> Config::texts(const std::string& key) {
  if (!has(key)) return {};
  const nlohmann::json& value = json_.at(key);
  std::vector<std::string> texts;
  if (!value.is_array()) wrong_type(*this, key, "a list of strings", value);
  for (const nlohmann::json& entry : value) {
    if (!entry.is_string()) wrong_type(*this, key, "a list of strings", entry);
    texts.push_back(entry.get<std::string>());
  }
  return texts;
}

std::vector<double> Config::numbers(const std::string& key) {
  if (!has(key)) return {};
  const nlohmann::json& value = json_.at(key);
  std::vector<double> numbers;
  if (!value.is_array()) wrong_type(*this, key, "a list of numbers", value);
  for (const nlohmann::json& entry : value) {
    if (!entry.is_number()) wrong_type(*this, key, "a list of numbers", entry);
    numbers.push_back(entry.get<double>());
  }
  return numbers;
}

nlohmann::json Config::object_or_null(const std::string& key) {
  if (!has(key)) return nullptr;
  const nlohmann::json& value = json_.at(key);
  if (!value.is_object()) wrong_type(*this, key, "an object", value);
  return value;
}

void Config::ignore(std::initializer_list<const char*> keys) {
  ignored_.insert(keys.begin(), keys.end());
}

void Config::fill(const nlohmann::json& defaults) {
  for (const auto& [key, value] : defaults.items())
    if (!json_.contains(key)) {
      json_[key] = value;
      filled_.insert(key);
    }
}

std::vector<std::string> Config::unconsumed() const {
  std::vector<std::string> left;
  for (const auto& item : json_.items())
    if (!used_.contains(item.key()) && !ignored_.contains(item.key()) && !filled_.contains(item.key()))
      left.push_back(item.key());
  return left;
}

const std::string& Config::where() const {
  return where_;
}

}  // namespace pith
