// A transformer in the plainest double arithmetic: the oracle of the decoder. No cache, no batching, no kernels.
#pragma once
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "models/spec.h"

namespace pith::test {

class NaiveModel {
 public:
  using Row = std::vector<double>;
  NaiveModel(const ModelSpec& spec, const std::map<std::string, std::vector<float>>& tensors)
      : spec_(spec), tensors_(tensors) {}

  // Logits after each of ids: [n][vocab].
  std::vector<Row> run(const std::vector<int32_t>& ids) const {
    std::vector<Row> x;
    for (const int32_t id : ids) {
      Row row(spec_.dim);
      for (uint32_t i = 0; i < spec_.dim; ++i)
        row[i] =
            double{get("embed")[static_cast<size_t>(id) * spec_.dim + i]} * double{spec_.embedding_scale};
      x.push_back(row);
    }
    for (uint32_t layer = 0; layer < spec_.n_layers; ++layer) {
      const std::vector<Row> attention = attend(x, layer);
      for (size_t t = 0; t < x.size(); ++t) {
        add(x[t],
            branch(attention[t], layer, "attn_out", "attn_out_bias", spec_.attn_out_bias, "attn_post_norm"));
        add(x[t], branch(feed_forward(x[t], layer), layer, "ffn_down", "ffn_down_bias", spec_.mlp_bias,
                         "ffn_post_norm"));
      }
    }
    std::vector<Row> logits;
    for (const Row& row : x) {
      Row out = times(head_tensor(spec_), norm(row, "norm"));
      for (double& v : out) v = capped(v * double{spec_.logit_scale}, spec_.logit_softcap);
      logits.push_back(out);
    }
    return logits;
  }

 private:
  const std::vector<float>& get(const std::string& name) const { return tensors_.at(name); }

  Row times(const std::string& name, const Row& x) const {
    const std::vector<float>& w = get(name);
    Row y(w.size() / x.size());
    for (size_t r = 0; r < y.size(); ++r)
      for (size_t c = 0; c < x.size(); ++c) y[r] += double{w[r * x.size() + c]} * x[c];
    return y;
  }

  Row norm(const Row& x, const std::string& name) const {
    double squares = 0;
    for (const double v : x) squares += v * v;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + double{spec_.norm_eps});
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * double{get(name)[i]};
    return y;
  }

  static double capped(double x, float cap) {
    return cap == 0 ? x : double{cap} * std::tanh(x / double{cap});
  }

  void add(Row& x, const Row& y) const {
    for (size_t i = 0; i < x.size(); ++i) x[i] += double{spec_.residual_scale} * y[i];
  }

  void add_bias(Row& x, const std::string& name, bool present) const {
    if (!present) return;
    for (size_t i = 0; i < x.size(); ++i) x[i] += double{get(name)[i]};
  }

  Row branch(const Row& in, uint32_t layer, const char* matrix, const char* bias, bool has_bias,
             const char* post_norm) const {
    Row y = times(layer_tensor(layer, matrix), in);
    add_bias(y, layer_tensor(layer, bias), has_bias);
    return spec_.post_norms ? norm(y, layer_tensor(layer, post_norm)) : y;
  }

  void rotate(double* x, uint32_t layer, size_t position) const {
    const int32_t idx = spec_.layers[layer].rope_idx;
    if (idx < 0) return;
    const RopeSpec& rope = spec_.ropes[static_cast<size_t>(idx)];
    const size_t half = rope.inv_freq.size();
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * double{rope.inv_freq[i]};
      const double c = std::cos(angle) * double{rope.scale}, s = std::sin(angle) * double{rope.scale};
      const double a = x[i], b = x[i + half];
      x[i] = a * c - b * s;
      x[i + half] = b * c + a * s;
    }
  }

  std::vector<Row> attend(const std::vector<Row>& x, uint32_t layer) const {
    const uint32_t dim = spec_.head_dim, group = spec_.n_heads / spec_.n_kv_heads;
    std::vector<Row> qkv;
    for (size_t t = 0; t < x.size(); ++t) {
      Row row = times(layer_tensor(layer, "attn_qkv"), norm(x[t], layer_tensor(layer, "attn_norm")));
      add_bias(row, layer_tensor(layer, "attn_qkv_bias"), spec_.qkv_bias);
      for (uint32_t h = 0; h < spec_.n_heads + spec_.n_kv_heads; ++h) {
        double* const head = row.data() + size_t{h} * dim;
        if (spec_.qk_norm) {
          const Row normed =
              norm(Row(head, head + dim), layer_tensor(layer, h < spec_.n_heads ? "q_norm" : "k_norm"));
          std::copy(normed.begin(), normed.end(), head);
        }
        rotate(head, layer, t);
      }
      qkv.push_back(row);
    }
    const uint32_t window = spec_.layers[layer].window;
    std::vector<Row> out;
    for (size_t t = 0; t < x.size(); ++t) {
      Row row(spec_.q_rows());
      for (uint32_t h = 0; h < spec_.n_heads; ++h) {
        const size_t k = size_t{spec_.n_heads + h / group} * dim, v = k + spec_.kv_rows();
        const size_t first = window != 0 && t + 1 > window ? t + 1 - window : 0;
        Row p(t + 1);
        double sum = 0;
        for (size_t s = first; s <= t; ++s) {
          for (uint32_t d = 0; d < dim; ++d) p[s] += qkv[t][size_t{h} * dim + d] * qkv[s][k + d];
          sum += p[s] = std::exp(capped(p[s] * double{spec_.attn_scale}, spec_.attn_softcap));
        }
        for (size_t s = first; s <= t; ++s)
          for (uint32_t d = 0; d < dim; ++d) row[size_t{h} * dim + d] += p[s] / sum * qkv[s][v + d];
      }
      out.push_back(row);
    }
    return out;
  }

  Row feed_forward(const Row& x, uint32_t layer) const {
    Row y = times(layer_tensor(layer, "ffn_gate_up"), norm(x, layer_tensor(layer, "ffn_norm")));
    add_bias(y, layer_tensor(layer, "ffn_gate_up_bias"), spec_.mlp_bias);
    Row hidden(spec_.ffn_dim);
    for (uint32_t i = 0; i < spec_.ffn_dim; ++i) {
      const double gate = y[i / 16 * 32 + i % 16], up = y[i / 16 * 32 + 16 + i % 16];
      const double act =
          spec_.activation == Activation::kSilu
              ? gate / (1 + std::exp(-gate))
              : 0.5 * gate * (1 + std::tanh(std::sqrt(2 / M_PI) * (gate + 0.044715 * std::pow(gate, 3))));
      hidden[i] = act * up;
    }
    return hidden;
  }

  const ModelSpec& spec_;
  const std::map<std::string, std::vector<float>>& tensors_;
};

}  // namespace pith::test
