// FORMAT.md against the code: its hex dump is what the writer writes, its figures are what the layout gives.
#include <catch2/catch.hpp>
#include <sstream>

#include "format_samples.h"

using namespace pith;
using namespace pith::test;

namespace {

std::string document() {
  const Bytes bytes = read_file(PITH_SOURCE_DIR "/format/FORMAT.md");
  return std::string(bytes.begin(), bytes.end());
}

// The worked example of FORMAT.md, section 7; its prose describes these values.
Bytes worked_example() {
  q24::Unpacked w;
  w.shape = {3, 50, 16, 16, 1};
  w.perm.assign(64, 0xffff);
  for (uint32_t c = 0; c < 50; ++c) w.perm[c] = static_cast<uint16_t>(49 - c);
  w.col_scale.assign(4, 0x3c00);
  for (uint32_t r = 0; r < 3; ++r) {
    w.d.push_back(float_to_f16(1.0f + static_cast<float>(r)));
    w.dmin.push_back(float_to_f16(0.25f));
    for (uint32_t c = 0; c < 64; ++c) w.codes.push_back(static_cast<uint8_t>((r + c) % (c < 48 ? 4 : 16)));
    for (uint32_t g = 0; g < 4; ++g) {
      w.s.push_back(static_cast<uint8_t>(8 + g));
      w.m.push_back(static_cast<uint8_t>(g));
    }
    w.outlier_col.push_back(static_cast<uint16_t>(10 * r));
    w.outlier_delta.push_back(float_to_f16(-2.0f));
  }
  Metadata metadata;
  metadata.set("model.name", std::string("tiny"));
  metadata.set("model.rope_base", 10000.0);
  metadata.set("tokenizer.ids", std::vector<uint32_t>{1, 2, 3});

  const TempFolder folder;
  Writer writer(folder / "f", 1);
  writer.add("norm", TensorKind::kF32, 1, 4, raw({1.0f, 0.5f, -1.0f, 2.0f}));
  writer.add("w", w);
  writer.finish(metadata);
  return read_file(folder / "f");
}

// The format of `hexdump -C`, where a line of only "*" stands for repetitions of the line before it.
std::string hexdump(const Bytes& bytes) {
  std::string out;
  bool starred = false;
  for (size_t at = 0; at < bytes.size(); at += 16) {
    const auto line = std::span(bytes).subspan(at, 16);
    if (at >= 16 && std::equal(line.begin(), line.end(), line.data() - 16)) {
      if (!starred) out += "*\n";
      starred = true;
      continue;
    }
    starred = false;
    std::string hex, text;
    for (size_t i = 0; i < 16; ++i) {
      hex += fmt::format("{:02x} {}", line[i], i == 7 ? " " : "");
      text += line[i] >= 32 && line[i] < 127 ? static_cast<char>(line[i]) : '.';
    }
    out += fmt::format("{:08x}  {} |{}|\n", at, hex, text);
  }
  return out + fmt::format("{:08x}\n", bytes.size());
}

// The lines of all ```hexdump blocks of the document.
std::string dump_in_document() {
  std::istringstream in(document());
  std::string line, out;
  bool inside = false;
  while (std::getline(in, line)) {
    if (line == "```hexdump") {
      inside = true;
    } else if (line == "```") {
      inside = false;
    } else if (inside) {
      out += line + "\n";
    }
  }
  return out;
}

}  // namespace

TEST_CASE("the hex dump of FORMAT.md is what the writer writes") {
  const Bytes file = worked_example();
  CHECK(fault_of(file) == "");
  CHECK(dump_in_document() == hexdump(file));
}

TEST_CASE("the bits per weight of FORMAT.md are what the layout gives") {
  const q24::Layout l = q24::make_layout({4096, 4096, 16, 512, 16});
  CHECK(l.size_bytes == 6054400);
  const std::string text = document();
  for (const uint64_t bytes :
       {l.col_scale - l.perm, l.row_scale - l.col_scale, l.base - l.row_scale, l.fine - l.base,
        l.scales - l.fine, l.outliers - l.scales, l.size_bytes - l.outliers, l.size_bytes}) {
    const std::string row =
        fmt::format("| {} | {:.4f} |", bytes, static_cast<double>(bytes) * 8 / (4096.0 * 4096));
    CAPTURE(row);
    CHECK(text.find(row) != std::string::npos);
  }
}
