#include "info.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>

#include "common/host.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::tools {
namespace {

TEST(Info, support_table_lists_every_capability) {
  const std::string table = support_table();
  const Capabilities& can = capabilities();
  for (const int width : can.widths) {
    EXPECT_NE(table.find(std::to_string(width)), std::string::npos) << width;
  }
  EXPECT_NE(table.find("up to " + std::to_string(can.max_width)), std::string::npos);
  const auto expect_all = [&table](const auto& values) {
    for (const auto& entry : values) {
      EXPECT_NE(table.find(entry.name), std::string::npos) << entry.name;
    }
  };
  expect_all(can.dtypes);
  expect_all(can.activations);
  expect_all(can.epilogues);
  expect_all(can.schedules);
  expect_all(can.padded_rows);
  const std::string backends = table.substr(table.find("| backend |"));
  for (const BackendInfo& backend : backend_info()) {
    EXPECT_NE(backends.find(backend.name), std::string::npos) << backend.name;
  }
}

TEST(Info, support_table_is_a_markdown_table) {
  std::istringstream lines(support_table());
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    EXPECT_TRUE(line.starts_with("|") && line.ends_with("|")) << line;
    EXPECT_EQ(std::count(line.begin(), line.end(), '|'), 3) << line;
  }
  EXPECT_GT(count, 5);
}

TEST(Info, text_names_version_and_backends) {
  const std::string text = info_text();
  EXPECT_NE(text.find("shortconv " + library_version()), std::string::npos);
  for (const BackendInfo& backend : backend_info()) {
    EXPECT_NE(text.find(backend.name), std::string::npos);
    EXPECT_NE(text.find(backend.detail), std::string::npos);
  }
}

TEST(Info, json_repeats_the_capabilities) {
  const auto json = info_json();
  EXPECT_EQ(json["version"], library_version());
  EXPECT_EQ(json["capabilities"]["widths"].size(), capabilities().widths.size());
  EXPECT_EQ(json["capabilities"]["model_widths"].size(), capabilities().model_widths.size());
  EXPECT_EQ(json["capabilities"]["schedules"].size(), capabilities().schedules.size());
  EXPECT_EQ(json["backends"].size(), backend_info().size());
}

}  // namespace
}  // namespace shortconv::tools
