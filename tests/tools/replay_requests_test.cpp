#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "common/error.hpp"
#include "replay/requests.hpp"

namespace shortconv::tools {
namespace {

class RequestFile : public testing::Test {
 protected:
  void SetUp() override {
    const std::string test = testing::UnitTest::GetInstance()->current_test_info()->name();
    path_ = (std::filesystem::path(testing::TempDir()) / ("requests_" + test)).string();
  }
  void TearDown() override { std::filesystem::remove(path_); }

  Workload load(const std::string& content) {
    std::ofstream(path_, std::ios::binary) << content;
    return load_requests(path_);
  }

  // What follows the file's name in the message.
  std::string refusal(const std::string& content) {
    try {
      (void)load(content);
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      const std::string message = error.what();
      EXPECT_EQ(message.find('\n'), std::string::npos);
      EXPECT_TRUE(message.starts_with(path_ + ":")) << message;
      return message.substr(path_.size());
    }
    return "accepted";
  }

  std::string path_;
};

TEST_F(RequestFile, csv_columns_are_found_by_name) {
  const Workload workload = load(
      "GeneratedTokens,TIMESTAMP,ContextTokens\n"
      "44,2023-11-16 18:15:46.6805900,374\n"
      "109, x , 396 \n");
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].prompt_tokens, 374);
  EXPECT_EQ(workload.requests[0].output_tokens, 44);
  EXPECT_EQ(workload.requests[1].prompt_tokens, 396);
  EXPECT_EQ(workload.requests[1].output_tokens, 109);
  EXPECT_EQ(workload.prompt_tokens(), 770);
  EXPECT_EQ(workload.output_tokens(), 153);
}

TEST_F(RequestFile, csv_from_other_systems_is_read) {
  const Workload workload = load(
      "\xef\xbb\xbfTIMESTAMP,ContextTokens,GeneratedTokens\r\n"
      "t,5,0\r\n"
      "\r\n"
      "t,6,1");
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].output_tokens, 0);
  EXPECT_EQ(workload.requests[1].prompt_tokens, 6);
}

TEST_F(RequestFile, json_lines_hold_counts) {
  const Workload workload = load(
      "{\"prompt_tokens\": 7, \"output_tokens\": 3, \"more\": []}\n"
      "{\"output_tokens\": 0, \"prompt_tokens\": 1}\n");
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].prompt_tokens, 7);
  EXPECT_EQ(workload.requests[0].output_tokens, 3);
  EXPECT_NE(workload.source.find("as given"), std::string::npos);
}

TEST_F(RequestFile, json_lines_of_text_are_measured_in_bytes) {
  const Workload workload =
      load("{\"question\": \"12345\", \"answer\": \"\\u00e9\\u00e9\\u00e9\"}\n");
  ASSERT_EQ(workload.requests.size(), 1u);
  EXPECT_EQ(workload.requests[0].prompt_tokens, 2);
  EXPECT_EQ(workload.requests[0].output_tokens, 2) << "three letters of two bytes each";
  EXPECT_NE(workload.source.find("4 UTF-8 bytes"), std::string::npos);
}

TEST_F(RequestFile, csv_may_quote_its_cells) {
  const Workload workload = load(
      "\"TIMESTAMP\",\"ContextTokens\",\"GeneratedTokens\"\n"
      "\"Nov 16, 2023\nin the evening\",\"374\",\"44\"\n"
      "x,396,109\n");
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].prompt_tokens, 374);
  EXPECT_EQ(workload.requests[0].output_tokens, 44);
  EXPECT_EQ(refusal("\"ContextTokens\",\"GeneratedTokens\"\n\"1\n\",2\n3,x\n"),
            ":2: ContextTokens is '1\\x0a', expected a whole number");
  EXPECT_EQ(refusal("\"ContextTokens,GeneratedTokens\n1,2\n"), ":1: a cell in quotes does not end");
}

TEST_F(RequestFile, csv_may_have_other_separators) {
  for (const std::string separator : {";", "\t"}) {
    const Workload workload =
        load("ContextTokens" + separator + "GeneratedTokens\n5" + separator + "6\n");
    ASSERT_EQ(workload.requests.size(), 1u);
    EXPECT_EQ(workload.requests[0].output_tokens, 6);
  }
  EXPECT_EQ(load("\"ContextTokens\";\"GeneratedTokens\"\n5;6\n").requests.size(), 1u);
  EXPECT_EQ(load("At (s; UTC),ContextTokens,GeneratedTokens\n1,5,6\n").requests.size(), 1u);
  EXPECT_EQ(load("ContextTokens,GeneratedTokens\r5,6\r").requests.size(), 1u);
}

TEST_F(RequestFile, json_may_be_one_document) {
  const std::string requests =
      "[\n  {\n    \"prompt_tokens\": 7,\n    \"output_tokens\": 3\n  },\n"
      "  {\"output_tokens\": 0, \"prompt_tokens\": 1}\n]\n";
  const Workload workload = load(requests);
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].prompt_tokens, 7);
  EXPECT_EQ(workload.requests[1].prompt_tokens, 1);
  EXPECT_EQ(load("{\n\"prompt_tokens\": 7,\n\"output_tokens\": 3\n}\n{\n\"prompt_tokens\": 1,\n"
                 "\"output_tokens\": 2}")
                .requests.size(),
            2u);
  EXPECT_EQ(refusal("[\n{\"prompt_tokens\": 7, \"output_tokens\": 3},\n\n{\n\"prompt_tokens\": 0,"
                    "\n\"output_tokens\": 3}]"),
            ":4: prompt_tokens is 0, expected at least 1");
  EXPECT_EQ(refusal("{\"requests\": [\n]}"),
            ":1: output_tokens is missing, expected prompt_tokens and output_tokens, or question "
            "and answer");
  EXPECT_EQ(refusal("[]"), ": no requests in the file");
}

TEST_F(RequestFile, refusals_name_the_line_and_the_column) {
  EXPECT_EQ(refusal("a,ContextTokens\n1,2\n"),
            ":1: the header has no column GeneratedTokens, expected ContextTokens and "
            "GeneratedTokens");
  EXPECT_EQ(refusal("ContextTokens,GeneratedTokens\n1,2\n3,-4\n"),
            ":3: GeneratedTokens is -4, expected at least 0");
  EXPECT_EQ(refusal("ContextTokens,GeneratedTokens\n0,2\n"),
            ":2: ContextTokens is 0, expected at least 1");
  EXPECT_EQ(refusal("ContextTokens,GeneratedTokens\n1.5,2\n"),
            ":2: ContextTokens is '1.5', expected a whole number");
  EXPECT_EQ(refusal("ContextTokens,GeneratedTokens\n,2\n"),
            ":2: ContextTokens is '', expected a whole number");
  EXPECT_EQ(refusal("ContextTokens,GeneratedTokens\n99999999999999999999,2\n"),
            ":2: ContextTokens is '99999999999999999999', expected a whole number");
  EXPECT_EQ(refusal("ContextTokens,GeneratedTokens\n1000000001,2\n"),
            ":2: ContextTokens is 1000000001, expected at most 1000000000");
  EXPECT_EQ(refusal("ContextTokens,GeneratedTokens\n1,2\n\n7\n"),
            ":4: GeneratedTokens is missing, the line has 1 columns");
}

TEST_F(RequestFile, refusals_of_json_name_the_line_and_the_key) {
  EXPECT_EQ(refusal("{\"prompt_tokens\": 7, \"output_tokens\": 3}\n{\"prompt_tokens\":\n"),
            ":2: the JSON value that begins here does not end");
  EXPECT_EQ(refusal("{\"prompt_tokens\": 7, \"output_tokens\": 3}\n[1, 2]\n"),
            ":2: a request is not a JSON object");
  EXPECT_EQ(refusal("{\"prompt_tokens\": 7, \"output_tokens\": 3},\n"),
            ":1: expected a JSON object, found ','");
  EXPECT_EQ(refusal("{\"prompt_tokens\": 7}\n"),
            ":1: output_tokens is missing, expected prompt_tokens and output_tokens, or question "
            "and answer");
  EXPECT_EQ(refusal("{\"prompt_tokens\": \"7\", \"output_tokens\": 3}\n"),
            ":1: prompt_tokens is '\"7\"', expected a whole number up to 1000000000");
  EXPECT_EQ(refusal("{\"prompt_tokens\": -7, \"output_tokens\": 3}\n"),
            ":1: prompt_tokens is -7, expected at least 1");
  EXPECT_EQ(refusal("{\"prompt_tokens\": 18446744073709551615, \"output_tokens\": 3}\n"),
            ":1: prompt_tokens is '18446744073709551615', expected a whole number up to "
            "1000000000");
  EXPECT_EQ(refusal("{\"question\": 4, \"answer\": \"\"}\n"), ":1: question is not a string");
}

TEST_F(RequestFile, files_without_requests_are_refused) {
  EXPECT_EQ(refusal(""), ": no requests in the file");
  EXPECT_EQ(refusal("ContextTokens,GeneratedTokens\n"), ": no requests in the file");
}

TEST_F(RequestFile, messages_stay_one_line_whatever_the_file_holds) {
  const std::string message =
      refusal("ContextTokens,GeneratedTokens\n\x01\x1b[31m" + std::string(1000, 'x') + ",2\n");
  EXPECT_LT(message.size(), 120u);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
}

TEST_F(RequestFile, missing_files_and_folders_are_refused) {
  for (const std::string& path : {path_ + "_missing", testing::TempDir()}) {
    try {
      (void)load_requests(path);
      FAIL() << path;
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      EXPECT_TRUE(std::string(error.what()).starts_with(path)) << error.what();
    }
  }
}

TEST(Requests, text_has_one_token_for_four_bytes_and_at_least_one) {
  EXPECT_EQ(estimated_tokens(""), 1);
  EXPECT_EQ(estimated_tokens("abcd"), 1);
  EXPECT_EQ(estimated_tokens("abcde"), 2);
}

TEST(Requests, gsm8k_has_the_lengths_of_its_test_set) {
  const Workload workload = preset_requests("gsm8k");
  EXPECT_EQ(workload.requests.size(), 1319u);
  EXPECT_EQ(workload.prompt_tokens(), 79638);
  EXPECT_EQ(workload.output_tokens(), 97128);
}

TEST(Requests, unknown_presets_are_refused_with_those_there_are) {
  try {
    (void)preset_requests("mmlu");
    FAIL();
  } catch (const CommandError& error) {
    EXPECT_STREQ(error.what(), "--preset: 'mmlu' is not one of gsm8k");
    EXPECT_EQ(error.exit_code(), kExitUsage);
  }
}

TEST(Requests, shared_prompts_begin_as_earlier_ones_do) {
  Workload workload{.source = "", .requests = std::vector<Request>(1000, {20, 1})};
  for (std::int64_t i = 0; i < 1000; i += 3) workload.requests[i].prompt_tokens = 5;
  Workload other = workload, same = workload;
  share_prompts(0.3, 1, workload);
  share_prompts(0.3, 1, same);
  share_prompts(0.3, 2, other);
  int shared = 0, whole = 0, as_same = 0, as_other = 0;
  for (std::int64_t i = 0; i < 1000; ++i) {
    const Request& request = workload.requests[i];
    const auto is_as = [&](const Workload& of) {
      return request.shares_with == of.requests[i].shares_with &&
             request.shared_tokens == of.requests[i].shared_tokens;
    };
    as_same += is_as(same) ? 1 : 0;
    as_other += is_as(other) ? 1 : 0;
    if (request.shared_tokens == 0) {
      EXPECT_EQ(request.shares_with, -1);
      continue;
    }
    ++shared;
    ASSERT_GE(request.shares_with, 0);
    ASSERT_LT(request.shares_with, i);
    const Request& earlier = workload.requests[request.shares_with];
    ASSERT_LE(request.shared_tokens, std::min(request.prompt_tokens, earlier.prompt_tokens));
    whole += request.shared_tokens == request.prompt_tokens ? 1 : 0;
  }
  EXPECT_NEAR(shared, 300, 60);
  EXPECT_GT(whole, 0);
  EXPECT_EQ(as_same, 1000);
  EXPECT_LT(as_other, 900);
}

TEST(Requests, the_first_request_with_a_prefix_stands_for_all) {
  const std::vector<Request> requests{{9, 0}, {9, 0, 0, 6}, {9, 0, 1, 8}};
  EXPECT_EQ(first_with_prefix(requests, 2, 6), 0);
  EXPECT_EQ(first_with_prefix(requests, 2, 7), 1);
  EXPECT_EQ(first_with_prefix(requests, 2, 8), 1);
  EXPECT_EQ(first_with_prefix(requests, 2, 9), 2);
  EXPECT_EQ(first_with_prefix(requests, 1, 7), 1);
  EXPECT_EQ(first_with_prefix(requests, 0, 1), 0);
}

TEST(Requests, limits_cut_the_list_and_the_outputs) {
  Workload workload{.source = "", .requests = {{5, 9}, {6, 2}, {7, 1}}};
  apply_limits({}, workload);
  EXPECT_EQ(workload.requests.size(), 3u);
  apply_limits({.requests = 2, .output = 4}, workload);
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].output_tokens, 4);
  EXPECT_EQ(workload.requests[1].output_tokens, 2);
  apply_limits({.requests = 9, .output = 0}, workload);
  EXPECT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.output_tokens(), 0);
}

}  // namespace
}  // namespace shortconv::tools
