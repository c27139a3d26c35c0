// The list of all families. A new one is a file beside this and a line here.
#include <algorithm>

#include "models/family.h"

namespace pith {

const std::vector<Family>& families() {
  static const std::vector<Family> list = {llama_family(),
                                           mistral_family(),
                                           mistral_multimodal_family(),
                                           mixtral_family(),
                                           qwen2_family(),
                                           qwen3_family(),
                                           qwen3_moe_family(),
                                           gemma2_family(),
                                           gemma3_family(),
                                           gemma3_multimodal_family(),
                                           phi3_family(),
                                           olmo2_family(),
                                           olmo3_family(),
                                           granite_family(),
                                           smollm3_family(),
                                           gpt_oss_family()};
  return list;
}

const Family& family_for(const std::string& architecture, const std::string& where) {
  std::string known;
  for (const Family& family : families())
    for (const std::string& name : family.architectures) {
      if (name == architecture) return family;
      known += (known.empty() ? "" : ", ") + name;
    }
  throw_error(ErrorCode::kUnsupported, "{}: architecture '{}' is not supported, expected one of {}", where,
              architecture, known);
}

}  // namespace pith
