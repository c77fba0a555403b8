#include "verify/case.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "shortconv/capability.hpp"
#include "verify/backward_case.hpp"
#include "verify/buffers.hpp"
#include "verify/commit_case.hpp"
#include "verify/grouped_backward_case.hpp"
#include "verify/grouped_case.hpp"

namespace shortconv::tools::verify {
namespace {

constexpr std::uint64_t kCases = 4000;

TEST(Case, ASeedAlwaysGivesTheSameCaseAndValues) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(to_string(make_case(seed)), to_string(make_case(seed)));
    const CaseBuffers first = make_buffers(make_case(seed));
    const CaseBuffers second = make_buffers(make_case(seed));
    EXPECT_TRUE(std::ranges::equal(first.x.bytes(), second.x.bytes()));
  }
}

TEST(Case, CoversWhatTheLibraryCanDo) {
  std::map<std::string_view, std::set<std::string>> seen;
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    for (const auto& [key, value] : traits(make_case(seed))) seen[key].insert(value);
  }
  const auto expect_all = [&](std::string_view key, const auto& list) {
    for (const auto& entry : list) {
      EXPECT_TRUE(seen[key].contains(std::string(entry.name))) << key << " " << entry.name;
    }
  };
  const Capabilities& can = capabilities();
  for (const std::string_view key : {"dtype", "out", "weight", "state"}) {
    expect_all(key, can.dtypes);
  }
  expect_all("activation", can.activations);
  expect_all("epilogue", can.epilogues);
  expect_all("schedule", can.schedules);
  expect_all("padded-rows", can.padded_rows);
  for (int width = 2; width <= can.max_width; ++width) {
    EXPECT_TRUE(seen["width"].contains(std::to_string(width))) << width;
  }
  EXPECT_TRUE(seen["state"].contains("none"));
  EXPECT_EQ(seen["op"].size(), 3u);
  EXPECT_EQ(seen["windows"].size(), 6u);
  EXPECT_TRUE(seen["dilation"].contains("2"));
  EXPECT_TRUE(seen["dilation"].contains("63"));
  EXPECT_EQ(seen["layout"].size(), 3u);
  EXPECT_EQ(seen["initial-state"].size(), 3u);
  EXPECT_EQ(seen["threads"].size(), 4u);
  for (const std::string_view key : {"bias", "input-gate", "packed", "in-place", "special", "ring",
                                     "older", "snapshots", "tree", "keeps-state", "violations"}) {
    EXPECT_EQ(seen[key].size(), 2u) << key;
  }
}

template <typename Make, typename Possible>
void expect_traits_within(const Make& make, const Possible& possible) {
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    const auto having = traits(make(seed));
    ASSERT_EQ(having.size(), possible.size());
    for (std::size_t i = 0; i < having.size(); ++i) {
      ASSERT_EQ(having[i].first, possible[i].first);
      EXPECT_NE(std::ranges::find(possible[i].second, having[i].second), possible[i].second.end())
          << having[i].first << " " << having[i].second;
    }
  }
}

TEST(Case, HasNoValuesButThoseThatItMayHave) {
  expect_traits_within([](std::uint64_t seed) { return make_case(seed); }, possible_traits());
  for (const Named<DType>& type : capabilities().dtypes) {
    expect_traits_within([&](std::uint64_t seed) { return make_fast_case(seed, type.value); },
                         possible_traits());
  }
  expect_traits_within([](std::uint64_t seed) { return make_commit_case(seed); },
                       possible_commit_traits());
  expect_traits_within([](std::uint64_t seed) { return make_backward_case(seed); },
                       possible_backward_traits());
  expect_traits_within([](std::uint64_t seed) { return make_grouped_case(seed); },
                       possible_grouped_traits());
  expect_traits_within([](std::uint64_t seed) { return make_grouped_backward_case(seed); },
                       possible_grouped_backward_traits());
}

TEST(Case, MayHaveOnlyValuesThatOccur) {
  constexpr std::uint64_t kMany = 100000;  // dilations of some widths are rare
  std::map<std::string_view, std::set<std::string>> calls, commits, gradients;
  for (std::uint64_t seed = 0; seed < kMany; ++seed) {
    for (const auto& [key, value] : traits(make_case(seed))) calls[key].insert(value);
    for (const auto& [key, value] : traits(make_commit_case(seed))) commits[key].insert(value);
    for (const auto& [key, value] : traits(make_backward_case(seed))) gradients[key].insert(value);
  }
  std::map<std::string_view, std::set<std::string>> groups, group_gradients;
  for (std::uint64_t seed = 0; seed < kMany / 10; ++seed) {
    for (const auto& [key, value] : traits(make_grouped_case(seed))) groups[key].insert(value);
    for (const auto& [key, value] : traits(make_grouped_backward_case(seed))) {
      group_gradients[key].insert(value);
    }
  }
  for (const auto& [key, values] : possible_grouped_backward_traits()) {
    for (const std::string& value : values) {
      EXPECT_TRUE(group_gradients[key].contains(value)) << key << " " << value;
    }
  }
  for (const auto& [key, values] : possible_grouped_traits()) {
    for (const std::string& value : values) {
      EXPECT_TRUE(groups[key].contains(value)) << key << " " << value;
    }
  }
  for (const auto& [key, values] : possible_traits()) {
    for (const std::string& value : values) {
      EXPECT_TRUE(calls[key].contains(value)) << key << " " << value;
    }
  }
  for (const auto& [key, values] : possible_commit_traits()) {
    for (const std::string& value : values) {
      EXPECT_TRUE(commits[key].contains(value)) << key << " " << value;
    }
  }
  for (const auto& [key, values] : possible_backward_traits()) {
    for (const std::string& value : values) {
      EXPECT_TRUE(gradients[key].contains(value)) << key << " " << value;
    }
  }
}

TEST(Case, CoversTheCornersOfABatch) {
  std::map<std::string, int> seen;
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    const Case problem = make_case(seed);
    seen["no sequences"] += problem.sequences() == 0;
    seen["no rows"] += problem.rows() == 0;
    seen["rows before"] += problem.starts.front() > 0;
    seen["rows after"] += problem.starts.back() < problem.rows();
    seen["unaligned"] += problem.x.origin % 8 != 0;
    seen["reversed"] += std::ranges::any_of(problem.x.strides, [](auto s) { return s < 0; });
    if (problem.state) {
      seen["more columns"] += problem.state->shape[1] > problem.history();
      seen["base"] += problem.base_column > 0;
      seen["window innermost"] += problem.state->strides[1] == 1;
    }
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      const std::int64_t read = problem.read_slot(s), write = problem.write_slot(s);
      const bool verify = problem.op == Op::kVerify;
      if (verify && problem.live(s)) {
        seen["windows captured"] += problem.window_offset(s, 0).has_value();
        seen["windows left out"] += problem.intermediate_slots && !problem.window_offset(s, 0);
        seen["windows in the slot that is read"] += problem.windows_kind == WindowsKind::kPool &&
                                                    problem.window_offset(s, 0) &&
                                                    problem.intermediate_slots->values[s] == read;
        seen["drafts kept"] += problem.valid_slot(write);
        seen["drafts kept elsewhere"] += problem.valid_slot(write) && write != read;
        for (std::int64_t t = 1; problem.parents && t < problem.length(s); ++t) {
          const std::int64_t parent = problem.parents->values[problem.starts[s] + t];
          seen["branches"] += parent >= 0 && parent < t - 1;
          seen["roots"] += parent == -1;
          seen["bad parents"] += parent < -1 || parent >= t;
        }
      }
      if (problem.cache_seqlens && problem.live(s)) {
        seen["ring wrapped around"] += problem.ring_column(s, 0) < problem.history();
        seen["ring shorter than the call"] += problem.length(s) > problem.state->shape[1];
        seen["negative positions"] += problem.cache_seqlens->values[s] < 0;
        seen["drafts in rings"] += verify && problem.valid_slot(write);
        seen["trees in rings"] += verify && problem.valid_slot(write) && problem.parents;
      }
      seen["empty"] += problem.length(s) == 0;
      seen["shorter than the history"] +=
          problem.length(s) > 0 && problem.length(s) < problem.history();
      if (problem.length(s) == 0) continue;
      seen["negative slot"] += read < 0;
      seen["null slot"] += problem.null_slot == read;
      seen["slot out of range"] += problem.state && read >= problem.slots();
      if (problem.skipped(s) || !problem.state) continue;
      seen["state not kept"] += !problem.valid_slot(write);
      seen["moved to another slot"] += problem.valid_slot(write) && write != read;
      if (!problem.read_offsets || !problem.resumed(s)) continue;
      const std::int64_t offset = problem.read_offsets->values[s];
      seen["offset used"] += offset > 0 && offset == problem.read_offset(s);
      seen["offset too small"] += offset < problem.read_offset(s);
      seen["offset too large"] += offset > problem.read_offset(s);
    }
  }
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    const Case problem = make_case(seed);
    for (std::int64_t i = 0; i < problem.snapshot_count(); ++i) {
      const SnapshotRow row = problem.snapshot(i);
      seen["snapshots left out"] += !problem.is_taken(row);
      seen["snapshots in the final state's slot"] +=
          row.sequence >= 0 && row.sequence < problem.sequences() && problem.live(row.sequence) &&
          problem.valid_slot(row.slot) && row.token < problem.length(row.sequence) &&
          row.slot == problem.write_slot(row.sequence);
      if (!problem.is_taken(row)) continue;
      const std::int64_t length = problem.length(row.sequence);
      seen["snapshots taken"] += 1;
      seen["snapshots that replace a history"] +=
          problem.resumed(row.sequence) && row.slot == problem.read_slot(row.sequence);
      seen["snapshots before the first token"] += row.token == 0;
      seen["snapshots of the history"] += row.token > 0 && row.token < problem.history();
      seen["snapshots of the end"] += row.token == length;
      seen["snapshots of rings"] += problem.cache_seqlens.has_value();
      seen["snapshots in place"] += problem.in_place;
    }
  }
  for (const auto& [corner, count] : seen) EXPECT_GT(count, 10) << corner;
}

TEST(Case, LiveSequencesNeverShareAStateThatOneOfThemWrites) {
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    const Case problem = make_case(seed);
    if (!problem.state) continue;
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      if (problem.skipped(s) || problem.length(s) == 0) continue;
      const std::int64_t written = problem.write_slot(s);
      if (!problem.valid_slot(written)) continue;
      for (std::int64_t other = 0; other < problem.sequences(); ++other) {
        if (other == s || problem.skipped(other) || problem.length(other) == 0) continue;
        ASSERT_NE(problem.read_slot(other), written) << to_string(problem);
        ASSERT_NE(problem.write_slot(other), written) << to_string(problem);
      }
    }
  }
}

TEST(Case, SlotsOfSnapshotsAndIntermediateStatesAreDistinct) {
  for (std::uint64_t seed = 0; seed < kCases; ++seed) {
    const Case problem = make_case(seed);
    std::map<std::int64_t, int> users;  // of a slot: those that read or write it
    std::map<std::int64_t, int> windows;
    for (std::int64_t s = 0; s < problem.sequences(); ++s) {
      if (!problem.live(s)) continue;
      const std::int64_t read = problem.read_slot(s), write = problem.write_slot(s);
      ++users[read];
      if (problem.valid_slot(write) && write != read) ++users[write];
      if (!problem.intermediate_slots || !problem.window_offset(s, 0)) continue;
      const std::int64_t slot = problem.intermediate_slots->values[s];
      ASSERT_EQ(++windows[slot], 1) << to_string(problem);
      if (problem.windows_kind != WindowsKind::kPool) continue;
      ASSERT_NE(slot, write) << to_string(problem);
      if (slot != read) ++users[slot];
    }
    if (problem.windows_kind == WindowsKind::kPool) {
      for (const auto& [slot, count] : windows) ASSERT_EQ(users[slot], 1) << to_string(problem);
    }
    for (std::int64_t i = 0; i < problem.snapshot_count(); ++i) {
      const SnapshotRow row = problem.snapshot(i);
      if (!problem.is_taken(row)) continue;
      // A history may be replaced by a snapshot of the sequence that alone begins from it.
      if (row.slot == problem.read_slot(row.sequence)) --users[row.slot];
      ASSERT_EQ(++users[row.slot], 1) << to_string(problem);
    }
  }
}

TEST(Case, ElementsLieInsideTheirAllocationAndDoNotOverlap) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const Case problem = make_case(seed);
    for (const TensorSpec* spec :
         {&problem.x, &problem.out, problem.state ? &*problem.state : nullptr}) {
      if (spec == nullptr) continue;
      std::vector<bool> used(static_cast<std::size_t>(spec->elements));
      for_each_element(*spec, [&](std::int64_t offset) {
        ASSERT_GE(offset, 0);
        ASSERT_LT(offset, spec->elements);
        ASSERT_FALSE(used[offset]) << to_string(problem);
        used[offset] = true;
      });
    }
  }
}

TEST(Case, AnotherLayoutHoldsTheSameValues) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const Case problem = make_case(seed);
    const Case other = with_other_layouts(problem, seed);
    const CaseBuffers first = make_buffers(problem);
    const CaseBuffers second = make_buffers(other);
    for (std::int64_t row = 0; row < problem.rows(); ++row) {
      for (std::int64_t channel = 0; channel < problem.channels(); ++channel) {
        ASSERT_TRUE(first.x.same_element(problem.x.row_offset(row, channel), second.x,
                                         other.x.row_offset(row, channel)));
      }
    }
  }
}

}  // namespace
}  // namespace shortconv::tools::verify
