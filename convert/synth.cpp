// The shapes, and random codes and scales filled in eight bytes at a time: no quantizer is as fast.
#include "convert/synth.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "convert/bits.h"
#include "convert/budget.h"
#include "convert/resumable.h"
#include "format/checksum.h"
#include "format/error.h"
#include "format/float16.h"
#include "format/writer.h"
#include "models/family.h"

namespace pith {

namespace {

struct Shape {
  const char* name;
  uint32_t vocab_size, dim, ffn_dim, n_layers, n_heads, n_kv_heads, max_context;
  float rope_theta;
  bool tied;
  uint32_t head_dim = 0;                         // 0: dim / n_heads
  uint32_t n_experts = 0, n_active_experts = 0;  // ffn_dim is then one expert's
  bool qk_norm = false;
};

constexpr Shape kShapes[] = {
    {"llama-2-7b", 32000, 4096, 11008, 32, 32, 32, 4096, 1e4f, false},
    {"llama-2-13b", 32000, 5120, 13824, 40, 40, 40, 4096, 1e4f, false},
    {"llama-2-70b", 32000, 8192, 28672, 80, 64, 8, 4096, 1e4f, false},
    {"llama-3-8b", 128256, 4096, 14336, 32, 32, 8, 8192, 5e5f, false},
    {"tinyllama-1.1b", 32000, 2048, 5632, 22, 32, 4, 2048, 1e4f, false},
    {"qwen3-30b-a3b", 151936, 2048, 768, 48, 32, 4, 40960, 1e6f, false, 128, 128, 8, true},
    {"demo", 8192, 256, 768, 8, 8, 4, 512, 1e4f, true},
};

// xorshift64*: a few bytes a cycle, which is what "written fast" needs.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1d;
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
  // Fills with bytes & mask, the mask repeated in all 8 bytes.
  void fill(uint8_t* out, size_t n, uint64_t mask) {
    for (size_t i = 0; i < n; i += 8) {
      const uint64_t bits = next() & mask;
      std::copy_n(reinterpret_cast<const uint8_t*>(&bits), std::min<size_t>(8, n - i), out + i);
    }
  }

 private:
  uint64_t state_;
};

// Standard deviation of a weight: unit-variance inputs give outputs of about a half.
double weight_scale(uint32_t n_cols) {
  return 0.5 / std::sqrt(n_cols);
}

ModelSpec make_spec(const Shape& shape) {
  ModelSpec spec;
  spec.family = "llama";
  spec.vocab_size = shape.vocab_size;
  spec.dim = shape.dim;
  spec.ffn_dim = shape.ffn_dim;
  spec.n_layers = shape.n_layers;
  spec.n_heads = shape.n_heads;
  spec.n_kv_heads = shape.n_kv_heads;
  spec.head_dim = shape.head_dim != 0 ? shape.head_dim : shape.dim / shape.n_heads;
  spec.n_experts = shape.n_experts;
  spec.n_active_experts = shape.n_active_experts;
  spec.qk_norm = shape.qk_norm;
  spec.max_context = shape.max_context;
  spec.norm_eps = 1e-5f;
  spec.tied_embeddings = shape.tied;
  spec.attn_scale = 1 / std::sqrt(static_cast<float>(spec.head_dim));
  RopeSpec rope;
  for (uint32_t i = 0; i < spec.head_dim / 2; ++i)
    rope.inv_freq.push_back(
        std::pow(shape.rope_theta, -2 * static_cast<float>(i) / static_cast<float>(spec.head_dim)));
  spec.ropes.push_back(rope);
  spec.layers.assign(spec.n_layers, LayerSpec{});
  return spec;
}

// Ids 0..255 are the bytes, the rest words.
void store_tokenizer(uint32_t vocab_size, Metadata& metadata) {
  Bytes bytes;
  std::vector<uint32_t> ends;
  for (uint32_t id = 0; id < vocab_size; ++id) {
    const std::string text = id < 256 ? std::string(1, static_cast<char>(id)) : fmt::format(" w{}", id);
    bytes.insert(bytes.end(), text.begin(), text.end());
    ends.push_back(static_cast<uint32_t>(bytes.size()));
  }
  metadata.set("tokenizer.kind", std::string("bpe"));
  metadata.set("tokenizer.adds_bos", false);
  metadata.set("tokenizer.eos_ids", std::vector<uint32_t>{});
  metadata.set("tokenizer.added_ids", std::vector<uint32_t>{});
  metadata.set("tokenizer.added_texts", std::vector<std::string>{});
  metadata.set("tokenizer.added_flags", std::vector<uint32_t>{});
  metadata.set("tokenizer.prefix_each", false);
  metadata.set("tokenizer.token_bytes", std::move(bytes));
  metadata.set("tokenizer.token_ends", std::move(ends));
  metadata.set("tokenizer.token_kinds", Bytes(vocab_size));  // all kText
  metadata.set("tokenizer.merges", std::vector<uint32_t>{});
  metadata.set("tokenizer.merge_by_id", false);
  metadata.set("tokenizer.byte_level", true);
  metadata.set("tokenizer.byte_fallback", false);
  metadata.set("tokenizer.fuse_unk", false);
  metadata.set("tokenizer.ignore_merges", false);
  metadata.set("tokenizer.normalizer", std::vector<std::string>{});
  metadata.set("tokenizer.pretokenizer", std::vector<std::string>{});
  metadata.set("tokenizer.space", std::string());
  metadata.set("tokenizer.decode_strip", uint64_t{0});
}

void add_q24(Writer& writer, const std::string& name, const q24::Shape& shape, Random& random) {
  const uint32_t padded_cols = q24::make_layout(shape).padded_cols;
  const uint32_t n_groups = padded_cols / shape.group, n_coarse = padded_cols - shape.n_fine;
  q24::Unpacked t;
  t.shape = shape;
  t.perm.assign(padded_cols, 0xffff);
  std::iota(t.perm.begin(), t.perm.begin() + shape.n_cols, uint16_t{0});
  for (uint32_t c = shape.n_cols; c > 1; --c) std::swap(t.perm[c - 1], t.perm[random.below(c)]);
  t.col_scale.assign(padded_cols / q24::kLineCols, float_to_f16(1));
  // Codes are uniform, mean 1.5 and deviation 1.118 (4 bits: 1.875 and 1.153): the minimum centres them.
  const double s_mean = 8, deviation = 1.118, centre = n_coarse == 0 ? 1.875 : 1.5;
  const double d = weight_scale(shape.n_cols) / (s_mean * deviation);
  t.d.assign(shape.n_rows, float_to_f16(static_cast<float>(d)));
  t.dmin.assign(shape.n_rows, float_to_f16(static_cast<float>(d * centre)));
  t.s.resize(size_t{shape.n_rows} * n_groups);
  random.fill(t.s.data(), t.s.size(), 0x0303030303030303);
  for (uint8_t& s : t.s) s = static_cast<uint8_t>(s + 6);
  t.m = t.s;
  t.codes.resize(size_t{shape.n_rows} * padded_cols);
  t.outlier_col.resize(size_t{shape.n_rows} * shape.n_slots);
  t.outlier_delta.resize(size_t{shape.n_rows} * shape.n_slots);
  const uint32_t outlier_limit = std::min(n_coarse, shape.n_cols);
  for (uint32_t r = 0; r < shape.n_rows; ++r) {
    uint8_t* codes = t.codes.data() + size_t{r} * padded_cols;
    random.fill(codes, n_coarse, 0x0303030303030303);
    random.fill(codes + n_coarse, shape.n_fine, 0x0f0f0f0f0f0f0f0f);
    for (uint32_t i = 0; i < shape.n_slots && outlier_limit > 0; ++i) {
      const size_t slot = size_t{r} * shape.n_slots + i;
      t.outlier_col[slot] = static_cast<uint16_t>(uint64_t{outlier_limit} * i / shape.n_slots);
      t.outlier_delta[slot] = float_to_f16(static_cast<float>(random.below(2) == 0 ? d * 8 : d * -8));
    }
  }
  writer.add(name, t);
}

// 16- and 32-bit weights: a uniform number of the right deviation.
void add_plain(Writer& writer, const TensorPlan& plan, TensorKind kind, Random& random) {
  const size_t n = size_t{plan.n_rows} * plan.n_cols;
  const bool is_norm = plan.role == TensorRole::kNorm;
  const double width = weight_scale(plan.n_cols) * std::sqrt(12.0);
  const auto draw = [&] {
    const double uniform = static_cast<double>(random.next() >> 40) * 0x1p-24 - 0.5;
    return static_cast<float>(is_norm ? 1 + 0.1 * uniform : uniform * width);
  };
  if (kind == TensorKind::kF32) {
    std::vector<float> data(n);
    std::generate(data.begin(), data.end(), draw);
    writer.add(plan.name, kind, plan.n_rows, plan.n_cols,
               {reinterpret_cast<const uint8_t*>(data.data()), n * 4});
    return;
  }
  // A table of bf16 values and random picks: no conversion per element.
  std::vector<uint16_t> table(256), data(n);
  for (uint16_t& value : table) value = float_to_bf16(draw());
  for (size_t i = 0; i < n; i += 8) {
    uint64_t bits = random.next();
    for (size_t j = i; j < std::min(i + 8, n); ++j, bits >>= 8) data[j] = table[bits & 255];
  }
  writer.add(plan.name, kind, plan.n_rows, plan.n_cols,
             {reinterpret_cast<const uint8_t*>(data.data()), n * 2});
}

}  // namespace

std::vector<std::string> synth_shapes() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.push_back(shape.name);
  return names;
}

void synth(const SynthOptions& options) {
  const Shape* const shape = std::find_if(std::begin(kShapes), std::end(kShapes),
                                          [&](const Shape& s) { return options.shape == s.name; });
  if (shape == std::end(kShapes))
    throw_error(ErrorCode::kInvalidArgument, "--shape {}: expected one of {}", options.shape,
                fmt::join(synth_shapes(), ", "));
  check_bits(options.bits);
  check_embed_bits(options.embed_bits);
  const bool is_plain = options.bits >= 16;

  const ModelSpec spec = make_spec(*shape);
  const std::vector<TensorPlan> plan = plan_tensors(spec);
  std::vector<LayerBudget> layers;
  uint64_t n_total = 0, n_done = 0;
  for (const TensorPlan& tensor : plan) {
    n_total += uint64_t{tensor.n_rows} * tensor.n_cols;
    if (tensor.role == TensorRole::kLinear)
      layers.push_back({tensor.n_rows, tensor.n_cols, 1, kOutlierShare, {}});
  }
  if (!is_plain && share_bits(layers, options.bits) > options.bits)
    throw_error(ErrorCode::kInvalidArgument, "--bits {}: the lowest that shape {} can reach is {:.3f}",
                options.bits, options.shape, total_bits(layers));

  Metadata metadata;
  store_spec(spec, metadata);
  store_tokenizer(spec.vocab_size, metadata);
  metadata.set("provenance.converter", std::string("pith synth"));
  metadata.set("provenance.options", fmt::format("shape={} bits={} embed-bits={} seed={}", options.shape,
                                                 options.bits, options.embed_bits, options.seed));
  const Bytes settings = metadata.serialize();
  Writer writer(options.output, checksum64(settings, 0),
                options.resume ? Writer::Unfinished::kContinue : Writer::Unfinished::kReplace);
  keep_or_discard(writer, [&] {
    Random random(options.seed);
    auto layer = layers.begin();
    for (const TensorPlan& tensor : plan) {
      if (options.progress) options.progress(tensor.name, n_done, n_total);
      n_done += uint64_t{tensor.n_rows} * tensor.n_cols;
      const bool is_linear = tensor.role == TensorRole::kLinear;
      const bool is_matrix =
          is_linear || tensor.role == TensorRole::kEmbedding || tensor.role == TensorRole::kHead;
      q24::Shape q24_shape{tensor.n_rows, tensor.n_cols, 16, 0, 0};
      if (is_linear) {
        q24_shape = (layer++)->shape;
      } else {
        q24_shape.n_fine = q24::padded_cols(tensor.n_cols);
      }
      if (writer.has(tensor.name)) continue;
      random = Random(options.seed + n_done);  // a tensor's bytes do not hang on those before it
      if (is_matrix && !is_plain && (is_linear || options.embed_bits == 4)) {
        add_q24(writer, tensor.name, q24_shape, random);
      } else {
        add_plain(writer, tensor, is_matrix && options.bits != 32 ? TensorKind::kBF16 : TensorKind::kF32,
                  random);
      }
    }
    writer.finish(metadata);
  });
}

}  // namespace pith
