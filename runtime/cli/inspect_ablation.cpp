// The ablation on the page of pith inspect: what each lever of the quantizer was worth, as tests/ablation.py measured it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "convert/json_file.h"
#include "format/error.h"
#include "runtime/cli/inspect.h"
#include "runtime/cli/svg_chart.h"

namespace pith::cli {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxRows = 200;

struct Row {
  std::string quantizer;
  double bits, ppl_ratio, ppl_ratio_se, kl, kl_se;
};

[[noreturn]] void refuse(const std::string& where, const char* what) {
  throw_error(ErrorCode::kFormat, "{}: {}, expected what tests/ablation.py --json writes", where, what);
}

double number(const Json& row, const char* key, const std::string& where) {
  const auto value = row.find(key);
  if (value == row.end() || !value->is_number() || !std::isfinite(value->get<double>())) refuse(where, key);
  return value->get<double>();
}

std::string text(const Json& object, const char* key, const std::string& where) {
  const auto value = object.find(key);
  if (value == object.end() || !value->is_string()) refuse(where, key);
  return cut(value->get<std::string>(), 200);
}

std::vector<Row> read_rows(const Json& json, const std::string& where) {
  if (!json.is_object()) refuse(where, "not an object");
  const auto rows = json.find("rows");
  if (rows == json.end() || !rows->is_array() || rows->empty() || rows->size() > kMaxRows)
    refuse(where, "rows");
  std::vector<Row> out;
  for (const Json& row : *rows) {
    const std::string here = fmt::format("{}: rows[{}]", where, out.size());
    if (!row.is_object()) refuse(here, "not an object");
    out.push_back({text(row, "quantizer", here), number(row, "bits", here), number(row, "ppl_ratio", here),
                   number(row, "ppl_ratio_se", here), number(row, "kl_mean", here),
                   number(row, "kl_mean_se", here)});
  }
  return out;
}

}  // namespace

std::string ablation_section(const std::string& path) {
  const Json json = read_json_file(path);
  const std::vector<Row> rows = read_rows(json, path);
  Series kl{"KL divergence", {}}, above{"perplexity", {}};
  double most = 0;
  std::string table;
  for (const Row& row : rows) {
    kl.values.push_back(std::max(row.kl, 0.0));
    above.values.push_back(std::max(100 * (row.ppl_ratio - 1), 0.0));
    most = std::max(most, row.kl);
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    table += fmt::format(
        "<tr><td>{}</td><td class=\"text\">{}</td><td>{:.3f}</td><td>{:.4f} \u00b1 {:.4f}</td><td>{:.4f} "
        "\u00b1 "
        "{:.4f}{}</td></tr>\n",
        i, escape_html(row.quantizer), row.bits, row.ppl_ratio, row.ppl_ratio_se, row.kl, row.kl_se,
        meter(row.kl, most, 0));
  }
  return fmt::format(
             "<h2>What each lever is worth</h2><p>{}, quantized with levers off, then on one by one; each "
             "against "
             "its 16-bit file on {}.</p>\n<div class=\"charts\">\n",
             escape_html(text(json, "model", path)), escape_html(text(json, "text", path))) +
         figure("KL divergence", "Nats a token, of each quantizer of the table",
                stacked_bars({"KL divergence of each quantizer", "quantizer", " nats", 4}, {kl})) +
         figure("Perplexity", "Percent above the original's",
                stacked_bars({"Perplexity of each quantizer", "quantizer", " %", 2}, {above})) +
         "</div>\n<div class=\"box scroll\" style=\"margin-top:14px\"><table><thead><tr><th></th><th "
         "class=\"text\">"
         "quantizer</th><th>bits per weight</th><th>perplexity ratio</th><th>KL "
         "divergence</th></tr></thead><tbody>\n" +
         table + "</tbody></table></div>\n";
}

}  // namespace pith::cli
