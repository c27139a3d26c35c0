// Base64 with padding, strict. Throws Error(kFormat) naming `where`.
#pragma once
#include <string>
#include <string_view>

namespace pith {

std::string decode_base64(std::string_view text, const std::string& where);

}  // namespace pith
