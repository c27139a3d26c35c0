// The built-in calibration text (calibration.txt), linked into the program.
#pragma once
#include <string_view>

namespace pith {
std::string_view builtin_calibration_text();
}
