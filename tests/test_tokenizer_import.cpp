// What a tokenizer's files say is taken over or refused by name, and metadata that breaks a rule is not opened.
#include <ctime>

#include "format/error.h"
#include "runtime/chat_render.h"
#include "tests/tokenizer_files.h"

using namespace pith;
using namespace pith::test;

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

TEST_CASE("an added token beyond the pieces of a sentencepiece model is no control piece of it") {
  Folder folder;
  folder.link("tokenizer.model", PITH_SOURCE_DIR "/models/demo/tokenizer.model");
  CHECK(folder.open(1 << 22)->bos_id() == 1);  // the model's own "<s>"
  const json added = {{"content", "<s>"}, {"special", true}};
  folder.put("tokenizer_config.json", json{{"added_tokens_decoder", {{"4194303", added}}}});
  CHECK(folder.open(1 << 22)->bos_id() == -1);
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
  folder.put("generation_config.json", json{{"temperature", 0.6}, {"repetition_penalty", 1.1}});
  const Metadata greedy = folder.import(kConfig);
  CHECK_FALSE(greedy.has("generation.temperature"));
  CHECK_FALSE(greedy.has("generation.top_k"));
  CHECK(greedy.get<double>("generation.repetition_penalty") == 1.1);  // counts for greedy decoding too
}

TEST_CASE("a generation_config.json that samples and says no more means the reference's defaults") {
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  for (const json& generation :
       {json{{"do_sample", true}}, json{{"do_sample", true}, {"temperature", nullptr}}}) {
    folder.put("generation_config.json", generation);
    const Metadata metadata = folder.import(kConfig);
    CHECK(metadata.get<double>("generation.temperature") == 1);
    CHECK(metadata.get<uint64_t>("generation.top_k") == 50);
    CHECK_FALSE(metadata.has("generation.top_p"));
  }
  folder.put("generation_config.json", json{{"do_sample", true}, {"top_k", nullptr}});
  CHECK_FALSE(folder.import(kConfig).has("generation.top_k"));  // null: off
}

TEST_CASE("any number of special tokens is looked up in any vocabulary in a moment") {
  json tokenizer_json = byte_level_json(), names = json::array();
  for (int i = 0; i < 60000; ++i) {
    tokenizer_json["model"]["vocab"][fmt::format("there{:05}", i)] = 500 + i;
    names.push_back(fmt::format("other{:05}", i));
  }
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json)
      .put("special_tokens_map.json", json{{"additional_special_tokens", names}});
  const std::clock_t begin = std::clock();
  folder.open(1 << 16);
  CHECK(std::clock() - begin < 4 * CLOCKS_PER_SEC);  // name by name: 6 s
}

TEST_CASE("a tokenizer that would not open is refused when it is read") {
  json tokenizer_json = byte_level_json();
  tokenizer_json["added_tokens"][0]["content"] = std::string(5000, 'a');
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json);
  CHECK_THROWS_WITH(folder.import(kConfig), Catch::Contains(folder.path().string()) &&
                                                Catch::Contains("added_texts: id 460 has 5000 bytes"));
}

TEST_CASE("a sampling default out of range is refused when it is read") {
  const std::pair<json, const char*> cases[] = {
      {{{"top_k", 5000000000}}, "generation.top_k is 5000000000, expected less than 2^31"},
      {{{"temperature", 101}}, "generation.temperature is 101, expected 0 to 100"},
      {{{"top_p", 1.5}}, "generation.top_p is 1.5, expected 0 to 1"},
      {{{"repetition_penalty", 0}}, "generation.repetition_penalty is 0, expected 0.01 to 100"}};
  for (auto [generation, message] : cases) {
    generation["do_sample"] = true;
    Folder folder;
    folder.put("tokenizer.json", byte_level_json()).put("generation_config.json", generation);
    CHECK_THROWS_WITH(folder.import(kConfig),
                      Catch::Contains(std::string("generation_config.json: ") + message));
  }
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

TEST_CASE("a token of more than 4096 bytes is refused") {
  json tokenizer_json = byte_level_json();
  for (const size_t n : {4096, 4097}) {
    tokenizer_json["model"]["vocab"][std::string(n, 'a')] = 490;
    Folder folder;
    folder.put("tokenizer.json", tokenizer_json);
    if (n == 4096) {
      CHECK_NOTHROW(folder.open(500));
      tokenizer_json["model"]["vocab"].erase(std::string(n, 'a'));
    } else {
      CHECK_THROWS_WITH(folder.open(500), Catch::Contains("token 490 has 4097 bytes, at most 4096"));
    }
  }
}

// Tokens of 8 bytes, made by running the hash backwards, that would all fall into one place if it had no secret: a minute, then.
TEST_CASE("no file can aim its tokens at one place of the table") {
  constexpr uint64_t kA = 0x9e3779b97f4a7c15u, kB = 0xbf58476d1ce4e5b9u;
  const auto inverse = [](uint64_t a) {
    uint64_t x = a;
    for (int i = 0; i < 6; ++i) x *= 2 - a * x;
    return x;
  };
  const auto unmix = [&](uint64_t y) {
    y *= inverse(kB);
    y ^= y >> 29 ^ y >> 58;
    y *= inverse(kA);
    return y ^ y >> 32;
  };
  constexpr uint32_t kTokens = 150000;
  Bytes bytes(8 * kTokens);
  std::vector<uint32_t> ends;
  for (uint64_t i = 0; i < kTokens; ++i) {
    const uint64_t token = unmix(unmix((i + 1) << 44)) ^ 8;
    std::memcpy(bytes.data() + 8 * i, &token, 8);
    ends.push_back(static_cast<uint32_t>(8 * i + 8));
  }
  Folder folder;
  folder.put("tokenizer.json", byte_level_json());
  Metadata metadata = folder.import(kConfig);
  metadata.set("tokenizer.token_bytes", bytes);
  metadata.set("tokenizer.token_ends", ends);
  metadata.set("tokenizer.token_kinds", Bytes(kTokens, 0));
  metadata.set("tokenizer.merges", std::vector<uint32_t>{});
  const std::clock_t start = std::clock();
  CHECK_NOTHROW(Tokenizer::open(metadata, kTokens));
  CHECK(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC < 10);
}

TEST_CASE("an added token that the normalizer makes too long is refused") {
  json tokenizer_json = byte_level_json();
  tokenizer_json["added_tokens"][1].update({{"content", std::string(100, 'x')}, {"normalized", true}});
  tokenizer_json["normalizer"] = {
      {"type", "Replace"}, {"pattern", {{"String", "x"}}}, {"content", std::string(41, 'y')}};
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json);
  CHECK_THROWS_WITH(folder.open(500), Catch::Contains("id 461 has 4100 bytes when normalized, at most 4096"));
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
  const std::string long_text = std::string("\x00\x04\x00\x00", 4) + std::string(1024, '\0') +
                                std::string(65, 'x') + std::string(1, '\0');
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
      {unknown + letters + bpe + field('\x1a', field('\x12', long_text)), "string of 65 bytes"},
      {unknown + letters + bpe + "\x0a\x7f", "bytes needed"},
  };
  for (const auto& [model, cause] : faults) {
    std::string message;
    CHECK(error_of([&, &m = model] { open(m); }, message) != 0);
    CHECK_THAT(message, Catch::Contains(cause));
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
