#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "common/arguments.hpp"
#include "common/buffer.hpp"
#include "common/copy.hpp"
#include "common/error.hpp"
#include "common/gpu.hpp"
#include "common/host.hpp"
#include "common/names.hpp"
#include "common/output_file.hpp"
#include "common/progress.hpp"
#include "common/statistics.hpp"
#include "folder_test.hpp"

namespace shortconv::tools {
namespace {

namespace fs = std::filesystem;

TEST(Statistics, percentiles_are_measured_values) {
  std::vector<double> samples;
  for (int i = 100; i >= 1; --i) samples.push_back(i);
  EXPECT_EQ(percentile(samples, 0.5), 50);
  EXPECT_EQ(percentile(samples, 0.99), 99);
  EXPECT_EQ(percentile(samples, 0.991), 100);
  EXPECT_EQ(percentile(samples, 0), 1);
  EXPECT_EQ(percentile(samples, 1), 100);
  EXPECT_EQ(percentile({7}, 0.99), 7);
  EXPECT_EQ(percentile({}, 0.5), 0);
  EXPECT_EQ(median({3, 1, 2}), 2);
}

TEST(Statistics, summary_has_median_mean_and_tail) {
  const Summary summary = summarize({1, 2, 3, 10});
  EXPECT_EQ(summary.p50, 2);
  EXPECT_EQ(summary.mean, 4);
  EXPECT_EQ(summary.p99, 10);
  EXPECT_EQ(summarize({}).mean, 0);
}

TEST(Statistics, thinning_keeps_order_and_spread) {
  std::vector<double> samples(10);
  for (int i = 0; i < 10; ++i) samples[i] = i;
  EXPECT_EQ(thin_out(samples, 5), (std::vector<double>{0, 2, 4, 6, 8}));
  EXPECT_EQ(thin_out(samples, 3), (std::vector<double>{0, 3, 6}));
  EXPECT_EQ(thin_out(samples, 10), samples);
}

TEST(Progress, line_shows_share_and_time_left) {
  EXPECT_EQ(progress_line("replay", 1, 2, 4.0, 80),
            "replay [###############...............]  50%  4 s left");
  EXPECT_EQ(progress_line("replay", 0, 2, 4.0, 80), "replay [..............................]   0%");
  EXPECT_EQ(progress_line("replay", 2, 2, 4.0, 80),
            "replay [##############################] 100%  0 s left");
}

TEST(Progress, line_survives_odd_totals_and_narrow_terminals) {
  EXPECT_EQ(progress_line("x", 3, 2, 1.0, 80), progress_line("x", 2, 2, 1.0, 80));
  EXPECT_EQ(progress_line("x", 0, 0, 1.0, 80), progress_line("x", 2, 2, 1.0, 80));
  EXPECT_EQ(progress_line("replay", 1, 2, 4.0, 10), "replay [##");
  EXPECT_EQ(progress_line("replay", 1, 2, 4.0, 0), "");
}

TEST(Names, lists_are_split_at_commas) {
  EXPECT_EQ(split_commas("a,b-c"), (std::vector<std::string>{"a", "b-c"}));
  EXPECT_EQ(split_commas(",a,,b,"), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(split_commas("").empty());
}

TEST(Names, unknown_names_are_refused_with_those_there_are) {
  for (const Named<Schedule>& entry : capabilities().schedules) {
    EXPECT_EQ(parse_name(capabilities().schedules, "--schedule", entry.name), entry.value);
  }
  try {
    (void)parse_name(capabilities().activations, "--activation", "relu");
    FAIL();
  } catch (const CommandError& error) {
    EXPECT_EQ(error.exit_code(), kExitUsage);
    EXPECT_EQ(std::string(error.what()),
              "--activation: 'relu' is not one of " + list_names(capabilities().activations));
  }
}

TEST(Arguments, given_options_come_back_with_their_values) {
  CLI::App app;
  CLI::App* command = app.add_subcommand("work");
  bool flag = false;
  std::int64_t number = 0;
  std::string text = "default";
  command->add_flag("--fast", flag);
  command->add_option("--number,-n", number);
  command->add_option("--text", text);
  app.parse("work -n 4 --fast");
  EXPECT_EQ(given_arguments(*command),
            (std::vector<std::string>{"work", "--fast", "--number", "4"}));
}

TEST(Buffer, is_zeroed_and_aligned) {
  const Buffer buffer(1000);
  EXPECT_EQ(buffer.bytes(), 1000);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 256, 0u);
  for (std::int64_t i = 0; i < buffer.bytes(); ++i) ASSERT_EQ(buffer.data()[i], std::byte{0});
}

TEST(Copy, copies_all_bytes_and_no_more) {
  for (const int threads : {0, 1, 3}) {
    for (const std::size_t bytes : {0u, 1u, 63u, 64u, 65u, 1000u, 4097u}) {
      std::vector<std::uint8_t> source(bytes + 1, 7);
      std::vector<std::uint8_t> target(bytes + 1, 0);
      parallel_copy(target.data(), source.data(), bytes, threads);
      for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(target[i], 7) << bytes;
      ASSERT_EQ(target[bytes], 0) << bytes;
    }
  }
}

TEST(Gpu, memory_streams_and_copies_are_refused_without_one) {
  if (gpu_count() > 0) GTEST_SKIP() << describe_gpu().name;
  const auto refusal = [](const auto& use) -> std::string {
    try {
      use();
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      return error.what();
    }
    return "accepted";
  };
  const auto expect_refusal = [&](const auto& use) {
    EXPECT_TRUE(refusal(use).starts_with("CUDA: ")) << refusal(use);
  };
  expect_refusal([] { (void)describe_gpu(); });
  expect_refusal([] { (void)describe_host_and_gpu(); });
  expect_refusal([] { const GpuBuffer buffer(16); });
  expect_refusal([] { const PinnedBuffer buffer(16); });
  expect_refusal([] { const GpuStream stream; });
  std::byte byte{};
  expect_refusal([&] { copy_to_gpu(&byte, &byte, 1); });
  expect_refusal([&] { copy_from_gpu(&byte, &byte, 1); });
}

TEST(Gpu, bytes_come_back_as_they_went) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  constexpr std::int64_t kTable = 7, kBytes = 1000;
  std::vector<std::byte> table(kTable), back(kBytes);
  for (std::int64_t i = 0; i < kTable; ++i) table[i] = static_cast<std::byte>(i + 1);
  const GpuBuffer first(kBytes), second(kBytes);
  copy_to_gpu(first.data(), table.data(), kTable);
  repeat_on_gpu(first, kTable);
  const GpuStream stream;
  gpu_copy(second.data(), first.data(), 992, stream.handle());
  stream.wait();
  copy_from_gpu(back.data(), second.data(), 992);
  for (std::int64_t i = 0; i < 992; ++i) ASSERT_EQ(back[i], table[i % kTable]) << i;
  copy_from_gpu(back.data(), first.data(), kBytes);
  for (std::int64_t i = 0; i < kBytes; ++i) ASSERT_EQ(back[i], table[i % kTable]) << i;

  const PinnedBuffer pinned(kBytes);
  start_copy_from_gpu(pinned.data(), first.data(), kBytes, stream.handle());
  start_copy_to_gpu(second.data(), pinned.data(), kBytes, stream.handle());
  stream.wait();
  std::ranges::fill(back, std::byte{0});
  copy_from_gpu(back.data(), second.data(), kBytes);
  for (std::int64_t i = 0; i < kBytes; ++i) ASSERT_EQ(back[i], table[i % kTable]) << i;
}

TEST(Gpu, an_overlapped_copy_waits_for_the_one_before) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  constexpr std::int64_t kBytes = 64 << 20;
  std::vector<std::byte> back(kBytes);
  const GpuBuffer first(kBytes), second(kBytes), third(kBytes);
  constexpr std::byte kTable[] = {std::byte{1}, std::byte{2}, std::byte{3}};
  copy_to_gpu(first.data(), kTable, sizeof kTable);
  repeat_on_gpu(first, sizeof kTable);
  const GpuStream stream;
  gpu_delay(100, stream.handle());
  gpu_overlapped_copy(second.data(), first.data(), kBytes, stream.handle());
  gpu_overlapped_copy(third.data(), second.data(), kBytes, stream.handle());
  stream.wait();
  copy_from_gpu(back.data(), third.data(), kBytes);
  for (std::size_t i = 0; i < back.size(); ++i) ASSERT_EQ(back[i], kTable[i % 3]) << i;
}

TEST(Gpu, graphs_are_timed_without_what_is_around_them) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  const GpuStream stream;
  gpu_launch_baseline(768, stream.handle());
  EXPECT_THROW(gpu_launch_baseline(1 << 20, stream.handle()), CommandError);
  const GpuGraph delays(stream, [](void* handle) {
    for (int i = 0; i < 4; ++i) gpu_delay(500, handle);
  });
  const GpuGraph nothing(stream, [](void* handle) { gpu_empty_kernel(handle); });
  (void)delays.replay();
  EXPECT_GE(delays.replay(), 1990);
  EXPECT_LT(delays.replay(), 3000);
  (void)nothing.replay();
  EXPECT_LT(nothing.replay(), 90);
  EXPECT_THROW(GpuGraph(stream, [](void*) { throw CommandError(kExitFailed, "stop"); }),
               CommandError);
  EXPECT_NO_THROW(stream.wait());  // the capture has ended
  EXPECT_LT(nothing.replay(), 90);
}

TEST(Names, a_backend_that_is_not_there_is_refused_in_its_words) {
  for (const BackendInfo& info : backend_info()) {
    const BackendId backend = parse_name(capabilities().backends, "--backend", info.name);
    if (info.available) {
      EXPECT_NO_THROW(require_available(backend)) << info.name;
      continue;
    }
    try {
      require_available(backend);
      FAIL() << info.name;
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      EXPECT_NE(std::string(error.what()).find(info.detail), std::string::npos) << error.what();
    }
  }
}

TEST(Host, describes_what_measurements_depend_on) {
  const auto host = describe_host();
  for (const char* key : {"cpu", "logical_cores", "compiler", "library_version", "cpu_target"}) {
    EXPECT_TRUE(host.contains(key)) << key;
  }
  EXPECT_GT(host["logical_cores"].get<int>(), 0);
  EXPECT_EQ(host["library_version"], library_version());
}

class OutputFile : public FolderTest {
 protected:
  static std::string refusal(const std::string& path) {
    try {
      check_writable(path);
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      return error.what();
    }
    return "accepted";
  }
};

TEST_F(OutputFile, replaces_the_file_and_leaves_nothing_else) {
  const fs::path path = folder_ / "result.json";
  write_output(path.string(), "old and longer");
  write_output(path.string(), "new");
  std::ostringstream content;
  content << std::ifstream(path).rdbuf();
  EXPECT_EQ(content.str(), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(OutputFile, dash_is_stdout) {
  testing::internal::CaptureStdout();
  write_output("-", "text\n");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "text\n");
}

TEST_F(OutputFile, places_that_cannot_be_written_are_refused_beforehand) {
  EXPECT_EQ(refusal(""), "accepted");
  EXPECT_EQ(refusal("-"), "accepted");
  EXPECT_EQ(refusal((folder_ / "new.json").string()), "accepted");
  EXPECT_EQ(refusal(folder_.string()), folder_.string() + ": cannot be written: it is a directory");
  const std::string missing = (folder_ / "missing").string();
  EXPECT_EQ(refusal(missing + "/new.json"),
            missing + "/new.json: cannot be written: " + missing + ": No such file or directory");
}

TEST_F(OutputFile, a_link_stays_a_link) {
  const fs::path target = folder_ / "target.json";
  const fs::path link = folder_ / "link.json";
  std::ofstream(target) << "old";
  fs::create_symlink(target, link);
  check_writable(link.string());
  write_output(link.string(), "new");
  EXPECT_TRUE(fs::is_symlink(link));
  std::ostringstream content;
  content << std::ifstream(target).rdbuf();
  EXPECT_EQ(content.str(), "new");
}

TEST_F(OutputFile, a_pipe_stays_a_pipe) {
  const std::string pipe = (folder_ / "pipe").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int reader = open(pipe.c_str(), O_RDWR | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  check_writable(pipe);
  write_output(pipe, "text");
  char content[8] = {};
  EXPECT_EQ(read(reader, content, sizeof content), 4);
  EXPECT_STREQ(content, "text");
  EXPECT_TRUE(fs::is_fifo(pipe));
  close(reader);
}

TEST_F(OutputFile, a_link_to_nothing_stays_a_link) {
  fs::create_symlink("target.json", folder_ / "link.json");
  check_writable((folder_ / "link.json").string());
  write_output((folder_ / "link.json").string(), "new");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link.json"));
  EXPECT_TRUE(fs::is_regular_file(folder_ / "target.json"));
}

// As somebody else may do in a folder that all can write to.
TEST_F(OutputFile, links_that_were_prepared_are_not_followed) {
  const fs::path path = folder_ / "result.json", victim = folder_ / "victim";
  std::ofstream(victim) << "kept";
  for (const std::string& suffix : {"." + std::to_string(getpid()) + ".tmp", std::string(".tmp")}) {
    fs::create_symlink(victim, path.string() + suffix);
  }
  write_output(path.string(), "new");
  std::ostringstream content;
  content << std::ifstream(victim).rdbuf();
  EXPECT_EQ(content.str(), "kept");
}

TEST_F(OutputFile, permissions_are_those_of_any_new_file) {
  const mode_t withheld = umask(0027);
  const auto mode_of = [&](const fs::path& path) {
    return static_cast<int>(fs::status(path).permissions());
  };
  write_output((folder_ / "new.json").string(), "text");
  EXPECT_EQ(mode_of(folder_ / "new.json"), 0640);
  std::ofstream(folder_ / "secret.json") << "old";
  fs::permissions(folder_ / "secret.json", fs::perms(0600));
  write_output((folder_ / "secret.json").string(), "text");
  EXPECT_EQ(mode_of(folder_ / "secret.json"), 0600) << "as it was";
  EXPECT_EQ(umask(withheld), 0027u);
}

TEST_F(OutputFile, names_may_be_as_long_as_the_system_allows) {
  const fs::path path = folder_ / std::string(255, 'x');
  write_output(path.string(), "text");
  EXPECT_EQ(fs::file_size(path), 4u);
}

TEST_F(OutputFile, a_file_that_is_an_input_is_refused) {
  const std::string input = (folder_ / "in.json").string();
  const std::string hard = (folder_ / "hard.json").string();
  const std::string soft = (folder_ / "soft.json").string();
  std::ofstream(input) << "text";
  fs::create_hard_link(input, hard);
  fs::create_symlink("in.json", soft);
  const std::vector<std::string> inputs{"/dev/null", input};
  for (const std::string& path : {input, hard, soft}) {
    EXPECT_THROW(check_writable(path, inputs), CommandError) << path;
  }
  EXPECT_NO_THROW(check_writable((folder_ / "out.json").string(), inputs));
  EXPECT_NO_THROW(check_writable("/dev/null", inputs)) << "nothing is lost there";
}

TEST_F(OutputFile, a_write_that_fails_leaves_nothing) {
  const fs::path target = folder_ / "taken";
  fs::create_directory(target);
  EXPECT_THROW(write_output(target.string(), "text"), CommandError);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace shortconv::tools
