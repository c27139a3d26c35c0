// pith inspect --html: bits, error, 4-bit columns and outliers of every tensor on one page.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "models/weight_count.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/human_bytes.h"
#include "runtime/cli/inspect.h"
#include "runtime/cli/svg_chart.h"

namespace pith::cli {
namespace {

constexpr uint32_t kMaxChartLayers = 2048;  // a name may claim any number
constexpr size_t kMaxChartParts = 64;  // each takes room for all layers; what is beyond is in the table only

constexpr const char* kStyle = R"(
:root{color-scheme:light dark;--bg:#f7f6f3;--card:#fff;--ink:#1d1f26;--mute:#656a78;--line:#e3e0d9;--track:#eeece6;
--s0:#2f66d0;--s1:#d9792b;--s2:#1c9478;--s3:#a8479d;--s4:#8a8f9c;--s5:#b59a1d}
@media(prefers-color-scheme:dark){:root{--bg:#14161b;--card:#1c1f26;--ink:#e7e8ec;--mute:#9aa0ae;--line:#30343e;
--track:#292d36;--s0:#6c9dff;--s1:#f0a060;--s2:#46c2a2;--s3:#d883cd;--s4:#8b92a1;--s5:#d8bf55}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:17px;margin:44px 0 4px}h3{font-size:15px;margin:0}
p{margin:0;color:var(--mute)}h2+p{margin-bottom:14px;max-width:80ch}h3+p{font-size:13px;margin-bottom:8px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:26px 0 0}
.card,.chart,.box{background:var(--card);border:1px solid var(--line);border-radius:10px}
.card{padding:14px 16px}.card span{display:block;font-size:13px;color:var(--mute)}
.card b{display:block;font-size:25px;font-weight:600;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:14px}
.chart{padding:16px 18px 10px}.none{padding:84px 0;text-align:center}.box{padding:18px}
svg{display:block;width:100%;height:auto}svg.share{height:34px;border-radius:5px}
.axis{stroke:var(--mute);stroke-width:1}.grid{stroke:var(--line);stroke-width:1}
.label{fill:var(--mute);font-size:11px;font-variant-numeric:tabular-nums}
.line path{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;opacity:.8}
.line circle{fill:var(--c);stroke:var(--card);stroke-width:1.5}.bar rect{fill:var(--c)}
.line circle:hover,.bar rect:hover{opacity:.65}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;margin:10px 0 14px;padding:0;font-size:13px;
color:var(--mute)}.legend b{color:var(--ink);font-weight:600}.box .legend{margin-bottom:0}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;background:var(--c);margin-right:7px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--mute);font-weight:500}tr:last-child td{border-bottom:0}
th:first-child,td:first-child,td.text,th.text{text-align:left}
td.text{white-space:normal;overflow-wrap:anywhere;color:var(--mute)}
code{font:12.5px ui-monospace,"SF Mono",Menlo,Consolas,monospace}
.meter{display:inline-block;width:64px;height:7px;border-radius:4px;background:var(--track);margin-left:9px;
overflow:hidden;vertical-align:1px}.meter i{display:block;height:100%;background:var(--c)}
summary{cursor:pointer;font-size:17px;font-weight:600;margin:44px 0 10px}
)";

// What a layer's tensors of one part ("attn_out", of all experts together) come to.
struct PartOfLayer {
  uint64_t weights = 0, bytes = 0, outliers = 0;
  double fine_weights = 0;                  // in 4-bit columns
  double error_sum = 0, error_weights = 0;  // of those whose error is known
};

struct Layers {
  std::vector<std::string> parts;                           // in file order
  std::map<std::string, std::vector<PartOfLayer>> by_part;  // [layer]
  std::vector<uint64_t> weights;                            // of each layer
  bool has_q24 = false, has_errors = false, has_outliers = false;
};

// "layers.12.experts.3.ffn_down" -> 12, "experts.ffn_down". False for tensors of no layer.
bool split_name(std::string_view name, uint32_t& layer, std::string& part) {
  constexpr std::string_view kLayers = "layers.", kExperts = "experts.";
  if (!name.starts_with(kLayers)) return false;
  name.remove_prefix(kLayers.size());
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const size_t n = static_cast<size_t>(end - name.data());
  if (error != std::errc() || layer >= kMaxChartLayers || n + 1 >= name.size() || name[n] != '.')
    return false;
  name.remove_prefix(n + 1);
  part = name;
  if (!name.starts_with(kExperts)) return true;
  const size_t dot = name.find('.', kExperts.size());
  if (dot != std::string_view::npos) part = std::string(kExperts) + std::string(name.substr(dot + 1));
  return true;
}

Layers by_layer(const Container& container, const std::map<std::string, float>& errors) {
  Layers out;
  for (const Tensor& tensor : container.tensors()) {
    uint32_t layer = 0;
    std::string name;
    if (tensor.n_rows == 1 || !split_name(tensor.name, layer, name)) continue;
    if (!out.by_part.contains(name)) {
      if (out.parts.size() == kMaxChartParts) continue;
      out.parts.push_back(name);
    }
    std::vector<PartOfLayer>& parts = out.by_part[name];
    parts.resize(std::max<size_t>(parts.size(), layer + 1));
    out.weights.resize(std::max<size_t>(out.weights.size(), layer + 1));
    PartOfLayer& part = parts[layer];
    const uint64_t n = uint64_t{tensor.n_rows} * tensor.n_cols;
    part.weights += n;
    part.bytes += tensor.size_bytes;
    out.weights[layer] += n;
    if (tensor.kind == TensorKind::kQ24) {
      out.has_q24 = true;
      part.outliers += uint64_t{tensor.n_rows} * tensor.q24.n_slots;
      out.has_outliers |= tensor.q24.n_slots > 0;
      part.fine_weights += static_cast<double>(std::min(tensor.q24.n_fine, tensor.n_cols)) * tensor.n_rows;
    }
    const auto error = errors.find(tensor.name);
    if (error == errors.end()) continue;
    out.has_errors = true;
    part.error_sum += static_cast<double>(error->second) * static_cast<double>(n);
    part.error_weights += static_cast<double>(n);
  }
  return out;
}

// A series a part; value(part, weights of its layer) may be absent.
template <typename Value>
std::vector<Series> series_of(const Layers& layers, Value&& value) {
  std::vector<Series> all;
  for (const std::string& name : layers.parts) {
    Series& series = all.emplace_back(Series{name, {}});
    const std::vector<PartOfLayer>& parts = layers.by_part.at(name);
    for (size_t i = 0; i < parts.size(); ++i)
      series.values.push_back(parts[i].weights > 0 ? value(parts[i], static_cast<double>(layers.weights[i]))
                                                   : std::nullopt);
  }
  return all;
}

std::string charts(const Layers& layers) {
  using Value = std::optional<double>;
  const auto bits = series_of(layers, [](const PartOfLayer& part, double) -> Value {
    return 8.0 * static_cast<double>(part.bytes) / static_cast<double>(part.weights);
  });
  std::string out =
      "<h2>Layers</h2><p>Matrices of each layer, by what they do. Point at a mark for its value.</p>\n" +
      legend(bits) + "<div class=\"charts\">\n";
  out += figure("Bits per weight", "Everything counted: codes, scales, permutation, outliers, padding",
                line_chart({"Bits per weight over layers", "layer", " bits", 3}, bits, false));
  if (layers.has_errors)
    out += figure("Relative squared error",
                  "Of the layer's output on the calibration text, each tensor for itself",
                  line_chart({"Relative squared error over layers", "layer", "", 5},
                             series_of(layers,
                                       [](const PartOfLayer& part, double) -> Value {
                                         if (!(part.error_weights > 0)) return std::nullopt;
                                         return part.error_sum / part.error_weights;
                                       }),
                             true));
  if (layers.has_q24) {
    out += figure("4-bit columns", "Percent of the layer's weights in them; the others are 2-bit",
                  stacked_bars({"Share of 4-bit columns over layers", "layer", " % of the layer", 2},
                               series_of(layers, [](const PartOfLayer& part, double weights) -> Value {
                                 return 100 * part.fine_weights / weights;
                               })));
    if (layers.has_outliers)
      out += figure("Outliers", "16-bit weights inside 2-bit groups, in 1000 weights of the layer",
                    stacked_bars({"Outliers over layers", "layer", " of 1000 weights", 3},
                                 series_of(layers, [](const PartOfLayer& part, double weights) -> Value {
                                   return 1000 * static_cast<double>(part.outliers) / weights;
                                 })));
    else
      out +=
          figure("Outliers", "16-bit weights inside 2-bit groups", "<p class=\"none\">none in this file</p>");
  }
  return out + "</div>\n";
}

std::string card(const std::string& name, const std::string& value, const std::string& note) {
  return fmt::format("<div class=\"card\"><span>{}</span><b>{}</b><span>{}</span></div>\n", escape_html(name),
                     escape_html(value), escape_html(note));
}

std::string count_text(uint64_t n) {
  if (n >= 1'000'000'000) return fmt::format("{:.2f} billion", static_cast<double>(n) / 1e9);
  return n >= 1'000'000 ? fmt::format("{:.1f} million", static_cast<double>(n) / 1e6) : fmt::format("{}", n);
}

std::string cards(const Container& container, const WeightCount& totals) {
  const Metadata& metadata = container.metadata();
  std::string out = "<div class=\"cards\">\n";
  out += card("bits per weight", fmt::format("{:.3f}", totals.linear_bits()),
              "linear layers, everything counted");
  out += card("file", human_bytes(container.file_size()),
              fmt::format("{:.2f} bits a weight, all in all", totals.file_bits(container.file_size())));
  out +=
      card("parameters", count_text(totals.weights), fmt::format("{} tensors", container.tensors().size()));
  if (metadata.has("quality.ppl_ratio")) {
    const uint64_t n_tokens = metadata.get_or<uint64_t>("quality.held_out_tokens", 0);
    out += card("perplexity", fmt::format("{:.3f}\u00d7", metadata.get<double>("quality.ppl_ratio")),
                "the original's, on held-out text");
    out += card("KL divergence", fmt::format("{:.4f}", metadata.get_or<double>("quality.kl", 0)),
                n_tokens > 0 ? fmt::format("nats a token, over {} tokens", n_tokens) : "nats a token");
  }
  return out + "</div>\n";
}

std::string where_the_bytes_are(const Container& container) {
  uint64_t attention = 0, feed_forward = 0, ends = 0, small = 0;
  for (const Tensor& tensor : container.tensors()) {
    const TensorRole role = tensor_role(tensor.name);
    const bool is_end = role == TensorRole::kEmbedding || role == TensorRole::kHead;
    const bool is_vector = role == TensorRole::kNorm || role == TensorRole::kBias;
    uint64_t& sum = is_end                                          ? ends
                    : is_vector                                     ? small
                    : tensor.name.find("attn") != std::string::npos ? attention
                                                                    : feed_forward;
    sum += tensor.size_bytes;
  }
  std::vector<Part> parts;
  const auto add = [&](const char* name, uint64_t bytes) {
    if (bytes > 0)
      parts.push_back({name, human_bytes(bytes),
                       static_cast<double>(bytes) / static_cast<double>(container.file_size())});
  };
  add("attention", attention);
  add("feed-forward", feed_forward);
  add("embedding and head", ends);
  add("norms and biases", small);
  const uint64_t in_tensors = attention + feed_forward + ends + small;
  add("tokenizer, metadata, padding", container.file_size() - std::min(container.file_size(), in_tensors));
  return "<h2>Where the bytes are</h2><p>Of the whole file.</p>\n<div class=\"box\">" +
         share_bar("Bytes of the file by purpose", parts) + "</div>\n";
}

std::string tensor_table(const Container& container, const std::map<std::string, float>& errors) {
  double most_error = 0;
  for (const auto& [name, error] : errors) most_error = std::max(most_error, static_cast<double>(error));
  std::string out =
      "<h2>Tensors</h2><p>In the order of the file. A 4-bit column is 4-bit for every row; outliers are "
      "slots a row."
      "</p>\n<div class=\"box scroll\"><table><thead><tr><th>name</th><th>kind</th><th>rows \u00d7 "
      "columns</th>"
      "<th>bytes</th><th>bits per weight</th><th>relative error</th><th>4-bit columns</th><th>outliers a "
      "row</th>"
      "<th>group</th></tr></thead><tbody>\n";
  for (const Tensor& tensor : container.tensors()) {
    const double bits = bits_per_weight(tensor);
    out += fmt::format(
        "<tr><td><code>{}</code></td><td>{}</td><td>{} \u00d7 {}</td><td>{}</td><td>{:.3f}{}</td>",
        escape_html(tensor.name), to_string(tensor.kind), tensor.n_rows, tensor.n_cols, tensor.size_bytes,
        bits, meter(bits, 16, 0));
    const auto error = errors.find(tensor.name);
    out += error == errors.end()
               ? "<td></td>"
               : fmt::format("<td>{:.5f}{}</td>", error->second, meter(error->second, most_error, 1));
    if (tensor.kind == TensorKind::kQ24)
      out += fmt::format("<td>{} ({:.0f} %)</td><td>{}</td><td>{}</td></tr>\n", tensor.q24.n_fine,
                         100.0 * std::min(tensor.q24.n_fine, tensor.n_cols) / tensor.n_cols,
                         tensor.q24.n_slots, tensor.q24.group);
    else
      out += "<td></td><td></td><td></td></tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string metadata_table(const Metadata& metadata) {
  std::string out = fmt::format(
      "<details><summary>Metadata, {} entries</summary><div class=\"box scroll\"><table><tbody>\n",
      metadata.entries().size());
  for (const auto& [key, value] : metadata.entries())
    out += fmt::format("<tr><td><code>{}</code></td><td class=\"text\"><code>{}</code></td></tr>\n",
                       escape_html(key), escape_html(short_value(value)));
  return out + "</tbody></table></div></details>\n";
}

}  // namespace

std::string figure(const std::string& title, const std::string& note, const std::string& svg) {
  return fmt::format("<figure class=\"chart\" style=\"margin:0\"><h3>{}</h3><p>{}</p>\n{}</figure>\n", title,
                     note, svg);
}

std::string meter(double value, double most, int color) {
  return fmt::format("<span class=\"meter\"><i class=\"s{}\" style=\"width:{:.0f}%\"></i></span>", color,
                     most > 0 ? 100 * std::clamp(value / most, 0.0, 1.0) : 0);
}

std::string inspect_html(const Container& container, const std::string& ablation) {
  const WeightCount totals = count_weights(container);
  const std::map<std::string, float> errors = tensor_errors(container.metadata());
  const Layers layers = by_layer(container, errors);
  const std::string name = escape_html(std::filesystem::path(container.path()).filename().string());
  const Metadata& metadata = container.metadata();
  std::string origin = cut(metadata.get_or<std::string>("model.family", ""), 200);
  for (const char* key : {"provenance.source", "provenance.converter", "provenance.options"}) {
    const std::string text = metadata.get_or<std::string>(key, "");
    if (!text.empty()) origin += (origin.empty() ? "" : " \u00b7 ") + cut(text, 200);
  }
  std::string out = std::string(kPageStart) +
                    "\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
                    "'unsafe-inline'\">\n"
                    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
                    name + " - pith</title>\n<style>" + kStyle + "</style></head>\n<body><main>\n<h1>" +
                    name + "</h1>\n";
  out += fmt::format("<p>{}</p>\n<p>fingerprint <code>{:016x}</code></p>\n", escape_html(origin),
                     container.fingerprint());
  out += cards(container, totals) + where_the_bytes_are(container);
  if (!layers.parts.empty()) out += charts(layers);
  if (!ablation.empty()) out += ablation_section(ablation);
  out += tensor_table(container, errors) + metadata_table(metadata);
  return out + "</main></body></html>\n";
}

}  // namespace pith::cli
