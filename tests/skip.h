// A test that lacks what it needs says SKIP with the reason and returns; with PITH_NO_SKIP=1 it fails instead. The command-line
// tests have the same in CliTest.skip (cli/harness.py).
#pragma once
#include <catch2/catch.hpp>
#include <cstdlib>
#include <string>

namespace pith::test {

// For `return skip("...")` from a test case.
inline void skip(const std::string& reason) {
  const char* const no_skip = std::getenv("PITH_NO_SKIP");
  if (no_skip != nullptr && std::string(no_skip) == "1") FAIL("skipped: " << reason);
  WARN("SKIP: " << reason);
}

}  // namespace pith::test
