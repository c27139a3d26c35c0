// See bits.h.
#include "convert/bits.h"

#include <charconv>
#include <string>

#include "format/error.h"

namespace pith {

namespace {

constexpr double kMinBits = 2.3, kMaxBits = 4.5;

bool are_allowed(double bits) {
  return bits == 16 || bits == 32 || (bits >= kMinBits && bits <= kMaxBits);
}

[[noreturn]] void refuse_bits(std::string_view found) {
  throw_error(ErrorCode::kInvalidArgument, "--bits {}: expected {} to {}, 16 or 32", found, kMinBits,
              kMaxBits);
}

}  // namespace

void check_bits(double bits) {
  if (!are_allowed(bits)) refuse_bits(fmt::format("{}", bits));
}

double parse_bits(std::string_view text) {
  double bits = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bits);
  if (error != std::errc() || end != text.data() + text.size() || !are_allowed(bits)) refuse_bits(text);
  return bits;
}

void check_embed_bits(uint32_t bits) {
  if (bits != 4 && bits != 16)
    throw_error(ErrorCode::kInvalidArgument, "--embed-bits {}: expected 4 or 16", bits);
}

}  // namespace pith
