// What the tests of known defects share. Each test is about something that an implementation of
// this operator, or the code of an engine around one, once did wrong; it fails on that behaviour.
// Calls are small fp32 ones whose sums are exact, so that every value can be compared as it is.
// They run on the host's backends (tests/unit/defects_test.cpp) and, copied there and back, on a
// GPU (tests/gpu/defects_test.cu).
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "../unit/call.hpp"
#include "core/capability.hpp"
#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::test {

/// Where calls over host memory run.
struct Machine {
  std::string name;
  std::function<Status(const ForwardArgs&)> forward;
  std::function<Status(const CommitArgs&)> commit;
  bool available = true;
};
inline void PrintTo(const Machine& machine, std::ostream* out) { *out << machine.name; }

/// Whole vectors of any backend, and some channels that fill none on a CPU.
inline constexpr std::int64_t kChannels = 40;

struct Shape {
  std::int64_t channels = kChannels;
  std::int64_t width = 4;
  std::int64_t slots = 4;
  std::int64_t columns = 0;  // 0: width - 1
};

/// The inputs of one sequence of a call by number: its rows from 0, and below what came before.
/// Made of the call as it was before it ran.
struct Line {
  Call& call;
  std::int64_t begin = 0;  // its first row
  std::int64_t slot = -1;  // of the history; -1: zeros
  std::int64_t base = 0;   // first column of the history there

  [[nodiscard]] float input(std::int64_t number, std::int64_t c) const {
    if (number >= 0) return call.x_at(begin + number, c);
    return slot < 0 ? 0.0f : call.state_at(slot, base + call.width - 1 + number, c);
  }
  [[nodiscard]] float output(std::int64_t token, std::int64_t c) const {
    double sum = 0;
    for (std::int64_t tap = 0; tap < call.width; ++tap) {
      sum += call.weight[static_cast<std::size_t>(c * call.width + tap)] *
             static_cast<double>(input(token - (call.width - 1) + tap, c));
    }
    return static_cast<float>(sum);
  }
};

class Defects : public testing::TestWithParam<Machine> {
 protected:
  void SetUp() override {
    if (!GetParam().available) GTEST_SKIP() << "there is no GPU";
  }

  static Call make(std::vector<std::int32_t> bounds, Shape shape = {}, std::int64_t rows = -1) {
    Call call(std::move(bounds), rows);
    call.channels = shape.channels;
    call.width = shape.width;
    call.slots = shape.slots;
    call.columns = shape.columns > 0 ? shape.columns : shape.width - 1;
    call.resize(call.tokens);
    return call;
  }

  static void run(const ForwardArgs& args) {
    const Status status = GetParam().forward(args);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  static void run(Call& call) { run(call.fill()); }
  /// Another kind of call on the tensors of `call`, which has as many tokens as sequences.
  static void decode(Call& call) {
    ForwardArgs args = call.fill();
    args.op = Op::kDecode;
    args.sequences.query_start_loc.reset();
    args.sequences.has_initial_state.reset();
    run(args);
  }
  static void take(Call& call, std::vector<std::int32_t>& snapshots) {
    const auto rows = static_cast<std::int64_t>(snapshots.size()) / 3;
    call.args.pool.snapshots = TensorRef::contiguous(snapshots.data(), DType::kI32, {rows, 3});
  }

  static void expect_rows(Call& call, const Line& line, std::int64_t tokens) {
    for (std::int64_t token = 0; token < tokens; ++token) {
      for (std::int64_t c = 0; c < call.channels; ++c) {
        ASSERT_EQ(call.out_at(line.begin + token, c), line.output(token, c))
            << "token " << token << " from row " << line.begin << ", channel " << c << ", width "
            << call.width;
      }
    }
  }
  /// The slot holds the inputs before token `end` of the line.
  static void expect_state(Call& call, std::int64_t slot, const Line& line, std::int64_t end,
                           std::int64_t base = 0) {
    for (std::int64_t k = 0; k < call.width - 1; ++k) {
      for (std::int64_t c = 0; c < call.channels; ++c) {
        ASSERT_EQ(call.state_at(slot, base + k, c), line.input(end - (call.width - 1) + k, c))
            << "slot " << slot << ", column " << base + k << ", channel " << c << ", width "
            << call.width;
      }
    }
  }
  static void expect_untouched(Call& call, Call& old, std::int64_t slot) {
    for (std::int64_t column = 0; column < call.columns; ++column) {
      for (std::int64_t c = 0; c < call.channels; ++c) {
        ASSERT_EQ(call.state_at(slot, column, c), old.state_at(slot, column, c))
            << "slot " << slot << ", column " << column << ", channel " << c;
      }
    }
  }
  static void expect_value(Call& call, std::int64_t row, float value) {
    for (std::int64_t c = 0; c < call.channels; ++c) {
      ASSERT_EQ(call.out_at(row, c), value) << "row " << row << ", channel " << c;
    }
  }

  /// Widths of the list and some of the general path.
  static std::vector<std::int64_t> widths() {
    std::vector<std::int64_t> widths(kWidths.all.begin(), kWidths.all.end());
    widths.insert(widths.end(), {9, 12, kMaxWidth});
    return widths;
  }
};

}  // namespace shortconv::test
