// Two backends in a row: the first layers on one, the rest and the head on the other. The residual stream of
// a batch is handed over once, between them: dim floats a token.
#pragma once
#include "runtime/backend.h"

namespace pith {

class SplitBackend final : public Backend {
 public:
  // front has the layers 0 .. cut - 1, back those from cut on; 0 < cut < n_layers.
  SplitBackend(std::unique_ptr<Backend> front, std::unique_ptr<Backend> back, uint32_t cut)
      : front_(std::move(front)), back_(std::move(back)), cut_(cut) {}

  void embed(std::span<const int32_t> ids, uint32_t position) override {
    position_ = position;
    front_->embed(ids, position);
  }
  void attn_in(uint32_t layer) override {
    if (layer == cut_) back_->receive(front_->residual(), position_);
    at(layer).attn_in(layer);
  }
  void attend(uint32_t layer) override { at(layer).attend(layer); }
  void attn_out(uint32_t layer) override { at(layer).attn_out(layer); }
  void ffn_in(uint32_t layer) override { at(layer).ffn_in(layer); }
  void ffn_out(uint32_t layer) override { at(layer).ffn_out(layer); }
  std::span<const float> head(uint32_t first, uint32_t n_rows) override { return back_->head(first, n_rows); }
  void read_kv(uint32_t layer, uint32_t n_tokens, uint8_t* out) const override {
    (layer < cut_ ? front_ : back_)->read_kv(layer, n_tokens, out);
  }
  void write_kv(uint32_t layer, uint32_t n_tokens, const uint8_t* in) override {
    at(layer).write_kv(layer, n_tokens, in);
  }

 private:
  Backend& at(uint32_t layer) { return *(layer < cut_ ? front_ : back_); }

  const std::unique_ptr<Backend> front_, back_;
  const uint32_t cut_;
  uint32_t position_ = 0;
};

}  // namespace pith
