// What an interrupted conversion leaves, and how the next one goes on.
#include <malloc.h>
#include <signal.h>
#include <sys/resource.h>

#include "convert/parallel_for.h"
#include "tests/convert_cases.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

TEST_CASE("a disk that fills up is an error, and the same command goes on from what is done") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  const int code = in_child([&] {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{50'000, 50'000};
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      convert(checkpoint.model_dir(), options_for(checkpoint, 16));
    } catch (const Error& error) {
      if (!std::string(error.what()).ends_with("what is done is kept, the same command goes on from there"))
        return 6;
      return error.code() == ErrorCode::kIo ? 7 : 8;
    }
    return 9;
  });
  CHECK(code == 7);
  CHECK(!std::filesystem::exists(checkpoint.output()));
  CHECK(convert(checkpoint.model_dir(), options_for(checkpoint, 16)).n_resumed > 0);
  const std::string resumed = read_text_file(checkpoint.output());
  std::filesystem::remove(checkpoint.output());
  convert(checkpoint.model_dir(), options_for(checkpoint, 16));
  CHECK(read_text_file(checkpoint.output()) == resumed);
  CHECK(checkpoint.leftovers() == std::vector<std::string>{"out.pith"});
}

#ifndef __SANITIZE_ADDRESS__  // which needs more address space than any limit leaves
TEST_CASE("memory that runs out is an error, and the same command goes on from what is done") {
  TinyCheckpoint checkpoint(128, 2048, 2);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.2);
  options.calibrate = false;
  const int code = in_child([&] {
    options.progress = [](const ConvertProgress& at) {
      if (at.tensor != "layers.1.ffn_gate_up") return;
      const rlimit limit{1 << 20, 1 << 20};  // less than what is in use: no more from now on
      setrlimit(RLIMIT_AS, &limit);
      mallopt(M_MMAP_THRESHOLD, 4096);
    };
    try {
      convert(checkpoint.model_dir(), options);
    } catch (const Error& error) {
      const std::string message =
          error.what();  // "cannot map: Cannot allocate memory" where the heap had room left
      return message.find("memory") != message.npos && message.ends_with("goes on from there") ? 7 : 8;
    }
    return 9;
  });
  CHECK(code == 7);
  options.progress = nullptr;
  CHECK(convert(checkpoint.model_dir(), options).n_resumed > 5);
  CHECK(checkpoint.leftovers() == std::vector<std::string>{"out.pith"});
}

// Which is what a conversion can be resumed after.
TEST_CASE("threads that do not start are memory that ran out") {
  const int code = in_child([] {
    const rlimit limit{1 << 20, 1 << 20};  // no room for another stack
    setrlimit(RLIMIT_AS, &limit);
    try {
      parallel_for(64, 64, [](uint32_t) {});
    } catch (const Error& error) {
      const bool is_named = std::string(error.what()).starts_with("cannot start thread ");
      return error.code() == ErrorCode::kOutOfMemory && is_named ? 7 : 8;
    }
    return 9;
  });
  CHECK(code == 7);
}
#endif

TEST_CASE("a conversion killed at any tensor resumes to the same bytes") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  // Progress is told: once for each of 9 tensors while the checkpoint is measured (below 16 bits), once for each that is
  // converted, and at the end.
  for (const auto& [bits, kill_at] : {std::pair<double, std::vector<int>>{16, {1, 2, 5, 9, 11}},
                                      std::pair<double, std::vector<int>>{3.5, {5, 11, 14, 18, 20}}}) {
    ConvertOptions options = options_for(checkpoint, bits);
    convert(checkpoint.model_dir(), options);
    const std::string whole = read_text_file(checkpoint.output());
    size_t n_resumed = 0;
    for (const int kill_here : kill_at) {
      INFO(bits << " bits, killed at " << kill_here);
      std::filesystem::remove(checkpoint.output());
      const int code = in_child([&] {
        int n = 0;
        options.progress = [&](const ConvertProgress&) {
          if (++n == kill_here) kill(getpid(), SIGKILL);
        };
        convert(checkpoint.model_dir(), options);
        return 0;
      });
      CHECK(code == -SIGKILL);
      CHECK(!std::filesystem::exists(checkpoint.output()));
      options.progress = nullptr;
      n_resumed += convert(checkpoint.model_dir(), options).n_resumed;
      CHECK(read_text_file(checkpoint.output()) == whole);
      CHECK(checkpoint.leftovers() == std::vector<std::string>{"out.pith"});
    }
    CHECK(n_resumed > 10);
  }
}

TEST_CASE("an interrupted conversion neither measures nor quantizes again what is done") {
  TinyCheckpoint checkpoint(64, 96, 2);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.calibration_tokens = 1024;  // of which one window is held out
  options.progress = [](const ConvertProgress& at) {
    if (std::string_view(at.stage) == "check") throw_error(ErrorCode::kInterrupted, "stopped");
  };
  CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options), "stopped");
  options.progress = nullptr;
  const ConvertReport report = convert(checkpoint.model_dir(), options);
  CHECK(report.n_resumed == Container::open(checkpoint.output()).tensors().size());
  for (const StageTime& stage : report.stages) {
    CHECK(std::string_view(stage.stage) != "measure");
    CHECK(std::string_view(stage.stage) != "statistics");
    CHECK(std::string_view(stage.stage) != "quantize");
  }
  CHECK(report.kl > 0);  // the streams went through what was there
}

TEST_CASE("an interruption keeps what is done, with a changed source or option it is refused") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 16);
  const auto interrupt = [&] {
    int n = 0;
    options.progress = [&](const ConvertProgress&) {
      if (++n == 12) throw_error(ErrorCode::kInterrupted, "stopped");
    };
    CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options), "stopped");
    options.progress = nullptr;
    CHECK(std::filesystem::exists(checkpoint.output() + ".part"));
    CHECK(std::filesystem::exists(checkpoint.output() + ".part.journal"));
  };
  interrupt();
  CHECK(convert(checkpoint.model_dir(), options).n_resumed > 0);
  interrupt();
  CHECK(convert(checkpoint.model_dir() + "/", options).n_resumed > 0);  // the same source
  interrupt();
  const auto is_refused = [&] {
    CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options),
                      Contains("out.pith.part: of an interrupted run with other options, other input"));
  };
  options.bits = 32;
  is_refused();
  options.resume = false;
  CHECK(convert(checkpoint.model_dir(), options).n_resumed == 0);
  options.bits = 16;
  options.resume = true;
  interrupt();
  checkpoint.set("lm_head.weight", 0, 1);
  checkpoint.write();
  is_refused();
  options.resume = false;
  interrupt();  // that, too, can be gone on from
  CHECK(convert(checkpoint.model_dir(), options).n_resumed == 0);
  interrupt();
  options.resume = true;
  CHECK(convert(checkpoint.model_dir(), options).n_resumed > 0);
}
