// What becomes of a file under way when its making fails.
#pragma once
#include <new>

#include "format/error.h"
#include "format/writer.h"

namespace pith {

// Runs `body`. What `writer` has so far stays when the same command can go on later: after an interruption, and when disk
// or memory ran out. After any other failure nothing is left.
template <typename Body>
void keep_or_discard(Writer& writer, Body&& body) {
  constexpr const char* kGoOn = "what is done is kept, the same command goes on from there";
  try {
    body();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kIo || error.code() == ErrorCode::kOutOfMemory)
      throw_error(error.code(), "{}; {}", error.what(), kGoOn);
    if (error.code() != ErrorCode::kInterrupted) writer.discard();
    throw;
  } catch (const std::bad_alloc&) {
    throw_error(ErrorCode::kOutOfMemory, "not enough memory; {}", kGoOn);
  } catch (...) {
    writer.discard();
    throw;
  }
}

}  // namespace pith
