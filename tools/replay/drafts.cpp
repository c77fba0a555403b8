#include "replay/drafts.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <utility>

#include "common/error.hpp"
#include "common/random.hpp"
#include "common/text.hpp"

namespace shortconv::tools {
namespace {

// Far more than any engine verifies at once.
constexpr std::int64_t kMostRows = 1024;

}  // namespace

DraftTree::DraftTree(std::vector<std::int64_t> children) : children_(std::move(children)) {
  if (children_.empty()) return;
  rows_ = 1;
  std::int64_t level = 1;
  for (const std::int64_t count : children_) rows_ += level *= count;
}

std::vector<std::int32_t> DraftTree::parents() const {
  std::vector<std::int32_t> parents;
  if (empty()) return parents;
  parents.push_back(-1);
  std::int64_t level_begin = 0, level_rows = 1;
  for (const std::int64_t count : children_) {
    for (std::int64_t i = 0; i < level_rows * count; ++i) {
      parents.push_back(static_cast<std::int32_t>(level_begin + i / count));
    }
    level_begin += level_rows;
    level_rows *= count;
  }
  return parents;
}

std::string DraftTree::shape() const { return fmt::format("{}", fmt::join(children_, ",")); }

std::vector<std::int32_t> DraftTree::accepted_rows(double accept, std::int64_t most,
                                                   std::uint64_t seed) const {
  Random random(seed);
  std::vector<std::int32_t> rows{0};
  std::int64_t level_begin = 0, level_rows = 1, in_level = 0;
  for (const std::int64_t count : children_) {
    if (std::ssize(rows) >= most || !random.chance(accept)) break;
    level_begin += level_rows;
    level_rows *= count;
    in_level = in_level * count + random.between(0, count - 1);
    rows.push_back(static_cast<std::int32_t>(level_begin + in_level));
  }
  return rows;
}

DraftTree parse_draft_tree(const std::string& option, const std::string& shape) {
  const auto refuse = [&](const std::string& why) {
    throw CommandError(kExitUsage,
                       fmt::format("{}: {} {}; expected how many drafts follow each one of a "
                                   "level, level by level, as in 2,2",
                                   option, in_quotes(shape), why));
  };
  std::vector<std::int64_t> children;
  std::int64_t rows = 1, level = 1;
  const char* at = shape.data();
  const char* const end = at + shape.size();
  while (true) {
    std::int64_t count = 0;
    const auto [stopped, error] = std::from_chars(at, end, count);
    if (error != std::errc() || count < 1) refuse("is not a list of numbers from 1");
    if (count > kMostRows) refuse(fmt::format("has more than {} rows", kMostRows));
    rows += level *= count;
    if (rows > kMostRows) refuse(fmt::format("has more than {} rows", kMostRows));
    children.push_back(count);
    if (stopped == end) break;
    if (*stopped != ',') refuse("is not a list of numbers from 1");
    at = stopped + 1;
  }
  return DraftTree(std::move(children));
}

}  // namespace shortconv::tools
