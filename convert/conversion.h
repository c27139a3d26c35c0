// A conversion under way: what converter.cpp runs. conversion.cpp quantizes, conversion_output.cpp writes what is not
// quantized, the quality figures and the check at the end.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "convert/assemble.h"
#include "convert/calibration.h"
#include "convert/converter.h"
#include "convert/sensitivity.h"
#include "convert/source.h"
#include "format/writer.h"

namespace pith {

// Most bytes that a calibration text may have.
constexpr uint64_t kMaxCalibrationBytes = 1 << 30;

class Conversion {
 public:
  Conversion(const Source& source, const ConvertOptions& options, const Products& products, Writer& writer,
             ConvertReport& report);
  // Adds every tensor and completes the metadata; the file remains to be finished.
  void run(Metadata& metadata);

 private:
  // Adds the time until its end to a stage of the report.
  class Timed {
   public:
    Timed(ConvertReport& report, const char* stage) : report_(report), stage_(stage) {}
    ~Timed();
    Timed(const Timed&) = delete;

   private:
    ConvertReport& report_;
    const char* stage_;
    Stopwatch stopwatch_;
  };

  void progress(const char* stage, const std::string& tensor, uint64_t n_done) const {
    if (options_.progress) options_.progress({stage, tensor, n_done, n_weights_});
  }
  bool is_quantized(const TensorPlan& plan) const;
  std::vector<const TensorPlan*> linear_layers() const;  // those that are quantized

  void start_calibration(const Metadata& metadata);
  std::vector<std::vector<int32_t>> calibration_texts(const Tokenizer& tokenizer, uint32_t n_tokens,
                                                      uint64_t available);
  void check_memory(uint32_t n_tokens, uint64_t available) const;
  void measure();      // sensitivity of every matrix, and what the head sees
  void plan_budget();  // shapes_ by measurement, by kind or even
  void check_reached(double bits);
  bool take_noted_budget();  // of an interrupted run
  std::string note_for(const TensorPlan& plan, uint64_t source_hash, double error) const;

  void add_quantized(const TensorPlan& plan);
  q24::Shape shape_of(const TensorPlan& plan) const;
  QuantizeOptions quantize_options(const TensorPlan& plan) const;
  QuantizeResult quantize_matrix(const TensorPlan& plan, std::vector<float>& weights);
  std::vector<float> read_back(const TensorPlan& plan) const;  // a tensor that is in the file, as floats
  void embed_plain(const TensorPlan& plan);

  TensorKind plain_kind(const TensorPlan& plan, SourceType type) const;
  void add_plain(const TensorPlan& plan);
  bool write_plain(const TensorPlan& plan, Assembly& assembly, TensorKind kind);
  void store_quality(Metadata& metadata);
  void check(Metadata& metadata);
  void store_held_out(Metadata& metadata, const std::vector<float>& quantized_head);

  const Source& source_;
  const ConvertOptions& options_;
  Writer& writer_;
  ConvertReport& report_;
  Products products_;
  uint32_t n_threads_;
  uint64_t n_weights_ = 0, n_done_ = 0;
  std::map<std::string, q24::Shape> shapes_;  // of the linear layers
  std::vector<LossCurve> curves_;             // of the linear layers, in their order; empty: not measured
  std::optional<Hessian> head_hessian_;
  std::optional<Calibration> calibration_;
  CalibrationTokens tokens_;  // until calibration has them
};

}  // namespace pith
