// The page of `pith inspect` for files whose tensors have names that no model has.
#include <catch2/catch.hpp>

#include "format/writer.h"
#include "runtime/cli/inspect.h"
#include "temp_folder.h"

namespace pith::test {
namespace {

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size()) ++n;
  return n;
}

TEST_CASE("A file that claims many parts of many layers has a page with some of them in its charts") {
  constexpr size_t kTensors = 300;
  const TempFolder folder;
  const std::string path = folder / "hostile.pith";
  Writer writer(path, 1);
  for (size_t i = 0; i < kTensors; ++i)
    writer.add("layers.2047.x" + std::to_string(i), TensorKind::kBF16, 2, 2, Bytes(8, 0x3f));
  writer.finish(Metadata());
  const std::string page = cli::inspect_html(Container::open(path), "");
  CHECK(count(page, "<g class=\"line ") == 64);               // a line of the one chart
  CHECK(count(page, "<td><code>layers.2047.x") == kTensors);  // the table has all
}

}  // namespace
}  // namespace pith::test
