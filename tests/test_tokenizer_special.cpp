// Special tokens come from where they may and nowhere else; spaces around them are the reference's.
#include "format/error.h"
#include "runtime/chat_render.h"
#include "tests/tokenizer_files.h"

using namespace pith;
using namespace pith::test;

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

TEST_CASE("a token that is a single word is not found beside what the reference calls a word") {
  json tokenizer_json = byte_level_json();
  tokenizer_json["added_tokens"][1].update({{"content", "bb"}, {"single_word", true}});
  Folder folder;
  folder.put("tokenizer.json", tokenizer_json);
  const auto tokenizer = folder.open(500);
  const auto finds = [&](const std::string& text) {
    const auto ids = tokenizer->encode(text, {});
    return std::find(ids.begin(), ids.end(), 461) != ids.end();
  };
  for (const std::string word : {"ⅷ", "Ⓐ", "🄰", "\u200c", "\u200d", "\u0301", "_", "a"}) {
    INFO(word);
    CHECK_FALSE(finds("bb" + word));
    CHECK_FALSE(finds(word + "bb"));
  }
  for (const std::string other : {"²", "-", " ", ""}) CHECK(finds("bb" + other));
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
