#include "doctor/doctor.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <CLI/App.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "commands.hpp"
#include "common/error.hpp"
#include "common/random.hpp"
#include "folder_test.hpp"

namespace shortconv::tools {
namespace {

namespace fs = std::filesystem;

std::string refusal(const std::string& text) {
  try {
    (void)diagnose(parse_batch(text, "batch.json"));
  } catch (const CommandError& error) {
    EXPECT_EQ(error.exit_code(), kExitUsage);
    return error.what();
  }
  return "accepted";
}

void expect_refusal(const std::string& text, const std::string& message) {
  EXPECT_NE(refusal(text).find(message), std::string::npos)
      << "got: " << refusal(text) << "\nexpected part: " << message;
}

TEST(Doctor, what_is_left_out_has_defaults) {
  const Batch batch = parse_batch(R"({"query_start_loc": [0, 2, 7]})", "");
  EXPECT_EQ(batch.tokens, 7);
  EXPECT_EQ(batch.read_slots, (std::vector<std::int64_t>{0, 1}));
  EXPECT_FALSE(batch.write_slots || batch.read_offsets || batch.null_slot || batch.slots_given);
  EXPECT_EQ(batch.has_initial_state, (std::vector<std::uint8_t>{0, 0}));
  EXPECT_EQ(batch.slots, 2);
  EXPECT_EQ(batch.width, 4);
  EXPECT_EQ(batch.columns, 3);
  EXPECT_FALSE(diagnose(batch).any());

  const Batch named = parse_batch(
      R"({"query_start_loc": [0, 1, 2, 3], "read_slots": [5, -1, 99], "write_slots": [7, 0, 0],
          "null_slot": 99, "width": 3, "base_column": 2})",
      "");
  EXPECT_EQ(named.slots, 8);
  EXPECT_EQ(named.columns, 4);
  EXPECT_FALSE(diagnose(named).any());
}

TEST(Doctor, every_key_is_read) {
  const Batch batch = parse_batch(
      R"({"tokens": 9, "query_start_loc": [0, 2], "read_slots": [1], "write_slots": [2],
          "read_offsets": [1], "has_initial_state": [true], "slots": 30, "columns": 7, "width": 5,
          "base_column": 2, "null_slot": -4, "cache_seqlens": [6], "snapshots": [[0, 1, 5]],
          "intermediate_slots": [3], "intermediate_slot_count": 8})",
      "");
  EXPECT_EQ(batch.snapshots, (std::vector<std::array<std::int64_t, 3>>{{0, 1, 5}}));
  EXPECT_EQ(batch.intermediate_slots, std::vector<std::int64_t>{3});
  EXPECT_EQ(batch.intermediate_slot_count, 8);
  EXPECT_EQ(batch.cache_seqlens, std::vector<std::int64_t>{6});
  EXPECT_EQ(batch.tokens, 9);
  EXPECT_EQ(batch.read_slots, std::vector<std::int64_t>{1});
  EXPECT_EQ(batch.write_slots, std::vector<std::int64_t>{2});
  EXPECT_EQ(batch.read_offsets, std::vector<std::int64_t>{1});
  EXPECT_EQ(batch.has_initial_state, std::vector<std::uint8_t>{1});
  EXPECT_EQ(batch.slots, 30);
  EXPECT_TRUE(batch.slots_given);
  EXPECT_EQ(batch.columns, 7);
  EXPECT_EQ(batch.width, 5);
  EXPECT_EQ(batch.base_column, 2);
  EXPECT_EQ(batch.null_slot, -4);
}

TEST(Doctor, refusals_name_the_place) {
  expect_refusal("[1, 2]", "batch.json:1: expected a JSON object, found an array");
  expect_refusal("{", "batch.json:1: the JSON value that begins here does not end");
  expect_refusal("", "batch.json: is empty; expected a JSON object");
  expect_refusal("{\n  \"tokens\": 3\n  \"slots\": 4}", "batch.json:3: is no JSON at column ");
  expect_refusal("{\"tokens\": 3,\n\"tokens\": 4}", "batch.json:2: has the key 'tokens' twice");
  expect_refusal("{}", "query_start_loc is missing");
  expect_refusal(R"({"query_start_loc": []})", "query_start_loc is empty");
  expect_refusal(R"({"query_start_loc": 3})",
                 "query_start_loc is 3, expected a list of whole numbers");
  expect_refusal(R"({"query_start_loc": [0, "2"]})",
                 R"(query_start_loc[1] is "2", expected a whole number of 64 bits)");
  expect_refusal(R"({"query_start_loc": [0, 1.5]})", "query_start_loc[1] is 1.5");
  expect_refusal(R"({"query_start_loc": [0, 18446744073709551615]})", "query_start_loc[1] is 1844");
  expect_refusal(R"({"query_start_loc": [0, 1], "has_initial_state": [2]})",
                 "has_initial_state[0] is 2, expected true or false");
  expect_refusal(R"({"query_start_loc": [0, 1], "slot": 3})",
                 "unknown key 'slot', expected tokens, query_start_loc");
  expect_refusal(R"({"query_start_loc": [0, 1], "slots": true})", "slots is true");
  expect_refusal(R"({"query_start_loc": [0, 1], "write_slots": [1, 2]})",
                 "write_slots has 2 entries, but query_start_loc has 1 sequences");
  expect_refusal(R"({"query_start_loc": [0, 1], "read_slots": [9223372036854775807]})",
                 "is in no pool");
  expect_refusal(R"({"query_start_loc": [0, 1], "snapshots": [[0, 1, 2], [0, 1]]})",
                 "snapshots[1] is [0,1], expected [sequence, token, slot]");
  expect_refusal(R"({"query_start_loc": [0, 1], "snapshots": [[0, 1, true]]})",
                 "snapshots[0][2] is true, expected a whole number of 64 bits");
  expect_refusal(R"({"query_start_loc": [0, 1], "intermediate_slots": []})",
                 "intermediate_slots has 0 entries, but query_start_loc has 1 sequences");
  // What the library refuses.
  expect_refusal(
      R"({"query_start_loc": [0, 1], "intermediate_slots": [0], "snapshots": [[0, 1, 2]]})",
      "snapshots: ");
  expect_refusal(R"({"query_start_loc": [0, 1], "width": 1})", "width 1 is not supported");
  expect_refusal(R"({"query_start_loc": [0, 1], "width": -9223372036854775808,
                     "intermediate_slots": [0]})",
                 "weight: axis 1 ('width') is -9223372036854775808; sizes are not negative");
  expect_refusal(R"({"query_start_loc": [0, 1], "tokens": -1})", "x: axis 0 ('tokens') is -1");
  expect_refusal(R"({"query_start_loc": [0, 1], "columns": 2})", "state: has 2 columns");
  expect_refusal(R"({"query_start_loc": [0, 1], "base_column": -1})", "base_column");
}

// Positions are no offsets: any of them is good.
TEST(Doctor, rings_have_no_violations) {
  const Batch batch = parse_batch(
      R"({"query_start_loc": [0, 3, 4], "has_initial_state": [true, true], "columns": 9,
          "cache_seqlens": [1000000, -1]})",
      "");
  EXPECT_FALSE(diagnose(batch).any());
  expect_refusal(R"({"query_start_loc": [0, 1], "read_offsets": [0], "cache_seqlens": [3]})",
                 "read_offsets: cannot be combined with cache_seqlens");
  expect_refusal(R"({"query_start_loc": [0, 1], "cache_seqlens": [3, 4]})",
                 "cache_seqlens has 2 entries, but query_start_loc has 1 sequences");
}

TEST(Doctor, snapshots_and_windows_are_those_of_their_sequences) {
  const Batch cached = parse_batch(
      R"({"query_start_loc": [0, 3, 7], "slots": 6, "has_initial_state": [false, true],
          "snapshots": [[1, 2, 4], [0, 3, 0], [0, 1, 4], [1, 0, 6], [1, 9, 4], [-1, 0, -1]]})",
      "");
  const Diagnosis diagnosis = diagnose(cached);
  EXPECT_TRUE(diagnosis.has(0, Violation::kSnapshotSlotShared));
  EXPECT_TRUE(diagnosis.has(1, Violation::kSnapshotSlotOutside));
  EXPECT_FALSE(diagnosis.has(1, Violation::kSnapshotSlotShared));
  const std::string text = doctor_text(cached, diagnosis, 9);
  EXPECT_NE(text.find("snapshot slot outside: 1 row, first 3\n"), std::string::npos) << text;
  EXPECT_NE(text.find("snapshot slot shared: 1 row, first 2\n"), std::string::npos) << text;

  const Batch drafts = parse_batch(
      R"({"query_start_loc": [0, 3, 7, 7, 8], "intermediate_slots": [2, 2, 2, 5], "intermediate_slot_count": 4})",
      "");
  const Diagnosis verify = diagnose(drafts);
  EXPECT_TRUE(verify.has(1, Violation::kIntermediateSlotShared));
  EXPECT_TRUE(verify.has(3, Violation::kIntermediateSlotOutside));
  EXPECT_EQ(verify.found[0] | verify.found[2], 0u);
  EXPECT_EQ(verify.report[static_cast<int>(Violation::kIntermediateSlotShared)].count, 1);
  EXPECT_FALSE(
      diagnose(parse_batch(R"({"query_start_loc": [0, 3], "intermediate_slots": [2]})", "")).any());
}

// Sizes that no memory would hold: nothing of that size is needed.
TEST(Doctor, sizes_may_be_those_of_any_pool) {
  const Batch batch = parse_batch(
      R"({"tokens": 1000000000000, "query_start_loc": [0, 3, 1000000000001], "slots": 4000000000000,
          "read_slots": [3999999999999, 4000000000000], "columns": 1000000})",
      "");
  const Diagnosis diagnosis = diagnose(batch);
  EXPECT_EQ(diagnosis.report[static_cast<int>(Violation::kBoundOutside)].first, 2);
  EXPECT_EQ(diagnosis.report[static_cast<int>(Violation::kReadSlotOutside)].first, 1);
  EXPECT_EQ(diagnosis.found[0], 0u);
}

constexpr std::string_view kBad = R"({"tokens": 20, "query_start_loc": [0, 4, 3, 8, 10, 12, 99],
  "read_slots": [0, 1, 2, 2, 8, -1], "has_initial_state": [1, 0, 1, true, 0, 0],
  "read_offsets": [5, 0, 0, 0, 0, 0], "slots": 8, "columns": 4})";

TEST(Doctor, every_sequence_with_a_violation_is_listed) {
  const Batch batch = parse_batch(kBad, "");
  const Diagnosis diagnosis = diagnose(batch);
  const auto expect = [&](Violation violation, std::int64_t count, std::int64_t first) {
    const Diagnosis::Row& row = diagnosis.report[static_cast<std::size_t>(violation)];
    EXPECT_EQ(row.count, count) << name(violation);
    EXPECT_EQ(row.first, first) << name(violation);
  };
  expect(Violation::kBoundOutside, 1, 6);
  expect(Violation::kBoundsDecrease, 1, 2);
  expect(Violation::kReadSlotOutside, 1, 4);
  expect(Violation::kWriteSlotOutside, 0, -1);
  expect(Violation::kWriteSlotShared, 1, 3);
  expect(Violation::kReadOffsetOutside, 1, 0);
  EXPECT_TRUE(diagnosis.has(0, Violation::kReadOffsetOutside));
  EXPECT_TRUE(diagnosis.has(1, Violation::kBoundsDecrease));
  EXPECT_TRUE(diagnosis.has(5, Violation::kBoundOutside));
  EXPECT_EQ(diagnosis.found[2], 0u);
  EXPECT_EQ(diagnosis.shared_with[3], 2);

  const std::string text = doctor_text(batch, diagnosis, 0);
  for (const std::string line :
       {"       0             0..4         4         0         0  resumed   read offset outside\n",
        "       1             4..3         0         1         1  new       "
        "query_start_loc decreasing\n",
        "       2             3..8         5         2         2  resumed\n",
        "       3            8..10         2         2         2  resumed   "
        "write slot shared with 2\n",
        "       4           10..12         2         8         8  skipped   read slot outside\n",
        "       5           12..99         8        -1        -1  padding   "
        "query_start_loc outside\n",
        "write slot shared: 1 sequence, first 3\n",
        "query_start_loc outside: 1 entry, first 6\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\nnot in\n" << text;
  }
  EXPECT_EQ(text.find("no violations"), std::string::npos);
}

TEST(Doctor, the_limit_leaves_out_good_sequences_only) {
  std::string bounds = "0";
  for (int i = 1; i <= 100; ++i) bounds += "," + std::to_string(i);
  Batch batch = parse_batch("{\"query_start_loc\": [" + bounds + "]}", "");
  batch.read_slots[70] = 100;
  batch.read_slots[90] = 80;
  const std::string text = doctor_text(batch, diagnose(batch), 2);
  std::istringstream lines(text.substr(text.find("\nsequence") + 1));
  std::vector<std::string> rows;
  for (std::string line; std::getline(lines, line) && !line.empty();) rows.push_back(line);
  ASSERT_EQ(rows.size(), 10u) << text;
  EXPECT_TRUE(rows[2].starts_with("       1 ")) << rows[2];
  EXPECT_EQ(rows[3], "     ...  68 sequences without violations");
  EXPECT_TRUE(rows[4].starts_with("      70 ")) << rows[4];
  EXPECT_EQ(rows[5], "     ...  9 sequences without violations");
  EXPECT_TRUE(rows[6].starts_with("      80 ")) << rows[6];  // whose slot 90 shares
  EXPECT_TRUE(rows[8].starts_with("      90 ")) << rows[8];
  EXPECT_EQ(rows[9], "     ...  9 sequences without violations");
}

// The library counts; the table's own marks have to come to the same.
TEST(Doctor, marks_agree_with_the_report) {
  Random random(3);
  std::array<std::int64_t, kViolations> totals{};
  for (int repetition = 0; repetition < 1500; ++repetition) {
    Batch batch;
    const std::int64_t sequences = random.between(1, 9);
    batch.tokens = 2 * sequences;
    batch.slots = 8;
    batch.columns = 4;
    if (random.chance(0.5)) batch.null_slot = random.between(-1, 9);
    batch.write_slots.emplace();
    batch.read_offsets.emplace();
    for (int s = 0; s < sequences; ++s) {
      batch.query_start_loc.push_back(2 * s + random.between(-2, 2));
      batch.read_slots.push_back(random.between(-1, 9));
      batch.write_slots->push_back(random.between(-1, 9));
      batch.read_offsets->push_back(random.between(-1, 2));
      batch.has_initial_state.push_back(static_cast<std::uint8_t>(random.between(0, 1)));
    }
    batch.query_start_loc.push_back(2 * sequences + random.between(-1, 1));
    const bool verify = random.chance(0.5);
    if (verify) {
      batch.intermediate_slot_count = 6;
      batch.intermediate_slots.emplace();
      for (int s = 0; s < sequences; ++s)
        batch.intermediate_slots->push_back(random.between(-1, 7));
    }
    for (std::int64_t i = verify ? 0 : random.between(0, 12); i > 0; --i) {
      batch.snapshots.push_back(
          {random.between(-1, sequences), random.between(-1, 3), random.between(-1, 9)});
    }
    const Diagnosis diagnosis = diagnose(batch);
    for (int v = 0; v < kViolations; ++v) {
      const auto violation = static_cast<Violation>(v);
      const Diagnosis::Row& row = diagnosis.report[static_cast<std::size_t>(v)];
      std::int64_t count = 0, first = -1;
      for (std::int64_t s = 0; s < sequences; ++s) {
        if (diagnosis.has(s, violation) && count++ == 0) first = s;
      }
      totals[static_cast<std::size_t>(v)] += count;
      if (violation == Violation::kBoundOutside) {  // of entries, each with up to two sequences
        EXPECT_GE(count, row.count > 0 ? 1 : 0);
        EXPECT_LE(count, 2 * row.count);
        continue;
      }
      if (violation == Violation::kSnapshotSlotOutside ||
          violation == Violation::kSnapshotSlotShared ||
          violation == Violation::kSnapshotSlotInUse) {  // of rows, several for one sequence
        EXPECT_EQ(count > 0, row.count > 0) << name(violation) << " " << repetition;
        EXPECT_LE(count, row.count);
        continue;
      }
      if (violation == Violation::kBoundsDecrease && first >= 0) ++first;  // the entry that ends it
      EXPECT_EQ(count, row.count) << name(violation) << " " << repetition;
      EXPECT_EQ(first, row.first) << name(violation) << " " << repetition;
    }
  }
  for (int v = 0; v < kViolations; ++v) {
    if (static_cast<Violation>(v) == Violation::kParentNotBefore) continue;  // files have no trees
    EXPECT_GT(totals[static_cast<std::size_t>(v)], 20) << name(static_cast<Violation>(v));
  }
}

class DoctorCommand : public FolderTest {
 protected:
  // The exit code of the command on a file with this text.
  int run(std::string_view text, const std::string& options = "") {
    const std::string path = (folder_ / "batch.json").string();
    std::ofstream(path) << text;
    return run_on(path, options);
  }
  int run_on(const std::string& path, const std::string& options = "") {
    CLI::App app;
    add_doctor_command(app);
    testing::internal::CaptureStdout();
    int code = 0;
    try {
      app.parse("doctor-batch " + path + " " + options);
    } catch (const CommandError& error) {
      code = error.exit_code();
    } catch (const CLI::ParseError&) {
      code = kExitUsage;
    }
    std::fflush(stdout);
    output_ = testing::internal::GetCapturedStdout();
    return code;
  }

  std::string output_;
};

TEST_F(DoctorCommand, exit_code_says_what_came_out) {
  EXPECT_EQ(run(R"({"query_start_loc": [0, 4, 9]})"), 0);
  EXPECT_NE(output_.find("no violations\n"), std::string::npos) << output_;
  EXPECT_EQ(run(kBad), kExitFailed);
  EXPECT_NE(output_.find("write slot shared: 1 sequence, first 3\n"), std::string::npos) << output_;
  EXPECT_EQ(run("not json"), kExitUsage);
  EXPECT_EQ(output_, "");
  EXPECT_EQ(run(""), kExitUsage);
  EXPECT_EQ(run_on((folder_ / "nowhere.json").string()), kExitUsage);
  EXPECT_EQ(run_on(folder_.string()), kExitUsage);
}

TEST_F(DoctorCommand, limit_is_an_option) {
  EXPECT_EQ(run(R"({"query_start_loc": [0, 4, 9]})", "--limit 1"), 0);
  EXPECT_NE(output_.find("...  1 sequence without violations\n"), std::string::npos) << output_;
  EXPECT_EQ(run(R"({"query_start_loc": [0, 4, 9]})", "--limit -1"), kExitUsage);
}

}  // namespace
}  // namespace shortconv::tools
