// The assembler puts the file into the program as it is: no array of bytes to generate, nothing to install.
#include "convert/calibration_text.h"

// PITH_CALIBRATION_TEXT is the file's path.
asm(".pushsection .rodata\n"
    ".global pith_calibration_text\n"
    "pith_calibration_text:\n"
    ".incbin \"" PITH_CALIBRATION_TEXT
    "\"\n"
    ".global pith_calibration_text_end\n"
    "pith_calibration_text_end:\n"
    ".popsection\n");

extern "C" {
extern const char pith_calibration_text[] __attribute__((visibility("hidden")));
extern const char pith_calibration_text_end[] __attribute__((visibility("hidden")));
}

namespace pith {

std::string_view builtin_calibration_text() {
  return {pith_calibration_text, static_cast<size_t>(pith_calibration_text_end - pith_calibration_text)};
}

}  // namespace pith
