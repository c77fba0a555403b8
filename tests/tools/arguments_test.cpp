// Values of the options of all commands.
#include "common/arguments.hpp"

#include <gtest/gtest.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cctype>
#include <set>
#include <string>
#include <vector>

#include "commands.hpp"
#include "common/error.hpp"

namespace shortconv::tools {
namespace {

void add_commands(CLI::App& app) {
  add_info_command(app);
  add_verify_command(app);
  add_replay_command(app);
  add_bench_command(app);
  add_report_command(app);
  add_doctor_command(app);
}

std::string refusal(std::vector<std::string> arguments) {
  CLI::App app;
  add_commands(app);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    return error.what();
  } catch (const CommandError& error) {
    EXPECT_EQ(error.exit_code(), kExitUsage);
    return error.what();
  }
  return "accepted";
}

// Without those that name files, no option takes any of these values.
TEST(OptionValues, every_option_refuses_numbers_that_cannot_be_meant) {
  CLI::App app;
  add_commands(app);
  const std::set<std::string> files{"--json", "--output", "--svg", "--requests", "results", "file"};
  int checked = 0;
  for (const CLI::App* command : app.get_subcommands({})) {
    for (const CLI::Option* option : command->get_options()) {
      const std::string name = option->get_name();
      const bool is_flag = option->get_expected_max() == 0;
      if (is_flag || files.contains(name) || name == "--help") continue;
      for (const std::string value :
           {"99999999999999999999", "-99999999999999999999", "1e999", "nan", "inf", "-1", "",
            "0x10", "1'0", " 1", "1 ", "+1", "1.5.2"}) {
        std::vector<std::string> arguments{command->get_name(), name + "=" + value};
        const bool is_replay = command->get_name() == "replay";
        if (is_replay && name != "--preset") arguments.push_back("--preset=gsm8k");
        if (command->get_name() == "doctor-batch") arguments.push_back("batch.json");
        if (name == "--prefix-slots" || name == "--shared") {
          arguments.push_back("--prefix-cache=16");
        }
        const std::string message = refusal(arguments);
        EXPECT_NE(message, "accepted") << command->get_name() << " " << name << "=" << value;
        // Names may be left out to get the default.
        if (!value.empty()) {
          EXPECT_NE(message.find(name), std::string::npos)
              << command->get_name() << " " << name << "=" << value << ": " << message;
        }
        ++checked;
      }
    }
  }
  EXPECT_GT(checked, 30 * 13);
}

TEST(OptionValues, a_refusal_names_the_range) {
  EXPECT_EQ(refusal({"verify", "--cases", "99999999999999999999"}),
            "--cases: '99999999999999999999' is not a whole number from 1 to 1000000000");
  EXPECT_EQ(refusal({"verify", "--cases", "0"}),
            "--cases: '0' is not a whole number from 1 to 1000000000");
  EXPECT_EQ(refusal({"verify", "--seed", "-1"}), "--seed: '-1' is not a whole number of 64 bits");
  EXPECT_EQ(refusal({"bench", "--pitch", "nan"}), "--pitch: 'nan' is not a number from 1 to 64");
  EXPECT_EQ(refusal({"replay", "--preset", "gsm8k", "--accept", "1.01"}),
            "--accept: '1.01' is not a number from 0 to 1");
  EXPECT_EQ(refusal({"bench", "--threads", "100000"}),
            "--threads: '100000' is not a whole number from 0 to 256");
  EXPECT_EQ(refusal({"doctor-batch", "x", "--limit", "-5"}),
            "--limit: '-5' is not a whole number from 0 to 1000000000");
}

TEST(OptionValues, leading_zeros_are_refused) {
  CLI::App app;
  std::int64_t number = 0;
  std::uint64_t seed = 0;
  double share = 0;
  app.add_option("--number", number)->check(whole_number(-5, 100));
  app.add_option("--seed", seed)->check(seed_number());
  app.add_option("--share", share)->check(real_number(0, 1));
  EXPECT_THROW(app.parse("--number 010"), CLI::ValidationError);  // 8 or 10?
  EXPECT_THROW(app.parse("--number -010"), CLI::ValidationError);
  app.parse("--number 10 --seed 18446744073709551615 --share 1e-1");
  EXPECT_EQ(number, 10);
  EXPECT_EQ(seed, 18446744073709551615u);
  EXPECT_EQ(share, 0.1);
  app.parse("--number -5");
  EXPECT_EQ(number, -5);
}

// A double has up to 309 digits.
TEST(OptionValues, help_shows_no_number_that_nobody_reads) {
  CLI::App app;
  add_commands(app);
  for (const CLI::App* command : app.get_subcommands({})) {
    int digits = 0;
    for (const char c : command->help()) {
      digits = std::isdigit(static_cast<unsigned char>(c)) != 0 ? digits + 1 : 0;
      ASSERT_LE(digits, 10) << command->help();
    }
  }
  EXPECT_NE(app.get_subcommand("verify")->help().find("1..1000000000"), std::string::npos);
  EXPECT_NE(app.get_subcommand("bench")->help().find("1..64"), std::string::npos);
}

TEST(OptionValues, lists_that_name_nothing_are_refused) {
  EXPECT_EQ(refusal({"bench", "--schedule", ","}).find("--schedule: ',' names none; expected "),
            0u);
  EXPECT_EQ(refusal({"replay", "--preset", "gsm8k", "--compare", ","})
                .find("--compare: ',' names none; expected "),
            0u);
}

TEST(OptionValues, options_that_would_be_ignored_are_refused) {
  for (const std::string other : {"--only=width=4", "--cases=3", "--seed=3"}) {
    EXPECT_NE(refusal({"verify", "--case-seed=1", other}).find("--case-seed"), std::string::npos);
  }
}

TEST(VerifyOnly, a_value_that_no_case_has_is_refused_with_those_there_are) {
  EXPECT_EQ(refusal({"verify", "--only", "width=100"}),
            "--only: width is never '100'; it is one of 2 to 64");
  EXPECT_EQ(refusal({"verify", "--only", "ring=maybe"}),
            "--only: ring is never 'maybe'; it is one of no, yes");
  EXPECT_EQ(refusal({"verify", "--only", "op=Decode"}),
            "--only: op is never 'Decode'; it is one of forward, decode, verify, commit, "
            "backward, groups, backward-groups");
  EXPECT_EQ(refusal({"verify", "--only", "width=3", "width=4"}),
            "--only: no case has both width=3 and width=4");
  EXPECT_NE(refusal({"verify", "--only", "op=backward", "ring=yes"})
                .find("no case has all of op=backward, ring=yes; commits have only op, width, "),
            std::string::npos);
  EXPECT_EQ(refusal({"verify", "--only", "width"}).find("--only: 'width' is not KEY=VALUE"), 0u);
}

}  // namespace
}  // namespace shortconv::tools
