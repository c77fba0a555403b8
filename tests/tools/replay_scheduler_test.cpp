#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/random.hpp"
#include "replay/requests.hpp"
#include "replay/scheduler.hpp"

namespace shortconv::tools {
namespace {

std::vector<Call> all_calls(const std::vector<Request>& requests, const SchedulerOptions& options) {
  std::vector<Call> calls;
  Scheduler scheduler(requests, options);
  for (Call call; scheduler.next(call);) {
    calls.push_back(call);
    if (calls.size() > 1'000'000) throw std::runtime_error("the scheduler does not end");
  }
  return calls;
}

// "extend 0:0+5 1:0+3" is request 0 from token 0, five tokens, then request 1; '*' marks resumed
// segments, '<' those that begin from a snapshot, and '!' those that finish. Accepted rows are in
// brackets, blocks with snapshots in braces.
std::string spell(const Call& call) {
  std::string text(name(call.kind));
  for (const Segment& segment : call.segments) {
    text += fmt::format(" {}:{}+{}{}{}{}", segment.request, segment.first_token, segment.count,
                        segment.begins_from_snapshot() ? "<" : "", segment.resumed ? "*" : "",
                        segment.finishes ? "!" : "");
    if (segment.is_draft()) text += fmt::format("[{}]", fmt::join(segment.accepted, ","));
    if (segment.snapshots.empty()) continue;
    std::vector<std::int64_t> blocks;
    for (const Segment::Snapshot& snapshot : segment.snapshots) blocks.push_back(snapshot.blocks);
    text += fmt::format("{{{}}}", fmt::join(blocks, ","));
  }
  return text;
}

std::vector<std::string> spell_all(const std::vector<Request>& requests,
                                   const SchedulerOptions& options) {
  std::vector<std::string> lines;
  for (const Call& call : all_calls(requests, options)) lines.push_back(spell(call));
  return lines;
}

using Lines = std::vector<std::string>;

TEST(Scheduler, prompts_fill_the_chunk_and_the_last_one_is_cut) {
  EXPECT_EQ(spell_all({{5, 1}, {9, 1}}, {.chunk = 8, .max_running = 4}),
            (Lines{"extend 0:0+5 1:0+3", "extend 1:3+6*", "decode 0:5+1*! 1:9+1*!"}));
}

TEST(Scheduler, a_prompt_longer_than_several_chunks_goes_on_alone) {
  EXPECT_EQ(spell_all({{20, 0}}, {.chunk = 8, .max_running = 4}),
            (Lines{"extend 0:0+8", "extend 0:8+8*", "extend 0:16+4*!"}));
}

TEST(Scheduler, a_cut_prompt_shares_its_next_call_with_new_ones) {
  EXPECT_EQ(spell_all({{6, 0}, {3, 0}, {2, 0}}, {.chunk = 4, .max_running = 4}),
            (Lines{"extend 0:0+4", "extend 0:4+2*! 1:0+2", "extend 1:2+1*! 2:0+2!"}));
}

TEST(Scheduler, a_prompt_that_ends_with_the_chunk_is_not_continued) {
  EXPECT_EQ(spell_all({{8, 1}}, {.chunk = 8, .max_running = 4}),
            (Lines{"extend 0:0+8", "decode 0:8+1*!"}));
}

TEST(Scheduler, prompts_wait_for_a_slot_and_go_before_decodes) {
  EXPECT_EQ(spell_all({{2, 1}, {2, 2}, {2, 1}}, {.chunk = 8, .max_running = 2}),
            (Lines{"extend 0:0+2 1:0+2", "decode 0:2+1*! 1:2+1*", "extend 2:0+2",
                   "decode 1:3+1*! 2:2+1*!"}));
}

TEST(Scheduler, a_request_without_output_frees_its_slot_for_the_next_call) {
  EXPECT_EQ(spell_all({{2, 0}, {2, 0}, {2, 0}}, {.chunk = 8, .max_running = 2}),
            (Lines{"extend 0:0+2! 1:0+2!", "extend 2:0+2!"}));
}

TEST(Scheduler, mixed_calls_hold_prompts_first_and_count_steps_against_the_chunk) {
  EXPECT_EQ(spell_all({{3, 3}, {6, 1}}, {.chunk = 4, .max_running = 2, .mixed = true}),
            (Lines{"extend 0:0+3 1:0+1", "mixed 1:1+3* 0:3+1*", "mixed 1:4+2* 0:4+1*",
                   "decode 0:5+1*! 1:6+1*!"}));
}

TEST(Scheduler, mixed_steps_that_fill_the_chunk_leave_prompts_waiting) {
  EXPECT_EQ(spell_all({{1, 2}, {1, 0}}, {.chunk = 1, .max_running = 2, .mixed = true}),
            (Lines{"extend 0:0+1", "decode 0:1+1*", "decode 0:2+1*!", "extend 1:0+1!"}));
}

TEST(Scheduler, draft_steps_advance_by_several_tokens_and_end_ragged) {
  EXPECT_EQ(spell_all({{2, 5}, {2, 3}}, {.chunk = 8, .max_running = 2, .draft = 4}),
            (Lines{"extend 0:0+2 1:0+2", "draft extend 0:2+4* 1:2+3*!", "draft extend 0:6+1*!"}));
}

TEST(Scheduler, draft_steps_in_mixed_calls_count_all_their_tokens) {
  EXPECT_EQ(spell_all({{2, 4}, {5, 0}}, {.chunk = 5, .max_running = 2, .draft = 3, .mixed = true}),
            (Lines{"extend 0:0+2 1:0+3", "mixed 1:3+2*! 0:2+3*", "draft extend 0:5+1*!"}));
}

TEST(Scheduler, drafts_are_verified_and_then_committed) {
  const SchedulerOptions options{
      .chunk = 8, .max_running = 2, .tree = DraftTree({1, 1, 1}), .accept = 1};
  EXPECT_EQ(
      spell_all({{2, 5}, {2, 3}}, options),
      (Lines{"extend 0:0+2 1:0+2", "verify 0:2+4*[0,1,2,3] 1:2+4*[0,1,2]",
             "commit 0:2+4*[0,1,2,3] 1:2+3*![0,1,2]", "verify 0:6+4*[0]", "commit 0:6+1*![0]"}));
}

TEST(Scheduler, a_step_without_accepted_drafts_advances_by_one_token) {
  const SchedulerOptions options{
      .chunk = 8, .max_running = 2, .tree = DraftTree({2, 2}), .accept = 0};
  EXPECT_EQ(spell_all({{2, 2}}, options),
            (Lines{"extend 0:0+2", "verify 0:2+7*[0]", "commit 0:2+1*[0]", "verify 0:3+7*[0]",
                   "commit 0:3+1*![0]"}));
}

TEST(Scheduler, drafts_beside_prompts_are_committed_on_their_own) {
  const SchedulerOptions options{
      .chunk = 5, .max_running = 2, .mixed = true, .tree = DraftTree({1, 1}), .accept = 1};
  EXPECT_EQ(spell_all({{2, 3}, {5, 0}}, options),
            (Lines{"extend 0:0+2 1:0+3", "mixed 1:3+2*! 0:2+3*[0,1,2]", "commit 0:2+3*![0,1,2]"}));
}

TEST(Scheduler, a_slot_is_free_after_the_commit) {
  const SchedulerOptions options{.chunk = 8, .max_running = 1, .tree = DraftTree({1}), .accept = 1};
  EXPECT_EQ(spell_all({{2, 2}, {3, 0}}, options),
            (Lines{"extend 0:0+2", "verify 0:2+2*[0,1]", "commit 0:2+2*![0,1]", "extend 1:0+3!"}));
}

TEST(Scheduler, the_seed_decides_what_is_accepted) {
  SchedulerOptions options{.chunk = 8, .max_running = 1, .tree = DraftTree({2, 2}), .seed = 1};
  const std::vector<Request> requests{{2, 40}};
  const Lines lines = spell_all(requests, options);
  EXPECT_EQ(lines, spell_all(requests, options));
  options.seed = 2;
  EXPECT_NE(lines, spell_all(requests, options));
}

// Requests 1 and 2 begin as request 0 does, for 10 and for 8 tokens.
const std::vector<Request> kSharing{{11, 0}, {10, 0, 0, 10}, {8, 0, 1, 8}, {9, 0}, {12, 0, 1, 10}};

TEST(Scheduler, prompts_leave_snapshots_that_others_begin_from) {
  const SchedulerOptions options{
      .chunk = 16, .max_running = 1, .prefix_block = 4, .prefix_slots = 9};
  EXPECT_EQ(spell_all(kSharing, options),
            (Lines{"extend 0:0+11!{1,2}", "extend 1:8+2<*!", "extend 2:4+4<*!",
                   "extend 3:0+9!{1,2}", "extend 4:8+4<*!{3}"}))
      << "request 2 has one token left to compute";
}

TEST(Scheduler, snapshots_of_the_same_call_are_not_there_yet) {
  const SchedulerOptions options{
      .chunk = 30, .max_running = 4, .prefix_block = 4, .prefix_slots = 9};
  EXPECT_EQ(spell_all(kSharing, options),
            (Lines{"extend 0:0+11!{1,2} 1:0+10! 2:0+8! 3:0+1", "extend 3:1+8*!{1,2} 4:8+4<*!{3}"}));
}

TEST(Scheduler, snapshots_of_a_cut_prompt_come_with_the_chunk_that_passes_them) {
  const SchedulerOptions options{
      .chunk = 6, .max_running = 1, .prefix_block = 4, .prefix_slots = 9};
  EXPECT_EQ(spell_all({{13, 1}}, options),
            (Lines{"extend 0:0+6{1}", "extend 0:6+6*{2,3}", "extend 0:12+1*", "decode 0:13+1*!"}));
}

TEST(Scheduler, few_slots_hold_the_newest_snapshots) {
  const SchedulerOptions options{
      .chunk = 16, .max_running = 1, .prefix_block = 4, .prefix_slots = 1};
  EXPECT_EQ(spell_all(kSharing, options),
            (Lines{"extend 0:0+11!{1}", "extend 1:4+6<*!", "extend 2:4+4<*!", "extend 3:0+9!{1}",
                   "extend 4:0+12!{1}"}));
}

TEST(Scheduler, no_requests_make_no_calls) { EXPECT_TRUE(all_calls({}, {}).empty()); }

TEST(Scheduler, slots_start_scattered_and_the_last_one_freed_comes_first) {
  const std::vector<Call> calls =
      all_calls({{1, 0}, {1, 4}, {1, 0}, {1, 4}, {1, 0}, {1, 0}}, {.chunk = 8, .max_running = 4});
  std::vector<std::int32_t> first;
  for (const Segment& segment : calls[0].segments) first.push_back(segment.slot);
  EXPECT_FALSE(std::is_sorted(first.begin(), first.end()));
  EXPECT_FALSE(std::is_sorted(first.rbegin(), first.rend()));
  ASSERT_EQ(calls[1].segments.size(), 2u);
  EXPECT_EQ(calls[1].segments[0].slot, first[2]);
  EXPECT_EQ(calls[1].segments[1].slot, first[0]);
}

// What must hold of every stream, whatever the options.
class SchedulerInvariants : public testing::TestWithParam<SchedulerOptions> {
 protected:
  // Lengths with many short and a few long requests, the same in every run.
  static std::vector<Request> requests() {
    std::vector<Request> made;
    Random random(1);
    for (int i = 0; i < 400; ++i) {
      made.push_back({.prompt_tokens = random.between(1, i % 17 == 0 ? 500 : 40),
                      .output_tokens = i % 5 == 0 ? 0 : random.between(0, 59)});
    }
    Workload workload{.source = "", .requests = std::move(made)};
    if (GetParam().prefix_block > 0) share_prompts(0.6, 5, workload);
    return std::move(workload.requests);
  }
};

TEST_P(SchedulerInvariants, every_token_of_every_request_is_scheduled_once_and_in_order) {
  const std::vector<Request> all = requests();
  std::vector<std::int64_t> done(all.size(), 0);
  std::vector<int> finished(all.size(), 0);
  for (const Call& call : all_calls(all, GetParam())) {
    std::int64_t tokens = 0, advanced = 0;
    for (const Segment& segment : call.segments) {
      std::int64_t& at = done[segment.request];
      ASSERT_GT(segment.count, 0);
      ASSERT_EQ(segment.resumed, segment.first_token > 0);
      tokens += segment.count;
      if (segment.begins_from_snapshot()) {
        ASSERT_EQ(at, 0);
        at = segment.first_token;
        advanced += at;
      }
      ASSERT_EQ(segment.first_token, at);
      const bool advances = call.kind == CallKind::kCommit || !segment.is_draft();
      at += advances ? segment.count : 0;
      advanced += advances ? segment.count : 0;
      ASSERT_EQ(segment.finishes, advances && at == all[segment.request].tokens());
      finished[segment.request] += segment.finishes ? 1 : 0;
    }
    ASSERT_EQ(call.tokens, tokens);
    ASSERT_EQ(call.advanced, advanced);
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(done[i], all[i].tokens());
    EXPECT_EQ(finished[i], 1);
  }
}

TEST_P(SchedulerInvariants, a_slot_belongs_to_one_request_from_its_first_to_its_last_token) {
  const SchedulerOptions& options = GetParam();
  std::map<std::int32_t, std::int64_t> owner;
  bool recycled = false;
  std::set<std::int32_t> used;
  for (const Call& call : all_calls(requests(), options)) {
    std::set<std::int32_t> in_call;
    for (const Segment& segment : call.segments) {
      ASSERT_GE(segment.slot, 0);
      ASSERT_LT(segment.slot, options.max_running);
      ASSERT_TRUE(in_call.insert(segment.slot).second) << "slot twice in one call";
      if (segment.resumed && !segment.begins_from_snapshot()) {
        ASSERT_EQ(owner.at(segment.slot), segment.request);
      } else {
        ASSERT_FALSE(owner.contains(segment.slot)) << "slot taken from a live request";
        recycled |= !used.insert(segment.slot).second;
        owner[segment.slot] = segment.request;
      }
    }
    for (const Segment& segment : call.segments) {
      if (segment.finishes) owner.erase(segment.slot);
    }
  }
  EXPECT_TRUE(owner.empty());
  EXPECT_TRUE(recycled);
}

TEST_P(SchedulerInvariants, what_was_verified_is_committed_in_the_next_call) {
  const DraftTree& tree = GetParam().tree;
  const std::vector<std::int32_t> parents = tree.parents();
  std::vector<Segment> verified;
  std::int64_t steps = 0, accepted = 0;
  for (const Call& call : all_calls(requests(), GetParam())) {
    if (call.kind == CallKind::kCommit) {
      ASSERT_EQ(call.segments.size(), verified.size());
      for (std::size_t i = 0; i < verified.size(); ++i) {
        const Segment& drafts = verified[i];
        const Segment& commit = call.segments[i];
        ASSERT_EQ(commit.request, drafts.request);
        ASSERT_EQ(commit.slot, drafts.slot);
        ASSERT_EQ(commit.accepted, drafts.accepted);
        ASSERT_EQ(commit.first_token, drafts.first_token);
        ASSERT_EQ(commit.count, std::ssize(commit.accepted));
      }
      verified.clear();
      continue;
    }
    ASSERT_TRUE(verified.empty()) << "not committed";
    for (const Segment& segment : call.segments) {
      if (!segment.is_draft()) continue;
      ASSERT_EQ(segment.count, tree.rows());
      ASSERT_FALSE(segment.finishes);
      ASSERT_EQ(segment.accepted.front(), 0);
      for (std::size_t i = 1; i < segment.accepted.size(); ++i) {
        ASSERT_EQ(parents.at(segment.accepted[i]), segment.accepted[i - 1]);
      }
      verified.push_back(segment);
      ++steps;
      accepted += std::ssize(segment.accepted);
    }
  }
  EXPECT_TRUE(verified.empty());
  EXPECT_EQ(steps > 0, !tree.empty());
  EXPECT_GE(accepted, steps * 3 / 2);
}

// Whatever is in a slot was written by an earlier call, for a prompt that begins alike.
TEST_P(SchedulerInvariants, snapshots_hold_what_requests_begin_from) {
  const SchedulerOptions& options = GetParam();
  const std::vector<Request> all = requests();
  std::map<std::int32_t, std::pair<std::int64_t, std::int64_t>> held;
  int begun = 0, replaced = 0;
  for (const Call& call : all_calls(all, options)) {
    std::set<std::int32_t> read;
    for (const Segment& segment : call.segments) {
      if (!segment.begins_from_snapshot()) continue;
      const std::int64_t tokens = segment.first_token;
      ASSERT_GE(segment.read_slot, options.max_running);
      ASSERT_EQ(tokens % options.prefix_block, 0);
      ASSERT_LT(tokens, all[segment.request].prompt_tokens);
      const auto [request, length] = held.at(segment.read_slot);
      ASSERT_EQ(length, tokens);
      ASSERT_EQ(request, first_with_prefix(all, segment.request, tokens));
      read.insert(segment.read_slot);
      ++begun;
    }
    for (const Segment& segment : call.segments) {
      for (const Segment::Snapshot& snapshot : segment.snapshots) {
        const std::int64_t tokens = snapshot.blocks * options.prefix_block;
        ASSERT_GT(tokens, segment.first_token);
        ASSERT_LE(tokens, segment.first_token + segment.count);
        ASSERT_LE(tokens, all[segment.request].prompt_tokens);
        ASSERT_GE(snapshot.slot, options.max_running);
        ASSERT_LT(snapshot.slot, options.slots());
        ASSERT_FALSE(read.contains(snapshot.slot)) << "read and written in one call";
        replaced += held.contains(snapshot.slot) ? 1 : 0;
        held[snapshot.slot] = {first_with_prefix(all, segment.request, tokens), tokens};
      }
    }
  }
  EXPECT_EQ(begun > 10, options.prefix_block > 0);
  EXPECT_EQ(replaced > 10, options.prefix_block > 0);
}

TEST_P(SchedulerInvariants, calls_keep_to_their_kind_and_to_the_limits) {
  const SchedulerOptions& options = GetParam();
  const std::vector<Request> all = requests();
  const std::int64_t step =
      options.tree.empty() ? std::max<std::int64_t>(1, options.draft) : options.tree.rows();
  std::set<CallKind> kinds;
  for (const Call& call : all_calls(all, options)) {
    kinds.insert(call.kind);
    if (call.kind == CallKind::kCommit) continue;
    bool saw_step = false;
    bool saw_prompt = false;
    for (const Segment& segment : call.segments) {
      const std::int64_t prompt = all[segment.request].prompt_tokens;
      const bool is_prompt = segment.first_token < prompt;
      if (is_prompt) {
        ASSERT_FALSE(saw_step) << "prompts come first";
        ASSERT_LE(segment.first_token + segment.count, prompt);
      } else {
        ASSERT_EQ(segment.count, segment.finishes ? std::min(step, segment.count) : step);
        ASSERT_LE(segment.count, step);
      }
      (is_prompt ? saw_prompt : saw_step) = true;
    }
    switch (call.kind) {
      case CallKind::kExtend:
        ASSERT_TRUE(saw_prompt && !saw_step);
        break;
      case CallKind::kMixed:
        ASSERT_TRUE(saw_prompt && saw_step && options.mixed);
        break;
      case CallKind::kDecode:
        ASSERT_TRUE(!saw_prompt && options.draft == 0 && options.tree.empty());
        ASSERT_EQ(call.tokens, std::ssize(call.segments));
        break;
      case CallKind::kDraftExtend:
        ASSERT_TRUE(!saw_prompt && options.draft > 0);
        break;
      case CallKind::kVerify:
        ASSERT_TRUE(!saw_prompt && !options.tree.empty());
        break;
      case CallKind::kCommit:
        break;
    }
    if (saw_prompt) {
      ASSERT_LE(call.tokens, options.chunk);
    }
    ASSERT_LE(std::ssize(call.segments), options.max_running);
  }
  EXPECT_TRUE(kinds.contains(CallKind::kExtend));
  EXPECT_EQ(kinds.contains(CallKind::kMixed), options.mixed && options.max_running > 1);
}

TEST_P(SchedulerInvariants, the_stream_is_the_same_every_time) {
  const std::vector<Request> all = requests();
  const std::vector<Call> first = all_calls(all, GetParam());
  const std::vector<Call> second = all_calls(all, GetParam());
  ASSERT_EQ(first.size(), second.size());
  for (std::size_t i = 0; i < first.size(); ++i) {
    ASSERT_EQ(spell(first[i]), spell(second[i]));
    for (std::size_t j = 0; j < first[i].segments.size(); ++j) {
      ASSERT_EQ(first[i].segments[j].slot, second[i].segments[j].slot);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Options, SchedulerInvariants,
    testing::Values(
        SchedulerOptions{.chunk = 64, .max_running = 16},
        SchedulerOptions{.chunk = 7, .max_running = 3},
        SchedulerOptions{.chunk = 8192, .max_running = 256},
        SchedulerOptions{.chunk = 64, .max_running = 1},
        SchedulerOptions{.chunk = 64, .max_running = 16, .mixed = true},
        SchedulerOptions{.chunk = 16, .max_running = 32, .mixed = true},
        SchedulerOptions{.chunk = 64, .max_running = 16, .draft = 4},
        SchedulerOptions{.chunk = 50, .max_running = 20, .draft = 3, .mixed = true},
        SchedulerOptions{.chunk = 64, .max_running = 16, .tree = DraftTree({1, 1, 1})},
        SchedulerOptions{.chunk = 50, .max_running = 12, .tree = DraftTree({2, 3})},
        SchedulerOptions{
            .chunk = 50, .max_running = 12, .mixed = true, .tree = DraftTree({1, 1, 1})},
        SchedulerOptions{.chunk = 64, .max_running = 16, .prefix_block = 8, .prefix_slots = 100},
        SchedulerOptions{
            .chunk = 40, .max_running = 8, .mixed = true, .prefix_block = 4, .prefix_slots = 30},
        SchedulerOptions{.chunk = 64,
                         .max_running = 16,
                         .tree = DraftTree({1, 1}),
                         .prefix_block = 8,
                         .prefix_slots = 100}),
    [](const auto& instance) {
      const SchedulerOptions& options = instance.param;
      return fmt::format("chunk{}_running{}_draft{}_tree{}_prefix{}{}", options.chunk,
                         options.max_running, options.draft, options.tree.rows(),
                         options.prefix_block, options.mixed ? "_mixed" : "");
    });

}  // namespace
}  // namespace shortconv::tools
