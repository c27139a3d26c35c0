// Charts as inline SVG, coloured by the page's CSS: classes s0, s1, ... are the series, `axis`, `grid` and `label` the rest.
//
// Every text is escaped. Points and bars carry a <title>, which browsers show under the pointer. No scripts.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pith::cli {

// &, <, >, quotes as entities, control characters as spaces: safe as text and inside a quoted attribute.
std::string escape_html(std::string_view text);

constexpr size_t kSeriesColors = 6;  // more series share colours in turn

struct Series {
  std::string name;
  std::vector<std::optional<double>> values;  // at x = 0, 1, ...; absent where there is none
};

struct ChartText {
  std::string label;  // what the chart shows, for screen readers
  std::string x_name, unit;
  int digits = 2;  // of a value in a tooltip
};

// Lines through points; the vertical axis spans the values, or begins at zero.
std::string line_chart(const ChartText& text, const std::vector<Series>& series, bool from_zero);
// A bar at each x, the series on top of each other. Values are not negative.
std::string stacked_bars(const ChartText& text, const std::vector<Series>& series);

struct Part {
  std::string name, value;  // value: as shown
  double share = 0;         // 0..1
};
// One bar across the page, with its legend.
std::string share_bar(const std::string& label, const std::vector<Part>& parts);
std::string legend(const std::vector<Series>& series);

}  // namespace pith::cli
