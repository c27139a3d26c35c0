// Tokenizers against what the reference libraries gave (tests/golden/make_tokenizer_goldens.py), and their edges.
#include <random>

#include "format/error.h"
#include "runtime/chat_render.h"
#include "runtime/pretokenizer.h"
#include "tests/tokenizer_files.h"

using namespace pith;
using namespace pith::test;

TEST_CASE("ids equal the reference's on every normalizer, pre-tokenizer and decoder") {
  const json golden = read_golden("tokenizer/variants.json");
  size_t n_compared = 0;
  for (const json& variant : golden["variants"]) {
    json tokenizer_json = variant["tokenizer"];
    tokenizer_json["model"].update(golden["bases"][variant["base"].get<std::string>()]);
    Folder folder;
    folder.put("tokenizer.json", tokenizer_json);
    const auto tokenizer = folder.open(1000);
    for (size_t i = 0; i < golden["strings"].size(); ++i) {
      const std::string text = golden["strings"][i];
      INFO(variant["name"] << ", string " << i << ": " << text);
      EncodeOptions options;
      options.parse_special = true;
      const std::vector<int32_t> ids = tokenizer->encode(text, options);
      INFO(text_of(*tokenizer, ids));
      CHECK(fnv(ids) == variant["ids"][i].get<uint32_t>());
      if (variant.contains("decoded"))
        CHECK(fnv(tokenizer->decode(ids)) == variant["decoded"][i].get<uint32_t>());
      ++n_compared;
    }
  }
  CHECK(n_compared == 35 * 100);
}

TEST_CASE("ids equal the reference's on hard strings with the tokenizers under ../shared") {
  if (shared_file("tokenizers").empty()) return;
  const json golden = read_golden("tokenizer/strings.json");
  for (const json& entry : golden["tokenizers"]) {
    Folder folder;
    for (const auto& [name, path] : entry["files"].items()) folder.link(name, shared_file(path));
    const auto tokenizer = folder.open(130000, entry["model_type"]);
    for (size_t i = 0; i < golden["strings"].size(); ++i) {
      INFO(entry["name"] << ", string " << i << ": " << golden["strings"][i]);
      CHECK(fnv(tokenizer->encode(golden["strings"][i].get<std::string>(), {})) ==
            entry["ids"][i].get<uint32_t>());
    }
    for (size_t i = 0; entry.contains("invalid_ids") && i < golden["invalid_latin1"].size(); ++i) {
      INFO(entry["name"] << ", invalid string " << i);
      std::string bytes;
      const std::string latin1 = golden["invalid_latin1"][i];
      for (size_t at = 0; at < latin1.size();) {
        const CodePoint point = code_point_at(latin1, at);
        bytes.push_back(static_cast<char>(point.value));
        at += point.n_bytes;
      }
      CHECK(fnv(tokenizer->encode(bytes, {})) == entry["invalid_ids"][i].get<uint32_t>());
    }
  }
}

TEST_CASE("ids equal those of ../shared/tokenizers/vectors") {
  struct Vectors {
    const char *name, *model_type;
    std::vector<std::pair<const char*, const char*>> files;
  };
  const Vectors all[] = {
      {"llama-spm", "llama", {{"tokenizer.model", "llama2/tokenizer.model"}}},
      {"llama-spm", "llama", {{"tokenizer.json", "llama2/tokenizer.json"}}},
      {"phi-3", "llama", {{"tokenizer.model", "llama2/tokenizer.model"}}},
      {"phi-3", "llama", {{"tokenizer.json", "llama2/tokenizer.json"}}},
      {"llama-bpe", "llama", {{"tokenizer.model", "llama3/tokenizer.model"}}},
      {"gpt-2", "gpt2", {{"vocab.json", "gpt2/vocab.json"}, {"merges.txt", "gpt2/merges.txt"}}},
  };
  if (shared_file("tokenizers/vectors").empty()) return;
  const auto read = [](const std::string& name) {
    std::ifstream stream(shared_file("tokenizers/vectors/" + name), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  };
  for (const Vectors& vectors : all) {
    Folder folder;
    for (const auto& [name, path] : vectors.files)
      folder.link(name, shared_file(std::string("tokenizers/") + path));
    const auto tokenizer = folder.open(130000, vectors.model_type);
    const std::string texts = read(std::string(vectors.name) + ".inp");
    std::istringstream lines(read(std::string(vectors.name) + ".out"));
    const std::string separator = "\n__ggml_vocab_test__\n";
    size_t n_texts = 0;
    for (size_t at = 0; at <= texts.size(); ++n_texts) {
      const size_t end = std::min(texts.find(separator, at), texts.size());
      std::string line;  // the last one may be empty and without "\n"
      std::getline(lines, line);
      std::istringstream numbers(line);
      const std::vector<int32_t> expected(std::istream_iterator<int32_t>(numbers), {});
      const std::string text = texts.substr(at, end - at);
      INFO(vectors.name << " " << n_texts << ": " << text);
      const auto ids = tokenizer->encode(text, {});
      CHECK(ids == expected);
      CHECK(tokenizer->decode(ids) == text);
      at = end + separator.size();
    }
    CHECK(n_texts == 47);
  }
}

// Expected as tokenizers 0.23.3 splits: Split(Regex(pattern), "isolated"), and Whitespace.
TEST_CASE("patterns mean what they mean to the reference") {
  const auto split = [](const std::vector<std::string>& ops, const std::string& text) {
    EncodeBudget budget(text.size());
    const Words words = PreTokenizer(ops).split(text, false, true, budget);
    std::string out;
    for (const TextRange range : words.ranges) {
      if (!out.empty()) out.push_back('|');
      out.append(words.text, range.begin, range.end - range.begin);
    }
    return out;
  };
  const char* const cases[][3] = {
      {"\\p{N}{1,3}+", "1234567x", "1234567|x"},  // no possessive form, as {1,3} in all others is
      {"\\p{N}{1,3}", "1234567x", "123|456|7|x"},
      {"a{2}+", "aaaaab", "aaaa|ab"},
      {"a{2}++", "aaaaab", "aaaa|ab"},
      {"a{2,}+", "aaaaab", "aaaaa|b"},
      {"(ab){2}+c", "ababababc", "ababababc"},
      {"[ab]{2}+", "ababa", "abab|a"},
      {"é{2}+", "ééééé", "éééé|é"},
      {"\\x{e9}{2}+", "ééééé", "éééé|é"},
      {"\\A\\p{Nd}{1,2}(?=\\p{Nd}{3}+\\z)", "12345678", "12|345678"},
      {"a{,2}", "aaaab{,2}", "aa|aa|b|{|,|2|}"},
      {"a{,2}+", "aaaab", "aaaa|b"},
      {"a{2,3}?", "aaaab", "aa|aa|b"},
      {"a{x}", "a{x}a", "a{x}|a"},
      {"(?m)a.b", "a\nba.b", "a\nb|a.b"},
      {"(?m:a.b)", "a\nba.b", "a\nb|a.b"},
      {"(?-m:a.b)(?i)A", "a\nbaaxba", "a\nba|axba"},
      {"a++", "aaab", "aaa|b"},
      {"\\w+", "m²½ ¾", "m²½| |¾"},
      {"\\W+", "m²½ ¾", "m²½| |¾"},
      {"[\\w]+", "m²½ ¾", "m|²½ ¾"},
      {"\\w+", "ⅷa Ⓐb 🄰c x\u200cy e\u0301", "ⅷa| |Ⓐb| |🄰c| |x|\u200c|y| |e\u0301"},
  };
  for (const auto& [pattern, text, expected] : cases) {
    INFO(pattern);
    CHECK(split({"split", pattern, "isolated", "0"}, text) == expected);
  }
  CHECK_THROWS_WITH(split({"split", "[^\\W\\d]+", "isolated", "0"}, ""), Catch::Contains("'\\W' in a class"));
  json tokenizer_json = byte_level_json();
  tokenizer_json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Whitespace"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json);
  const auto ops = folder.import(kConfig).get<std::vector<std::string>>("tokenizer.pretokenizer");
  CHECK(split(ops, "ⅷa Ⓐb 🄰c x\u200cy _z e\u0301 ²3") == "ⅷa|Ⓐb|🄰c|x\u200cy|_z|e\u0301|²|3");
}

TEST_CASE("byte-level ids give back the bytes of any text") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  const auto tokenizer = folder.open(500);
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    std::string text(random() % 60, '\0');
    for (char& c : text) c = static_cast<char>(random() % 3 == 0 ? random() : 32 + random() % 95);
    CHECK(tokenizer->decode(tokenizer->encode(text, {}), true) == text);
  }
}

TEST_CASE("pieces joined are the decoded text without its dummy prefix") {
  Folder folder;
  folder.put("tokenizer.json", pieces_json());
  const auto tokenizer = folder.open(1000);
  for (const std::string text : {"token file", "\n\xf0\x9f\x98\x80 x", "  two", "\x01\xff"}) {
    std::string joined;
    const auto ids = tokenizer->encode(text, {});
    for (const int32_t id : ids) joined += tokenizer->piece(id);
    CHECK(joined == fmt::format(" {}", tokenizer->decode(ids)));
  }
}

TEST_CASE("ten megabytes of one letter are one word of bounded stack") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  const auto tokenizer = folder.open(500);
  for (const char c : {'a', ' ', '\n', '1', '!'}) {
    const std::string text(10 << 20, c);
    CHECK(tokenizer->decode(tokenizer->encode(text, {})) == text);
  }
}

TEST_CASE("what a file's ops put into a text is bounded") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  Metadata metadata = folder.import(kConfig);
  const std::string megabyte(1 << 20, 'x');
  const auto many = [](const std::vector<std::string>& op) {
    std::vector<std::string> ops;
    for (int i = 0; i < 40; ++i) ops.insert(ops.end(), op.begin(), op.end());
    return ops;
  };
  // A trie in which "a" alone is a key: the root's child by 'a' has a leaf, whose text begins at 0.
  std::string charsmap("\x00\x04\x00\x00", 4);
  std::vector<uint32_t> units(256);
  units[0] = 0, units['a'] = 'a' | 1u << 8 | 1u << 10;
  units['a' ^ 1] = 1u << 31;
  charsmap.append(reinterpret_cast<const char*>(units.data()), 1024).append(megabyte).push_back('\0');
  std::string base64;
  const char* const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < charsmap.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k)
      bits = bits << 8 | (i + k < charsmap.size() ? uint8_t(charsmap[i + k]) : 0);
    for (int k = 18; k >= 0; k -= 6) base64.push_back(alphabet[bits >> k & 63]);
  }
  for (size_t i = charsmap.size(); i % 3 != 0; ++i) base64[base64.size() - (3 - i % 3)] = '=';
  const std::pair<const char*, std::vector<std::string>> cases[] = {
      {"tokenizer.pretokenizer", many({"metaspace", "  ", "never", "0"})},
      {"tokenizer.pretokenizer", {"metaspace", megabyte, "never", "0"}},
      {"tokenizer.pretokenizer", {"split", " ", "isolated", "0", "metaspace", megabyte, "always", "0"}},
      {"tokenizer.normalizer", many({"replace", " ", "  "})},
      {"tokenizer.normalizer", {"replace", "a", megabyte}},
      {"tokenizer.normalizer", {"replace_pattern", "a", megabyte}},
      {"tokenizer.normalizer", many({"prepend", std::string(65536, 'x')})},
      {"tokenizer.normalizer", {"charsmap", base64}},
  };
  std::string text;
  for (int i = 0; i < 2000; ++i) text += "a ";
  for (const auto& [key, ops] : cases) {
    Metadata changed = metadata;
    changed.set(key, ops);
    const auto tokenizer = Tokenizer::open(changed, 500);
    INFO(key << " " << ops[0]);
    CHECK_THROWS_WITH(tokenizer->encode(text, {}),
                      Catch::Contains("4000 bytes of text grow by more than 1024256"));
  }
}

TEST_CASE("the time of a pattern's matches is bounded over all of them") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  Metadata metadata = folder.import(kConfig);
  // No match of these is hard; there are many, or many places without one.
  for (const char* pattern : {"(?:a|aa){18}c|a", "(?:a|aa){18}c"}) {
    metadata.set("tokenizer.pretokenizer", std::vector<std::string>{"split", pattern, "isolated", "0"});
    const auto tokenizer = Tokenizer::open(metadata, 500);
    CHECK_THROWS_WITH(tokenizer->encode(std::string(3000, 'a') + "c", {}),
                      Catch::Contains("ran out of time"));
  }
}

TEST_CASE("the holder passes on whole code points only") {
  Utf8Holder holder;
  std::string out;
  const std::string text = "a\xc3\xa9\xf0\x9f\x98\x80z";
  size_t n_empty = 0;
  for (const char c : text) {
    const std::string part = holder.push({&c, 1});
    n_empty += part.empty();
    out += part;
  }
  CHECK(n_empty == 1 + 3);
  CHECK(out == text);
  CHECK(holder.push("\xf0\x9f") == "");
  CHECK(holder.flush() == "\xef\xbf\xbd");
  CHECK(holder.push("\xff") == "\xef\xbf\xbd");
  CHECK(holder.push("\xe2\x82") == "");
  CHECK(holder.push("x") == "\xef\xbf\xbd\xef\xbf\xbdx");
  CHECK(holder.push("\xed\xa0") == "\xef\xbf\xbd\xef\xbf\xbd");  // would be a surrogate
}
