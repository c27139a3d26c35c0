// Texts that a command is given: read as a whole, and checked where they become C strings.
#pragma once
#include <string>
#include <string_view>

namespace pith::cli {

// The whole of a file, or of standard input for "-", at most 1 GiB. Throws kIo naming path and cause, kInvalidArgument
// for a path that is empty.
std::string read_text(const std::string& path);

// For texts that the C API takes as strings. what: "the message". Throws kInvalidArgument naming it and where the byte is.
void refuse_nul(std::string_view text, const std::string& what);

}  // namespace pith::cli
