// The command line's shared parts: how a command is registered, how a failure leaves the program, and the options that
// several commands take.
//
// Exit codes: 0 done, 1 failed, 2 the command line (or a value in it) is wrong. Results go to standard output and
// nothing else does; messages are one line each on standard error.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "format/error.h"
#include "runtime/session.h"

namespace pith::cli {

constexpr int kOk = 0, kFailure = 1, kUsage = 2;

// What the parsed command line asks for. Set by a subcommand's callback, run by main().
using Action = std::function<int()>;

// Each command's file defines one of these: it adds the subcommand and its options to the root.
void add_bench(CLI::App& root, Action& action);
void add_chat(CLI::App& root, Action& action);
void add_convert(CLI::App& root, Action& action);
void add_doctor(CLI::App& root, Action& action);
void add_eval(CLI::App& root, Action& action);
void add_inspect(CLI::App& root, Action& action);
void add_plan(CLI::App& root, Action& action);
void add_run(CLI::App& root, Action& action);
void add_synth(CLI::App& root, Action& action);
void add_tokenize(CLI::App& root, Action& action);
void add_verify(CLI::App& root, Action& action);

// Options that become pith_session_open's key/value strings; the library checks the values.
class SessionFlags {
 public:
  void add_session(CLI::App& app);   // --ctx, --threads, --kv, --chunk, --device, --gpu-layers, --kernels
  void add_access(CLI::App& app);    // --no-mmap, --no-huge-pages
  void add_sampling(CLI::App& app);  // --temp ... --seed
  void add_stop(CLI::App& app);      // --stop, any number of them
  CLI::Option* add(CLI::App& app, const std::string& flags, const char* key, const std::string& help);
  bool has(std::string_view key) const;
  std::vector<std::string> values(std::string_view key) const;
  void set(const std::string& key, const std::string& value);
  std::vector<const char*> options() const;  // key, value, ..., nullptr; valid while *this is unchanged
  SessionOptions session_options() const;    // for commands that use the C++ classes; ignores sampling
  // An error of the library that names one of its keys, with the flag that was typed in the key's place.
  Error in_flags(const Error& error) const;
  // Calls f, which runs with these options; its errors are in_flags().
  template <typename F>
  auto in_flags_of(F&& f) const {
    try {
      return f();
    } catch (const Error& error) {
      throw in_flags(error);
    }
  }
  Container::Access access() const { return access_; }

 private:
  std::vector<std::pair<std::string, std::string>> values_;
  std::vector<std::pair<std::string, std::string>> names_;  // key, "--flag"
  Container::Access access_ = Container::Access::kMap;
};

}  // namespace pith::cli
