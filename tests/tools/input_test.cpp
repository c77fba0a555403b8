// What the commands read: text, JSON and CSV, however it is written down.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "common/error.hpp"
#include "common/input_file.hpp"
#include "common/json_text.hpp"
#include "common/text.hpp"
#include "doctor/batch.hpp"
#include "folder_test.hpp"
#include "replay/csv_text.hpp"
#include "replay/requests.hpp"
#include "report/results.hpp"

namespace shortconv::tools {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

template <typename Use>
std::string refusal_of(const Use& use) {
  try {
    use();
  } catch (const CommandError& error) {
    EXPECT_EQ(error.exit_code(), kExitUsage);
    return error.what();
  }
  return "accepted";
}

std::string refusal_of_json(std::string_view text) {
  return refusal_of([&] { (void)parse_json_object<Json>(text, "a.json"); });
}

std::string nested(std::size_t depth) {
  return "{\"a\": " + std::string(depth, '[') + std::string(depth, ']') + "}";
}

TEST(Text, what_a_terminal_would_act_on_is_written_out) {
  EXPECT_EQ(printable("caf\xc3\xa9, \xe4\xb8\xad \xf0\x9f\x98\x80"),
            "caf\xc3\xa9, \xe4\xb8\xad \xf0\x9f\x98\x80");
  EXPECT_EQ(printable(std::string_view("\0\x1b[31m\n\t\x7f", 9)), "\\x00\\x1b[31m\\x0a\\x09\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\x9b31m")
      << "CSI in one character";
  EXPECT_EQ(printable("\xe2\x80\xae|\xe2\x81\xa6|\xef\xbb\xbf"), "\\u202e|\\u2066|\\ufeff");
  EXPECT_EQ(printable_lines("a\nb\r"), "a\nb\\x0d");
}

TEST(Text, bytes_that_are_no_utf8_are_written_as_numbers) {
  EXPECT_EQ(printable("\xff\xfe"), "\\xff\\xfe");
  EXPECT_EQ(printable("\xc3"), "\\xc3") << "cut off";
  EXPECT_EQ(printable("\xe4\xb8|"), "\\xe4\\xb8|");
  EXPECT_EQ(printable("\xc0\x80"), "\\xc0\\x80") << "longer than needed";
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80") << "half of a pair of UTF-16";
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80") << "beyond U+10FFFF";
}

TEST(Text, long_values_are_cut_between_characters) {
  EXPECT_EQ(printable("\xc3\xa9\xc3\xa9\xc3\xa9", 2), "\xc3\xa9\xc3\xa9...");
  EXPECT_EQ(printable("ab", 2), "ab");
  EXPECT_EQ(in_quotes("a\x1b"), "'a\\x1b'");
  EXPECT_EQ(in_quotes(std::string(1000, 'x')), "'" + std::string(40, 'x') + "...'");
}

TEST(JsonInput, depth_has_a_limit) {
  EXPECT_EQ(parse_json_object<Json>(nested(kDeepestJson - 1), "")["a"].size(), 1u);
  const std::string message = "a.json:2: has values nested more than 64 deep";
  EXPECT_EQ(refusal_of_json("\n" + nested(kDeepestJson)), message);
  EXPECT_EQ(refusal_of_json("\n" + nested(1'000'000)), message);
  std::string objects = "\n";
  for (int i = 0; i < 1'000'000; ++i) objects += "{\"a\":";
  EXPECT_EQ(refusal_of_json(objects), message) << "even if it does not end";
}

TEST(JsonInput, refusals_name_line_and_column) {
  EXPECT_EQ(refusal_of_json(""), "a.json: is empty; expected a JSON object");
  EXPECT_EQ(refusal_of_json(" \n\t"), "a.json: is empty; expected a JSON object");
  EXPECT_EQ(refusal_of_json("\n{\"a\":\n  [1, 2\n"),
            "a.json:2: the JSON value that begins here does not end");
  EXPECT_EQ(refusal_of_json("{\n  \"a\": 1\n  \"b\": 2\n}"),
            "a.json:3: is no JSON at column 5: '\"b\"'");
  EXPECT_EQ(refusal_of_json("{\"a\": nul}"), "a.json:1: is no JSON at column 10: '\"a\": nul}'");
  EXPECT_EQ(refusal_of_json("{\"a\": 1}\n\n{}"),
            "a.json:3: expected nothing after the JSON object");
  EXPECT_EQ(refusal_of_json("\n[1]"), "a.json:2: expected a JSON object, found an array");
  EXPECT_EQ(refusal_of_json("\n\nhello\nyou"), "a.json:3: expected a JSON object, found 'hello'");
  EXPECT_EQ(refusal_of_json("{\n\"a\": \"\xff\"}").find("a.json:2: is no JSON at column 7: "), 0u);
}

TEST(JsonInput, values_that_would_be_changed_in_silence_are_refused) {
  EXPECT_EQ(refusal_of_json("{\"a\": 1,\n \"a\": 2}"), "a.json:2: has the key 'a' twice");
  EXPECT_EQ(refusal_of_json("{\"a\":\n 1e999}"), "a.json:2: has a number out of range, '1e999'");
  std::string keys = "{\"a\": 0";
  for (int i = 0; i < 10'000; ++i) keys += ", \"" + std::to_string(i) + "\": 0";
  EXPECT_EQ(refusal_of_json(keys + "}"), "a.json:1: has an object with more than 10000 keys");
  EXPECT_EQ(parse_json_object<Json>(R"({"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]})", "").size(),
            2u);
}

TEST(JsonInput, items_of_an_array_have_lines) {
  JsonText json("{\"a\": [1]}\n[1,\n {\n},\n\n [\n{}], \"x\"] {}", "a.json");
  (void)json.next<Json>();
  EXPECT_TRUE(json.lines_of_items().empty());
  ASSERT_FALSE(json.at_end());
  EXPECT_EQ(json.next<Json>().size(), 4u);
  EXPECT_EQ(json.line(), 2);
  EXPECT_EQ(json.lines_of_items(), (std::vector<std::int64_t>{2, 3, 6, 7}));
  ASSERT_FALSE(json.at_end());
  (void)json.next<Json>();
  EXPECT_EQ(json.line(), 7);
  EXPECT_TRUE(json.at_end());
}

TEST(JsonInput, bytes_that_are_no_utf8_are_replaced_when_written) {
  EXPECT_EQ(dump_json(Json{{"name", "a\xff\x1b"}}), "{\"name\":\"a\xef\xbf\xbd\\u001b\"}");
}

std::vector<std::vector<std::string>> records(std::string_view text, char separator = ',') {
  CsvText csv(text, "a.csv", separator);
  std::vector<std::vector<std::string>> all;
  for (std::vector<std::string> cells; csv.next(cells);) all.push_back(cells);
  return all;
}

TEST(CsvInput, cells_may_be_quoted) {
  using Records = std::vector<std::vector<std::string>>;
  EXPECT_EQ(records("a, b ,\"c\"\n\"x,y\" , \"say \"\"hi\"\"\",\n"),
            (Records{{"a", "b", "c"}, {"x,y", "say \"hi\"", ""}}));
  EXPECT_EQ(records("\"two\nlines\",2\n3,4"), (Records{{"two\nlines", "2"}, {"3", "4"}}));
  EXPECT_EQ(records("a,b\r1,2\r\n\r\n3,4\r"), (Records{{"a", "b"}, {"1", "2"}, {"3", "4"}}));
  EXPECT_EQ(records("a;b\n,", ';'), (Records{{"a", "b"}, {","}}));
  EXPECT_EQ(records("\ta\tb", '\t'), (Records{{"", "a", "b"}}));
  EXPECT_EQ(records(" \n\n"), Records{});
}

TEST(CsvInput, broken_quotes_are_refused_with_their_line) {
  EXPECT_EQ(refusal_of([] { (void)records("a\n\n\"b\nc"); }),
            "a.csv:3: a cell in quotes does not end");
  EXPECT_EQ(refusal_of([] { (void)records("a\n\"b\"c\n"); }),
            "a.csv:2: text follows a cell in quotes");
}

class InputFile : public FolderTest {
 protected:
  std::string write(std::string_view text) {
    const std::string path = (folder_ / "input").string();
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  // What each command that reads says of this text, without the file's name.
  std::vector<std::string> refusals(std::string_view text) {
    const std::string path = write(text);
    std::vector<std::string> all{refusal_of([&] { (void)load_batch(path); }),
                                 refusal_of([&] { (void)load_requests(path); }),
                                 refusal_of([&] { (void)report::read_result(path); })};
    for (std::string& message : all) {
      EXPECT_TRUE(message.starts_with(path + ":")) << message;
      message.erase(0, path.size());
    }
    return all;
  }
  void expect_refusals(std::string_view text, const std::string& message) {
    for (const std::string& refusal : refusals(text)) EXPECT_EQ(refusal, message);
  }
};

TEST_F(InputFile, binary_data_is_refused_as_such) {
  expect_refusals(std::string_view("{\n\0}", 4), ": is no text: line 2 has a byte of value 0");
  expect_refusals(std::string_view("\x7f"
                                   "ELF\2\1\1\0\0",
                                   9),
                  ": is no text: line 1 has a byte of value 0");
  expect_refusals(std::string_view("\xff\xfe{\0}\0", 6), ": is text in UTF-16; expected UTF-8");
  expect_refusals(std::string_view("\xfe\xff\0{\0}", 6), ": is text in UTF-16; expected UTF-8");
}

TEST_F(InputFile, deep_json_is_refused_by_every_command) {
  expect_refusals(nested(1'000'000), ":1: has values nested more than 64 deep");
}

TEST_F(InputFile, a_byte_order_mark_is_left_out) {
  EXPECT_EQ(read_input(write("\xef\xbb\xbf{}")), "{}");
  EXPECT_EQ(load_batch(write("\xef\xbb\xbf{\"query_start_loc\": [0, 1]}")).tokens, 1);
}

TEST_F(InputFile, lines_may_be_long_and_end_in_any_way) {
  const std::string blanks(10'000'000, ' ');
  EXPECT_EQ(load_batch(write(blanks + "{\"query_start_loc\":\r\n[0,\r\n1]}" + blanks)).tokens, 1);
  EXPECT_EQ(load_requests(write("ContextTokens,GeneratedTokens," + blanks + "\r5,6," + blanks))
                .output_tokens(),
            6);
}

}  // namespace
}  // namespace shortconv::tools
