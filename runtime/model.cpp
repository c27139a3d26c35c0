// Opening a model: metadata to objects, and every tensor that the spec asks for, there and of the right shape.
#include "runtime/model.h"

#include <cmath>

#include "models/family.h"

namespace pith {

namespace {

void check_tensor(const Container& container, const TensorPlan& plan) {
  const Tensor& tensor = container.get(plan.name);
  if (tensor.n_rows != plan.n_rows || tensor.n_cols != plan.n_cols)
    throw_error(ErrorCode::kFormat, "{}: tensor '{}' is [{}, {}], expected [{}, {}]", container.path(),
                plan.name, tensor.n_rows, tensor.n_cols, plan.n_rows, plan.n_cols);
  const bool is_vector = plan.role == TensorRole::kNorm || plan.role == TensorRole::kBias;
  if (is_vector && tensor.kind != TensorKind::kF32)
    throw_error(ErrorCode::kFormat, "{}: tensor '{}' is {}, expected {}", container.path(), plan.name,
                to_string(tensor.kind), to_string(TensorKind::kF32));
  // The decoder takes it in floats: a wrong choice of expert is no small error.
  if (plan.role == TensorRole::kRouter && tensor.kind == TensorKind::kQ24)
    throw_error(ErrorCode::kFormat, "{}: tensor '{}' is {}, expected a router in floats", container.path(),
                plan.name, to_string(tensor.kind));
}

float read_real(const Metadata& metadata, const std::string& where, const char* key, float fallback,
                float low, float high) {
  const double value = metadata.get_or<double>(key, double{fallback});
  if (!(value >= double{low} && value <= double{high}))
    throw_error(ErrorCode::kFormat, "{}: {} is {}, expected {} to {}", where, key, value, low, high);
  return static_cast<float>(value);
}

}  // namespace

GenerationDefaults read_generation(const Metadata& metadata, const std::string& where) {
  GenerationDefaults d;
  d.temperature = read_real(metadata, where, "generation.temperature", d.temperature, 0, 100);
  d.top_p = read_real(metadata, where, "generation.top_p", d.top_p, 0, 1);
  d.min_p = read_real(metadata, where, "generation.min_p", d.min_p, 0, 1);
  d.repetition_penalty =
      read_real(metadata, where, "generation.repetition_penalty", d.repetition_penalty, 0.01f, 100);
  const uint64_t top_k = metadata.get_or<uint64_t>("generation.top_k", 0);
  if (top_k > INT32_MAX)
    throw_error(ErrorCode::kFormat, "{}: generation.top_k is {}, expected less than 2^31", where, top_k);
  d.top_k = static_cast<uint32_t>(top_k);
  return d;
}

std::shared_ptr<const Model> Model::open(const std::string& path, Container::Access access) {
  return from_container(Container::open(path, access));
}

std::shared_ptr<const Model> Model::from_container(Container opened) {
  const std::shared_ptr<Model> model(new Model(std::move(opened)));
  const Container& container = model->container_;
  const Metadata& metadata = container.metadata();
  model->spec_ = load_spec(metadata, container.path());
  check_n_tensors(model->spec_, container.tensors().size(), container.path());
  for (const TensorPlan& plan : plan_tensors(model->spec_)) check_tensor(container, plan);
  if (metadata.has("tokenizer.kind")) model->tokenizer_ = Tokenizer::open(metadata, model->spec_.vocab_size);
  if (metadata.has("chat.template"))
    model->chat_template_.emplace(metadata.get<std::string>("chat.template"),
                                  metadata.get_or<std::string>("chat.bos", ""),
                                  metadata.get_or<std::string>("chat.eos", ""));
  model->generation_ = read_generation(metadata, container.path());
  return model;
}

const Tokenizer& Model::tokenizer() const {
  if (tokenizer_ == nullptr)
    throw_error(ErrorCode::kUnsupported, "{}: no tokenizer inside, expected a converted model",
                container_.path());
  return *tokenizer_;
}

}  // namespace pith
