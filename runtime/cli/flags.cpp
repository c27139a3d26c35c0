// Options shared by commands.
#include <algorithm>

#include "format/error.h"
#include "runtime/capi.h"
#include "runtime/cli/cli.h"

namespace pith::cli {

CLI::Option* SessionFlags::add(CLI::App& app, const std::string& flags, const char* key,
                               const std::string& help) {
  names_.emplace_back(key, flags.substr(flags.find("--")));
  return app.add_option_function<std::string>(
      flags, [this, key](const std::string& value) { set(key, value); }, help);
}

void SessionFlags::add_session(CLI::App& app) {
  add(app, "-c,--ctx", "ctx", "Context in tokens (default: the model's, at most 4096)")->type_name("N");
  add(app, "-t,--threads", "threads", "Threads (default: physical cores)")->type_name("N");
  add(app, "--kv", "kv", "Key/value cache: f16 or i8")->type_name("TYPE");
  add(app, "--chunk", "prefill_chunk", "Tokens of a prompt run at once (default: 256)")->type_name("N");
  add(app, "--device", "device", "auto, cpu, cuda or cuda:N")->type_name("NAME");
  add(app, "--gpu-layers", "gpu_layers",
      "Last layers on the GPU, the others on the CPU: N, all (default with --device cuda) or auto (what "
      "fits)")
      ->type_name("N");
  add(app, "--kernels", "kernels",
      "auto, scalar, avx2, avxvnni, avx512-plain, avx512, amx, neon; on cuda registers, async, bulk")
      ->type_name("NAME");
}

void SessionFlags::add_access(CLI::App& app) {
  const auto access = [&](const char* flag, Container::Access value, const char* help) {
    return app.add_flag_function(
        flag, [this, value](std::int64_t) { access_ = value; }, help);
  };
  access("--no-huge-pages", Container::Access::kMapShared,
         "Leave a mapped file's pages to the system, shared with other programs")
      ->excludes(
          access("--no-mmap", Container::Access::kRead, "Read the file into memory instead of mapping it"));
}

void SessionFlags::add_sampling(CLI::App& app) {
  for (const SamplerOption& option : sampler_options()) {
    std::string flag = fmt::format("--{}", option.key);
    std::replace(flag.begin(), flag.end(), '_', '-');
    add(app, flag, option.key, option.help)->type_name(option.value);
  }
}

void SessionFlags::add_stop(CLI::App& app) {
  names_.emplace_back("stop", "--stop");
  app.add_option_function<std::vector<std::string>>(
         "--stop",
         [this](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) set("stop", text);
         },
         "End before this text, which is not shown; may be given again for others")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

bool SessionFlags::has(std::string_view key) const {
  return std::any_of(values_.begin(), values_.end(), [&](const auto& value) { return value.first == key; });
}

std::vector<std::string> SessionFlags::values(std::string_view key) const {
  std::vector<std::string> list;
  for (const auto& [name, value] : values_)
    if (name == key) list.push_back(value);
  return list;
}

void SessionFlags::set(const std::string& key, const std::string& value) {
  values_.emplace_back(key, value);
}

std::vector<const char*> SessionFlags::options() const {
  std::vector<const char*> list;
  for (const auto& [key, value] : values_) {
    list.push_back(key.c_str());
    list.push_back(value.c_str());
  }
  list.push_back(nullptr);
  return list;
}

SessionOptions SessionFlags::session_options() const {
  SessionOptions options;
  in_flags_of([&] {
    for (const auto& [key, value] : values_) capi::set_session_option(options, key, value);
  });
  return options;
}

Error SessionFlags::in_flags(const Error& error) const {
  // A file, which other errors begin with, may have a key's name.
  if (error.code() != ErrorCode::kInvalidArgument && error.code() != ErrorCode::kUnsupported) return error;
  const std::string_view message = error.what();
  for (const auto& [key, flag] : names_)
    for (const std::string& begin : {fmt::format("option '{}': ", key), fmt::format("{}: ", key)})
      if (message.starts_with(begin))
        return Error(error.code(), fmt::format("{}: {}", flag, message.substr(begin.size())));
  return error;
}

}  // namespace pith::cli
