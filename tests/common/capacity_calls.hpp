// Calls as an engine replays them: buffers of a capacity and what runs on them are made once, and
// each later call of the kind copies its rows, bounds, slots and flags there first.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "shortconv/argument_table.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::test {

class CapacityCalls {
 public:
  using Allocate = std::function<void*(std::size_t)>;
  /// Runs the plan on these addresses, as often as it is called, and waits.
  using Replay = std::function<Status()>;
  using MakeReplay = std::function<Replay(const Plan&, const TensorPointers&)>;

  CapacityCalls(Allocate allocate, MakeReplay make_replay)
      : allocate_(std::move(allocate)), make_replay_(std::move(make_replay)) {}

  /// Packed calls and decodes of up to the capacity, with contiguous tensors.
  [[nodiscard]] static bool takes(const ForwardArgs& args) {
    return (args.sequences.query_start_loc || args.op == Op::kDecode) &&
           args.pool.state.has_value() && rows_of(args) <= capacity_of(args) &&
           sequences_of(args) <= kSequences &&
           (!args.pool.snapshots || args.pool.snapshots->shape[0] <= kSnapshots);
  }

  Status run(const ForwardArgs& args) {
    const auto [found, is_first] = kinds_.try_emplace(kind_of(args));
    Kind& kind = found->second;
    if (is_first) make(args, kind);
    replays_ += is_first ? 0 : 1;
    load(args, kind.args);
    const Status status = kind.replay();
    if (!status.ok()) return status;
    expect_zeros_behind(args, kind.args);
    copy(args.out, kind.args.out, rows_of(args));
    if (args.drafts.intermediate_states && !in_pool(args)) {
      const std::int64_t extent = args.drafts.intermediate_states->shape[0];
      copy(*args.drafts.intermediate_states, *kind.args.drafts.intermediate_states, extent);
    }
    return {};
  }

  /// How many calls found everything made.
  [[nodiscard]] int replays() const { return replays_; }

 private:
  static constexpr std::int64_t kTokens = 128, kSequences = 16, kSnapshots = 16;

  struct Kind {
    ForwardArgs args;  // of the capacity
    Replay replay;
  };

  /// Calls visit(member, entries) with each index tensor and its number of entries, the members of
  /// several arguments at once.
  template <typename Visit, typename... Args>
  static void for_each_list(const Visit& visit, Args&... args) {
    const auto pass_lists = [&](const Argument& row, auto&... tensors) {
      if (row.sizes[0] == Size::kSequencesPlusOne) visit(kSequences + 1, tensors...);
      if (row.is_per_sequence()) visit(kSequences, tensors...);
      if (row.sizes[0] == Size::kSnapshots) visit(kSnapshots, tensors...);
    };
    visit_sequence_tensors(pass_lists, args.sequences...);
    visit_pool_tensors(pass_lists, args.pool...);
    visit_draft_tensors(pass_lists, args.drafts...);
  }
  static std::int64_t rows_of(const ForwardArgs& args) { return args.x.shape[0]; }
  static std::int64_t capacity_of(const ForwardArgs& args) {
    return args.op == Op::kDecode ? kSequences : kTokens;
  }
  static std::int64_t sequences_of(const ForwardArgs& args) {
    return args.sequences.query_start_loc ? args.sequences.query_start_loc->shape[0] - 1
                                          : rows_of(args);
  }
  static bool in_pool(const ForwardArgs& args) {
    const auto* windows = static_cast<const char*>(args.drafts.intermediate_states->data);
    const auto* pool = static_cast<const char*>(args.pool.state->data);
    return windows >= pool &&
           windows < pool + bytes_of(*args.pool.state, args.pool.state->shape[0]);
  }
  static std::int64_t bytes_of(const TensorRef& tensor, std::int64_t extent) {
    return extent * tensor.strides[0] * element_bytes(tensor.dtype);
  }
  /// The first `extent` entries of the first axis, which is the outermost.
  static void copy(const TensorRef& to, const TensorRef& from, std::int64_t extent) {
    std::memcpy(to.data, from.data, static_cast<std::size_t>(bytes_of(from, extent)));
  }

  /// What two calls have to share for one graph.
  static std::vector<std::int64_t> kind_of(const ForwardArgs& args) {
    std::vector<std::int64_t> kind{static_cast<std::int64_t>(args.op), args.x.data == args.out.data,
                                   args.drafts.update_state};
    for_each_list([&](std::int64_t, const auto& list) { kind.push_back(list.has_value()); }, args);
    kind.push_back(args.drafts.intermediate_states
                       ? args.drafts.intermediate_states->ndim + 8 * in_pool(args)
                       : 0);
    if (args.drafts.intermediate_states)
      kind.insert(kind.end(), args.drafts.intermediate_states->strides,
                  args.drafts.intermediate_states->strides + 2);
    return kind;
  }

  void make(const ForwardArgs& args, Kind& kind) {
    kind.args = args;
    const auto enlarge = [&](TensorRef& tensor, std::int64_t extent) {
      tensor.shape[0] = extent;
      tensor.data = allocate_(static_cast<std::size_t>(bytes_of(tensor, extent)));
    };
    enlarge(kind.args.x, capacity_of(args));
    enlarge(kind.args.out, capacity_of(args));
    if (args.x.data == args.out.data) kind.args.out = kind.args.x;
    for_each_list(
        [&](std::int64_t entries, auto& list) {
          if (list) enlarge(*list, entries);
        },
        kind.args);
    if (args.drafts.intermediate_states && !in_pool(args)) {
      enlarge(*kind.args.drafts.intermediate_states,
              args.drafts.intermediate_slots ? kSequences : kTokens);
    }
    Problem problem;
    Plan plan;
    const Status described = make_problem(kind.args, problem);
    EXPECT_TRUE(described.ok()) << described.message();
    const Status planned = make_plan(problem, plan);
    EXPECT_TRUE(planned.ok()) << planned.message();
    kind.replay = make_replay_(plan, pointers(kind.args));
  }

  /// The sequences and rows beyond those of the call are padding, NaN and slots below 0.
  void load(const ForwardArgs& args, ForwardArgs& made) {
    const auto fill = [](const TensorRef& to, const TensorRef& from) {
      std::memset(to.data, 0xff, static_cast<std::size_t>(bytes_of(to, to.shape[0])));
      copy(to, from, from.shape[0]);
    };
    std::memset(made.out.data, 0xff, static_cast<std::size_t>(bytes_of(made.out, rows_of(made))));
    fill(made.x, args.x);
    if (args.drafts.intermediate_states && !in_pool(args))
      fill(*made.drafts.intermediate_states, *args.drafts.intermediate_states);
    for_each_list(
        [&](std::int64_t, const auto& from, auto& to) {
          if (from) fill(*to, *from);
        },
        args, made);
    if (!args.sequences.query_start_loc) return;
    auto* bounds = static_cast<std::int64_t*>(made.sequences.query_start_loc->data);
    std::fill(bounds + sequences_of(args) + 1, bounds + kSequences + 1, rows_of(args));
  }

  static void expect_zeros_behind(const ForwardArgs& args, const ForwardArgs& made) {
    const auto* bytes = static_cast<const char*>(made.out.data);
    const bool zeros =
        std::all_of(bytes + bytes_of(made.out, rows_of(args)),
                    bytes + bytes_of(made.out, rows_of(made)), [](char byte) { return byte == 0; });
    EXPECT_TRUE(zeros) << "rows behind the last sequence";
  }

  Allocate allocate_;
  MakeReplay make_replay_;
  std::map<std::vector<std::int64_t>, Kind> kinds_;
  int replays_ = 0;
};

}  // namespace shortconv::test
