// See parallel_for.h.
#include "convert/parallel_for.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "format/error.h"

namespace pith {

void parallel_for(uint32_t n, uint32_t n_threads, const std::function<void(uint32_t)>& body) {
  std::atomic<uint32_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      for (uint32_t i; (i = next.fetch_add(1)) < n;) body(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = n;
    }
  };
  std::vector<std::jthread> threads;
  n_threads = std::min(n_threads, n);
  try {
    for (uint32_t i = 1; i < n_threads; ++i) threads.emplace_back(work);
  } catch (const std::system_error& error) {
    next = n;  // the others need not go on
    throw_error(ErrorCode::kOutOfMemory, "cannot start thread {} of {}: {}", threads.size() + 2, n_threads,
                error.what());
  }
  work();
  threads.clear();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace pith
