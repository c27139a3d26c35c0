// pith verify: checksums of every tensor, then the golden vectors.
#include <memory>

#include "runtime/cli/cli.h"
#include "runtime/cli/handles.h"
#include "runtime/cli/terminal.h"

namespace pith::cli {

void add_verify(CLI::App& root, Action& action) {
  const auto file = std::make_shared<std::string>();
  CLI::App* const app = root.add_subcommand("verify", "Check every checksum and the embedded golden vectors");
  app->add_option("FILE", *file, "A .pith file")->required()->type_name("");
  app->callback([file, &action] {
    action = [file] {
      const ModelHandle model = open_model(*file);
      check(pith_model_verify(model.get()));
      write_output(fmt::format("{}: ok\n", *file));
      return kOk;
    };
  });
}

}  // namespace pith::cli
