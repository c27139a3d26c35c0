// Kernels of a mixture of experts: the choice, the sorting of tokens, products with the chosen matrices, their sum.
//
// Built twice, as test_cuda_products.cpp.
#include <catch2/catch.hpp>
#include <numeric>
#include <set>

#include "cuda/experts.h"
#include "cuda_testing.h"

namespace pith::cuda {
namespace {

// Experts of different groups, refinements and outliers, with biases.
struct Stack {
  explicit Stack(uint32_t n_rows, uint32_t n_cols) {
    const q24::Shape shapes[] = {
        {n_rows, n_cols, 16, 80, 3}, {n_rows, n_cols, 32, 0, 0}, {n_rows, n_cols, 32, 64, 1}};
    std::vector<ExpertMatrix> entries;
    for (const q24::Shape& shape : shapes) {
      matrices.push_back(random_matrix(shape));
      biases.push_back(random_vector(n_rows));
      device_biases.push_back(to_device(biases.back()));
      entries.push_back({matrices.back().weights, {}, device_biases.back().as<float>()});
    }
    table = to_device(entries);
    stack = {table.as<ExpertMatrix>(), entries[0], 3, true};
  }
  // halves: by a 16-bit product, whose roundings test_cuda_products.cpp counts: no term is off by more than 4 * 2^-12.
  void check(uint32_t expert, const std::vector<float>& x, const float* found, bool halves = false) const {
    const Matrix& m = matrices[expert];
    const Reference ref = halves ? exact_matvec(m, x) : reference_matvec(m, x);
    for (uint32_t r = 0; r < ref.y.size(); ++r) {
      INFO("expert " << expert << " row " << r);
      REQUIRE(std::fabs(found[r] - ref.y[r] - biases[expert][r]) <=
              (halves ? 0x1p-10 * ref.magnitude[r] : bound(m, ref, r)) + 1e-6);
    }
  }
  std::vector<Matrix> matrices;
  std::vector<std::vector<float>> biases;
  std::vector<DeviceBuffer> device_biases;
  DeviceBuffer table;
  ExpertStack stack;
};

// Slots on the device and back on the host.
struct Slots {
  Slots(const std::vector<int32_t>& choices, uint32_t n_tokens, uint32_t n_experts)
      : n_slots(static_cast<uint32_t>(n_slots_for(n_tokens, choices.size() / n_tokens, n_experts))),
        choice(to_device(choices)),
        device_begin(poisoned(n_experts)),
        device_count(poisoned(n_experts)),
        device_token(poisoned(n_slots)),
        device_expert(poisoned(n_slots)),
        device_of(poisoned(choices.size())),
        slots{device_begin.as<int32_t>(),  device_count.as<int32_t>(), device_token.as<int32_t>(),
              device_expert.as<int32_t>(), device_of.as<int32_t>(),    n_slots} {
    launch_sort_slots(
        {choice.as<int32_t>(), n_tokens, n_experts, static_cast<uint32_t>(choices.size()) / n_tokens, slots},
        how());
    begin = to_host<int32_t>(device_begin, n_experts), count = to_host<int32_t>(device_count, n_experts);
    token = to_host<int32_t>(device_token, n_slots), expert = to_host<int32_t>(device_expert, n_slots);
    of = to_host<int32_t>(device_of, choices.size());
  }
  uint32_t n_slots;
  DeviceBuffer choice, device_begin, device_count, device_token, device_expert, device_of;
  ExpertSlots slots;
  std::vector<int32_t> begin, count, token, expert, of;
};

}  // namespace

TEST_CASE(
    "choose_experts takes the largest logits, the lower index where equal, and shares of their softmax") {
  constexpr uint32_t kTokens = 4, kExperts = 70, kActive = 3;
  std::vector<float> logits = random_vector(kTokens * kExperts);
  logits[60] = logits[7] = logits[33] = logits[2] = 5;  // of token 0: 2, 7 and 33 win
  const DeviceBuffer device_logits = to_device(logits), expert = poisoned(kTokens * kActive),
                     share = poisoned(kTokens * kActive);
  for (const bool renormalize : {true, false}) {
    launch_choose_experts({device_logits.as<float>(), expert.as<int32_t>(), share.as<float>(), kTokens,
                           kExperts, kActive, renormalize},
                          how());
    const std::vector<int32_t> found = to_host<int32_t>(expert, kTokens * kActive);
    const std::vector<float> shares = to_host<float>(share, kTokens * kActive);
    for (uint32_t t = 0; t < kTokens; ++t) {
      const float* const own = logits.data() + t * kExperts;
      std::vector<int32_t> order(kExperts);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return own[a] > own[b]; });
      order.resize(renormalize ? kActive : kExperts);
      double total = 0;
      for (const int32_t e : order) total += std::exp(double{own[e]});
      std::sort(order.begin(), order.begin() + kActive);
      for (uint32_t i = 0; i < kActive; ++i) {
        REQUIRE(found[t * kActive + i] == order[i]);
        REQUIRE(shares[t * kActive + i] == Approx(std::exp(double{own[order[i]]}) / total).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE("choose_experts chooses different experts even where logits are no numbers") {
  const float nan = std::nanf("");
  const std::vector<float> logits = {nan, 1, nan, -INFINITY, nan, nan, nan, nan};
  const DeviceBuffer device_logits = to_device(logits), expert = poisoned(2 * 3), share = poisoned(2 * 3);
  launch_choose_experts({device_logits.as<float>(), expert.as<int32_t>(), share.as<float>(), 2, 4, 3, true},
                        how());
  REQUIRE(to_host<int32_t>(expert, 6) == std::vector<int32_t>{0, 1, 2, 0, 1, 2});
}

TEST_CASE("sort_slots gives every choice a slot of its own, by expert, from a multiple of eight") {
  const std::vector<int32_t> choices = {0, 3, 3, 6, 0, 3, 1, 3, 3, 6};  // 5 tokens, 2 of 7 experts each
  const Slots s(choices, 5, 7);
  REQUIRE(s.count == std::vector<int32_t>{2, 1, 0, 5, 0, 0, 2});
  std::set<int32_t> used;
  for (uint32_t i = 0; i < choices.size(); ++i) {
    const size_t slot = static_cast<size_t>(s.of[i]);
    REQUIRE(used.insert(s.of[i]).second);
    REQUIRE(s.token[slot] == static_cast<int32_t>(i / 2));
    REQUIRE(s.expert[slot] == choices[i]);
    REQUIRE(s.of[i] >= s.begin[static_cast<size_t>(choices[i])]);
    REQUIRE(s.of[i] < s.begin[static_cast<size_t>(choices[i])] + s.count[static_cast<size_t>(choices[i])]);
  }
  for (const int32_t begin : s.begin) REQUIRE(begin % static_cast<int32_t>(kSlotAlign) == 0);
  for (uint32_t slot = 0; slot < s.n_slots; ++slot)
    if (!used.contains(static_cast<int32_t>(slot))) REQUIRE(s.token[slot] == -1);
}

TEST_CASE("matvec_experts multiplies each chosen matrix with its own input, on every pipeline") {
  const Stack stack(70, 320);
  const std::vector<int32_t> chosen = {0, 2, 1};
  const std::vector<float> x = random_vector(3 * 324);
  const DeviceBuffer device_x = to_device(x), device_chosen = to_device(chosen);
  for (const Pipeline pipeline : pipelines()) {
    const DeviceBuffer out = poisoned(3 * 75);
    Output output;
    output.out = out.as<float>();
    launch_matvec_experts(pipeline,
                          {stack.stack,
                           device_chosen.as<int32_t>(),
                           3,
                           {device_x.as<float>(), nullptr, 0},
                           324,
                           output,
                           75,
                           {2, 2, 2}},
                          how());
    const std::vector<float> found = to_host<float>(out, 3 * 75);
    for (uint32_t i = 0; i < 3; ++i)
      stack.check(static_cast<uint32_t>(chosen[i]), {x.begin() + i * 324, x.begin() + i * 324 + 320},
                  found.data() + i * 75);
  }
}

TEST_CASE("product_experts multiplies every slot with its expert's matrix, more than a tile of tokens too") {
  constexpr uint32_t kTokens = 140, kCols = 192, kRows = 40;
  const Stack stack(kRows, kCols);
  std::vector<int32_t> choices;
  for (uint32_t t = 0; t < kTokens; ++t) choices.push_back(t % 20 == 7 ? 2 : 0);  // nobody chooses 1
  const Slots s(choices, kTokens, 3);
  const std::vector<float> x = random_vector(s.n_slots * kCols);
  const uint32_t n_padded = (s.n_slots + 2 * kTokenTile - 1) / kTokenTile * kTokenTile, n_blocks = 2;
  const DeviceBuffer device_x = to_device(x), out = poisoned(s.n_slots * kRows),
                     a = poisoned(n_blocks * n_padded * 32), sums = poisoned(n_blocks * n_padded * 4),
                     scale = poisoned(n_blocks * n_padded), columns = poisoned(kCols * n_padded),
                     half = poisoned(kCols * n_padded / 2), half_scale = poisoned(n_padded);
  for (const Matrix& m : stack.matrices) launch_sort_outliers(m.weights, how());
  ProductExperts args{};
  args.stack = stack.stack;
  args.slots = s.slots;
  args.n_tokens = kTokens;
  args.x = device_x.as<float>();
  args.x_stride = kCols;
  args.tokens = {a.data(), sums.data(), scale.as<float>(), columns.as<float>(), 0, n_padded};
  args.half = {half.data(), half_scale.as<float>(), 0, n_padded};
  args.output.out = out.as<float>();
  args.out_stride = kRows;
  for (const bool warpgroups : {false, true}) {
    if (warpgroups && !device_has_warpgroups()) continue;
    args.warpgroups = warpgroups;
    launch_product_experts(args, how());
    const std::vector<float> found = to_host<float>(out, s.n_slots * kRows);
    for (uint32_t slot = 0; slot < s.n_slots; ++slot)
      if (s.expert[slot] >= 0)
        stack.check(static_cast<uint32_t>(s.expert[slot]),
                    {x.begin() + slot * kCols, x.begin() + (slot + 1) * kCols}, found.data() + slot * kRows,
                    warpgroups);
  }
}

// 72 columns: products of 128 tokens; 71: four tokens at a time.
TEST_CASE("experts of 16-bit weights are multiplied like those of Q24") {
  constexpr uint32_t kTokens = 6, kExperts = 3, kRows = 33;
  const uint32_t kCols = GENERATE(72u, 71u);
  std::vector<DeviceBuffer> data;
  std::vector<std::vector<float>> weights;
  std::vector<ExpertMatrix> entries;
  for (uint32_t e = 0; e < kExperts; ++e) {
    weights.push_back(random_vector(kRows * kCols));
    std::vector<uint16_t> halves;
    for (float& w : weights.back()) w = bf16_to_float(halves.emplace_back(float_to_bf16(w)));
    data.push_back(to_device(halves));
    entries.push_back({{}, {data.back().data(), kRows, kCols, PlainKind::kBF16}, nullptr});
  }
  const DeviceBuffer table = to_device(entries);
  const ExpertStack stack{table.as<ExpertMatrix>(), entries[0], kExperts, false};
  const std::vector<int32_t> choices = {2, 0, 2, 2, 0, 2};
  const Slots s(choices, kTokens, kExperts);
  const std::vector<float> x = random_vector(s.n_slots * kCols);
  const DeviceBuffer device_x = to_device(x), out = poisoned(s.n_slots * kRows);
  Output output;
  output.out = out.as<float>();
  const auto check = [&](const std::vector<int32_t>& expert) {
    const std::vector<float> found = to_host<float>(out, expert.size() * kRows);
    for (uint32_t i = 0; i < expert.size(); ++i)
      for (uint32_t r = 0; expert[i] >= 0 && r < kRows; ++r) {
        double y = 0, magnitude = 0;
        for (uint32_t c = 0; c < kCols; ++c) {
          const double term =
              double{weights[static_cast<size_t>(expert[i])][r * kCols + c]} * x[i * kCols + c];
          y += term;
          magnitude += std::fabs(term);
        }
        REQUIRE(std::fabs(found[i * kRows + r] - y) <= 0x1p-11 * magnitude);
      }
  };
  const uint32_t n_padded = 2 * kTokenTile;
  const DeviceBuffer half = poisoned(size_t{n_padded} * 64), half_scale = poisoned(n_padded);
  for (const bool warpgroups : {false, true}) {
    if (warpgroups && !device_has_warpgroups()) continue;
    launch_product_experts({stack,
                            s.slots,
                            kTokens,
                            device_x.as<float>(),
                            kCols,
                            {},
                            {half.data(), half_scale.as<float>(), 0, n_padded},
                            warpgroups,
                            output,
                            kRows,
                            2},
                           how());
    check(s.expert);
  }
  launch_matvec_experts(
      Pipeline::kRegisters,
      {stack, s.choice.as<int32_t>(), 2, {device_x.as<float>(), nullptr, 0}, kCols, output, kRows, {2, 8, 1}},
      how());
  check({2, 0});
}

TEST_CASE("combine_experts adds what a token's experts made, by their shares") {
  const std::vector<float> y = random_vector(8 * 50), share = {0.25f, 0.75f, 0.5f, 0.125f};
  const std::vector<int32_t> slot = {4, 0, 7, 2};
  const DeviceBuffer device_y = to_device(y), device_share = to_device(share), device_slot = to_device(slot),
                     out = to_device(std::vector<float>(100, 1.0f));
  launch_combine_experts({device_y.as<float>(), device_share.as<float>(), device_slot.as<int32_t>(),
                          out.as<float>(), 2, true, 50, 2, 2},
                         how());
  const std::vector<float> found = to_host<float>(out, 100);
  for (uint32_t t = 0; t < 2; ++t)
    for (uint32_t c = 0; c < 50; ++c) {
      const double expected =
          1 + 2 * (double{share[2 * t]} * y[static_cast<uint32_t>(slot[2 * t]) * 50 + c] +
                   double{share[2 * t + 1]} * y[static_cast<uint32_t>(slot[2 * t + 1]) * 50 + c]);
      REQUIRE(found[t * 50 + c] == Approx(expected).margin(1e-5));
    }
}

}  // namespace pith::cuda
