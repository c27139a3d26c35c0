// The decoder against a naive forward pass, and what a session promises: the same ids give the same bits however they
// are fed; interruption; context; files.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <thread>

#include "count_allocations.h"
#include "naive_forward.h"
#include "random_model.h"
#include "runtime/capi.h"
#include "runtime/cpu/kernels.h"
#include "runtime/process_limits.h"
#include "runtime/session.h"
#include "sample_specs.h"
#include "skip.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

namespace {

struct Fixture {
  Fixture(const ModelSpec& s, const RandomModelOptions& options) : spec(s) {
    tensors = write_random_model(folder / "m.pith", spec, options);
    model = Model::open(folder / "m.pith");
  }
  TempFolder folder;
  ModelSpec spec;
  std::map<std::string, std::vector<float>> tensors;
  std::shared_ptr<const Model> model;
};

std::vector<float> all_logits(Session& session, const std::vector<int32_t>& ids) {
  std::vector<float> all;
  session.logits_of_all(ids, [&](uint32_t position, std::span<const float> row) {
    CHECK(position == all.size() / row.size());
    all.insert(all.end(), row.begin(), row.end());
  });
  return all;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

std::vector<float> copy_of(std::span<const float> logits) {
  return {logits.begin(), logits.end()};
}

// Root mean square of the session's error over that of the oracle's logits.
double relative_error(const Fixture& f, const SessionOptions& options, const std::vector<int32_t>& ids) {
  Session session(f.model, options);
  const std::vector<float> logits = all_logits(session, ids);
  const std::vector<NaiveModel::Row> expected = NaiveModel(f.spec, f.tensors).run(ids);
  double error = 0, size = 0;
  for (size_t t = 0; t < ids.size(); ++t)
    for (size_t i = 0; i < f.spec.vocab_size; ++i) {
      error += std::pow(double{logits[t * f.spec.vocab_size + i]} - expected[t][i], 2);
      size += std::pow(expected[t][i], 2);
    }
  return std::sqrt(error / size);
}

}  // namespace

// The only rounding beyond float's is that of keys and values to fp16, 2^-12 of each; two layers cannot make it 2^-9.
TEST_CASE("logits equal a naive double forward pass, with every switch of the spec") {
  std::vector<std::pair<std::string, ModelSpec>> specs = {{"plain", plain_spec()},
                                                          {"everything", everything_spec()}};
  const auto variant = [&](const char* name, auto&& change) {
    ModelSpec spec = plain_spec();
    change(spec);
    specs.push_back({name, spec});
  };
  variant("qkv bias", [](ModelSpec& s) { s.qkv_bias = true; });
  variant("attn out bias", [](ModelSpec& s) { s.attn_out_bias = true; });
  variant("mlp bias", [](ModelSpec& s) { s.mlp_bias = true; });
  variant("qk norm", [](ModelSpec& s) { s.qk_norm = true; });
  variant("window", [](ModelSpec& s) { s.layers[1].window = 3; });
  variant("tied", [](ModelSpec& s) { s.tied_embeddings = true; });
  variant("post norms", [](ModelSpec& s) { s.post_norms = true; });
  variant("softcaps", [](ModelSpec& s) { s.attn_softcap = 2, s.logit_softcap = 3; });
  variant("gelu", [](ModelSpec& s) { s.activation = Activation::kGeluTanh; });
  variant("scales", [](ModelSpec& s) { s.embedding_scale = 3, s.residual_scale = 0.5f, s.logit_scale = 2; });
  variant("no rope", [](ModelSpec& s) { s.layers[0].rope_idx = -1; });
  variant("one kv head", [](ModelSpec& s) { s.n_kv_heads = 1; });
  variant("many heads", [](ModelSpec& s) {
    s.n_heads = 40, s.n_kv_heads = 1, s.head_dim = 2, s.ropes = {{{1}, 1}};
  });
  variant("wide heads", [](ModelSpec& s) { s.head_dim = 128; });

  for (const auto& [name, spec] : specs) {
    const std::vector<int32_t> ids = random_ids(40, spec.vocab_size);
    for (const TensorKind kind : {TensorKind::kF32, TensorKind::kF16, TensorKind::kBF16}) {
      const Fixture f(spec, {.kind = kind});
      for (const cpu::Kernels* kernels : cpu::supported_kernels()) {
        SessionOptions options;
        options.kernels = kernels->name;
        options.prefill_chunk = 17;
        CAPTURE(name, to_string(kind), kernels->name);
        CHECK(relative_error(f, options, ids) < 0.002);
      }
    }
  }
}

// Activations (and keys and values) rounded to int8: a uniform error of max / 127 / sqrt(12), with max about 2.5
// deviations for so few columns: 0.6 % of each matrix's result. Nine of them in a row, sharpened by softmax and softcaps.
TEST_CASE("logits of a q24 model follow the dequantized weights") {
  for (const ModelSpec& spec : {plain_spec(), everything_spec()})
    for (const uint32_t group : {16u, 32u}) {
      const Fixture f(spec, {.kind = TensorKind::kQ24, .group = group});
      const std::vector<int32_t> ids = random_ids(40, spec.vocab_size);
      for (const KvType kv : {KvType::kF16, KvType::kI8}) {
        SessionOptions options;
        options.kv = kv;
        CAPTURE(spec.qk_norm, group, static_cast<int>(kv));
        CHECK(relative_error(f, options, ids) < 0.06);
      }
    }
}

TEST_CASE("the same ids give the same bits for any kernels, threads and chunks") {
  for (const TensorKind kind : {TensorKind::kQ24, TensorKind::kBF16})
    for (const KvType kv : {KvType::kF16, KvType::kI8}) {
      const Fixture f(everything_spec(), {.kind = kind});
      const std::vector<int32_t> ids = random_ids(300, f.spec.vocab_size);  // more than one attention segment
      SessionOptions options;
      options.kv = kv;
      Session first(f.model, options);
      const std::vector<float> reference = all_logits(first, ids);
      const std::span<const float> last = std::span(reference).last(f.spec.vocab_size);

      for (const cpu::Kernels* kernels : cpu::supported_kernels()) {
        options.kernels = kernels->name;
        CAPTURE(to_string(kind), kernels->name);
        Session session(f.model, options);
        CHECK(same_bits(all_logits(session, ids), reference));
      }
      options.kernels = "auto";
      options.small_step = 0;
      for (const uint32_t n_threads : {1u, 2u, 3u, 8u})
        for (const uint32_t chunk : {1u, 2u, 16u, 33u, 300u}) {
          if (n_threads == 8 && chunk < 16) continue;  // many barriers, and more threads than cores: slow
          options.n_threads = n_threads;
          options.prefill_chunk = chunk;
          CAPTURE(to_string(kind), n_threads, chunk);
          Session session(f.model, options);
          session.sync(ids);
          CHECK(same_bits(session.logits(), last));
        }
    }
}

TEST_CASE("a mixture of experts gives the same bits token by token and in chunks") {
  for (const TensorKind kind : {TensorKind::kQ24, TensorKind::kBF16})
    for (ModelSpec spec : {plain_spec(), everything_spec()}) {
      spec.n_experts = 7, spec.n_active_experts = 3;
      spec.dim = 200, spec.ffn_dim = 150;  // two blocks of columns
      const Fixture f(spec, {.kind = kind});
      const std::vector<int32_t> ids = random_ids(40, spec.vocab_size);
      SessionOptions options;
      options.n_threads = 1;
      options.prefill_chunk = 40;
      Session first(f.model, options);
      const std::vector<float> reference = all_logits(first, ids);
      const std::span<const float> last = std::span(reference).last(spec.vocab_size);
      options.small_step = 0;
      for (const cpu::Kernels* kernels : cpu::supported_kernels())
        for (const uint32_t n_threads : {1u, 2u, 5u}) {
          options.kernels = kernels->name;
          options.n_threads = n_threads;
          options.prefill_chunk = 1;
          CAPTURE(to_string(kind), kernels->name, n_threads);
          Session session(f.model, options);
          session.sync(ids);
          CHECK(same_bits(session.logits(), last));
        }
    }
}

TEST_CASE("a session's logits do not depend on what was there before") {
  const Fixture f(plain_spec(), {.kind = TensorKind::kQ24});
  const std::vector<int32_t> ids = random_ids(50, f.spec.vocab_size),
                             other = random_ids(60, f.spec.vocab_size, 9);
  Session fresh(f.model, {});
  fresh.sync(ids);
  const std::vector<float> expected = copy_of(fresh.logits());

  Session session(f.model, {});
  session.sync(other);
  session.sync(ids);
  CHECK(same_bits(session.logits(), expected));

  std::vector<int32_t> fork(ids.begin(), ids.begin() + 20);  // a common prefix, then another way
  fork.push_back((ids[20] + 1) % static_cast<int32_t>(f.spec.vocab_size));
  session.sync(fork);
  session.sync(ids);
  CHECK(same_bits(session.logits(), expected));

  session.rewind(7);
  CHECK(session.logits().empty());
  CHECK(session.tokens().size() == 7);
  session.append(std::span(ids).subspan(7, 42));
  session.append(ids[49]);
  CHECK(session.tokens() == ids);
  CHECK(same_bits(session.logits(), expected));

  session.append(3);
  CHECK(session.sync(ids) == ids.size() - 1);  // a prefix of the timeline: the last one runs for its logits
  CHECK(session.tokens() == ids);
  CHECK(same_bits(session.logits(), expected));
}

TEST_CASE("bad calls are refused and change nothing") {
  const Fixture f(plain_spec(), {});
  SessionOptions options;
  options.n_ctx = 10;
  Session session(f.model, options);
  session.sync(random_ids(4, 131));
  const std::vector<float> logits = copy_of(session.logits());
  const auto refuse = [&](ErrorCode code, auto&& call) {
    try {
      call();
      FAIL("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == code);
    }
    CHECK(session.tokens() == random_ids(4, 131));
    CHECK(same_bits(session.logits(), logits));
  };
  const std::vector<int32_t> negative = {1, -1}, large = {131};
  refuse(ErrorCode::kInvalidArgument, [&] { session.sync({}); });
  refuse(ErrorCode::kInvalidArgument, [&] { session.append(std::span<const int32_t>{}); });
  refuse(ErrorCode::kInvalidArgument, [&] { session.sync(negative); });
  refuse(ErrorCode::kInvalidArgument, [&] { session.append(large); });
  refuse(ErrorCode::kInvalidArgument, [&] { session.rewind(5); });
  refuse(ErrorCode::kContextFull, [&] { session.sync(random_ids(11, 131)); });
  refuse(ErrorCode::kContextFull, [&] { session.append(random_ids(7, 131)); });
  session.append(random_ids(6, 131));  // exactly full
  CHECK(session.tokens().size() == 10);

  const auto refuse_options = [&](auto&& change, const char* part) {
    SessionOptions bad;
    change(bad);
    CHECK_THROWS_WITH(Session(f.model, bad), Contains(part));
  };
  refuse_options([](SessionOptions& o) { o.n_ctx = 701; },
                 "ctx: 701 tokens, expected at most the model's 700");
  refuse_options([](SessionOptions& o) { o.prefill_chunk = 0; }, "prefill_chunk: 0 tokens");
  refuse_options([](SessionOptions& o) { o.n_threads = 5000; }, "threads: 5000");
  refuse_options([](SessionOptions& o) { o.device = "abacus"; }, "'abacus'");
  refuse_options([](SessionOptions& o) { o.device = "cpu:7"; }, "'cpu:7'");
  refuse_options([](SessionOptions& o) { o.device = "auto:x"; }, "'auto:x'");
  refuse_options([](SessionOptions& o) { o.kernels = "sse9"; }, "'sse9'");
}

TEST_CASE("making a timeline allocates nothing") {
  const Fixture fixture(plain_spec(), {});
  SessionOptions options;
  options.n_threads = 1;
  pith_session session(fixture.model, options, SamplerOptions{});
  const auto ids = random_ids(40, 131), others = random_ids(30, 131, 4);
  allocations = {};
  CHECK(pith_sync(&session, ids.data(), ids.size()) == PITH_OK);
  CHECK(pith_sync(&session, others.data(), others.size()) == PITH_OK);
  CHECK(pith_sync(&session, others.data(), 20) == PITH_OK);
  CHECK(allocations.total_bytes == 0);
}

TEST_CASE("weights that move into huge pages change no bit, whoever else reads them") {
  if (!has_huge_pages()) return skip("no huge pages of 2 MB");
  ModelSpec spec = plain_spec();
  spec.dim = 192, spec.ffn_dim = 3000, spec.vocab_size = 3000;
  const Fixture f(spec, {});
  const std::vector<int32_t> ids = random_ids(20, spec.vocab_size);
  SessionOptions options;
  options.n_threads = 2;
  options.small_step = 0;
  const auto shared = Model::open(f.model->container().path(), Container::Access::kMapShared);
  Session unmoved(shared, options);
  for (const int32_t id : ids) unmoved.append(id);
  CHECK(shared->container().own_bytes() == 0);

  Session first(f.model, options), second(f.model, options);
  std::thread beside([&] {
    for (const int32_t id : ids) second.append(id);
  });
  for (const int32_t id : ids) first.append(id);
  beside.join();
  CHECK(same_bits(first.logits(), unmoved.logits()));
  CHECK(same_bits(second.logits(), unmoved.logits()));
  CHECK(f.model->container().own_bytes() > f.model->container().file_size() / 2);
}

TEST_CASE("an interrupt stops one call and leaves a timeline that goes on") {
  const Fixture f(plain_spec(), {.kind = TensorKind::kQ24});
  const std::vector<int32_t> ids = random_ids(600, 131);
  SessionOptions options;
  options.prefill_chunk = 4;
  Session session(f.model, options);
  session.interrupt();
  CHECK_THROWS_AS(session.sync(ids), Error);
  CHECK(session.tokens().empty());
  session.sync(std::span(ids).first(3));
  const std::vector<float> logits = copy_of(session.logits());
  session.interrupt();
  CHECK_THROWS_AS(session.append(5), Error);
  CHECK(session.tokens().size() == 3);
  CHECK(same_bits(session.logits(), logits));  // no token came in: as before the call
  session.interrupt();
  CHECK_THROWS_AS(session.sync(random_ids(3, 131, 8)), Error);
  CHECK(session.tokens() == std::vector<int32_t>(ids.begin(), ids.begin() + 3));  // nothing was taken back
  CHECK(same_bits(session.logits(), logits));

  try {
    session.logits_of_all(ids, [&](uint32_t position, std::span<const float>) {
      if (position == 9) session.interrupt();
    });
    FAIL("not interrupted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInterrupted);
  }
  CHECK(session.tokens() == std::vector<int32_t>(ids.begin(), ids.begin() + 12));  // the chunk was finished
  session.sync(ids);                                                               // one call only
  Session fresh(f.model, {});
  fresh.sync(ids);
  CHECK(same_bits(session.logits(), fresh.logits()));
}

TEST_CASE("after a fork the child's copy of a session refuses to run and closes") {
  const Fixture f(plain_spec(), {});
  SessionOptions options;
  options.n_threads = 3;
  options.small_step = 0;
  auto session = std::make_unique<Session>(f.model, options);
  session->sync(random_ids(5, 131));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // what hangs dies
    int n_refused = 0;
    const auto refuse = [&](auto&& call) {
      try {
        call();
      } catch (const Error& error) {
        n_refused += error.code() == ErrorCode::kInvalidArgument &&
                     std::string_view(error.what()).find("before a fork") != std::string_view::npos;
      }
    };
    refuse([&] { session->append(3); });
    refuse([&] { session->sync(random_ids(7, 131)); });
    refuse([&] { session->save(f.folder / "s"); });
    refuse([&] { session->load(f.folder / "s"); });
    refuse([&] { session->begin_call(); });
    session.reset();
    _exit(n_refused);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 5);
  session->append(3);  // the parent's goes on
}

TEST_CASE("a saved session goes on as if nothing had happened") {
  for (const KvType kv : {KvType::kF16, KvType::kI8}) {
    const Fixture f(plain_spec(), {.kind = TensorKind::kQ24});
    SessionOptions options;
    options.kv = kv;
    const std::vector<int32_t> ids = random_ids(40, 131);
    Session session(f.model, options);
    session.sync(ids);
    session.save(f.folder / "s");
    session.append(5);
    const std::vector<float> expected = copy_of(session.logits());

    options.n_ctx = 64;  // another context, another thread count
    options.n_threads = 3;
    Session other(f.model, options);
    other.sync(random_ids(9, 131, 4));
    other.load(f.folder / "s");
    CHECK(other.tokens() == ids);
    CHECK(other.logits().empty());
    other.append(5);
    CHECK(same_bits(other.logits(), expected));
    CHECK_FALSE(std::filesystem::exists(f.folder / "s.part"));
  }
}

TEST_CASE("a session is saved for its owner alone and never over another file") {
  const Fixture f(plain_spec(), {});
  Session session(f.model, {});
  session.sync(random_ids(4, 131));
  session.save(f.folder / "s");
  struct stat info;
  REQUIRE(stat((f.folder / "s").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  write_file(f.folder / "empty", {});
  for (const char* name : {"s", "empty"}) CHECK_NOTHROW(session.save(f.folder / name));
  const Bytes model = read_file(f.folder / "m.pith"), precious = {'m', 'i', 'n', 'e'};
  write_file(f.folder / "text", precious);
  for (const char* name : {"m.pith", "text"})
    CHECK_THROWS_WITH(session.save(f.folder / name),
                      Contains("not a pith session file, so it is not replaced"));
  CHECK(read_file(f.folder / "m.pith") == model);
  CHECK(read_file(f.folder / "text") == precious);
}

TEST_CASE("a saved session goes on only where the context gives the same angles") {
  ModelSpec extended = plain_spec(), dynamic = plain_spec();
  extended.ropes[0].original_context = dynamic.ropes[0].original_context = 50;
  extended.ropes[0].long_inv_freq = {0.5f, 0.2f, 0.1f, 0.02f, 0.01f, 0.001f};
  dynamic.ropes[0].dynamic_factor = 4;
  for (const ModelSpec& spec : {extended, dynamic}) {
    const Fixture f(spec, {});
    const auto open = [&](uint32_t n_ctx) {
      SessionOptions options;
      options.n_ctx = n_ctx;
      return std::make_unique<Session>(f.model, options);
    };
    const std::vector<int32_t> ids = random_ids(9, 131);
    const auto within = open(40), also_within = open(50), beyond = open(60);
    within->sync(ids);
    within->save(f.folder / "s");
    also_within->load(f.folder / "s");
    CHECK(also_within->tokens() == ids);
    CHECK_THROWS_WITH(beyond->load(f.folder / "s"),
                      Contains("context of 40 tokens") && Contains("this session's of 60"));
    CHECK(beyond->tokens().empty());

    Bytes older = read_file(f.folder / "s");  // of a version that did not store the context
    std::fill_n(older.begin() + 52, 4, 0);
    const uint64_t sum = checksum64(std::span(older).first(120));
    std::memcpy(older.data() + 120, &sum, sizeof sum);
    write_file(f.folder / "older", older);
    CHECK_THROWS_WITH(within->load(f.folder / "older"), Contains("n_ctx is 0, expected 9 to 700"));
  }
}

TEST_CASE("a session file that is damaged or of another model is refused and leaves the session as it was") {
  const Fixture f(plain_spec(), {.kind = TensorKind::kQ24});
  const Fixture g(plain_spec(), {.kind = TensorKind::kQ24, .seed = 2});
  SessionOptions options;
  options.n_ctx = 16;
  Session session(f.model, options);
  const std::vector<int32_t> ids = random_ids(6, 131);
  session.sync(ids);
  session.save(f.folder / "s");
  session.append(7);
  const std::vector<float> logits = copy_of(session.logits());
  const Bytes good = read_file(f.folder / "s");

  const auto refuse = [&](Session& into, const Bytes& bytes, ErrorCode code = ErrorCode::kFormat) {
    write_file(f.folder / "bad", bytes);
    const std::vector<int32_t> before = into.tokens();
    try {
      into.load(f.folder / "bad");
      FAIL("accepted");
    } catch (const Error& error) {
      REQUIRE(error.code() == code);
    }
    REQUIRE(into.tokens() == before);
  };
  for (size_t i = 0; i < good.size();
       i += i < 256 ? 1 : 97) {  // every byte of the header and ids, samples of the rest
    Bytes bad = good;
    bad[i] ^= 0x10;
    refuse(session, bad);
  }
  for (size_t n = 0; n < good.size(); n += n < 200 ? 1 : 211)
    refuse(session, Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)));
  Bytes longer = good;
  longer.push_back(0);
  refuse(session, longer);
  CHECK(same_bits(session.logits(), logits));

  Session of_another_model(g.model, options);
  refuse(of_another_model, good);
  options.n_ctx = 5;
  Session short_context(f.model, options);
  refuse(short_context, good, ErrorCode::kContextFull);
  options.n_ctx = 16;
  options.kv = KvType::kI8;
  Session other_cache(f.model, options);
  refuse(other_cache, good, ErrorCode::kInvalidArgument);
  CHECK_THROWS_WITH(other_cache.load(f.folder / "s"), Contains("saved with kv f16, this session has i8"));
  CHECK_THROWS_AS(session.load(f.folder / "absent"), Error);
  CHECK_THROWS_AS(session.save("/proc/no/such/folder"), Error);
  CHECK_THROWS_AS(session.save(f.folder.path()), Error);  // a folder
}

TEST_CASE("a memory plan grows with what it counts and a small session needs little") {
  const Fixture f(plain_spec(), {.kind = TensorKind::kQ24});
  SessionOptions options;
  options.n_ctx = 128;
  options.n_threads = 1;
  const MemoryPlan small = plan_memory(*f.model, options);
  CHECK(small.weights_bytes == f.model->container().file_size());
  // fp16 keys of 12 dimensions, values padded to 16
  CHECK(small.kv_bytes == 2 * 2 * 128 * (12 + 16) * 2);
  options.kv = KvType::kI8;
  CHECK(plan_memory(*f.model, options).kv_bytes == 2 * 2 * 128 * (12 + 16 + 8));
  options.kv = KvType::kF16;
  options.n_threads = 4;
  CHECK(plan_memory(*f.model, options).scratch_bytes > small.scratch_bytes);
}

TEST_CASE("a router in q24 is refused") {
  ModelSpec spec = plain_spec();
  spec.n_experts = 4, spec.n_active_experts = 2;
  const TempFolder folder;
  write_random_model(folder / "good", spec, {.kind = TensorKind::kQ24});
  CHECK_NOTHROW(Model::open(folder / "good"));
  write_random_model(folder / "bad", spec, {.kind = TensorKind::kQ24, .q24_router = true});
  CHECK_THROWS_WITH(Model::open(folder / "bad"),
                    Contains("'layers.0.router' is q24, expected a router in floats"));
}

TEST_CASE("a container that lacks a tensor or has one of another shape or kind does not open") {
  const TempFolder folder;
  const ModelSpec spec = plain_spec();
  write_random_model(folder / "good", spec, {});
  CHECK_NOTHROW(Model::open(folder / "good"));
  const auto refuse = [&](auto&& change, const char* part) {
    ModelSpec other = spec;
    change(other);
    const Container good = Container::open(folder / "good");
    Writer writer(folder / "bad", 1);
    for (const Tensor& t : good.tensors())
      writer.add(t.name, t.kind, t.n_rows, t.n_cols, {t.data, size_t{t.n_rows} * t.n_cols * 4});
    Metadata metadata;
    store_spec(other, metadata);
    writer.finish(metadata);
    CHECK_THROWS_WITH(Model::open(folder / "bad"), Contains(part));
  };
  refuse([](ModelSpec& s) { s.qkv_bias = true; }, "attn_qkv_bias");
  refuse([](ModelSpec& s) { s.vocab_size = 130; }, "'embed' is [131, 48], expected [130, 48]");
  refuse([](ModelSpec& s) { s.n_heads = 6; }, "attn_qkv");
  refuse([](ModelSpec& s) { s.dim = 0; }, "model.dim");
  refuse(
      [](ModelSpec& s) {
        s.layers.resize(s.n_layers = 1024);
        s.n_experts = 1024, s.n_active_experts = 1;
      },
      "expected at least 2097152 for 1024 layers and 1024 experts in each");
}

TEST_CASE("eight sessions run on one model at once while others interrupt them") {
  const Fixture f(plain_spec(), {.kind = TensorKind::kQ24});
  const std::vector<int32_t> ids = random_ids(60, 131);
  Session alone(f.model, {});
  alone.sync(ids);
  const std::vector<float> expected = copy_of(alone.logits());
  std::atomic<int> n_right{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&, i] {
      SessionOptions options;
      options.n_ctx = 64;
      options.n_threads = 1 + static_cast<uint32_t>(i) % 3;
      options.prefill_chunk = 7;
      Session session(f.model, options);
      std::thread interrupter([&] {
        for (int k = 0; k < 5; ++k) session.interrupt();
      });
      for (bool done = false; !done;) {
        try {
          session.sync(ids);
          done = true;
        } catch (const Error& error) {
          if (error.code() != ErrorCode::kInterrupted) break;
        }
      }
      interrupter.join();
      if (same_bits(session.logits(), expected)) ++n_right;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(n_right == 8);
}
