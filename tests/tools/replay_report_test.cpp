#include <gtest/gtest.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "common/error.hpp"
#include "common/gpu.hpp"
#include "replay/report.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int exit_code = 0;
  std::string message;
  std::string output;
};

// As main does it.
Outcome replay(const std::string& arguments) {
  CLI::App app;
  add_replay_command(app);
  Outcome outcome;
  testing::internal::CaptureStdout();
  try {
    app.parse("replay " + arguments);
  } catch (const CommandError& error) {
    outcome.exit_code = error.exit_code();
    outcome.message = error.what();
  } catch (const CLI::ParseError& error) {
    outcome.exit_code = kExitUsage;
    outcome.message = error.what();
  }
  std::fflush(stdout);
  outcome.output = testing::internal::GetCapturedStdout();
  return outcome;
}

int count_of(const std::string& text, const std::string& part) {
  int count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

const std::string kSmall = "--preset gsm8k --limit 6 --max-output 4 --model lfm2 --threads 2 ";

class ReplayCommand : public testing::Test {
 protected:
  void SetUp() override {
    const std::string test = testing::UnitTest::GetInstance()->current_test_info()->name();
    path_ = fs::path(testing::TempDir()) / ("replay_" + test + ".json");
    fs::remove(path_);
  }
  void TearDown() override { fs::remove(path_); }

  fs::path path_;
};

TEST_F(ReplayCommand, prints_a_table_per_schedule_and_the_verdict) {
  const Outcome outcome = replay(kSmall + "--compare block-list,sequence-grid");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.message;
  for (const char* part :
       {"requests   6 from gsm8k", "lfm2: 2 layers of 2048 channels, width 3", "schedule flat\n",
        "schedule block-list\n", "schedule sequence-grid\n", "\nextend ", "\ndecode ",
        "verification: 6 requests in 3 runs", "; 0 failures\n"}) {
    EXPECT_NE(outcome.output.find(part), std::string::npos) << part << "\n" << outcome.output;
  }
}

TEST_F(ReplayCommand, writes_the_figures_as_json) {
  const Outcome outcome =
      replay(kSmall + "--draft 2 --compare sequence-grid --json " + path_.string());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.message;
  std::ifstream file(path_);
  const auto json = nlohmann::json::parse(file);
  EXPECT_EQ(json["command"], "replay");
  EXPECT_EQ(json["arguments"][0], "replay");
  EXPECT_EQ(json["workload"]["requests"], 6);
  EXPECT_EQ(json["workload"]["output_tokens"], 6 * 4);
  EXPECT_EQ(json["model"]["channels"], 2048);
  EXPECT_EQ(json["model"]["activation"], "none");
  EXPECT_EQ(json["scheduler"]["draft"], 2);
  ASSERT_EQ(json["runs"].size(), 2u);
  EXPECT_EQ(json["runs"][1]["schedule"], "sequence-grid");
  const auto& extend = json["runs"][0]["kinds"][0];
  EXPECT_EQ(extend["kind"], "extend");
  EXPECT_EQ(extend["calls"], 1);
  EXPECT_EQ(extend["run_us_samples"].size(), 2u);
  EXPECT_EQ(extend["copy_us_samples"].size(), 1u);
  for (const char* key : {"p50", "mean", "p99"}) {
    EXPECT_GT(extend["host_us"][key], 0);
    EXPECT_GT(extend["run_us"][key], 0);
  }
  EXPECT_GT(extend["gb_per_s"], 0);
  EXPECT_GT(extend["copy_ratio"], 0);
  EXPECT_EQ(json["runs"][0]["kinds"][1]["kind"], "draft extend");
  EXPECT_EQ(json["verification"]["failures"], 0);
  EXPECT_EQ(json["verification"]["requests"], 6);
}

TEST_F(ReplayCommand, shows_drafts_and_prefixes) {
  const Outcome outcome =
      replay(kSmall + "--max-running 2 --tree 2,1 --accept 0.5 --prefix-cache 8 --shared 1 " +
             "--json " + path_.string());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.message;
  for (const char* part :
       {"drafts     trees of 2,1, accepted with probability 0.5: ", " steps of 5 rows, ",
        "prefixes   states after every 8 prompt tokens in 1024 slots: ", "\nextend ", "\nverify ",
        "\ncommit ", "; 0 failures\n"}) {
    EXPECT_NE(outcome.output.find(part), std::string::npos) << part << "\n" << outcome.output;
  }
  std::ifstream file(path_);
  const auto json = nlohmann::json::parse(file);
  const auto& scheduler = json["scheduler"];
  EXPECT_EQ(scheduler["tree"], "2,1");
  EXPECT_EQ(scheduler["accept"], 0.5);
  EXPECT_GE(scheduler["tokens_per_step"], 1);
  EXPECT_EQ(scheduler["prefix_cache"]["block"], 8);
  EXPECT_EQ(scheduler["prefix_cache"]["slots"], 1024);
  EXPECT_GT(scheduler["prefix_cache"]["requests"], 0);
  const auto& kinds = json["runs"][0]["kinds"];
  ASSERT_EQ(kinds.size(), 3u);
  EXPECT_EQ(kinds[1]["kind"], "verify");
  EXPECT_EQ(kinds[1]["tokens"], 5 * scheduler["steps"].get<int>());
  EXPECT_EQ(kinds[2]["kind"], "commit");
  EXPECT_EQ(kinds[2]["calls"], kinds[1]["calls"]);
  EXPECT_EQ(kinds[2]["tokens"], 6 * 4) << "every output token is committed";
  EXPECT_GT(kinds[2]["gb_per_s"], 0);
  EXPECT_GT(kinds[2]["copy_ratio"], 0);
}

TEST_F(ReplayCommand, drafts_run_beside_prompts_and_under_every_schedule) {
  const Outcome outcome = replay(kSmall + "--max-running 2 --chunk 40 --spec 3 --mixed " +
                                 "--compare block-list,sequence-grid");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.message;
  EXPECT_NE(outcome.output.find("drafts     chains of 3, accepted with probability 0.7: "),
            std::string::npos)
      << outcome.output;
  EXPECT_EQ(count_of(outcome.output, "\nmixed "), 3);
  EXPECT_EQ(count_of(outcome.output, "\ncommit "), 3);
}

TEST_F(ReplayCommand, options_that_exclude_each_other_are_refused_with_the_reason) {
  const std::pair<const char*, const char*> refused[] = {
      {"--accept 0.5", "--accept: there are no drafts; expected --spec or --tree"},
      {"--tree 2,2 --mixed",
       "--tree: trees leave no final state, so a call cannot hold prompts as well; expected no "
       "--mixed, or --spec"},
      {"--spec 2 --mixed --prefix-cache 8",
       "--prefix-cache: calls that verify drafts take no snapshots; expected no --mixed, or no "
       "--spec"},
      {"--prefix-cache 8 --compare block-list",
       "--prefix-cache: schedule flat is the only one that takes snapshots; expected no other in "
       "--schedule and --compare"},
      {"--prefix-cache 8 --schedule sequence-grid",
       "--prefix-cache: schedule flat is the only one that takes snapshots; expected no other in "
       "--schedule and --compare"},
  };
  for (const auto& [arguments, message] : refused) {
    const Outcome outcome = replay(kSmall + arguments);
    EXPECT_EQ(outcome.exit_code, kExitUsage);
    EXPECT_EQ(outcome.message, message);
    EXPECT_EQ(outcome.output, "");
  }
}

TEST_F(ReplayCommand, json_on_stdout_comes_alone) {
  const Outcome outcome = replay(kSmall + "--json - --check 0");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.message;
  const auto json = nlohmann::json::parse(outcome.output);
  EXPECT_EQ(json["verification"]["runs"], 0);
}

TEST_F(ReplayCommand, wrong_options_are_refused_in_one_line_and_nothing_is_written) {
  const char* wrong[] = {
      "",
      "--preset mmlu",
      "--requests /nonexistent.csv",
      "--preset gsm8k --requests also.csv",
      "--preset gsm8k --model gpt-2",
      "--preset gsm8k --tp 3",
      "--preset gsm8k --layers none",
      "--preset gsm8k --dtype f8",
      "--preset gsm8k --schedule best",
      "--preset gsm8k --compare block-list,best",
      "--preset gsm8k --backend tpu",
      "--preset gsm8k --chunk 0",
      "--preset gsm8k --chunk many",
      "--preset gsm8k --max-running -1",
      "--preset gsm8k --limit 0",
      "--preset gsm8k --draft 0",
      "--preset gsm8k --spec 0",
      "--preset gsm8k --spec 65",
      "--preset gsm8k --spec 2 --draft 2",
      "--preset gsm8k --spec 2 --tree 2,2",
      "--preset gsm8k --tree 2,2 --draft 2",
      "--preset gsm8k --tree two",
      "--preset gsm8k --spec 2 --accept 1.5",
      "--preset gsm8k --spec 2 --accept often",
      "--preset gsm8k --prefix-cache 0",
      "--preset gsm8k --prefix-cache 8 --prefix-slots 0",
      "--preset gsm8k --prefix-cache 8 --shared 2",
      "--preset gsm8k --prefix-slots 8",
      "--preset gsm8k --shared 0.5",
      "--preset gsm8k --unknown",
  };
  for (const char* arguments : wrong) {
    SCOPED_TRACE(arguments);
    const Outcome outcome = replay(std::string(arguments) + " --json " + path_.string());
    EXPECT_EQ(outcome.exit_code, kExitUsage);
    EXPECT_FALSE(outcome.message.empty());
    EXPECT_EQ(outcome.message.find('\n'), std::string::npos) << outcome.message;
    EXPECT_EQ(outcome.output, "");
    EXPECT_FALSE(fs::exists(path_));
  }
}

TEST_F(ReplayCommand, schedules_named_twice_run_once) {
  const Outcome outcome = replay(kSmall + "--check 0 --compare flat,block-list,flat");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.message;
  EXPECT_EQ(count_of(outcome.output, "schedule flat\n"), 1);
  EXPECT_EQ(count_of(outcome.output, "schedule block-list\n"), 1);
}

TEST_F(ReplayCommand, cuda_is_refused_where_there_is_no_gpu) {
  if (gpu_count() > 0) GTEST_SKIP() << "there is a GPU";
  const Outcome outcome = replay(kSmall + "--backend cuda --json " + path_.string());
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  EXPECT_NE(outcome.message.find("cuda"), std::string::npos) << outcome.message;
  EXPECT_EQ(outcome.message.find('\n'), std::string::npos) << outcome.message;
  EXPECT_EQ(outcome.output, "");
  EXPECT_FALSE(fs::exists(path_));
}

TEST_F(ReplayCommand, an_unwritable_result_is_refused_before_the_work) {
  const Outcome outcome = replay("--preset gsm8k --json /nonexistent/result.json");
  EXPECT_EQ(outcome.exit_code, kExitUsage);
  EXPECT_EQ(outcome.output, "");
}

ReplayReport empty_report() {
  return {.arguments = {},
          .source = "a test",
          .model = "none",
          .config = {.channels = 8, .width = 4, .layers = 1},
          .scheduler = {},
          .backend = "none",
          .backend_detail = ""};
}

using Numbers = std::vector<double>;

// The numbers of the first line of `text` that starts with `start`, or none.
Numbers numbers_after(const std::string& text, const std::string& start) {
  const std::size_t at = text.find("\n" + start);
  if (at == std::string::npos) return {};
  std::istringstream line(text.substr(at + 1 + start.size(), text.find('\n', at + 1) - at));
  Numbers numbers;
  for (double number; line >> number;) numbers.push_back(number);
  return numbers;
}

TEST(ReplayText, figures_follow_from_the_samples) {
  StreamResult run;
  run.schedule = Schedule::kBlockList;
  run.kinds[static_cast<int>(CallKind::kDecode)] = {.calls = 2,
                                                    .tokens = 5,
                                                    .bytes = 4e6,
                                                    .host_us = {1, 3},
                                                    .run_us = {100, 300, 400},
                                                    .copy_us = {50, 200},
                                                    .copy_ratio = {2, 1.5, 9}};
  ReplayReport report = empty_report();
  report.runs.push_back(std::move(run));

  const auto json = to_json(report)["runs"][0];
  EXPECT_EQ(json["schedule"], "block-list");
  ASSERT_EQ(json["kinds"].size(), 1u) << "kinds that did not occur are left out";
  const auto& kind = json["kinds"][0];
  EXPECT_EQ(kind["kind"], "decode");
  EXPECT_DOUBLE_EQ(kind["gb_per_s"], 5.0) << "4 MB in 800 us";
  EXPECT_EQ(kind["copy_ratio"], 2.0);
  EXPECT_EQ(kind["host_us"]["mean"], 2.0);
  EXPECT_EQ(kind["run_us"]["p50"], 300.0);
  EXPECT_EQ(kind["run_us"]["p99"], 400.0);

  EXPECT_FALSE(kind.contains("launch_us"));

  const std::string text = to_text(report);
  EXPECT_EQ(numbers_after(text, "decode"), (Numbers{2, 5, 1, 2, 3, 300, 266.7, 400, 5, 2})) << text;
}

StreamResult gpu_run(Schedule schedule, double scale) {
  StreamResult run;
  run.schedule = schedule;
  run.kinds[static_cast<int>(CallKind::kExtend)] = {.calls = 3,
                                                    .tokens = 30,
                                                    .bytes = 3e6,
                                                    .host_us = {scale, 2 * scale, 6 * scale},
                                                    .run_us = {10, 30, 40, 40, 70, 50},
                                                    .copy_us = {20},
                                                    .copy_ratio = {1.25},
                                                    .lengths_us = {0, scale / 2, scale},
                                                    .launch_us = {2.5, 3.5, 9}};
  return run;
}

ReplayReport gpu_report() {
  ReplayReport report = empty_report();
  report.config.layers = 2;
  report.host = {{"cpu", "a CPU"}, {"gpu", {{"name", "a GPU"}, {"driver", "1.2"}}}};
  for (const auto& [schedule, scale] :
       {std::pair(Schedule::kFlat, 1.0), std::pair(Schedule::kBlockList, 10.0),
        std::pair(Schedule::kSequenceGrid, 4.0)}) {
    report.runs.push_back(gpu_run(schedule, scale));
  }
  return report;
}

TEST(ReplayText, on_a_gpu_schedules_are_compared_in_one_table) {
  const std::string text = to_text(gpu_report());
  // Sums of host time and mean layer: 10 + 20, 20 + 40, 60 + 60.
  EXPECT_EQ(numbers_after(text, "extend        block-list"),
            (Numbers{20, 30, 5, 40, 40, 60, 70, 1.25}))
      << text;
  EXPECT_EQ(numbers_after(text, "extend        sequence-grid"),
            (Numbers{8, 12, 2, 40, 40, 48, 52, 1.25}))
      << text;
  EXPECT_EQ(numbers_after(text, "extend        flat"), (Numbers{2, 3, 0.5, 40, 40, 42, 43, 1.25}))
      << text;
  EXPECT_LT(text.find("extend        block-list"), text.find("extend        sequence-grid"));
  EXPECT_LT(text.find("extend        sequence-grid"), text.find("extend        flat"));
  for (const char* part : {"\nblock-list    \"before\"", "\nsequence-grid \"after\"",
                           "\nflat          \"shortconv\"", "driver 1.2"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  // With the launch between host and run times.
  EXPECT_EQ(numbers_after(text, "extend"), (Numbers{3, 30, 2, 3, 6, 3.5, 40, 40, 70, 12.5, 1.25}))
      << text;
}

TEST(ReplayText, one_schedule_or_the_host_alone_have_nothing_to_compare) {
  ReplayReport report = gpu_report();
  report.runs.resize(1);
  EXPECT_EQ(to_text(report).find("\"before\""), std::string::npos);
  report = gpu_report();
  report.host.erase("gpu");
  EXPECT_EQ(to_text(report).find("\"before\""), std::string::npos);
}

TEST(ReplayText, json_describes_the_gpu_and_its_times) {
  const auto json = to_json(gpu_report());
  EXPECT_EQ(json["host"]["cpu"], "a CPU");
  EXPECT_EQ(json["host"]["gpu"]["name"], "a GPU");
  const auto& kind = json["runs"][1]["kinds"][0];
  EXPECT_EQ(kind["lengths_us"]["p99"], 10);
  EXPECT_EQ(kind["launch_us"]["mean"], 5);
  EXPECT_EQ(kind["host_and_run_us"]["p50"], 60);
}

TEST(ReplayText, failures_show_in_the_verdict) {
  ReplayReport report = empty_report();
  EXPECT_NE(to_text(report).find("verification: off"), std::string::npos);
  report.verification = {.requests = 3,
                         .runs = 1,
                         .rows = 10,
                         .values = 80,
                         .correctly_rounded = 60,
                         .differing_values = 2,
                         .differing_states = 1,
                         .inaccurate_values = 4,
                         .first_failure = "request 5"};
  const std::string text = to_text(report);
  EXPECT_NE(text.find("(75.000% correctly rounded); 7 failures\n"), std::string::npos) << text;
  EXPECT_NE(text.find("first failure: request 5\n"), std::string::npos) << text;
}

}  // namespace
}  // namespace shortconv::tools
