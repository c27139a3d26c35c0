// Checkpoint folders for tokenizer tests: made in a temporary folder, imported, opened.
#pragma once
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "convert/tokenizer_import.h"
#include "runtime/tokenizer.h"
#include "skip.h"
#include "temp_folder.h"

namespace pith::test {

namespace fs = std::filesystem;
using nlohmann::json;

// A checkpoint's folder.
class Folder {
 public:
  fs::path path() const { return folder_.path(); }
  Folder& put(const std::string& name, const std::string& bytes) {
    folder_.write(name, bytes);
    return *this;
  }
  Folder& put(const std::string& name, const json& value) { return put(name, value.dump()); }
  Folder& link(const std::string& name, const fs::path& target) {
    fs::create_symlink(fs::absolute(target), folder_ / name);
    return *this;
  }
  Metadata import(const json& config) const {
    Metadata metadata;
    import_tokenizer(path(), config, metadata);
    return Metadata::parse(metadata.serialize());
  }
  std::unique_ptr<Tokenizer> open(uint32_t vocab_size, const std::string& model_type = "llama") const {
    return Tokenizer::open(import({{"vocab_size", vocab_size}, {"model_type", model_type}}), vocab_size);
  }

 private:
  TempFolder folder_;
};

inline json read_golden(const std::string& name) {
  std::ifstream stream(std::string(PITH_SOURCE_DIR) + "/tests/golden/" + name);
  return json::parse(stream);
}

// A file under ../shared, or an empty path: then the caller returns, having said SKIP.
inline fs::path shared_file(const std::string& name) {
  const fs::path path = fs::path(PITH_SHARED_DIR) / name;
  if (fs::exists(path)) return path;
  skip(path.string() + " is absent");
  return {};
}

inline uint32_t fnv(std::string_view bytes) {
  uint32_t hash = 0x811c9dc5;
  for (const char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 0x01000193;
  return hash;
}
inline uint32_t fnv(const std::vector<int32_t>& ids) {
  return fnv(std::string_view(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)));
}

// The code of the Error that f throws, its message in `message`; 0 when it throws none.
template <typename F>
int error_of(const F& f, std::string& message) {
  try {
    f();
  } catch (const Error& error) {
    message = error.what();
    return static_cast<int>(error.code());
  }
  return 0;
}

inline const json kConfig = json::parse(R"({"vocab_size": 500})");

// A byte-level tokenizer.json of the golden base vocabulary with an added "<|end|>" (special) and "<|x|>" (not).
inline json byte_level_json() {
  const json golden = read_golden("tokenizer/variants.json");
  json tokenizer = golden["variants"][0]["tokenizer"];
  REQUIRE(golden["variants"][0]["name"] == "gpt2");
  tokenizer["model"].update(golden["bases"]["bytes"]);
  tokenizer["added_tokens"] = {
      {{"id", 460}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}},
      {{"id", 461}, {"content", "<|x|>"}, {"special", false}, {"normalized", false}}};
  return tokenizer;
}

inline json pieces_json() {
  const json golden = read_golden("tokenizer/variants.json");
  for (const json& variant : golden["variants"])
    if (variant["name"] == "llama2") {
      json tokenizer = variant["tokenizer"];
      tokenizer["model"].update(golden["bases"]["pieces"]);
      return tokenizer;
    }
  throw std::runtime_error("no variant llama2");
}

inline std::string text_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string out;
  for (const int32_t id : ids) out += fmt::format("[{}]", tokenizer.piece(id, true));
  return out;
}

}  // namespace pith::test
