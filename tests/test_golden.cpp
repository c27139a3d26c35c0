// Golden vectors: a file answers as it did where it was made, and a file that does not is found out.
#include <catch2/catch.hpp>
#include <string>

#include "convert/synth.h"
#include "format/writer.h"
#include "runtime/golden.h"
#include "temp_folder.h"

using namespace pith;

namespace {

std::shared_ptr<const Model> random_model(const std::string& path) {
  SynthOptions options;
  options.shape = "demo";
  options.output = path;
  options.bits = 16;  // plain tensors, which can be copied as they lie
  synth(options);
  return Model::open(path);
}

std::shared_ptr<const Model> with_metadata(const Model& model, const Metadata& metadata,
                                           const std::string& path) {
  Writer writer(path, 1);
  for (const Tensor& tensor : model.container().tensors()) {
    const size_t element = tensor.kind == TensorKind::kF32 ? 4 : 2;
    writer.add(tensor.name, tensor.kind, tensor.n_rows, tensor.n_cols,
               {tensor.data, size_t{tensor.n_rows} * tensor.n_cols * element});
  }
  writer.finish(metadata);
  return Model::open(path);
}

}  // namespace

TEST_CASE("golden vectors hold where they were stored, and a changed one is named") {
  const test::TempFolder folder;
  const auto model = random_model(folder / "model.pith");
  Metadata metadata = model->container().metadata();
  store_golden_text(metadata, model->tokenizer(), nullptr);
  store_golden_logits(metadata, model);
  const std::string path = folder / "golden.pith";

  SECTION("unchanged") {
    CHECK_NOTHROW(check_golden(with_metadata(*model, metadata, path)));
  }
  SECTION("a template that prints the date, replayed in another time zone") {
    metadata.set("chat.template", std::string("{{ strftime_now('%Y-%m-%d %H') }} {{ messages[0].content }}"));
    const auto with_template = with_metadata(*model, metadata, path);
    store_golden_text(metadata, with_template->tokenizer(), with_template->chat_template());
    REQUIRE(metadata.has("golden.chat_ids"));
    const auto stored = with_metadata(*model, metadata, path + "2");
    ::setenv("TZ", "XYZ-11", 1);
    ::tzset();
    CHECK_NOTHROW(check_golden(stored));
    ::unsetenv("TZ");
    ::tzset();
  }
  SECTION("a token id") {
    auto ids = metadata.get<std::vector<uint32_t>>("golden.text_ids");
    ids[3] ^= 1;
    metadata.set("golden.text_ids", ids);
    CHECK_THROWS_WITH(check_golden(with_metadata(*model, metadata, path)),
                      Catch::Contains("golden vector 'text 0': id 3"));
  }
  SECTION("a logit") {
    auto logits = metadata.get<std::vector<float>>("golden.top_logits");
    logits[0] *= 1.5f;
    metadata.set("golden.top_logits", logits);
    CHECK_THROWS_WITH(check_golden(with_metadata(*model, metadata, path)),
                      Catch::Contains("golden vector 'logits'"));
  }
  SECTION("counts that do not fit together, ids outside the vocabulary") {
    metadata.set("golden.text_lens", std::vector<uint32_t>{4000000000u, 1, 1, 1, 1});
    CHECK_THROWS_AS(check_golden(with_metadata(*model, metadata, path)), Error);
    metadata = model->container().metadata();
    metadata.set("golden.prompt", std::vector<uint32_t>{1u << 30});
    metadata.set("golden.top_ids", std::vector<uint32_t>{0});
    metadata.set("golden.top_logits", std::vector<float>{0});
    CHECK_THROWS_AS(check_golden(with_metadata(*model, metadata, path + "2")), Error);
  }
}
