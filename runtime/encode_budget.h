// What encoding one text may take: a file's replacements, prefixes and patterns are run over it, and a
// hostile file's would take all memory (two dozen that double the text) or hours. Both grow with the text,
// far beyond what honest files need.
#pragma once
#include <cstddef>
#include <cstdint>
#include <ctime>

#include "format/error.h"

namespace pith {

class EncodeBudget {
 public:
  explicit EncodeBudget(size_t text_bytes)
      : text_bytes_(text_bytes),
        n_bytes_left_(kMaxGrowth * (text_bytes + 1)),
        end_(seconds() + kMaxSeconds + kMaxSecondsPerByte * static_cast<double>(text_bytes)) {}

  // For n bytes about to be put into the text. Throws Error(kFormat) when they were too many, over all of the file's ops.
  void add(size_t n_bytes) {
    if (n_bytes > n_bytes_left_)
      throw_error(ErrorCode::kFormat, "tokenizer: {} bytes of text grow by more than {}", text_bytes_,
                  kMaxGrowth * (text_bytes_ + 1));
    n_bytes_left_ -= n_bytes;
  }
  // Processor time, so that a loaded machine changes nothing; looked up now and then, as that takes longer than most matches.
  bool out_of_time() { return ++n_asked_ % 64 == 0 && seconds() > end_; }

 private:
  // A code point's compatibility form takes at most 11 times its bytes (U+FDFA), a Metaspace replacement 3 times.
  static constexpr size_t kMaxGrowth = 256;
  static constexpr double kMaxSeconds = 1, kMaxSecondsPerByte = 10e-6;  // honest patterns take 0.1e-6 at most

  static double seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
  size_t text_bytes_, n_bytes_left_;
  double end_;
  uint64_t n_asked_ = 0;
};

}  // namespace pith
