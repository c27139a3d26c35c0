// What the two forms of `pith inspect` share: lines and JSON (inspect.cpp), and the page (inspect_html.cpp,
// inspect_ablation.cpp).
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "format/container.h"

namespace pith::cli {

double bits_per_weight(const Tensor& tensor);

// What the converter measured: relative squared error of each quantized tensor, tr(E H E') / tr(W H W').
std::map<std::string, float> tensor_errors(const Metadata& metadata);

// At most n_bytes of a text, whole code points.
std::string cut(std::string text, size_t n_bytes);
// A value in a line, long ones cut.
std::string short_value(const MetadataValue& value);

constexpr std::string_view kPageStart = "<!doctype html>";  // by which a page that may be replaced is known

// One page that needs nothing else: no scripts, nothing loaded, light and dark. ablation: the figures of tests/ablation.py
// --json, a file; "": none.
std::string inspect_html(const Container& container, const std::string& ablation);
// Its parts: (inspect_ablation.cpp) charts and table of that file; a titled chart; a small bar in a table.
std::string ablation_section(const std::string& path);
std::string figure(const std::string& title, const std::string& note, const std::string& svg);
std::string meter(double value, double most, int color);

}  // namespace pith::cli
