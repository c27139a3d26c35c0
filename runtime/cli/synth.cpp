// pith synth: a valid file with random weights, for speed and memory work where no checkpoint can be had.
#include "convert/synth.h"

#include <fmt/ranges.h>

#include <filesystem>
#include <memory>

#include "convert/bits.h"
#include "runtime/cli/cli.h"
#include "runtime/cli/human_bytes.h"
#include "runtime/cli/terminal.h"

namespace pith::cli {

void add_synth(CLI::App& root, Action& action) {
  const auto options = std::make_shared<SynthOptions>();
  const auto bits = std::make_shared<std::string>("2.85");
  const auto restart = std::make_shared<bool>(false);
  CLI::App* const app =
      root.add_subcommand("synth", "Write a valid file with random weights of a known shape");
  app->add_option("--shape", options->shape, fmt::format("{}", fmt::join(synth_shapes(), ", ")))
      ->required()
      ->type_name("NAME");
  app->add_option("-o,--output", options->output, "The file to write: a new one, or a pith file to replace")
      ->required()
      ->type_name("FILE");
  app->add_option("-b,--bits", *bits, "Bits per weight of the linear layers: 2.3 to 4.5, 16, 32 (2.85)")
      ->type_name("B");
  app->add_option("--embed-bits", options->embed_bits, "Embedding and head below 16 bits: 4 or 16 (4)")
      ->type_name("B");
  app->add_option("--seed", options->seed, "Of the weights (1)")->type_name("S");
  app->add_flag("--restart", *restart, "Drop what an interrupted run left, do not resume it");
  app->callback([options, bits, restart, &action] {
    action = [options, bits, restart] {
      options->bits = parse_bits(*bits);
      options->resume = !*restart;
      Progress progress("weights");
      options->progress = [&](const std::string&, uint64_t done, uint64_t total) {
        progress.update("synth", done, total);
      };
      synth(*options);
      progress.clear();
      write_output(
          fmt::format("{}: {}\n", options->output, human_bytes(std::filesystem::file_size(options->output))));
      return kOk;
    };
  });
}

}  // namespace pith::cli
