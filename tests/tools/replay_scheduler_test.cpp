#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

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
// segments and '!' those that finish.
std::string spell(const Call& call) {
  std::string text(name(call.kind));
  for (const Segment& segment : call.segments) {
    text += fmt::format(" {}:{}+{}{}{}", segment.request, segment.first_token, segment.count,
                        segment.resumed ? "*" : "", segment.finishes ? "!" : "");
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
    std::uint64_t state = 12345;
    const auto below = [&state](std::int64_t limit) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      return static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(limit));
    };
    for (int i = 0; i < 400; ++i) {
      made.push_back({.prompt_tokens = 1 + below(i % 17 == 0 ? 500 : 40),
                      .output_tokens = below(i % 5 == 0 ? 1 : 60)});
    }
    return made;
  }
};

TEST_P(SchedulerInvariants, every_token_of_every_request_is_scheduled_once_and_in_order) {
  const std::vector<Request> all = requests();
  std::vector<std::int64_t> done(all.size(), 0);
  std::vector<int> finished(all.size(), 0);
  for (const Call& call : all_calls(all, GetParam())) {
    std::int64_t tokens = 0;
    for (const Segment& segment : call.segments) {
      ASSERT_GT(segment.count, 0);
      ASSERT_EQ(segment.first_token, done[segment.request]);
      ASSERT_EQ(segment.resumed, segment.first_token > 0);
      done[segment.request] += segment.count;
      ASSERT_EQ(segment.finishes, done[segment.request] == all[segment.request].tokens());
      finished[segment.request] += segment.finishes ? 1 : 0;
      tokens += segment.count;
    }
    ASSERT_EQ(call.tokens, tokens);
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
      if (segment.resumed) {
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

TEST_P(SchedulerInvariants, calls_keep_to_their_kind_and_to_the_limits) {
  const SchedulerOptions& options = GetParam();
  const std::vector<Request> all = requests();
  const std::int64_t step = std::max<std::int64_t>(1, options.draft);
  std::set<CallKind> kinds;
  for (const Call& call : all_calls(all, options)) {
    kinds.insert(call.kind);
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
        ASSERT_TRUE(!saw_prompt && options.draft == 0);
        ASSERT_EQ(call.tokens, std::ssize(call.segments));
        break;
      case CallKind::kDraftExtend:
        ASSERT_TRUE(!saw_prompt && options.draft > 0);
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
    testing::Values(SchedulerOptions{.chunk = 64, .max_running = 16},
                    SchedulerOptions{.chunk = 7, .max_running = 3},
                    SchedulerOptions{.chunk = 8192, .max_running = 256},
                    SchedulerOptions{.chunk = 64, .max_running = 1},
                    SchedulerOptions{.chunk = 64, .max_running = 16, .mixed = true},
                    SchedulerOptions{.chunk = 16, .max_running = 32, .mixed = true},
                    SchedulerOptions{.chunk = 64, .max_running = 16, .draft = 4},
                    SchedulerOptions{.chunk = 50, .max_running = 20, .draft = 3, .mixed = true}),
    [](const auto& instance) {
      const SchedulerOptions& options = instance.param;
      return fmt::format("chunk{}_running{}_draft{}{}", options.chunk, options.max_running,
                         options.draft, options.mixed ? "_mixed" : "");
    });

}  // namespace
}  // namespace shortconv::tools
