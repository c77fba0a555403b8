#include <fmt/format.h>
#include <gtest/gtest.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "commands.hpp"
#include "common/error.hpp"
#include "folder_test.hpp"
#include "report/plots.hpp"
#include "report/results.hpp"
#include "report/svg.hpp"

namespace shortconv::tools::report {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Json bench_json() {
  return Json::parse(R"({
    "command": "bench", "version": "0.1.0", "arguments": ["bench", "--repeats", "3"],
    "host": {"cpu": "A & B"},
    "rows": [{"case": "a<b", "schedule": "flat", "dtype": "bf16", "tokens": 8, "channels": 4,
              "sequences": 1, "threads": 2, "bytes": 128, "run_us": 2.0, "host_us": 1.0,
              "copy_us": 1.0, "gb_per_s": 0.064, "copy_gb_per_s": 0.128, "ratio": 2.0}]})");
}

Json replay_json() {
  return Json::parse(R"({
    "command": "replay", "version": "0.1.0", "arguments": ["replay"], "host": {},
    "workload": {"source": "x", "requests": 1}, "model": {"name": "m"}, "scheduler": {},
    "verification": {"failures": 0},
    "runs": [{"schedule": "flat", "kinds": [
      {"kind": "extend", "calls": 2, "tokens": 10, "host_us": {"p50": 1, "mean": 1, "p99": 2},
       "run_us": {"p50": 20, "mean": 25, "p99": 30}, "gb_per_s": 5, "copy_ratio": 1.1,
       "run_us_samples": [20, 30], "copy_us_samples": []}]}]})");
}

int count_of(const std::string& text, const std::string& part) {
  int count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

// The message of a refusal, or nothing.
std::string run_report(std::vector<std::string> arguments) {
  CLI::App app;
  add_report_command(app);
  arguments.insert(arguments.begin(), "report");
  std::ranges::reverse(arguments);  // as CLI11 takes them
  try {
    app.parse(arguments);
  } catch (const CommandError& error) {
    EXPECT_EQ(error.exit_code(), kExitUsage);
    return error.what();
  }
  return "";
}

class ReportFiles : public FolderTest {
 protected:
  std::string write(const std::string& text) {
    const std::string path = (folder_ / "result.json").string();
    std::ofstream(path) << text;
    return path;
  }
  std::string refusal(const std::string& text) {
    try {
      (void)read_result(write(text));
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      return error.what();
    }
    return "accepted";
  }
};

TEST_F(ReportFiles, ReadsBothKindsOfResult) {
  const Result bench = read_result(write(bench_json().dump()));
  ASSERT_EQ(bench.rows.size(), 1u);
  EXPECT_EQ(bench.rows[0].bytes, 128);
  EXPECT_EQ(bench.command_line, "bench --repeats 3");
  const Result replay = read_result(write(replay_json().dump()));
  ASSERT_EQ(replay.runs.size(), 1u);
  EXPECT_EQ(replay.runs[0].kinds[0].run_us.p99, 30);
}

TEST_F(ReportFiles, RefusalsNameTheField) {
  EXPECT_NE(refusal("{").find(":1: the JSON value that begins here does not end"),
            std::string::npos);
  EXPECT_NE(refusal("[]").find(":1: expected a JSON object, found an array"), std::string::npos);
  Json json = bench_json();
  json["rows"][0].erase("bytes");
  EXPECT_NE(refusal(json.dump()).find("rows[0].bytes: is missing"), std::string::npos);
  json = bench_json();
  json["command"] = "other";
  EXPECT_NE(refusal(json.dump()).find("expected replay or bench"), std::string::npos);
  json = replay_json();
  json["runs"][0]["kinds"][0]["run_us"]["p50"] = "fast";
  EXPECT_NE(refusal(json.dump()).find("runs[0].kinds[0].run_us.p50: expected a number"),
            std::string::npos);
  json = replay_json();
  json["runs"][0]["kinds"][0]["run_us_samples"][1] = -1;
  EXPECT_NE(refusal(json.dump()).find("run_us_samples[1]: expected a number from 0 on"),
            std::string::npos);
}

TEST_F(ReportFiles, FiguresEscapeNamesAndSurviveMissingSamples) {
  const Result bench = read_result(write(bench_json().dump()));
  EXPECT_NE(bandwidth_figure(bench).find("a&lt;b"), std::string::npos);
  EXPECT_NE(copy_share_figure(bench).find("50%"), std::string::npos);
  Json json = replay_json();
  json["runs"][0]["kinds"][0]["run_us_samples"] = Json::array();
  const Result replay = read_result(write(json.dump()));
  EXPECT_NE(latency_figure(replay).find("no samples"), std::string::npos);
  EXPECT_NE(schedule_figure(replay).find("20 µs"), std::string::npos);
}

// As bench writes it on a GPU: each case from a cold and a warm cache, under two schedules.
Json gpu_bench_json() {
  Json json = bench_json();
  json["host"]["gpu"] = {{"name", "a GPU"}};
  const Json row = json["rows"][0];
  json["rows"] = Json::array();
  for (const char* name : {"skewed", "64x4"}) {
    for (const char* schedule : {"flat", "sequence-grid"}) {
      for (const char* mode : {"cold", "warm"}) {
        Json made = row;
        made.update({{"case", name}, {"schedule", schedule}, {"mode", mode}});
        made["ratio"] = std::string(schedule) == "flat" ? 1.25 : 5.0;
        json["rows"].push_back(made);
      }
    }
  }
  return json;
}

TEST_F(ReportFiles, SchedulesOfACaseStandSideBySide) {
  const Result bench = read_result(write(gpu_bench_json().dump()));
  EXPECT_EQ(bench.host.back().first, "gpu name");
  const std::string figure = copy_share_figure(bench);
  for (const char* part : {">skewed, cold<", ">skewed, warm<", ">64x4, cold<", ">64x4, warm<"}) {
    EXPECT_EQ(count_of(figure, part), 1) << part;
  }
  EXPECT_EQ(count_of(figure, ">sequence-grid<"), 1) << "once, in the legend";
  EXPECT_EQ(count_of(figure, ">80%<"), 4 + 1) << "the bars of flat and a tick of the axis";
  EXPECT_EQ(count_of(figure, ">5.00<"), 4);
}

TEST_F(ReportFiles, BandwidthIsOfOneCacheMode) {
  const Result bench = read_result(write(gpu_bench_json().dump()));
  EXPECT_EQ(count_of(bandwidth_figure(bench), "<circle"), 4 + 2) << "four rows and the legend";
  EXPECT_NE(bandwidth_figure(bench).find("GB/s, cold"), std::string::npos);
}

TEST_F(ReportFiles, KindsOfCallStandBesideTheirCopyToo) {
  const std::string figure = copy_share_figure(read_result(write(replay_json().dump())));
  EXPECT_EQ(count_of(figure, ">extend<"), 1);
  EXPECT_EQ(count_of(figure, ">91%<"), 1);
  EXPECT_EQ(count_of(figure, ">1.10<"), 1);
}

TEST_F(ReportFiles, FiguresAreWrittenAsFilesOfTheirOwn) {
  const std::string input = write(replay_json().dump());
  const fs::path folder = folder_ / "new" / "figures";
  EXPECT_EQ(run_report({input, "--svg", folder.string()}), "");
  for (const char* name : {"latency", "schedules", "copy-share"}) {
    std::ifstream file(folder / fmt::format("result-{}.svg", name));
    std::ostringstream text;
    text << file.rdbuf();
    EXPECT_TRUE(text.str().starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"")) << name;
    EXPECT_TRUE(text.str().ends_with("</svg>\n")) << name;
  }
}

TEST_F(ReportFiles, FilesThatWouldOverwriteEachOtherAreRefused) {
  const std::string input = write(replay_json().dump());
  const std::string message = run_report({input, input, "--svg", folder_.string()});
  EXPECT_NE(message.find("two results are called 'result'"), std::string::npos) << message;
}

TEST_F(ReportFiles, NothingIsWrittenBeforeEverythingIsChecked) {
  const std::string input = write(replay_json().dump());
  const fs::path folder = folder_ / "figures";
  fs::create_directories(folder / "result-schedules.svg");
  EXPECT_NE(run_report({input, "--svg", folder.string()}).find("it is a directory"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(folder / "result-latency.svg"));
  EXPECT_NE(run_report({input, input, "--svg", (folder_ / "new").string()}), "");
  EXPECT_FALSE(fs::exists(folder_ / "new"));
}

TEST_F(ReportFiles, AFolderThatCannotBeMadeIsRefused) {
  const std::string input = write(replay_json().dump());
  const std::string message = run_report({input, "--svg", input + "/below"});
  EXPECT_NE(message.find("--svg: "), std::string::npos) << message;
}

TEST_F(ReportFiles, SomethingHasToBeWritten) {
  EXPECT_NE(run_report({write(replay_json().dump())}).find("--svg DIR"), std::string::npos);
}

TEST_F(ReportFiles, FiguresOfNothingAreEmptyNotBroken) {
  Json json = bench_json();
  json["rows"] = Json::array();
  const Result bench = read_result(write(json.dump()));
  EXPECT_EQ(bandwidth_figure(bench).find("nan"), std::string::npos);
  EXPECT_EQ(copy_share_figure(bench).find("nan"), std::string::npos);
  json = replay_json();
  json["runs"] = Json::array();
  const Result replay = read_result(write(json.dump()));
  EXPECT_EQ(latency_figure(replay).find("nan"), std::string::npos);
  EXPECT_EQ(schedule_figure(replay).find("nan"), std::string::npos);
}

// XML 1.0, 2.2: not even as a reference.
TEST(EscapeXml, LeavesNothingThatXmlForbids) {
  EXPECT_EQ(escape_xml("<a href='x'>&\"</a>"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;&lt;/a&gt;");
  EXPECT_EQ(escape_xml("tab\tline\nend\r \xc3\xa9 \xf0\x9f\x98\x80"),
            "tab\tline\nend\r \xc3\xa9 \xf0\x9f\x98\x80");
  const std::string replaced = "\xef\xbf\xbd";
  for (const std::string_view forbidden :
       {std::string_view("\0", 1), std::string_view("\x1b"), std::string_view("\x08"),
        std::string_view("\x7f"), std::string_view("\xc2\x9b"), std::string_view("\xff"),
        std::string_view("\xef\xbf\xbe"), std::string_view("\xef\xbf\xbf")}) {
    EXPECT_EQ(escape_xml(forbidden), replaced) << testing::PrintToString(forbidden);
  }
  EXPECT_EQ(escape_xml("\xed\xa0\x80"), replaced + replaced + replaced);
}

TEST_F(ReportFiles, FiguresOfBadNamesAreGoodXml) {
  Json json = bench_json();
  json["rows"][0]["case"] = "a\x1b[31m\x01<";
  json["rows"][0]["schedule"] = "\x02'";
  const Result bench = read_result(write(json.dump()));
  for (const std::string& figure : {bandwidth_figure(bench), copy_share_figure(bench)}) {
    for (const char c : figure) {
      ASSERT_TRUE(c == '\n' || static_cast<unsigned char>(c) >= 0x20) << figure;
    }
  }
}

TEST(Scale, CoversItsValuesWithTicksInOrder) {
  for (const auto kind : {Scale::Kind::kLinear, Scale::Kind::kLog}) {
    for (const double low : {0.02, 0.5, 1.0, 7.3, 1000.0}) {
      for (const double factor : {1.0, 1.01, 1.9, 5.0, 80.0, 1e6}) {
        const Scale scale(kind, low, low * factor, 100, 500);
        ASSERT_FALSE(scale.ticks().empty());
        EXPECT_TRUE(std::ranges::is_sorted(scale.ticks()));
        EXPECT_LE(scale.ticks().size(), 14u);
        EXPECT_LE(scale.ticks().front(), low * (1 + 1e-9));
        EXPECT_LE(scale(low), scale(low * factor));
        EXPECT_GE(scale(low), 100);
        EXPECT_LE(scale(low * factor), 500);
      }
    }
  }
}

TEST(Units, ChangeBeforeTheNumberGetsAFourthDigit) {
  EXPECT_EQ(format_us(0.25), "250 ns");
  EXPECT_EQ(format_us(12.34), "12.3 µs");
  EXPECT_EQ(format_us(999.4), "999 µs");
  EXPECT_EQ(format_us(999.6), "1 ms");
  EXPECT_EQ(format_us(0), "0 ns");
  EXPECT_EQ(format_bytes(268.48e6), "268 MB");
}

}  // namespace
}  // namespace shortconv::tools::report
