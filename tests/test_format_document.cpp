// FORMAT.md against the code: its hex dump is what the writer writes, its figures are what the layout gives, its keys and tensors
// are those of a converted model.
#include <catch2/catch.hpp>
#include <set>
#include <sstream>

#include "convert_cases.h"
#include "format_samples.h"
#include "models/family.h"
#include "runtime/tokenizer.h"

using namespace pith;
using namespace pith::test;

namespace {

std::string document() {
  const Bytes bytes = read_file(PITH_SOURCE_DIR "/format/FORMAT.md");
  return std::string(bytes.begin(), bytes.end());
}

// The worked example of FORMAT.md, section 8; its prose describes these values.
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

struct DocumentedKey {
  std::string key, type, default_value;
};

// The rows of the table of keys.
std::vector<DocumentedKey> documented_keys() {
  std::istringstream in(document());
  std::vector<DocumentedKey> keys;
  for (std::string line; std::getline(in, line);) {
    std::istringstream row(line);
    std::string before, key, type, default_value;
    std::getline(row, before, '|');
    std::getline(row, key, '|');
    std::getline(row, type, '|');
    std::getline(row, default_value, '|');
    const auto trimmed = [](const std::string& s) { return s.size() > 2 ? s.substr(1, s.size() - 2) : ""; };
    key = trimmed(key);
    if (key.starts_with("`model.") || key.starts_with("`tokenizer."))
      keys.push_back({key.substr(1, key.size() - 2), trimmed(type), trimmed(default_value)});
  }
  return keys;
}

// Counters of layers, ropes and experts as the document has them.
std::string with_letters(const std::string& name) {
  std::string out;
  for (size_t i = 0; i < name.size();) {
    if (i > 0 && name[i - 1] == '.' && name[i] >= '0' && name[i] <= '9') {
      out += out.ends_with("experts.") ? 'E' : 'N';
      while (i < name.size() && name[i] >= '0' && name[i] <= '9') ++i;
    } else {
      out += name[i++];
    }
  }
  return out;
}

template <typename Keep>
Metadata only(const Metadata& metadata, Keep&& keep) {
  Metadata kept;
  for (const auto& [key, value] : metadata.entries())
    if (keep(key)) kept.set(key, value);
  return kept;
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

TEST_CASE("FORMAT.md names every key of a converted model, with its type and whether it may be missing") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  std::ofstream(checkpoint.model_dir() + "/tokenizer_config.json")
      << R"({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages[0]['content'] }}"})";
  std::ofstream(checkpoint.model_dir() + "/generation_config.json")
      << R"({"do_sample": true, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.1,
             "repetition_penalty": 1.1})";
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.calibration_tokens = 2048;  // enough for a held-out part
  convert(checkpoint.model_dir(), options);
  const Container container = Container::open(checkpoint.output());
  const Metadata& metadata = container.metadata();
  REQUIRE(metadata.has("golden.top_logits"));
  REQUIRE(metadata.has("quality.kl"));
  REQUIRE(metadata.has("generation.min_p"));

  const std::string text = document();
  std::map<std::string, std::string> type_of;
  for (const auto& [key, value] : metadata.entries()) {
    CAPTURE(key);
    CHECK(text.find("`" + with_letters(key) + "`") != std::string::npos);
    type_of[with_letters(key)] = metadata_type_name(value.index());
  }
  std::set<std::string> defaulted;
  for (const DocumentedKey& row : documented_keys()) {
    CAPTURE(row.key, row.type, row.default_value);
    if (row.key == "tokenizer.sentencepiece" || row.key == "tokenizer.scores") continue;  // of other kinds
    REQUIRE(type_of.count(row.key) == 1);
    CHECK(row.type == type_of[row.key]);
    if (row.default_value != "-") {
      if (row.key != "tokenizer.kind") defaulted.insert(row.key);
      continue;
    }
    const Metadata without =
        only(metadata, [&](const std::string& key) { return with_letters(key) != row.key; });
    if (row.key.starts_with("model."))
      CHECK_THROWS_AS(load_spec(without, "file"), Error);
    else
      CHECK_THROWS_AS(Tokenizer::open(without, 300), Error);
  }
  CHECK(defaulted.size() == 15);
  const Metadata least =
      only(metadata, [&](const std::string& key) { return defaulted.count(with_letters(key)) == 0; });
  CHECK_NOTHROW(load_spec(least, "file"));
  CHECK_NOTHROW(Tokenizer::open(least, 300));
}

TEST_CASE("FORMAT.md names every tensor of a model") {
  ModelSpec spec;
  spec.vocab_size = 9, spec.dim = spec.ffn_dim = 8, spec.n_layers = 1, spec.n_heads = spec.n_kv_heads = 1,
  spec.head_dim = 8;
  spec.qkv_bias = spec.attn_out_bias = spec.mlp_bias = spec.qk_norm = spec.post_norms = spec.attn_sinks =
      spec.router_bias = true;
  std::set<std::string> names;
  for (const uint32_t n_experts : {0u, 1u}) {
    spec.n_experts = spec.n_active_experts = n_experts;
    for (const TensorPlan& plan : plan_tensors(spec)) names.insert(with_letters(plan.name));
  }
  const std::string text = document();
  size_t n_rows = 0;
  for (size_t at = text.find("\n| `layers.N."); at != std::string::npos;
       at = text.find("\n| `layers.N.", at + 1))
    ++n_rows;
  CHECK(names.size() == n_rows + 3);  // embed, norm, head
  for (const std::string& name : names) {
    CAPTURE(name);
    CHECK(text.find("\n| `" + name + "` | [") != std::string::npos);
  }
}
