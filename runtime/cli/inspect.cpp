// pith inspect: what a file holds: the model's shape, bits per weight, quality, metadata, every tensor. The page is in
// inspect_html.cpp.
// Opens the container only, so that it works on files whose tokenizer or family this build cannot run.
#include "runtime/cli/inspect.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <memory>
#include <nlohmann/json.hpp>

#include "format/atomic_file.h"
#include "models/weight_count.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/human_bytes.h"
#include "runtime/cli/terminal.h"

namespace pith::cli {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kShownElements = 8;  // of an array or bytes of a text, in the table

Json value_json(const MetadataValue& value) {
  return std::visit(
      [](const auto& v) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(v)>, Bytes>)
          return {{"bytes", v.size()}};
        else
          return v;
      },
      value);
}

template <typename T>
std::string short_list(const std::vector<T>& values) {
  std::string out = "[";
  for (size_t i = 0; i < std::min(values.size(), kShownElements); ++i)
    out += (i > 0 ? ", " : "") + Json(values[i]).dump(-1, ' ', false, Json::error_handler_t::replace);
  return out + (values.size() > kShownElements ? fmt::format(", ... {} in all]", values.size()) : "]");
}

Json tensors_json(const Container& container) {
  const std::map<std::string, float> errors = tensor_errors(container.metadata());
  Json out = Json::array();
  for (const Tensor& tensor : container.tensors()) {
    Json entry = {{"name", tensor.name},
                  {"kind", to_string(tensor.kind)},
                  {"shape", {tensor.n_rows, tensor.n_cols}},
                  {"offset", tensor.offset},
                  {"bytes", tensor.size_bytes},
                  {"bits_per_weight", bits_per_weight(tensor)},
                  {"checksum", fmt::format("{:016x}", tensor.checksum)}};
    const auto error = errors.find(tensor.name);
    if (error != errors.end()) entry["relative_error"] = error->second;
    if (tensor.kind == TensorKind::kQ24) {
      entry["group"] = tensor.q24.group;
      entry["fine_columns"] = tensor.q24.n_fine;
      entry["outliers_per_row"] = tensor.q24.n_slots;
    }
    out.push_back(std::move(entry));
  }
  return out;
}

std::string to_json(const Container& container, bool with_tensors) {
  const WeightCount totals = count_weights(container);
  Json out;
  out["file"] = container.path();
  out["file_bytes"] = container.file_size();
  out["fingerprint"] = fmt::format("{:016x}", container.fingerprint());
  out["parameters"] = totals.weights;
  out["linear_bpw"] = totals.linear_bits();
  out["file_bpw"] = totals.file_bits(container.file_size());
  out["metadata"] = Json::object();
  for (const auto& [key, value] : container.metadata().entries()) out["metadata"][key] = value_json(value);
  if (with_tensors) out["tensors"] = tensors_json(container);
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string to_lines(const Container& container, bool with_tensors) {
  const WeightCount totals = count_weights(container);
  std::string out =
      fmt::format("file            {} ({})\nfingerprint     {:016x}\nparameters      {}\n", container.path(),
                  human_bytes(container.file_size()), container.fingerprint(), totals.weights);
  out += fmt::format("bits per weight {:.3f} linear layers, {:.3f} whole file\n", totals.linear_bits(),
                     totals.file_bits(container.file_size()));
  const Metadata& metadata = container.metadata();
  if (metadata.has("quality.ppl_ratio"))
    out += fmt::format(
        "quality         perplexity {:.4f} times the original's, KL divergence {:.4f} (held-out text)\n",
        metadata.get<double>("quality.ppl_ratio"), metadata.get_or<double>("quality.kl", 0));
  out += "\nmetadata\n";
  for (const auto& [key, value] : metadata.entries())
    out += fmt::format("  {:<32} {}\n", key, short_value(value));
  if (!with_tensors) return out;
  const std::map<std::string, float> errors = tensor_errors(metadata);
  out += fmt::format("\n{:<28} {:<5} {:>15} {:>12} {:>8} {:>8}  {}\n", "tensor", "kind", "shape", "bytes",
                     "bits/w", "error", "4-bit columns, outliers a row, group");
  for (const Tensor& tensor : container.tensors()) {
    out += fmt::format("{:<28} {:<5} {:>7} x {:>5} {:>12} {:>8.3f}", tensor.name, to_string(tensor.kind),
                       tensor.n_rows, tensor.n_cols, tensor.size_bytes, bits_per_weight(tensor));
    const auto error = errors.find(tensor.name);
    if (error != errors.end()) out += fmt::format(" {:>8.5f}", error->second);  // of the squares
    if (tensor.kind == TensorKind::kQ24)
      out += fmt::format("  {}, {}, {}", tensor.q24.n_fine, tensor.q24.n_slots, tensor.q24.group);
    out += '\n';
  }
  return out;
}

// A page replaces a page or an empty file, not the model that a slip puts in its place, a link or a device.
void check_replaceable(const std::string& path) {
  if (path.empty()) throw_error(ErrorCode::kInvalidArgument, "the page has no name, expected a file");
  struct stat info;
  if (::lstat(path.c_str(), &info) != 0) return;
  if (!S_ISREG(info.st_mode)) throw_error(ErrorCode::kIo, "{}: exists and is not a regular file", path);
  std::array<char, kPageStart.size()> head;
  const size_t n_read = File(Io::system(), path, O_RDONLY).read_at(0, head.data(), head.size());
  if (n_read > 0 && std::string_view(head.data(), n_read) != kPageStart)
    throw_error(ErrorCode::kInvalidArgument,
                "{}: exists and does not begin with {}, expected a new name or a page to replace", path,
                kPageStart);
}

}  // namespace

double bits_per_weight(const Tensor& tensor) {
  return 8.0 * static_cast<double>(tensor.size_bytes) / (static_cast<double>(tensor.n_rows) * tensor.n_cols);
}

std::string cut(std::string text, size_t n_bytes) {
  if (text.size() <= n_bytes) return text;
  while (n_bytes > 0 && (text[n_bytes] & 0xc0) == 0x80) --n_bytes;
  return text.substr(0, n_bytes);
}

std::string short_value(const MetadataValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, Bytes>) {
          return fmt::format("<{} bytes>", v.size());
        } else if constexpr (std::is_same_v<T, std::string>) {
          const std::string text = Json(v).dump(-1, ' ', false, Json::error_handler_t::replace);
          return text.size() > 100 ? cut(text, 90) + fmt::format("...\" {} bytes", v.size()) : text;
        } else if constexpr (std::is_arithmetic_v<T>) {
          return fmt::format("{}", v);
        } else {
          return short_list(v);
        }
      },
      value);
}

std::map<std::string, float> tensor_errors(const Metadata& metadata) {
  const auto names = metadata.get_or<std::vector<std::string>>("quality.tensors", {});
  const auto errors = metadata.get_or<std::vector<float>>("quality.errors", {});
  std::map<std::string, float> by_name;
  for (size_t i = 0; i < std::min(names.size(), errors.size()); ++i) by_name[names[i]] = errors[i];
  return by_name;
}

void add_inspect(CLI::App& root, Action& action) {
  struct Options {
    std::string file, html, ablation;
    bool has_html = false, json = false, tensors = true;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* const app =
      root.add_subcommand("inspect", "What a file holds: metadata, tensors, bits per weight");
  app->add_option("FILE", options->file, "A .pith file")->required()->type_name("");
  CLI::Option* const json = app->add_flag("--json", options->json, "Print JSON");
  CLI::Option* const html =
      app->add_option("--html", options->html, "Write a page with charts, and print nothing")
          ->type_name("FILE")
          ->excludes(json);
  app->add_option(
         "--ablation", options->ablation,
         "Onto the page: what each lever of the quantizer is worth (make ablation writes ablation.json)")
      ->type_name("FILE")
      ->needs("--html");
  app->add_flag_callback(
         "--no-tensors", [options] { options->tensors = false; }, "Leave the list of tensors out")
      ->excludes(html);
  app->callback([options, html, &action] {
    options->has_html = html->count() > 0;
    action = [options] {
      if (options->has_html) check_replaceable(options->html);
      const Container container = Container::open(options->file);
      if (options->has_html) {
        write_atomically(options->html, inspect_html(container, options->ablation));
        return kOk;
      }
      write_output(options->json ? to_json(container, options->tensors)
                                 : to_lines(container, options->tensors));
      return kOk;
    };
  });
}

}  // namespace pith::cli
