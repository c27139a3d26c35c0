// Storing and replaying golden vectors; see golden.h.
#include "runtime/golden.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/chat_render.h"
#include "runtime/session.h"

namespace pith {
namespace {

// Spaces, capitals, digits, punctuation, accents, a script without spaces, an emoji of four bytes, a control character.
const char* const kTexts[] = {"Once upon a time, there was a little girl.",
                              "  Two spaces,\ttab\nand line; 3.14159 and 20,000!",
                              "naïve café, Übergröße, Ελληνικά, русский",
                              "日本語のテキスト 🙂 \x01", "<s> </s> <|user|> are plain text here"};
const std::vector<ChatMessage> kChat = {
    {"user", "Hello, who are you?"}, {"assistant", "A model."}, {"user", "Of what?"}};
constexpr size_t kTopLogits = 8;
// Templates may print the date: here always noon of the same day, UTC, wherever and whenever the vectors are replayed.
constexpr TemplateClock kClock = {1704110400, true};  // 2024-01-01 12:00

// Every instruction set gives the same bits, but a later pith may add in another order or round activations at other places.
// Two logits that differ by less than this are not told apart; a wrong weight or a wrong kernel moves them by far more.
constexpr float kLogitTolerance = 0.05f;

std::vector<uint32_t> to_u32(const std::vector<int32_t>& ids) {
  return {ids.begin(), ids.end()};
}

void compare_ids(const std::string& where, const std::string& what, std::span<const uint32_t> expected,
                 const std::vector<int32_t>& found) {
  const size_t n = std::min(expected.size(), found.size());
  for (size_t i = 0; i < n; ++i)
    if (expected[i] != static_cast<uint32_t>(found[i]))
      throw_error(ErrorCode::kFormat, "{}: golden vector '{}': id {} is {}, expected {}", where, what, i,
                  found[i], expected[i]);
  if (expected.size() != found.size())
    throw_error(ErrorCode::kFormat, "{}: golden vector '{}': {} ids, expected {}", where, what, found.size(),
                expected.size());
}

void check_texts(const Model& model, const std::string& where) {
  const Metadata& metadata = model.container().metadata();
  const auto& texts = metadata.get<std::vector<std::string>>("golden.texts");
  const auto& ids = metadata.get<std::vector<uint32_t>>("golden.text_ids");
  const auto& lens = metadata.get<std::vector<uint32_t>>("golden.text_lens");
  if (lens.size() != texts.size())
    throw_error(ErrorCode::kFormat, "{}: golden.text_lens: {} entries, expected {}", where, lens.size(),
                texts.size());
  size_t begin = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (lens[i] > ids.size() - begin)
      throw_error(ErrorCode::kFormat, "{}: golden.text_ids: {} ids, too few for golden.text_lens", where,
                  ids.size());
    compare_ids(where, fmt::format("text {}", i), std::span(ids).subspan(begin, lens[i]),
                model.tokenizer().encode(texts[i], {}));
    begin += lens[i];
  }
}

void check_logits(const std::shared_ptr<const Model>& model, const std::string& where) {
  const Metadata& metadata = model->container().metadata();
  const auto& prompt = metadata.get<std::vector<uint32_t>>("golden.prompt");
  const auto& top_ids = metadata.get<std::vector<uint32_t>>("golden.top_ids");
  const auto& top_logits = metadata.get<std::vector<float>>("golden.top_logits");
  const uint32_t n_vocab = model->spec().vocab_size;
  const auto in_vocab = [&](uint32_t id) { return id < n_vocab; };
  if (top_ids.size() != top_logits.size() || prompt.empty() || prompt.size() > model->spec().max_context ||
      !std::all_of(prompt.begin(), prompt.end(), in_vocab) ||
      !std::all_of(top_ids.begin(), top_ids.end(), in_vocab))
    throw_error(ErrorCode::kFormat,
                "{}: golden.prompt, golden.top_ids, golden.top_logits do not fit together", where);
  SessionOptions options;
  options.n_ctx = static_cast<uint32_t>(prompt.size());
  options.device = "cpu";
  Session session(model, options);
  session.sync(std::vector<int32_t>(prompt.begin(), prompt.end()));
  for (size_t i = 0; i < top_ids.size(); ++i) {
    const float found = session.logits()[top_ids[i]];
    if (!(std::abs(found - top_logits[i]) <= kLogitTolerance * std::max(1.0f, std::abs(top_logits[i]))))
      throw_error(ErrorCode::kFormat, "{}: golden vector 'logits': token {} has {:.4f}, expected {:.4f}",
                  where, top_ids[i], found, top_logits[i]);
  }
}

}  // namespace

void store_golden_text(Metadata& metadata, const Tokenizer& tokenizer, const ChatTemplate* chat) {
  std::vector<std::string> texts(std::begin(kTexts), std::end(kTexts));
  std::vector<uint32_t> all, lens;
  for (const std::string& text : texts) {
    const std::vector<int32_t> ids = tokenizer.encode(text, {});
    all.insert(all.end(), ids.begin(), ids.end());
    lens.push_back(static_cast<uint32_t>(ids.size()));
  }
  metadata.set("golden.texts", std::move(texts));
  metadata.set("golden.text_ids", std::move(all));
  metadata.set("golden.text_lens", std::move(lens));
  if (chat == nullptr) return;
  try {
    metadata.set("golden.chat_ids", to_u32(encode_chat(tokenizer, chat->render(kChat, true, kClock))));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument)
      throw;  // the template refuses this conversation: no vector
  }
}

void store_golden_logits(Metadata& metadata, const std::shared_ptr<const Model>& model) {
  EncodeOptions encode;
  encode.add_bos = true;
  std::vector<int32_t> prompt = model->tokenizer().encode(kTexts[0], encode);
  prompt.resize(std::min<size_t>(prompt.size(), model->spec().max_context));
  SessionOptions options;
  options.n_ctx = static_cast<uint32_t>(prompt.size());
  options.device = "cpu";  // it runs every model, and the same file comes out with a GPU and without
  Session session(model, options);
  session.sync(prompt);
  const std::span<const float> logits = session.logits();
  for (size_t i = 0; i < logits.size(); ++i)
    if (!std::isfinite(logits[i]))
      throw_error(ErrorCode::kFormat,
                  "the model's logits for '{}' are no finite numbers: token {} has {} (--allow-nonfinite "
                  "takes it as it is)",
                  kTexts[0], i, logits[i]);
  std::vector<uint32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  const size_t n = std::min(kTopLogits, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(n), order.end(),
                    [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
  order.resize(n);
  std::vector<float> top(n);
  for (size_t i = 0; i < n; ++i) top[i] = logits[order[i]];
  metadata.set("golden.prompt", to_u32(prompt));
  metadata.set("golden.top_ids", std::move(order));
  metadata.set("golden.top_logits", std::move(top));
}

void check_golden(const std::shared_ptr<const Model>& model) {
  const Metadata& metadata = model->container().metadata();
  const std::string& where = model->container().path();
  if (metadata.has("golden.texts")) check_texts(*model, where);
  if (metadata.has("golden.chat_ids")) {
    if (model->chat_template() == nullptr)
      throw_error(ErrorCode::kFormat, "{}: golden.chat_ids without a chat template", where);
    compare_ids(where, "chat", metadata.get<std::vector<uint32_t>>("golden.chat_ids"),
                encode_chat(model->tokenizer(), model->chat_template()->render(kChat, true, kClock)));
  }
  if (metadata.has("golden.prompt")) check_logits(model, where);
}

}  // namespace pith
