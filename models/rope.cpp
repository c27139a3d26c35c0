// Rotary embeddings of Hugging Face configs, baked into inverse frequencies and one scale.
//
// The formulas are those of the field: position interpolation (linear), Llama 3.1's wavelength bands, YaRN (arXiv 2309.00071)
// and LongRoPE (arXiv 2402.13753); dynamic NTK's is in spec.cpp, as it needs the session's context. All
// arithmetic in double; only the result is rounded to float.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "models/family.h"

namespace pith {

namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;
constexpr double kMaxScaledContext = 16777216;

struct Rotary {
  double theta;
  uint32_t n_dims;  // rotated dimensions of a head
  uint32_t max_context;
  std::vector<double> inv_freq;  // [n_dims / 2], before scaling
};

double checked_factor(Config& config, const std::string& key) {
  const double value = config.number(key);
  if (!(value > 0 && value <= 1e6))
    throw_error(ErrorCode::kFormat, "{}: '{}' is {}, expected 0 < value <= 1e6", config.where(), key, value);
  return value;
}

// Keeps wavelengths shorter than the original context, divides long ones by `factor`, blends between.
void scale_llama3(Rotary& rotary, Config& scaling) {
  const double factor = checked_factor(scaling, "factor");
  const double low = checked_factor(scaling, "low_freq_factor");
  const double high = checked_factor(scaling, "high_freq_factor");
  const double original = scaling.count("original_max_position_embeddings");
  if (!(low < high))
    throw_error(ErrorCode::kFormat, "{}: low_freq_factor {} is not below high_freq_factor {}",
                scaling.where(), low, high);
  for (double& f : rotary.inv_freq) {
    const double turns = original * f / kTwoPi;  // within the original context
    const double keep = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    f = (1 - keep) * f / factor + keep * f;
  }
}

// YaRN's "NTK by parts": dimensions that turn often keep their frequency, slow ones are interpolated.
float scale_yarn(Rotary& rotary, Config& scaling, uint32_t& max_context) {
  const uint32_t original = scaling.count_or("original_max_position_embeddings", rotary.max_context);
  const double factor =
      scaling.has("factor") ? checked_factor(scaling, "factor") : 1.0 * max_context / original;
  const double beta_fast = scaling.number_or("beta_fast", 32);
  const double beta_slow = scaling.number_or("beta_slow", 1);
  const bool truncate = scaling.flag_or("truncate", true);
  const auto dimension_of = [&](double turns) {
    return rotary.n_dims * std::log(original / (turns * kTwoPi)) / (2 * std::log(rotary.theta));
  };
  double low = dimension_of(beta_fast), high = dimension_of(beta_slow);
  if (truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, rotary.n_dims - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < rotary.inv_freq.size(); ++i) {
    const double interpolate = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    rotary.inv_freq[i] *= interpolate / factor + (1 - interpolate);
  }

  const auto magnitude = [&](double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; };
  const double m = scaling.number_or("mscale", 0), m_all = scaling.number_or("mscale_all_dim", 0);
  const double fallback = m != 0 && m_all != 0 ? magnitude(m) / magnitude(m_all) : magnitude(1);
  const double attention_factor = scaling.number_or("attention_factor", fallback);
  max_context = std::max(max_context, static_cast<uint32_t>(std::min(original * factor, kMaxScaledContext)));
  return static_cast<float>(attention_factor);
}

// LongRoPE: a divisor for each frequency, one list within the original context and one beyond it.
void scale_longrope(Rotary& rotary, Config& scaling, Config& config, RopeSpec& rope) {
  rope.original_context =
      scaling.count_or("original_max_position_embeddings",
                       config.count_or("original_max_position_embeddings", rotary.max_context));
  const double factor = scaling.has("factor") ? checked_factor(scaling, "factor")
                                              : 1.0 * rotary.max_context / rope.original_context;
  const double magnitude =
      factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(1.0 * rope.original_context));
  rope.scale = static_cast<float>(scaling.number_or("attention_factor", magnitude));
  const auto divide = [&](const char* key) {
    const std::vector<double> divisors = scaling.numbers(key);
    if (divisors.size() != rotary.inv_freq.size())
      throw_error(ErrorCode::kFormat, "{}: '{}' has {} entries, expected {}", scaling.where(), key,
                  divisors.size(), rotary.inv_freq.size());
    std::vector<double> divided = rotary.inv_freq;
    for (size_t i = 0; i < divided.size(); ++i) {
      if (!(divisors[i] > 0))
        throw_error(ErrorCode::kFormat, "{}: '{}' has the entry {}, expected more than 0", scaling.where(),
                    key, divisors[i]);
      divided[i] /= divisors[i];
    }
    return divided;
  };
  const std::vector<double> beyond = divide("long_factor");
  rope.long_inv_freq.assign(beyond.begin(), beyond.end());
  rotary.inv_freq = divide("short_factor");
}

RopeSpec read_rope(Config& scaling, Config& config, double theta, double partial, uint32_t head_dim,
                   uint32_t& max_context) {
  theta = scaling.number_or("rope_theta", theta);
  partial = scaling.number_or("partial_rotary_factor", partial);
  const std::string old_type = scaling.text_or("type", "default");
  const std::string type = scaling.text_or("rope_type", old_type);

  if (!(theta > 1 && theta <= 1e12))
    throw_error(ErrorCode::kFormat, "{}: rope_theta is {}, expected 1 < value <= 1e12", config.where(),
                theta);
  if (!(partial > 0 && partial <= 1))
    throw_error(ErrorCode::kFormat, "{}: partial_rotary_factor is {}, expected 0 < value <= 1",
                config.where(), partial);
  Rotary rotary{theta, static_cast<uint32_t>(head_dim * partial) / 2 * 2, max_context, {}};
  if (rotary.n_dims == 0)
    throw_error(ErrorCode::kFormat, "{}: partial_rotary_factor {} leaves nothing of head_dim {} to rotate",
                config.where(), partial, head_dim);
  for (uint32_t i = 0; i < rotary.n_dims; i += 2)
    rotary.inv_freq.push_back(std::pow(theta, -1.0 * i / rotary.n_dims));

  RopeSpec rope;
  if (type == "linear") {
    const double factor = checked_factor(scaling, "factor");
    for (double& f : rotary.inv_freq) f /= factor;
  } else if (type == "dynamic") {
    rope.original_context = max_context;
    rope.dynamic_factor = static_cast<float>(checked_factor(scaling, "factor"));
    max_context = static_cast<uint32_t>(
        std::min(std::max(max_context * double{rope.dynamic_factor}, 1.0 * max_context), kMaxScaledContext));
  } else if (type == "llama3") {
    scale_llama3(rotary, scaling);
  } else if (type == "yarn") {
    rope.scale = scale_yarn(rotary, scaling, max_context);
  } else if (type == "longrope" || type == "su") {  // "su": its name in the first Phi-3 checkpoints
    scale_longrope(rotary, scaling, config, rope);
  } else if (type != "default") {
    throw_error(ErrorCode::kUnsupported,
                "{}: rope type '{}', expected default, linear, dynamic, llama3, yarn or longrope",
                scaling.where(), type);
  }
  const std::vector<std::string> unknown = scaling.unconsumed();
  if (!unknown.empty())
    throw_error(ErrorCode::kUnsupported, "{}: unknown key '{}' for rope type '{}'", scaling.where(),
                unknown[0], type);
  rope.inv_freq.assign(rotary.inv_freq.begin(), rotary.inv_freq.end());
  return rope;
}

}  // namespace

RopeSpec plain_rope(double theta, uint32_t n_dims) {
  RopeSpec rope;
  for (uint32_t i = 0; i < n_dims; i += 2)
    rope.inv_freq.push_back(static_cast<float>(std::pow(theta, -1.0 * i / n_dims)));
  return rope;
}

double read_rope_theta(Config& config, double default_theta) {
  double theta = config.number_or("rope_theta", default_theta);
  for (const char* const key : {"rope_parameters", "rope_scaling"})
    if (config.has(key))
      theta = Config(config.object_or_null(key), config.where() + ": " + key).number_or("rope_theta", theta);
  return theta;
}

std::vector<RopeSpec> read_ropes(Config& config, uint32_t head_dim, double default_theta,
                                 uint32_t& max_context) {
  // Newer configs keep everything in rope_parameters, one object or one for each type of layer; older ones have rope_theta beside
  // rope_scaling, and rope_local_base_freq for layers that slide.
  const double theta = config.number_or("rope_theta", default_theta);
  const double partial = config.number_or("partial_rotary_factor", 1);
  nlohmann::json object = config.object_or_null("rope_parameters");
  std::string name = "rope_parameters";
  if (object.is_null()) {
    object = config.object_or_null("rope_scaling");
    name = "rope_scaling";
  } else if (config.has("rope_scaling")) {
    throw_error(ErrorCode::kFormat, "{}: both rope_parameters and rope_scaling are there, expected one",
                config.where());
  }
  if (object.is_null()) object = nlohmann::json::object();
  const std::string where = config.where() + ": " + name;
  std::vector<RopeSpec> ropes;
  const auto add = [&](const nlohmann::json& scaling_object, const std::string& scaling_where) {
    Config scaling(scaling_object, scaling_where);
    ropes.push_back(read_rope(scaling, config, theta, partial, head_dim, max_context));
  };
  if (object.contains("full_attention")) {
    Config types(object, where);
    for (const char* type : {"full_attention", "sliding_attention"})
      add(types.object_or_null(type), where + "." + type);
    if (const std::vector<std::string> unknown = types.unconsumed(); !unknown.empty())
      throw_error(ErrorCode::kUnsupported, "{}: unknown type of layer '{}'", where, unknown[0]);
    return ropes;
  }
  add(object, where);
  return ropes;
}

}  // namespace pith
