// Calibration inside a conversion: what it is worth, efforts and ablations.
#include <cmath>
#include <set>

#include "convert/calibration.h"
#include "runtime/process_limits.h"
#include "runtime/thread_pool.h"
#include "tests/convert_cases.h"
#include "tests/format_samples.h"

using namespace pith;
using namespace pith::test;
using Catch::Matchers::Contains;

TEST_CASE("calibration lowers the error that counts and needs a text that serves") {
  TinyCheckpoint checkpoint(64, 128, 2);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.calibration_tokens = 1024;
  const ConvertReport calibrated = convert(checkpoint.model_dir(), options);
  options.calibrate = false;
  const ConvertReport plain = convert(checkpoint.model_dir(), options);
  REQUIRE(calibrated.tensors.size() == plain.tensors.size());
  for (size_t i = 0; i < plain.tensors.size(); ++i) {
    const std::string& name = plain.tensors[i].name;
    INFO(name);
    if (name == "embed")  // seen by no other input than itself
      CHECK(calibrated.tensors[i].relative_error == plain.tensors[i].relative_error);
    else
      CHECK(calibrated.tensors[i].relative_error < plain.tensors[i].relative_error);
  }
  std::filesystem::remove(checkpoint.output());
  options.calibrate = true;
  const std::string text = (checkpoint.dir / "model" / "text").string();
  options.calibration_files = {text};
  CHECK_THAT(failure(checkpoint, options), Contains("cannot open"));
  for (const auto& [content, message] :
       {std::pair<std::string, const char*>{"", "0 tokens, expected at least 512"},
        {"too short", "9 tokens, expected at least 512"},
        {std::string(5000, '\xff'), "text: not UTF-8"}}) {
    std::ofstream(text, std::ios::binary) << content;
    CHECK_THAT(failure(checkpoint, options), Contains(message));
  }
}

namespace {

// A root folder with files as /proc and /sys have them.
struct System : TempFolder {
  void put(const std::string& file_path, const std::string& text) const {
    const std::filesystem::path file = path() + file_path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
};

}  // namespace

TEST_CASE("processors are those that the quota of a container keeps busy") {
  const System system;
  const std::string root = system.path();
  CHECK(cpu_quota(root) == UINT32_MAX);
  system.put("/proc/self/cgroup", "0::/outer/inner\n");
  system.put("/sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n");
  CHECK(cpu_quota(root) == UINT32_MAX);
  const uint32_t n_cores = ThreadPool::n_physical_cores(root);
  system.put("/sys/fs/cgroup/outer/cpu.max", "250001 50000\n");
  CHECK(cpu_quota(root) == 6);
  CHECK(ThreadPool::n_physical_cores(root) == std::min(n_cores, 6u));
  system.put("/sys/fs/cgroup/cpu.max", "1000 100000\n");  // as a container sees its own group
  CHECK(cpu_quota(root) == 1);
  CHECK(ThreadPool::n_physical_cores(root) == 1);
  system.put("/proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/docker/ab\n0::\n");
  CHECK(cpu_quota(root) == UINT32_MAX);
  system.put("/sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us", "-1\n");
  system.put("/sys/fs/cgroup/cpu/docker/ab/cpu.cfs_period_us", "100000\n");
  CHECK(cpu_quota(root) == UINT32_MAX);
  system.put("/sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us", "150000\n");
  CHECK(cpu_quota(root) == 2);
}

TEST_CASE("huge pages are those of 2 MB, where the system gives them to whoever asks") {
  const System system;
  const std::string root = system.path(), folder = "/sys/kernel/mm/transparent_hugepage/";
  CHECK_FALSE(has_huge_pages(root));
  system.put(folder + "enabled", "always [madvise] never\n");
  CHECK_FALSE(has_huge_pages(root));
  system.put(folder + "hpage_pmd_size", "2097152\n");
  CHECK(has_huge_pages(root));
  system.put(folder + "enabled", "[always] madvise never\n");
  CHECK(has_huge_pages(root));
  system.put(folder + "hpage_pmd_size", "33554432\n");  // pages of 16 KB
  CHECK_FALSE(has_huge_pages(root));
  system.put(folder + "hpage_pmd_size", "2097152\n");
  system.put(folder + "enabled", "always madvise [never]\n");
  CHECK_FALSE(has_huge_pages(root));
  system.put(folder + "hugepages-2048kB/enabled", "always [inherit] madvise never\n");
  CHECK_FALSE(has_huge_pages(root));
  system.put(folder + "hugepages-2048kB/enabled", "always inherit [madvise] never\n");
  CHECK(has_huge_pages(root));
  system.put(folder + "enabled", "[always] madvise never\n");
  system.put(folder + "hugepages-2048kB/enabled", "always inherit madvise [never]\n");
  CHECK_FALSE(has_huge_pages(root));
}

TEST_CASE("memory is what the system has, and what a container may take of it") {
  const System folder;
  const auto put = [&](const std::string& path, const std::string& text) { folder.put(path, text); };
  CHECK(available_memory(folder.path()) == UINT64_MAX);
  put("/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\nSwapFree: 1000 kB\n");
  CHECK(available_memory(folder.path()) == 9000 * 1024);
  CHECK(available_memory(folder.path(), false) == 8000 * 1024);
  put("/proc/self/cgroup", "0::/outer/inner\n");
  put("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  put("/sys/fs/cgroup/outer/inner/memory.current", "300000\n");
  CHECK(available_memory(folder.path()) == 9000 * 1024);
  put("/sys/fs/cgroup/outer/memory.max", "5000000\n");
  put("/sys/fs/cgroup/outer/memory.current", "1000000\n");
  put("/sys/fs/cgroup/outer/memory.stat", "anon 500000\ninactive_file 400000\nactive_file 100000\n");
  CHECK(available_memory(folder.path()) == 4500000);
  put("/sys/fs/cgroup/memory.max", "200000\n");  // as a container sees its own group
  put("/sys/fs/cgroup/memory.current", "300000\n");
  CHECK(available_memory(folder.path()) == 0);
  put("/proc/self/cgroup", "11:cpu:/x\n9:memory:/docker/ab\n0::\nnonsense\n");
  CHECK(available_memory(folder.path()) == 9000 * 1024);
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "700000\n");
  put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n");
  CHECK(available_memory(folder.path()) == 600000);
}

TEST_CASE("a model calibrates on what it writes itself, the same for any number of threads") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  convert(checkpoint.model_dir(), options);
  const std::vector<float> builtin = tensor_floats(Container::open(checkpoint.output()), "layers.0.ffn_down");
  options.calibration_files = {kSelfText};
  CHECK(convert(checkpoint.model_dir(), options).calibration_tokens == 512);
  const std::string self = read_text_file(checkpoint.output());
  CHECK(tensor_floats(Container::open(checkpoint.output()), "layers.0.ffn_down") != builtin);
  options.n_threads = 3;
  convert(checkpoint.model_dir(), options);
  CHECK(read_text_file(checkpoint.output()) == self);
  CHECK(checkpoint.leftovers() == std::vector<std::string>{"out.pith"});
}

TEST_CASE("a small model calibrates half on the built-in text and half on its own, unless it is told") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  const auto converted = [&](std::vector<std::string> files) {
    options.calibration_files = std::move(files);
    CHECK(convert(checkpoint.model_dir(), options).calibration_tokens == 512);
    return tensor_floats(Container::open(checkpoint.output()), "layers.0.ffn_down");
  };
  const std::vector<float> by_default = converted({});
  CHECK(by_default == converted({kBuiltinText, kSelfText}));
  CHECK(by_default != converted({kBuiltinText}));
  CHECK(by_default != converted({kSelfText}));
}

TEST_CASE("calibration windows take turns among the texts and are spread over each") {
  std::vector<int32_t> longer(6400), shorter(700);
  for (int32_t i = 0; i < 6400; ++i) longer[static_cast<size_t>(i)] = i;
  for (int32_t i = 0; i < 700; ++i) shorter[static_cast<size_t>(i)] = 10000 + i;
  const auto starts = [](const CalibrationTokens& tokens, uint32_t at) {
    std::vector<int32_t> first;
    for (uint32_t w = 0; w < tokens.n_windows(); ++w) first.push_back(tokens.ids[w * tokens.window + at]);
    return first;
  };
  // Six windows' room: two whole ones are in the short text, four of 25 are taken of the long one.
  const CalibrationTokens some = calibration_tokens({longer, shorter}, -1, 256, 6 * 256 + 255);
  CHECK(starts(some, 0) == std::vector<int32_t>{0, 10000, 6 * 256, 10256, 12 * 256, 18 * 256});
  for (size_t i = 1; i < 256; ++i)
    CHECK(some.ids[2 * 256 + i] == some.ids[2 * 256] + static_cast<int32_t>(i));
  CHECK(some.n_held_out == 1);
  const CalibrationTokens all = calibration_tokens({longer}, 7, 256, 65536);  // 7 before each 255
  CHECK(all.n_windows() == 25);
  CHECK(starts(all, 0) == std::vector<int32_t>(25, 7));
  CHECK(starts(all, 1).back() == 24 * 255);
}

TEST_CASE("a window without room for two tokens and fewer tokens than a window are refused") {
  CHECK_THROWS_WITH(calibration_tokens({std::vector<int32_t>(600)}, 7, 2, 1024),
                    Contains("the model's context of 2 tokens, expected at least 3"));
  CHECK(calibration_tokens({std::vector<int32_t>(600)}, -1, 2, 1024).n_windows() == 300);
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.calibration_tokens = 100;
  CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options),
                    Contains("--calib-tokens 100: expected at least 256, the length of a window"));
}

TEST_CASE("calibration that the memory is too small for is refused, with what it takes") {
  TinyCheckpoint checkpoint;
  checkpoint.write();
  ConvertOptions options = options_for(checkpoint, 3.5);
  options.memory_bytes = 1000000;
  CHECK_THROWS_WITH(convert(checkpoint.model_dir(), options),
                    Contains("tokens takes 0.0 GB of memory, 0.0 are free"));
  options.calibrate = false;
  convert(checkpoint.model_dir(), options);
}

TEST_CASE("wide models get fewer tokens, so that calibration stays below 8 GB") {
  ModelSpec spec;
  spec.head_dim = 128;
  // Llama 2 7B, then 70B
  spec.dim = 4096, spec.ffn_dim = 11008, spec.n_heads = spec.n_kv_heads = 32;
  CHECK(affordable_tokens(spec, 65536) == 35544);
  CHECK(affordable_tokens(spec, 16384) == 16384);
  CHECK(calibration_bytes(spec, 35544) < 5'300'000'000);
  spec.dim = 8192, spec.ffn_dim = 28672, spec.n_heads = 64, spec.n_kv_heads = 8;
  const uint32_t n_tokens = affordable_tokens(spec, 65536);
  CHECK(n_tokens > 8192);
  CHECK(calibration_bytes(spec, n_tokens) <= 7'500'000'000);
}

TEST_CASE("a matrix whose input is always 0 is quantized without statistics") {
  for (const char* zeroed : {"model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"}) {
    TinyCheckpoint checkpoint;
    std::string& data = checkpoint.tensors.at(zeroed).data;
    data.assign(data.size(), '\0');
    checkpoint.write();
    ConvertOptions options = options_for(checkpoint, 3.5);
    options.calibration_tokens = 1024;
    for (const auto& tensor : convert(checkpoint.model_dir(), options).tensors)
      CHECK(tensor.relative_error < 0.3);
  }
}

// The levers that a single matrix knows are held by test_quantizer; here those that the conversion itself obeys, and one that it
// hands on.
TEST_CASE("every effort and every lever of a conversion gives other tensors") {
  TinyCheckpoint checkpoint(64, 96, 1);
  checkpoint.write();
  std::set<std::vector<float>> tensors;
  const auto add = [&](const ConvertOptions& options) {
    CHECK(convert(checkpoint.model_dir(), options).linear_bits <= options.bits);
    const Container container = Container::open(checkpoint.output());
    std::vector<float> all;
    for (const char* name : {"embed", "head", "layers.0.attn_qkv", "layers.0.ffn_down"}) {
      const std::vector<float> values = tensor_floats(container, name);
      all.insert(all.end(), values.begin(), values.end());
    }
    CHECK(tensors.insert(all).second);
  };
  for (const Effort effort : {Effort::kFast, Effort::kNormal}) {
    INFO("effort " << static_cast<int>(effort));
    ConvertOptions options = options_for(checkpoint, 3.5);
    options.effort = effort;
    add(options);
  }
  for (const char* ablation :
       {"correct=off", "shrink=off", "hessian=plain", "head=off", "budget=parts", "group=32", "fine=off"}) {
    INFO(ablation);
    ConvertOptions options = options_for(checkpoint, 3.5);
    apply_levers(ablation, options.levers);
    add(options);
  }
}
