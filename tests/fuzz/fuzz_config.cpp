// Fuzzes config.json, over every family. Oracle: a config that is accepted gives a spec within its caps, which metadata gives
// back as it was, and a plan of distinct tensors whose sizes fit 64 bits; anything else is one line of kFormat or kUnsupported.
//
// The mutator works on values, not on bytes: it begins with a published config (tests/golden/families), drops, changes and
// swaps values, and brings keys over from other families.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "convert/json_file.h"
#include "models/family.h"

using namespace pith;
using Json = nlohmann::json;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "accepted, but: %s\n", what);
  std::abort();
}

void check(const Family& family, const ModelSpec& spec) {
  check_spec(spec, "fuzz");
  require(spec.layers.size() == spec.n_layers, "layers are not n_layers");
  for (const LayerSpec& layer : spec.layers)
    require(layer.rope_idx < static_cast<int>(spec.ropes.size()), "a layer's rope is not there");
  Metadata metadata, again;
  store_spec(spec, metadata);
  const Bytes bytes = metadata.serialize();
  store_spec(load_spec(Metadata::parse(bytes), "fuzz"), again);
  require(again.serialize() == bytes, "metadata gives another spec");

  constexpr uint64_t kMaxTensors = 1 << 16;  // a plan of more is right, too, but slow
  if (uint64_t{spec.n_layers} * (8 + uint64_t{spec.n_experts}) > kMaxTensors) return;
  std::set<std::string> names;
  for (const TensorPlan& tensor : family.plan(spec)) {
    require(names.insert(tensor.name).second, "a tensor is there twice");
    require(is_valid_name(tensor.name), "a tensor's name is none");
    require(tensor.n_rows > 0 && tensor.n_cols > 0, "a tensor is empty");
    require(!tensor.sources.empty(), "a tensor comes from nowhere");
  }
}

const std::vector<Json>& seeds() {
  static const std::vector<Json> all = [] {
    std::vector<std::string> paths;
    for (const auto& entry : std::filesystem::directory_iterator(PITH_SOURCE_DIR "/tests/golden/families"))
      if (entry.path().extension() == ".json") paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    std::vector<Json> configs;
    for (const std::string& path : paths) {
      std::ifstream file(path);
      const Json one = Json::parse(file);
      configs.push_back(one.at("config"));
      configs.push_back(one.at("saved_config"));
    }
    return configs;
  }();
  return all;
}

template <typename T>
const T& pick(const std::vector<T>& values, std::mt19937& rng) {
  return values[rng() % values.size()];
}

Json interesting(std::mt19937& rng) {
  static const std::vector<Json> values = {nullptr,
                                           true,
                                           false,
                                           0,
                                           1,
                                           2,
                                           3,
                                           -1,
                                           7,
                                           64,
                                           255,
                                           65535,
                                           65536,
                                           2147483647,
                                           2147483648u,
                                           4294967295u,
                                           0.0,
                                           0.5,
                                           -0.0,
                                           1e-30,
                                           1e30,
                                           1e300,
                                           -1e300,
                                           5e-324,
                                           "",
                                           "silu",
                                           "gelu",
                                           "yarn",
                                           "llama3",
                                           "linear",
                                           "dynamic",
                                           "longrope",
                                           "default",
                                           "full_attention",
                                           "sliding_attention",
                                           Json::array(),
                                           Json::object(),
                                           Json{1.0, 2.0},
                                           Json{"full_attention"},
                                           Json{{"rope_type", "yarn"}, {"factor", 4.0}},
                                           Json{{"type", "linear"}},
                                           std::string(300, 'a')};
  return pick(values, rng);
}

// A value somewhere in the tree: the root's child, or deeper.
Json* pick_value(Json& json, std::mt19937& rng) {
  Json* at = &json;
  while (at->is_structured() && !at->empty()) {
    auto child = at->begin();
    std::advance(child, rng() % at->size());
    at = &*child;
    if (rng() % 2 == 0) break;
  }
  return at;
}

void change(Json& json, std::mt19937& rng) {
  if (!json.is_object()) return;
  switch (rng() % 7) {
    case 0:
      *pick_value(json, rng) = interesting(rng);
      break;
    case 1: {  // a key goes
      if (json.empty()) break;
      auto entry = json.begin();
      std::advance(entry, rng() % json.size());
      json.erase(entry);
      break;
    }
    case 2: {  // a key of another config comes
      const Json& other = pick(seeds(), rng);
      auto entry = other.begin();
      std::advance(entry, rng() % other.size());
      json[entry.key()] = *entry;
      break;
    }
    case 3: {  // two values change places
      Json* const a = pick_value(json, rng);
      Json copy = *a;
      *pick_value(json, rng) = std::move(copy);
      break;
    }
    case 4: {  // a number, nearby
      Json* const a = pick_value(json, rng);
      static const std::vector<double> factors = {0.5, 2, 1.000001, -1, 1024, 1e6};
      if (a->is_number_integer())
        *a = a->get<int64_t>() + static_cast<int64_t>(rng() % 5) - 2;
      else if (a->is_number())
        *a = a->get<double>() * pick(factors, rng);
      break;
    }
    case 5: {  // a list, longer or shorter
      Json* const a = pick_value(json, rng);
      if (!a->is_array()) break;
      if (rng() % 2 == 0 && !a->empty())
        a->erase(a->size() - 1);
      else
        a->push_back(a->empty() ? interesting(rng) : a->back());
      break;
    }
    default:  // read it as another family's
      json["architectures"] = pick(seeds(), rng).at("architectures");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    Json json = parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
    Config names(json, "fuzz");
    const std::vector<std::string> architectures = names.texts("architectures");
    if (architectures.empty()) return 0;
    const Family& family = family_for(architectures[0], "fuzz");
    Config config(std::move(json), "fuzz");
    const ModelSpec spec = family.read_config(config);
    for (const std::string& key : config.unconsumed())
      require(!config.used_keys().contains(key), "a key that was read counts as unknown");
    check(family, spec);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kFormat && error.code() != ErrorCode::kUnsupported) throw;
    if (std::strchr(error.what(), '\n') != nullptr) throw;
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  std::mt19937 rng(seed);
  if (rng() % 16 == 0) return LLVMFuzzerMutate(data, size, max_size);
  Json json = Json::parse(data, data + size, nullptr, false);
  if (!json.is_object() || rng() % 32 == 0) json = pick(seeds(), rng);
  for (unsigned n = 1 + rng() % 3; n > 0; --n) change(json, rng);
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, text.data(), text.size());
  return text.size();
}
