// Plain geometry: a frame with nice ticks, then marks.
#include "runtime/cli/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace pith::cli {
namespace {

constexpr double kWidth = 520, kHeight = 250;
constexpr double kLeft = 46, kRight = 10, kTop = 12, kBottom = 38;
constexpr double kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;

// An axis from `low` to `high` in steps of 1, 2 or 5 times a power of ten.
struct Axis {
  double low, high, step;

  Axis(double least, double most) {
    if (!(most > least)) {  // one value: in the middle
      const double room = std::max(std::abs(least) * 0.05, 1e-9);
      most = least != 0 ? least + room : 1;
      if (least != 0) least -= room;
    }
    const double rough = (most - least) / 4, power = std::pow(10, std::floor(std::log10(rough)));
    step = (rough / power <= 1 ? 1 : rough / power <= 2 ? 2 : rough / power <= 5 ? 5 : 10) * power;
    low = std::floor(least / step + 1e-9) * step;
    high = std::ceil(most / step - 1e-9) * step;
  }
  double y(double value) const {
    return kTop + kPlotHeight * (1 - std::clamp((value - low) / (high - low), 0.0, 1.0));
  }
};

size_t n_columns(const std::vector<Series>& series) {
  size_t n = 1;
  for (const Series& one : series) n = std::max(n, one.values.size());
  return n;
}

std::string open_svg(const ChartText& text) {
  return fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", kWidth, kHeight,
                     escape_html(text.label));
}

double column_center(size_t i, size_t n) {
  return kLeft + kPlotWidth * (static_cast<double>(i) + 0.5) / static_cast<double>(n);
}

// Grid lines with their values, x labels (as many as fit), the names of both axes.
std::string frame(const ChartText& text, const Axis& axis, size_t n) {
  std::string out;
  const int n_ticks = static_cast<int>(std::lround((axis.high - axis.low) / axis.step));
  for (int i = 0; i <= n_ticks; ++i) {
    const double value = axis.low + i * axis.step, y = axis.y(value);
    const double shown = std::abs(value) < axis.step * 1e-6 ? 0 : value;
    out += fmt::format("<line class=\"{}\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>",
                       i == 0 ? "axis" : "grid", kLeft, kWidth - kRight, y, y);
    out += fmt::format("<text class=\"label\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.4g}</text>\n",
                       kLeft - 7, y + 3.5, shown);
  }
  const size_t stride = (n + 15) / 16;
  for (size_t i = 0; i < n; i += stride)
    out += fmt::format("<text class=\"label\" x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                       column_center(i, n), kHeight - kBottom + 15, i);
  out += fmt::format("<text class=\"label name\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                     kLeft + kPlotWidth / 2, kHeight - 5, escape_html(text.x_name));
  return out;
}

std::string tooltip(const ChartText& text, const Series& series, size_t i, double value) {
  return fmt::format("<title>{} {}, {}: {:.{}f}{}</title>", escape_html(text.x_name), i,
                     escape_html(series.name), value, text.digits, escape_html(text.unit));
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += static_cast<unsigned char>(c) < ' ' || c == 0x7f ? ' ' : c;
    }
  }
  return out;
}

std::string line_chart(const ChartText& text, const std::vector<Series>& series, bool from_zero) {
  double least = from_zero ? 0 : HUGE_VAL, most = from_zero ? 0 : -HUGE_VAL;
  for (const Series& one : series)
    for (const auto& value : one.values)
      if (value) least = std::min(least, *value), most = std::max(most, *value);
  const Axis axis(std::isfinite(least) ? least : 0, std::isfinite(most) ? most : 0);
  const size_t n = n_columns(series);
  std::string out = open_svg(text) + frame(text, axis, n);
  for (size_t s = 0; s < series.size(); ++s) {
    std::string path, points;
    bool is_pen_down = false;
    for (size_t i = 0; i < series[s].values.size(); ++i) {
      const auto& value = series[s].values[i];
      if (value) {
        const double x = column_center(i, n), y = axis.y(*value);
        path += fmt::format("{}{:.1f} {:.1f}", is_pen_down ? "L" : "M", x, y);
        points += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\">{}</circle>", x, y,
                              n > 40 ? 2 : 3.5, tooltip(text, series[s], i, *value));
      }
      is_pen_down = value.has_value();
    }
    out += fmt::format("<g class=\"line s{}\"><path d=\"{}\"/>{}</g>\n", s % kSeriesColors, path, points);
  }
  return out + "</svg>\n";
}

std::string stacked_bars(const ChartText& text, const std::vector<Series>& series) {
  const size_t n = n_columns(series);
  std::vector<double> sums(n, 0);
  for (const Series& one : series)
    for (size_t i = 0; i < one.values.size(); ++i) sums[i] += one.values[i].value_or(0);
  const Axis axis(0, *std::max_element(sums.begin(), sums.end()));
  const double slot = kPlotWidth / static_cast<double>(n), width = std::min(slot * 0.68, 36.0);
  std::string out = open_svg(text) + frame(text, axis, n);
  std::vector<double> bases(n, 0);
  for (size_t s = 0; s < series.size(); ++s) {
    out += fmt::format("<g class=\"bar s{}\">", s % kSeriesColors);
    for (size_t i = 0; i < series[s].values.size(); ++i) {
      const double value = series[s].values[i].value_or(0);
      if (!(value > 0)) continue;
      const double top = axis.y(bases[i] + value), bottom = axis.y(bases[i]);
      out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.2f}\" width=\"{:.1f}\" height=\"{:.2f}\">{}</rect>",
                         column_center(i, n) - width / 2, top, width, bottom - top,
                         tooltip(text, series[s], i, value));
      bases[i] += value;
    }
    out += "</g>\n";
  }
  return out + "</svg>\n";
}

std::string share_bar(const std::string& label, const std::vector<Part>& parts) {
  constexpr double kBarWidth = 1000, kBarHeight = 34;
  std::string out = fmt::format(
      "<svg class=\"share\" viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" role=\"img\" "
      "aria-label=\"{}\">",
      kBarWidth, kBarHeight, escape_html(label));
  std::string names;
  double x = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const std::string name = escape_html(part.name), value = escape_html(part.value);
    out += fmt::format(
        "<g class=\"bar s{}\"><rect x=\"{:.2f}\" y=\"0\" width=\"{:.2f}\" height=\"{}\"><title>{}: {} "
        "({:.1f} %)</title></rect></g>",
        i % kSeriesColors, x, std::max(part.share * kBarWidth - 2, 0.5), kBarHeight, name, value,
        100 * part.share);
    names += fmt::format("<li><i class=\"s{}\"></i>{} <b>{}</b> {:.1f} %</li>", i % kSeriesColors, name,
                         value, 100 * part.share);
    x += part.share * kBarWidth;
  }
  return out + "</svg>\n<ul class=\"legend\">" + names + "</ul>\n";
}

std::string legend(const std::vector<Series>& series) {
  std::string out = "<ul class=\"legend\">";
  for (size_t i = 0; i < series.size(); ++i)
    out += fmt::format("<li><i class=\"s{}\"></i>{}</li>", i % kSeriesColors, escape_html(series[i].name));
  return out + "</ul>\n";
}

}  // namespace pith::cli
