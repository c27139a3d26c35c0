// Options checked, what decides the bytes as text (the job's identity), and which failures leave something to
// resume.
#include "convert/converter.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "convert/bits.h"
#include "convert/conversion.h"
#include "convert/json_file.h"
#include "convert/resumable.h"
#include "convert/source.h"
#include "convert/tokenizer_import.h"
#include "format/checksum.h"
#include "format/error.h"
#include "runtime/backend.h"
#include "runtime/process_limits.h"
#include "runtime/session.h"
#include "runtime/utf8.h"

namespace pith {

namespace {

constexpr const char* kConverterVersion = "pith " PITH_VERSION;

void check_options(const ConvertOptions& options) {
  check_bits(options.bits);
  check_embed_bits(options.embed_bits);
  if (options.allow_nonfinite && options.bits < 16)
    throw_error(ErrorCode::kInvalidArgument, "NaN and Inf weights can be kept at 16 and 32 bits only");
  if (options.n_threads > kMaxThreads)
    throw_error(ErrorCode::kInvalidArgument, "--threads {}: expected at most {}", options.n_threads,
                kMaxThreads);
}

const char* name_of(Effort effort) {
  return effort == Effort::kFast ? "fast" : "normal";
}

bool is_calibrated(const ConvertOptions& options) {
  return options.bits < 16 && options.calibrate;
}

// What decides the bytes, apart from the source.
std::string describe(const ConvertOptions& options, const Products& products) {
  std::string text = fmt::format("bits={}", options.bits);
  if (options.bits < 16)
    text += fmt::format(" embed-bits={} effort={} {}", options.embed_bits, name_of(options.effort),
                        describe(options.levers));
  if (is_calibrated(options)) {
    text += fmt::format(" calibration-tokens={}", options.calibration_tokens.value_or(0));
    for (const std::string& path : options.calibration_files) {
      if (path == kSelfText || path == kBuiltinText) {
        text += " calibration=" + path;
        continue;
      }
      const std::string bytes = read_text_file(path, kMaxCalibrationBytes);
      text += fmt::format(" calibration={:016x}",
                          checksum64({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
    }
    if (products.on_device()) text += " device=cuda";
  }
  if (options.force) text += " force";
  if (options.allow_nonfinite) text += " allow-nonfinite";
  return text;
}

// As UTF-8; without the slash that may end it.
std::string folder_name(const std::string& dir) {
  std::filesystem::path path = std::filesystem::absolute(dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return printable(path.filename().string());
}

}  // namespace

ConvertReport convert(const std::string& dir, const ConvertOptions& options) {
  check_options(options);
  ConvertReport report;
  const Source source = open_source(dir, {options.force, options.allow_nonfinite}, report.notes);
  Products products(options.n_threads > 0 ? options.n_threads
                                          : std::clamp(std::thread::hardware_concurrency(), 1u, cpu_quota()));
  // Without calibration there is nothing to multiply: a device that was named must be there all the same.
  if (is_calibrated(options))
    products = Products::open(options.device, products.n_threads(), source.spec, report.notes);
  else if (options.device != "auto")
    backend_for(options.device);
  report.products_on = products.device_name();

  Metadata metadata;
  store_spec(source.spec, metadata);
  import_tokenizer(dir, source.checkpoint.config(), metadata);
  metadata.set("provenance.converter", std::string(kConverterVersion));
  metadata.set("provenance.options", describe(options, products));
  const Bytes settings = metadata.serialize();
  const uint64_t job = checksum64(settings, source.checkpoint.identity());
  metadata.set("provenance.source", folder_name(dir));  // not of the job: "DIR/" and "./DIR" are the same one
  Writer writer(options.output, job,
                options.resume ? Writer::Unfinished::kContinue : Writer::Unfinished::kReplace);
  keep_or_discard(writer, [&] {
    Conversion(source, options, products, writer, report).run(metadata);
    writer.finish(metadata);
  });
  report.file_bytes = std::filesystem::file_size(options.output);
  report.file_bits = 8.0 * static_cast<double>(report.file_bytes) / static_cast<double>(report.n_weights);
  return report;
}

}  // namespace pith
