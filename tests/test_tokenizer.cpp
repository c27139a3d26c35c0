// Tokenizers against what the reference libraries gave (tests/golden/make_tokenizer_goldens.py), and their edges.
#include <random>

#include "format/error.h"
#include "runtime/chat_render.h"
#include "tests/tokenizer_files.h"

using namespace pith;
using namespace pith_test;

namespace {

const json kConfig = json::parse(R"({"vocab_size": 500})");

// A byte-level tokenizer.json of the golden base vocabulary with an added "<|end|>" (special) and "<|x|>" (not).
json byte_level_json() {
  const json golden = read_golden("tokenizer/variants.json");
  json tokenizer = golden["variants"][0]["tokenizer"];
  REQUIRE(golden["variants"][0]["name"] == "gpt2");
  tokenizer["model"].update(golden["bases"]["bytes"]);
  tokenizer["added_tokens"] = {
      {{"id", 460}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}},
      {{"id", 461}, {"content", "<|x|>"}, {"special", false}, {"normalized", false}}};
  return tokenizer;
}

json pieces_json() {
  const json golden = read_golden("tokenizer/variants.json");
  for (const json& variant : golden["variants"])
    if (variant["name"] == "llama2") {
      json tokenizer = variant["tokenizer"];
      tokenizer["model"].update(golden["bases"]["pieces"]);
      return tokenizer;
    }
  throw std::runtime_error("no variant llama2");
}

std::string text_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string out;
  for (const int32_t id : ids) out += fmt::format("[{}]", tokenizer.piece(id, true));
  return out;
}

}  // namespace

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

TEST_CASE("plain text never becomes a special token") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json())
      .put("tokenizer_config.json", json{{"eos_token", "<|end|>"}});
  const auto tokenizer = folder.open(500);
  for (const int32_t id : tokenizer->encode("a<|end|>b<|end|>", {})) CHECK_FALSE(tokenizer->is_special(id));
  EncodeOptions options;
  options.parse_special = true;
  const auto ids = tokenizer->encode("a<|end|>b", options);
  CHECK(ids == std::vector<int32_t>{tokenizer->find("a"), 460, tokenizer->find("b")});
  CHECK(tokenizer->decode(ids) == "ab");
  CHECK(tokenizer->decode(ids, true) == "a<|end|>b");
  // An added token that is not special is part of the ordinary vocabulary.
  CHECK(tokenizer->encode("<|x|>", {}) == std::vector<int32_t>{461});
}

TEST_CASE("a vocabulary word that is special is not found by merges") {
  json tokenizer_json = byte_level_json();
  const json& merges = tokenizer_json["model"]["merges"];
  const std::string merge = merges[0];  // two one-byte tokens
  const std::string joined = merge.substr(0, merge.find(' ')) + merge.substr(merge.find(' ') + 1);
  const int32_t id = tokenizer_json["model"]["vocab"][joined];
  tokenizer_json["added_tokens"].push_back(
      {{"id", id}, {"content", joined}, {"special", true}, {"normalized", false}});
  tokenizer_json["model"]["ignore_merges"] = true;
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json);
  const auto tokenizer = folder.open(500);
  REQUIRE(joined.find("\xc4") == std::string::npos);  // plain ASCII, or the text below would not be its bytes
  for (const int32_t found : tokenizer->encode(joined + " " + joined, {})) CHECK(found != id);
}

// A special token of one symbol would be found before any merge.
TEST_CASE("a vocabulary symbol that is special is not found in plain text") {
  Folder bytes, pieces, unigram;
  json tokenizer_json = byte_level_json();
  const int32_t bang = tokenizer_json["model"]["vocab"]["!"];
  const json added = {{"content", "!"}, {"special", true}, {"normalized", false}};
  const auto with = [&](json into, int32_t id) {
    into["added_tokens"].push_back(added);
    into["added_tokens"].back()["id"] = id;
    return into;
  };
  const auto bytes_tokenizer = bytes.put("tokenizer.json", with(tokenizer_json, bang)).open(500);
  CHECK(bytes_tokenizer->encode("a!", {}) == bytes_tokenizer->encode("a", {}));

  json pieces_tokenizer = pieces_json();
  const int32_t x = pieces_tokenizer["model"]["vocab"]["x"];
  pieces_tokenizer = with(pieces_tokenizer, x);
  pieces_tokenizer["added_tokens"].back()["content"] = "x";
  const auto with_fallback = pieces.put("tokenizer.json", pieces_tokenizer).open(1000);
  const std::vector<int32_t> ids = with_fallback->encode("ax", {});
  CHECK(ids.back() == with_fallback->find("<0x78>"));
  CHECK(with_fallback->decode(ids) == "ax");

  const json golden = read_golden("tokenizer/variants.json");
  for (const json& variant : golden["variants"])
    if (variant["name"] == "unigram") {
      json model = variant["tokenizer"];
      model["model"].update(golden["bases"]["unigram"]);
      const json& vocab = model["model"]["vocab"];
      const auto found =
          std::find_if(vocab.begin(), vocab.end(), [](const json& entry) { return entry[0] == "!"; });
      REQUIRE(found != vocab.end());
      const int32_t id = static_cast<int32_t>(found - vocab.begin());
      const auto tokenizer = unigram.put("tokenizer.json", with(model, id)).open(500);
      CHECK(tokenizer->encode("a!", {}).back() == 0);  // unknown
    }
}

TEST_CASE("special ranges limit where special tokens are found") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  const auto tokenizer = folder.open(500);
  const std::string text = "<|end|>x<|end|>y<|end|>";
  EncodeOptions options;
  options.parse_special = true;
  const TextRange ranges[] = {{0, 7}, {9, 16}};  // the second lacks the first byte of its token
  options.special_ranges = ranges;
  const auto ids = tokenizer->encode(text, options);
  CHECK(ids.front() == 460);
  CHECK(std::count(ids.begin(), ids.end(), 460) == 1);
  CHECK(tokenizer->decode(ids, true) == text);
}

TEST_CASE("a forged token in a message stays text and the template's own is a token") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  const auto tokenizer = folder.open(500);
  const std::vector<ChatSegment> segments = {
      {"<|end|>", true}, {"<|end|>", false}, {" <|e", true}, {"nd|>", false}, {"<|end|>", true}};
  const auto ids = encode_chat(*tokenizer, segments);
  CHECK(std::count(ids.begin(), ids.end(), 460) == 2);
  CHECK(ids.front() == 460);
  CHECK(ids.back() == 460);
  CHECK(tokenizer->decode(ids, true) == "<|end|><|end|> <|end|><|end|>");
  CHECK(encode_chat(*tokenizer, {{"<|end|>", false}}).size() > 1);
}

TEST_CASE("a special token that is matched after normalization is still found in chat") {
  json tokenizer_json = pieces_json();
  const int32_t id = static_cast<int32_t>(tokenizer_json["model"]["vocab"].size());
  tokenizer_json["added_tokens"] = {
      {{"id", id}, {"content", "<|end|>"}, {"special", true}, {"normalized", true}}};
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json);
  const auto tokenizer = folder.open(1000);
  const auto ids =
      encode_chat(*tokenizer, {{"a", false}, {"<|end|>", true}, {"<|end|>", false}, {"<|end|>", true}});
  CHECK(std::count(ids.begin(), ids.end(), id) == 2);
}

TEST_CASE("continuation leaves out the dummy prefix") {
  Folder folder;
  folder.put("tokenizer.json", pieces_json());
  const auto tokenizer = folder.open(1000);
  EncodeOptions options;
  options.continuation = true;
  CHECK(tokenizer->token_text(tokenizer->encode("token", {}).front()).starts_with("\xe2\x96\x81"));
  const auto ids = tokenizer->encode("token", options);
  CHECK_FALSE(tokenizer->token_text(ids.front()).starts_with("\xe2\x96\x81"));
  CHECK(tokenizer->piece(tokenizer->encode("token", {}).front()).starts_with(' '));
  CHECK(tokenizer->decode(tokenizer->encode("token", {})) == "token");
}

TEST_CASE("sentencepiece continuation and control symbols") {
  const fs::path model = shared_file("tokenizers/llama2/tokenizer.model");
  if (model.empty()) return;
  Folder folder;
  folder.link("tokenizer.model", model);
  const auto tokenizer = folder.open(32000);
  EncodeOptions options;
  options.continuation = true;
  CHECK(tokenizer->token_text(tokenizer->encode("Hello", {})[0]) == "\xe2\x96\x81Hello");
  CHECK(tokenizer->token_text(tokenizer->encode("Hello", options)[0]) == "Hello");
  CHECK(tokenizer->bos_id() == 1);
  CHECK(tokenizer->adds_bos());
  CHECK(tokenizer->eos_ids() == std::vector<int32_t>{2});
  options = {};
  options.add_bos = true;
  CHECK(tokenizer->encode("", options) == std::vector<int32_t>{1});
  const auto plain = tokenizer->encode("<s></s>", {});
  CHECK(std::find(plain.begin(), plain.end(), 1) == plain.end());
  options.parse_special = true;
  CHECK(tokenizer->encode("</s>", options) == std::vector<int32_t>{1, 2});
  CHECK(tokenizer->piece(2) == "");
  CHECK(tokenizer->piece(2, true) == "</s>");
  CHECK(tokenizer->piece(13) == "\n");  // "<0x0A>"
  CHECK(tokenizer->token_text(13) == "<0x0A>");
  CHECK(tokenizer->find("<0x0A>") == 13);
  CHECK(tokenizer->find("no such token") == -1);
  CHECK(tokenizer->piece(-1) == "");
  CHECK(tokenizer->piece(32000) == "");
}

TEST_CASE("a user-defined piece that the configuration calls special is not made from plain text") {
  const fs::path model = shared_file("tokenizers/llama2/tokenizer.model");
  if (model.empty()) return;
  Folder folder;
  folder.link("tokenizer.model", model);
  // An ordinary piece, and a token beyond the model.
  folder.put("tokenizer_config.json",
             json{{"added_tokens_decoder",
                   {{"15043", {{"content", "\u2581Hello"}, {"special", true}}},
                    {"32000", {{"content", "<|user|>"}, {"special", true}, {"rstrip", true}}}}}});
  const auto tokenizer = folder.open(32001);
  for (const int32_t id : tokenizer->encode("Hello <|user|>", {})) CHECK_FALSE(tokenizer->is_special(id));
  EncodeOptions options;
  options.parse_special = true;
  const auto ids = tokenizer->encode("a<|user|> \n b", options);
  CHECK(text_of(*tokenizer, ids) == "[ a][<|user|>][ b]");
}

TEST_CASE("legacy says whether text after a special token gets the dummy prefix") {
  const fs::path model = shared_file("tokenizers/llama2/tokenizer.model");
  if (model.empty()) return;
  for (const bool legacy : {true, false}) {
    Folder folder;
    folder.link("tokenizer.model", model).put("tokenizer_config.json", json{{"legacy", legacy}});
    const auto ids = encode_chat(*folder.open(32000), {{"<s>", true}, {"Hello", false}, {"</s>", true}});
    CHECK(ids == (legacy ? std::vector<int32_t>{1, 15043, 2} : std::vector<int32_t>{1, 10994, 2}));
  }
}

TEST_CASE("tokenizer.json beside a sentencepiece model has the word on dummy prefixes") {
  const fs::path model = shared_file("tokenizers/llama2/tokenizer.model");
  if (model.empty()) return;
  const std::vector<ChatSegment> chat = {{"<s>", true}, {"Hello", false}};
  for (const char* scheme : {"always", "first"}) {
    Folder folder;
    folder.link("tokenizer.model", model)
        .put("tokenizer_config.json", json{{"legacy", scheme == std::string("first")}});
    folder.put(
        "tokenizer.json",
        json{{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", scheme}}}});
    CHECK(folder.open(32000)->prefix_each() == (scheme == std::string("always")));
  }
  Folder folder;
  folder.link("tokenizer.model", model)
      .link("tokenizer.json", shared_file("tokenizers/llama2/tokenizer.json"));
  folder.put("tokenizer_config.json", json{{"legacy", false}});
  CHECK(encode_chat(*folder.open(32000), chat) == std::vector<int32_t>{1, 15043});
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

TEST_CASE("end of sequence is the union of all sources") {
  json tokenizer_json = byte_level_json();
  for (int i = 2; i < 7; ++i)
    tokenizer_json["added_tokens"].push_back(
        {{"id", 460 + i}, {"content", "<|t" + std::to_string(i) + "|>"}, {"special", true}});
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json)
      .put("tokenizer_config.json", json{{"eos_token", {{"content", "<|end|>"}}}, {"bos_token", nullptr}})
      .put("special_tokens_map.json", json{{"eos_token", "<|t2|>"}})
      .put("generation_config.json", json{{"eos_token_id", {463, 464}}, {"bos_token_id", 466}});
  json config = kConfig;
  config["eos_token_id"] = 465;
  const auto tokenizer = Tokenizer::open(folder.import(config), 500);
  CHECK(tokenizer->eos_ids() == std::vector<int32_t>{460, 462, 463, 464, 465});
  CHECK(tokenizer->is_eos(464));
  CHECK_FALSE(tokenizer->is_eos(461));
  CHECK(tokenizer->bos_id() == -1);  // null in tokenizer_config.json is an answer
}

TEST_CASE("the post-processor or the configuration says whether a BOS is added") {
  json tokenizer_json = byte_level_json();
  tokenizer_json["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"},
         {"single",
          {{{"SpecialToken", {{"id", "<|end|>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}}}}}}}}}};
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json);
  CHECK(folder.open(500)->adds_bos());
  CHECK(folder.open(500)->bos_id() == 460);
  folder.put("tokenizer_config.json", json{{"add_bos_token", false}});
  CHECK_FALSE(folder.open(500)->adds_bos());
}

TEST_CASE("sampling defaults come from generation_config.json when it samples") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  folder.put("generation_config.json",
             json{{"do_sample", true}, {"temperature", 0.6}, {"top_k", 20}, {"top_p", 1}});
  const Metadata metadata = folder.import(kConfig);
  CHECK(metadata.get<double>("generation.temperature") == 0.6);
  CHECK(metadata.get<uint64_t>("generation.top_k") == 20);
  CHECK(metadata.get<double>("generation.top_p") == 1.0);
  CHECK_FALSE(metadata.has("generation.min_p"));
  folder.put("generation_config.json", json{{"temperature", 0.6}});
  CHECK_FALSE(folder.import(kConfig).has("generation.temperature"));
}

TEST_CASE("import refuses by name what it does not understand") {
  struct Case {
    const char* pointer;
    json value;
    ErrorCode code;
    const char* message;
  };
  const Case cases[] = {
      {"/normalizer", {{"type", "Precompiled"}}, ErrorCode::kFormat, "'precompiled_charsmap' is missing"},
      {"/normalizer",
       {{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}},
       ErrorCode::kFormat,
       "a trie of 0 bytes in 0"},
      {"/normalizer",
       {{"type", "Precompiled"}, {"precompiled_charsmap", "BAAAAAAAAABh"}},  // one unit, then "a"
       ErrorCode::kFormat,
       "the last text does not end"},
      {"/pre_tokenizer",
       {{"type", "UnicodeScripts"}},
       ErrorCode::kUnsupported,
       "pre_tokenizer: type 'UnicodeScripts'"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "a("}}}, {"content", ""}},
       ErrorCode::kUnsupported,
       "pattern 'a('"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "[a-z&&[^x]]"}}}, {"content", ""}},
       ErrorCode::kUnsupported,
       "class intersection"},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Odd"}},
       ErrorCode::kUnsupported,
       "behavior 'Odd'"},
      {"/decoder", {{"type", "WordPiece"}}, ErrorCode::kUnsupported, "decoder: type 'WordPiece'"},
      {"/decoder", nullptr, ErrorCode::kFormat, "'decoder' is missing"},
      {"/post_processor",
       {{"type", "BertProcessing"}},
       ErrorCode::kUnsupported,
       "post_processor: type 'BertProcessing'"},
      {"/model/type", "WordPiece", ErrorCode::kUnsupported, "model: type 'WordPiece'"},
      {"/model/end_of_word_suffix", "</w>", ErrorCode::kUnsupported, "end_of_word_suffix '</w>'"},
      {"/model/dropout", 0.1, ErrorCode::kUnsupported, "dropout"},
      {"/model/unk_token", "<none>", ErrorCode::kFormat, "unk_token '<none>'"},
      {"/model/merges", json::array({"a nothing"}), ErrorCode::kFormat, "needs token 'nothing'"},
      {"/model/merges", json::array({"a b c"}), ErrorCode::kFormat, "merge 0 is 'a b c'"},
      {"/model/vocab/a", "x", ErrorCode::kFormat, "id of 'a'"},
      {"/model/vocab/a", 1, ErrorCode::kFormat, "belongs to"},
      {"/model/vocab/a", 99999999, ErrorCode::kFormat, "vocab_size is 500"},
      {"/added_tokens/0/id", 500, ErrorCode::kFormat, "501 tokens, config.json's vocab_size is 500"},
  };
  for (const Case& c : cases) {
    json tokenizer_json = byte_level_json();
    tokenizer_json[json::json_pointer(c.pointer)] = c.value;
    Folder folder;
    folder.put("tokenizer.json", tokenizer_json);
    std::string message;
    INFO(c.pointer << " = " << c.value);
    CHECK(error_of([&] { folder.open(500); }, message) == static_cast<int>(c.code));
    CHECK_THAT(message, Catch::Contains(c.message));
  }
}

TEST_CASE(
    "import refuses a folder without tokenizer, a bare tiktoken file of unknown family and broken files") {
  std::string message;
  Folder empty;
  CHECK(error_of([&] { empty.open(10); }, message) == static_cast<int>(ErrorCode::kUnsupported));
  CHECK_THAT(message, Catch::Contains("no tokenizer found"));
  Folder tiktoken;
  std::string lines;
  const char* const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (int byte = 0; byte < 256; ++byte)
    lines +=
        std::string{alphabet[byte >> 2], alphabet[(byte & 3) << 4]} + "== " + std::to_string(byte) + "\n";
  tiktoken.put("tokenizer.model", lines + "YWI= 256\nYWJj 257\n");  // ab, abc
  CHECK(tiktoken.open(258, "llama")->encode("abc abd", {}) == std::vector<int32_t>{257, ' ', 256, 'd'});
  CHECK(error_of([&] { tiktoken.open(258, "other"); }, message) == static_cast<int>(ErrorCode::kUnsupported));
  CHECK_THAT(message, Catch::Contains("no splitting pattern") && Catch::Contains("'other'"));
  CHECK(error_of([&] { tiktoken.open(257, "llama"); }, message) == static_cast<int>(ErrorCode::kFormat));
  CHECK_THAT(message, Catch::Contains("258 tokens"));
  for (const char* broken : {"YWI= 256\nYWI 257\n", "YWI= 256\nYWJj 256\n", "YWI= 1\n(?== 2\n", "nonsense"}) {
    Folder folder;
    folder.put("tokenizer.model", std::string(broken));
    CHECK(error_of([&] { folder.open(300); }, message) == static_cast<int>(ErrorCode::kFormat));
  }
}

TEST_CASE("opening rejects metadata that breaks a rule") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  const Metadata good = folder.import(kConfig);
  struct Case {
    const char* key;
    MetadataValue value;
  };
  using Numbers = std::vector<uint32_t>;
  const Case cases[] = {
      {"tokenizer.kind", std::string("other")},
      {"tokenizer.merges", Numbers{0, 1}},
      {"tokenizer.merges", Numbers{0, 1, 460}},
      {"tokenizer.merges", Numbers{0, 1, 2}},
      {"tokenizer.token_ends", Numbers{1, 2}},
      {"tokenizer.token_kinds", Bytes(3)},
      {"tokenizer.token_kinds", Bytes(460, 4)},
      {"tokenizer.added_ids", Numbers{500, 461}},
      {"tokenizer.added_ids", Numbers{460, 460}},
      {"tokenizer.added_flags", Numbers{32, 0}},
      {"tokenizer.added_flags", Numbers{0}},
      {"tokenizer.eos_ids", Numbers{500}},
      {"tokenizer.bos_id", uint64_t{500}},
      {"tokenizer.adds_bos", true},
      {"tokenizer.unk_id", uint64_t{460}},
      {"tokenizer.normalizer", std::vector<std::string>{"odd"}},
      {"tokenizer.normalizer", std::vector<std::string>{"prepend"}},
      {"tokenizer.pretokenizer", std::vector<std::string>{"split", "a", "odd", "0"}},
      {"tokenizer.pretokenizer", std::vector<std::string>{"digits", "2"}},
  };
  for (const Case& c : cases) {
    Metadata bad = good;
    bad.set(c.key, c.value);
    std::string message;
    INFO(c.key);
    CHECK(error_of([&] { Tokenizer::open(bad, 500); }, message) == static_cast<int>(ErrorCode::kFormat));
  }
  std::string message;
  CHECK(error_of([&] { Tokenizer::open(good, 459); }, message) == static_cast<int>(ErrorCode::kFormat));
  CHECK_NOTHROW(Tokenizer::open(good, 500));
}

TEST_CASE("opening rejects sentencepiece models with faults that the library trusts") {
  const auto open = [](const std::string& model) {
    Metadata metadata;
    metadata.set("tokenizer.kind", std::string("sentencepiece"));
    metadata.set("tokenizer.sentencepiece", Bytes(model.begin(), model.end()));
    metadata.set("tokenizer.added_ids", std::vector<uint32_t>{});
    metadata.set("tokenizer.added_texts", std::vector<std::string>{});
    metadata.set("tokenizer.added_flags", std::vector<uint32_t>{});
    return Tokenizer::open(metadata, 100);
  };
  const auto field = [](char tag, const std::string& bytes) {
    return std::string{tag, static_cast<char>(bytes.size() & 0x7f | 0x80),
                       static_cast<char>(bytes.size() >> 7)} +
           bytes;
  };
  const auto piece = [&](const std::string& text, char type) {
    return field('\x0a', std::string("\x0a") + static_cast<char>(text.size()) + text + '\x15' +
                             std::string(4, '\0') + '\x18' + type);
  };
  const std::string unknown = piece("<unk>", 2), letters = piece("\xe2\x96\x81", 1) + piece("a", 1);
  const std::string bpe = field('\x12', "\x18\x02");
  const auto tokenizer = open(unknown + letters + bpe);
  CHECK(tokenizer->encode("a a", {}) == std::vector<int32_t>{1, 2, 1, 2});
  // A normalization trie of 1024 bytes whose root's children would lie outside.
  std::string charsmap = std::string("\x00\x04\x00\x00", 4) + std::string(1024, '\0') + std::string(1, '\0');
  charsmap[4 + 2] = '\x7f';
  const std::pair<std::string, const char*> faults[] = {
      {letters + bpe, "0 unknown pieces"},
      {unknown + unknown + bpe, "occurs twice"},
      {unknown + piece("", 1) + bpe, "piece of 0 bytes"},
      {unknown + piece("\xff", 1) + bpe, "not UTF-8"},
      {unknown + piece("b", 7) + bpe, "piece type 7"},
      {unknown + piece("b", 6) + bpe, "1 byte pieces"},
      {unknown + letters + field('\x12', "\x18\x03"), "model_type 3"},
      {unknown + letters + bpe + field('\x1a', field('\x12', charsmap)), "points outside"},
      {unknown + letters + bpe + field('\x1a', field('\x12', charsmap.substr(0, 100))), "normalization trie"},
      {unknown + letters + bpe + "\x0a\x7f", "bytes needed"},
  };
  for (const auto& [model, cause] : faults) {
    std::string message;
    CHECK(error_of([&, &m = model] { open(m); }, message) != 0);
    CHECK_THAT(message, Catch::Contains(cause));
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

TEST_CASE("a text longer than sentencepiece's library may have is refused") {
  Folder folder;
  folder.link("tokenizer.model", PITH_SOURCE_DIR "/models/demo/tokenizer.model");
  const auto tokenizer = folder.open(8192);
  CHECK_THROWS_WITH(tokenizer->encode(std::string((16 << 20) + 1, 'a'), {}),
                    Catch::Contains("text of 16777217 bytes, at most 16777216"));
}

TEST_CASE("a unigram vocabulary that breaks a rule is refused") {
  const json golden = read_golden("tokenizer/variants.json");
  json tokenizer_json;
  for (const json& variant : golden["variants"])
    if (variant["name"] == "unigram") tokenizer_json = variant["tokenizer"];
  tokenizer_json["model"].update(golden["bases"]["unigram"]);
  const auto refuse = [&](const char* pointer, const json& value, const char* message) {
    json changed = tokenizer_json;
    changed[json::json_pointer(pointer)] = value;
    Folder folder;
    folder.put("tokenizer.json", changed);
    CHECK_THROWS_WITH(folder.open(500), Catch::Contains(message));
  };
  refuse("/model/vocab", json::object(), "expected a list");
  refuse("/model/vocab/3", {"a"}, "expected a text and a score");
  refuse("/model/vocab/3", tokenizer_json["model"]["vocab"][4], "is there twice");
  refuse("/model/unk_id", nullptr, "Unigram without unk_id");
  refuse("/model/unk_id", 5000, "expected less than");
  refuse("/pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}, "Unigram over bytes");
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
