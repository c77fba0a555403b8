// The program itself, as a shell starts it. docs/robustness.md has a row for each of these.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "common/error.hpp"
#include "folder_test.hpp"

namespace shortconv::tools {
namespace {

namespace fs = std::filesystem;

constexpr const char* kBatch = R"({"query_start_loc": [0, 4, 9]})";
constexpr const char* kBench = R"({
  "command": "bench", "version": "0.1.0", "arguments": ["bench"], "host": {"cpu": "x"},
  "rows": [{"case": "a", "schedule": "flat", "dtype": "bf16", "tokens": 8, "channels": 4,
            "sequences": 1, "threads": 2, "bytes": 128, "run_us": 2.0, "host_us": 1.0,
            "copy_us": 1.0, "gb_per_s": 0.064, "copy_gb_per_s": 0.128, "ratio": 2.0}]})";
constexpr const char* kRequests = R"({"prompt_tokens": 7, "output_tokens": 3})";
constexpr const char* kSmallReplay = " --model lfm2 --tp 128 --layers 1 --threads 1 ";
constexpr const char* kSmallBench = "bench --shape decode-1 --repeats 1 --threads 1 ";

std::string content_of(const fs::path& path) {
  std::ostringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  return content.str();
}

class CommandLine : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    write("batch.json", kBatch);
    write("bench.json", kBench);
    write("requests.json", kRequests);
  }

  void write(const std::string& name, std::string_view text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  [[nodiscard]] std::string read(const std::string& name) const {
    return content_of(folder_ / name);
  }

  // The exit code, -1 for a signal. `arguments` are words of the shell and may redirect. Leaves
  // what the program said in out_ and err_.
  int run(const std::string& arguments, const std::string& before = "") {
    const fs::path out = folder_ / ".out", err = folder_ / ".err";
    const std::string command = "cd '" + folder_.string() + "' && { " + before + " '" +
                                SHORTCONV_CLI + "' " + arguments + "; } >'" + out.string() +
                                "' 2>'" + err.string() + "'";
    const int status = std::system(command.c_str());
    out_ = content_of(out);
    err_ = content_of(err);
    fs::remove(out);
    fs::remove(err);
    constexpr int kSignal = 128;  // from here on, as shells say it
    return WIFEXITED(status) && WEXITSTATUS(status) < kSignal ? WEXITSTATUS(status) : -1;
  }
  void expect_refusal(const std::string& arguments, int code, const std::string& part) {
    EXPECT_EQ(run(arguments), code) << arguments << ": " << err_;
    EXPECT_TRUE(err_.starts_with("shortconv: ")) << arguments << ": " << err_;
    EXPECT_NE(err_.find(part), std::string::npos) << arguments << ": " << err_;
  }
  [[nodiscard]] std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  std::string out_, err_;
};

// Each prints to standard output in its own way.
constexpr const char* kPrinting[] = {
    "--help",
    "--version",
    "replay --help",
    "info",
    "info --json",
    "info --support-table",
    "bench --list",
    "costs --kernels-only",
    "costs --kernels-only --json -",
    "costs --kernels-only decode-64-bf16 trees",
    "doctor-batch batch.json",
    "report bench.json -o -",
    "verify --cases 1",
    "verify --case-seed 1",
    "bench --shape decode-1 --repeats 1 --threads 1",
    "bench --shape decode-1 --repeats 1 --threads 1 --json -",
    "replay --requests requests.json --model lfm2 --tp 128 --layers 1 --threads 1",
    "replay --requests requests.json --model lfm2 --tp 128 --layers 1 --threads 1 --json -",
};

TEST_F(CommandLine, everything_that_prints_works_in_this_test) {
  for (const std::string arguments : kPrinting) {
    EXPECT_EQ(run(arguments), 0) << arguments << ": " << err_;
    EXPECT_NE(out_, "") << arguments;
    EXPECT_EQ(err_, "") << arguments;
  }
}

TEST_F(CommandLine, a_full_disk_behind_standard_output_is_an_error) {
  for (const std::string arguments : kPrinting) {
    expect_refusal(arguments + " >/dev/full", kExitFailed,
                   "standard output: cannot be written: No space left on device");
  }
}

TEST_F(CommandLine, a_closed_standard_output_is_an_error) {
  for (const std::string arguments : kPrinting) {
    expect_refusal(arguments + " >&-", kExitFailed,
                   "standard output: cannot be written: Bad file descriptor");
  }
}

TEST_F(CommandLine, a_pipe_that_nobody_reads_is_an_error) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  constexpr int kNumber = 9;  // shells redirect to numbers of one digit
  ASSERT_EQ(dup2(ends[1], kNumber), kNumber);
  close(ends[0]);
  close(ends[1]);
  for (const std::string arguments : kPrinting) {
    expect_refusal(arguments + " >&9", kExitFailed,
                   "standard output: cannot be written: Broken pipe");
  }
  close(kNumber);
}

TEST_F(CommandLine, what_is_printed_never_ends_up_in_a_file_that_is_written) {
  EXPECT_NE(run(kSmallBench + std::string("--json result.json <&- >&- 2>&-")), 0);
  EXPECT_EQ(read("result.json"), "");
  EXPECT_EQ(run("report bench.json -o page.html <&- >&- 2>&-"), 0);
  EXPECT_TRUE(read("page.html").starts_with("<!DOCTYPE html>"));
  EXPECT_TRUE(read("page.html").ends_with("</html>\n"));
  EXPECT_NE(run("report missing.json -o other.html >&- 2>&-"), 0);
  EXPECT_FALSE(fs::exists(folder_ / "other.html"));
}

TEST_F(CommandLine, a_full_disk_behind_an_output_file_is_an_error) {
  const std::string no_space = "/dev/full: cannot be written: No space left on device";
  expect_refusal("report bench.json -o /dev/full", kExitFailed, no_space);
  expect_refusal(kSmallBench + std::string("--json /dev/full"), kExitFailed, no_space);
  expect_refusal("replay --requests requests.json" + std::string(kSmallReplay) + "--json /dev/full",
                 kExitFailed, no_space);
}

TEST_F(CommandLine, a_dash_is_standard_input) {
  EXPECT_EQ(run("doctor-batch - <batch.json"), 0) << err_;
  EXPECT_NE(out_.find("no violations"), std::string::npos);
  EXPECT_EQ(run("report - -o page.html <bench.json"), 0) << err_;
  EXPECT_NE(read("page.html").find("standard input"), std::string::npos);
  EXPECT_EQ(run("report - --svg figures <bench.json"), 0) << err_;
  EXPECT_TRUE(fs::exists(folder_ / "figures" / "stdin-bandwidth.svg"));
  EXPECT_EQ(run("replay --requests - <requests.json" + std::string(kSmallReplay)), 0) << err_;
  EXPECT_NE(out_.find("standard input (JSON"), std::string::npos) << out_;
}

TEST_F(CommandLine, standard_input_that_is_closed_or_a_folder_is_refused) {
  for (const std::string command : {"doctor-batch -", "report - -o -"}) {
    expect_refusal(command + " <&-", kExitUsage,
                   "standard input: cannot be read: Bad file descriptor");
    expect_refusal(command + " <.", kExitUsage, "standard input: cannot be read: Is a directory");
    expect_refusal(command + " </dev/null", kExitUsage, "standard input: is empty");
  }
  expect_refusal("replay --requests - <&-", kExitUsage, "standard input: cannot be read: Bad");
  expect_refusal("replay --requests - <.", kExitUsage, "standard input: cannot be read: Is a");
  expect_refusal("replay --requests - </dev/null", kExitUsage, "standard input: no requests");
}

TEST_F(CommandLine, costs_of_some_cases) {
  ASSERT_EQ(run("costs --kernels-only trees-64-bf16 decode-64-bf16-w32"), 0) << err_;
  EXPECT_NE(out_.find("trees-64-bf16 "), std::string::npos) << out_;
  EXPECT_NE(out_.find("trees-64-bf16-w32"), std::string::npos) << out_;
  EXPECT_NE(out_.find("decode-64-bf16-w32"), std::string::npos) << out_;
  EXPECT_EQ(out_.find("decode-64-bf16 "), std::string::npos) << out_;
  expect_refusal("costs --kernels-only trees decode-65", kExitUsage,
                 "PART: no case has 'decode-65' in its name");
}

TEST_F(CommandLine, a_dash_that_cannot_be_meant_is_refused) {
  expect_refusal("report - - -o - <bench.json", kExitUsage, "- (standard input) is given twice");
  expect_refusal("report bench.json --svg -", kExitUsage, "--svg: - (standard output)");
  EXPECT_FALSE(fs::exists(folder_ / "-"));
}

TEST_F(CommandLine, an_output_never_replaces_its_input) {
  fs::create_hard_link(folder_ / "bench.json", folder_ / "hard.json");
  fs::create_symlink("bench.json", folder_ / "link.json");
  for (const std::string arguments :
       {"bench.json -o bench.json", "bench.json -o hard.json", "bench.json -o link.json",
        "link.json -o ./bench.json", "- -o bench.json <bench.json",
        "bench.json -o - >>bench.json"}) {
    expect_refusal("report " + arguments, kExitUsage, "is the same file as the input");
    EXPECT_EQ(read("bench.json"), kBench) << arguments;
  }
  expect_refusal(
      "replay --requests requests.json --json requests.json", kExitUsage,
      "requests.json: cannot be written: it is the same file as the input requests.json");
  fs::create_directory(folder_ / "figures");
  fs::create_hard_link(folder_ / "bench.json", folder_ / "figures" / "bench-bandwidth.svg");
  expect_refusal("report bench.json --svg figures", kExitUsage, "is the same file as the input");
  EXPECT_EQ(read("bench.json"), kBench);
  EXPECT_FALSE(fs::exists(folder_ / "figures" / "bench-copy-share.svg")) << "nothing is written";
}

TEST_F(CommandLine, a_page_and_a_figure_of_one_name_are_refused) {
  expect_refusal("report bench.json --svg . -o bench-bandwidth.svg", kExitUsage,
                 "--output and a figure of --svg are the same file");
  EXPECT_FALSE(fs::exists(folder_ / "bench-bandwidth.svg"));
}

TEST_F(CommandLine, folders_devices_and_missing_files_are_refused_as_inputs) {
  for (const std::string command : {"doctor-batch ", "replay --requests ", "report -o - "}) {
    expect_refusal(command + ".", kExitUsage, ".: cannot be read: Is a directory");
    expect_refusal(command + "missing", kExitUsage,
                   "missing: cannot be read: No such file or directory");
    expect_refusal(command + "missing/file", kExitUsage, "No such file or directory");
    expect_refusal(command + "batch.json/file", kExitUsage, "Not a directory");
    expect_refusal(command + "/dev/zero", kExitUsage,
                   "/dev/zero: is no text: line 1 has a byte of value 0");
    expect_refusal(command + "''", kExitUsage, "the name is empty");
  }
}

TEST_F(CommandLine, places_that_cannot_be_written_are_refused_before_anything_is_done) {
  for (const std::string command :
       {"report bench.json -o ", "replay --requests requests.json --json ", "bench --json "}) {
    expect_refusal(command + ".", kExitUsage, ".: cannot be written: it is a directory");
    expect_refusal(command + "missing/file", kExitUsage,
                   "missing/file: cannot be written: missing: No such file or directory");
    expect_refusal(command + "batch.json/file", kExitUsage, "Not a directory");
    expect_refusal(command + "''", kExitUsage, "the name is empty");
    fs::remove(folder_ / "loop");
    fs::create_symlink("loop", folder_ / "loop");
    expect_refusal(command + "loop", kExitUsage, "Too many levels of symbolic links");
  }
  expect_refusal("report bench.json --svg ''", kExitUsage, "the name is empty");
  expect_refusal("report bench.json --svg batch.json", kExitUsage, "--svg: batch.json: ");
  expect_refusal("report bench.json --svg batch.json/figures", kExitUsage, "Not a directory");
}

// Nothing of a file, a name or an option can move the cursor or colour the terminal.
TEST_F(CommandLine, control_characters_never_reach_the_terminal) {
  const std::string evil = "\x1b[31m\x07\r\x7f\xc2\x9b\xff\xe2\x80\xae";
  const std::string name = "e" + evil + ".json";
  write(name, evil);
  write("key.json", "{\"query_start_loc\": [0, 1], \"" + evil.substr(5) + "\": 1}");
  write("escaped.json", R"({"query_start_loc": [0, 1], "\u001b[31m\u202e": 1})");
  write("value.json", R"({"query_start_loc": [0, "\u001b\u009b"]})");
  write("command.json", R"({"command": "\u001b[2J", "version": "", "arguments": [], "host": {}})");
  write("trace.csv", "ContextTokens,GeneratedTokens\n" + evil + ",1\n");
  const std::string quoted = "'" + name + "'", word = "'" + evil + "'";
  for (const std::string& arguments :
       std::vector<std::string>{word,
                                "doctor-batch " + quoted,
                                "doctor-batch " + quoted + "x",
                                "doctor-batch key.json",
                                "doctor-batch escaped.json",
                                "doctor-batch value.json",
                                "report -o - command.json",
                                "report -o - " + quoted,
                                "report -o " + quoted + "/x bench.json",
                                "report bench.json --svg " + quoted,
                                "replay --requests trace.csv",
                                "replay --requests " + quoted,
                                "replay --preset " + word,
                                "replay --preset gsm8k --model " + word,
                                "replay --preset gsm8k --layers " + word,
                                "replay --preset gsm8k --tree " + word,
                                "replay --preset gsm8k --dtype " + word,
                                "replay --preset gsm8k --chunk " + word,
                                "bench --shape " + word,
                                "bench --mode " + word,
                                "bench --pitch " + word,
                                "bench --schedule " + word,
                                "bench --backend " + word,
                                "verify --only " + word,
                                "verify --only dtype=" + word,
                                "verify --cases " + word}) {
    EXPECT_EQ(run(arguments), kExitUsage) << arguments << ": " << err_;
    EXPECT_NE(err_, "");
    for (const char c : out_ + err_) {
      const auto byte = static_cast<unsigned char>(c);
      ASSERT_TRUE(byte == '\n' || (byte >= 0x20 && byte < 0x7f)) << arguments << ": " << err_;
    }
  }
}

TEST_F(CommandLine, names_that_are_no_utf8_do_not_lose_a_result) {
  const std::string name = "r\xff\x1b.json";
  write(name, kRequests);
  const std::string arguments = "replay --requests '" + name + "'" + kSmallReplay;
  EXPECT_EQ(run(arguments), 0) << err_;
  EXPECT_NE(out_.find("r\\xff\\x1b.json (JSON"), std::string::npos) << out_;
  EXPECT_EQ(run(arguments + "--json -"), 0) << err_;
  EXPECT_FALSE(nlohmann::json::parse(out_, nullptr, false).is_discarded());
  write(name, kBench);
  EXPECT_EQ(run("report '" + name + "' -o -"), 0) << err_;
  EXPECT_EQ(out_.find('\x1b'), std::string::npos);
}

TEST_F(CommandLine, many_threads_are_a_number_with_an_end) {
  for (const std::string command :
       {"bench --shape decode-1 --repeats 1", "replay --preset gsm8k"}) {
    expect_refusal(command + " --threads 100000", kExitUsage,
                   "--threads: '100000' is not a whole number from 0 to 256");
  }
  EXPECT_EQ(run("bench --shape decode-1 --repeats 1 --json -", "OMP_NUM_THREADS=100000"), 0)
      << err_;
  EXPECT_LE(nlohmann::json::parse(out_)["rows"][0]["threads"], 256);
}

// As a full disk, but in the middle of a file.
TEST_F(CommandLine, a_result_is_there_in_full_or_not_at_all) {
  write("page.html", "old");
  const std::size_t before = files();
  EXPECT_EQ(run("report bench.json -o page.html", "ulimit -f 1;"), kExitFailed);
  EXPECT_EQ(err_, "shortconv: page.html: cannot be written: File too large\n");
  EXPECT_EQ(read("page.html"), "old");
  EXPECT_EQ(files(), before);
  EXPECT_EQ(run("report bench.json -o page.html"), 0) << err_;
  EXPECT_TRUE(read("page.html").ends_with("</html>\n"));
  EXPECT_EQ(files(), before);
}

}  // namespace
}  // namespace shortconv::tools
