// How long something took: by the clock, which other work on the machine stretches, and in processor time of all threads,
// which it does not.
#pragma once
#include <chrono>
#include <ctime>

namespace pith {

struct Duration {
  double seconds = 0, cpu_seconds = 0;

  Duration& operator+=(const Duration& other) {
    seconds += other.seconds;
    cpu_seconds += other.cpu_seconds;
    return *this;
  }
};

// Runs from its construction. Work on other processors, a GPU's, has no processor time here.
class Stopwatch {
 public:
  Duration elapsed() const {
    return {std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(),
            cpu_now() - cpu_start_};
  }

 private:
  static double cpu_now() {
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double cpu_start_ = cpu_now();
};

}  // namespace pith
