// An opened model: container, spec, tokenizer, chat template, generation defaults. Immutable, shared by sessions.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "format/container.h"
#include "models/spec.h"
#include "runtime/chat_template.h"
#include "runtime/tokenizer.h"

namespace pith {

// Sampling defaults from the checkpoint's generation_config.json (keys "generation.*").
struct GenerationDefaults {
  float temperature = 0;  // 0 = greedy
  uint32_t top_k = 0;     // 0 = off
  float top_p = 1, min_p = 0;
  float repetition_penalty = 1;
};
// Throws Error(kFormat) for what is out of range; `where` names the file.
GenerationDefaults read_generation(const Metadata& metadata, const std::string& where);

class Model {
 public:
  // Opens and validates everything that is needed to run: every tensor of the spec is there with the right shape.
  // Throws Error(kIo | kFormat | kUnsupported).
  static std::shared_ptr<const Model> open(const std::string& path,
                                           Container::Access access = Container::Access::kMap);
  static std::shared_ptr<const Model> from_container(Container container);

  const Container& container() const { return container_; }
  const ModelSpec& spec() const { return spec_; }
  const Tokenizer& tokenizer() const;  // throws kUnsupported when there is none (synthetic models)
  const ChatTemplate* chat_template() const { return chat_template_ ? &*chat_template_ : nullptr; }
  const GenerationDefaults& generation() const { return generation_; }

 private:
  explicit Model(Container container) : container_(std::move(container)) {}
  Container container_;
  ModelSpec spec_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_template_;
  GenerationDefaults generation_;
};

}  // namespace pith
