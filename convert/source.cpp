// Every tensor of the plan found, every other one accounted for, and every key of config.json used or known
// to be of no effect.
#include "convert/source.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "convert/assemble.h"
#include "format/error.h"
#include "models/family.h"

namespace pith {

namespace {

// Buffers that some checkpoints carry and no forward pass needs.
bool is_ignorable(const std::string& name) {
  for (const char* suffix : {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".position_ids"})
    if (name.ends_with(suffix)) return true;
  return false;
}

// One line for several names: the first few, and how many more.
std::string list_names(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  const size_t n_shown = std::min(names.size(), kShown);
  std::string text =
      fmt::format("'{}'", fmt::join(names.begin(), names.begin() + static_cast<long>(n_shown), "', '"));
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return text;
}

void refuse_unless_forced(const std::string& problem, const SourceOptions& options,
                          std::vector<std::string>& notes) {
  if (!options.force) throw_error(ErrorCode::kUnsupported, "{} (--force ignores this)", problem);
  notes.push_back(problem);
}

// A tied checkpoint may store its one matrix under either name.
void resolve_tied(const Checkpoint& checkpoint, const ModelSpec& spec, const char* head,
                  std::vector<TensorPlan>& plan) {
  if (!spec.tied_embeddings || !checkpoint.has(head)) return;
  for (TensorPlan& tensor : plan)
    if (tensor.role == TensorRole::kEmbedding)
      for (TensorSource& source : tensor.sources)
        if (!checkpoint.has(source.name)) source.name = head;
}

void check_unused(const Source& source, const CheckpointNames& names, const SourceOptions& options,
                  std::vector<std::string>& notes) {
  const auto is_left_out = [&](const std::string& name) {
    return std::any_of(names.ignored_prefixes.begin(), names.ignored_prefixes.end(),
                       [&](const std::string& prefix) { return name.starts_with(prefix); });
  };
  std::set<std::string> used;
  for (const TensorPlan& tensor : source.plan)
    for (const TensorSource& part : tensor.sources)
      for (const std::string& name : source.checkpoint.stored_names(part.name)) used.insert(name);
  std::vector<std::string> unused;
  for (const std::string& name : source.checkpoint.names()) {
    const bool is_tied_head = source.spec.tied_embeddings && name == names.head;
    if (!used.contains(name) && !is_ignorable(name) && !is_tied_head && !is_left_out(name))
      unused.push_back(name);
  }
  if (!unused.empty())
    refuse_unless_forced(fmt::format("{}: {} tensors have no place in this architecture: {}",
                                     source.checkpoint.dir(), unused.size(), list_names(unused)),
                         options, notes);
}

}  // namespace

std::vector<float> Source::read(const TensorPlan& tensor) const {
  std::vector<float> values(size_t{tensor.n_rows} * tensor.n_cols);
  Assembly(checkpoint, tensor, false).read_rows(0, tensor.n_rows, values.data());
  return values;
}

LayerVectors Source::layer_vectors(uint32_t layer) const {
  const std::string prefix = layer_tensor(layer, "");
  LayerVectors vectors;
  for (const TensorPlan& tensor : plan)
    if (tensor.role != TensorRole::kLinear && tensor.name.starts_with(prefix))
      vectors[tensor.name.substr(prefix.size())] = read(tensor);
  return vectors;
}

Source open_source(const std::string& dir, const SourceOptions& options, std::vector<std::string>& notes) {
  Source source{Checkpoint::open(dir), {}, {}};
  const std::string where = dir + "/config.json";
  const nlohmann::json& config_json = source.checkpoint.config();
  const auto architectures = config_json.find("architectures");
  if (architectures == config_json.end() || !architectures->is_array() || architectures->size() != 1 ||
      !(*architectures)[0].is_string())
    throw_error(ErrorCode::kFormat, "{}: 'architectures' is not a list of one name", where);
  const Family& family = family_for((*architectures)[0].get<std::string>(), where);
  Config config(config_json, where);
  source.spec = family.read_config(config);
  check_spec(source.spec, where);  // again: families set fields after read_dense_config has checked its own
  if (const std::vector<std::string> unknown = config.unconsumed(); !unknown.empty())
    refuse_unless_forced(fmt::format("{}: unknown keys {}", where, list_names(unknown)), options, notes);
  check_n_tensors(source.spec, source.checkpoint.names().size(), dir, family.names);
  source.plan = family.plan(source.spec);
  resolve_tied(source.checkpoint, source.spec, family.names.head, source.plan);
  for (const TensorPlan& tensor : source.plan) Assembly(source.checkpoint, tensor, options.allow_nonfinite);
  check_unused(source, family.names, options, notes);
  return source;
}

}  // namespace pith
