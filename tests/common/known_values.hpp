// A known value for every enumerator of the arguments, on every backend. The switches have no
// default: an enumerator without an answer here does not compile.
#pragma once

#include <cmath>

#include "defects.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv::test {

struct KnownActivation {
  float x;
  double silu;  // x / (1 + exp(-x)), 15 digits
};
inline constexpr KnownActivation kKnownActivations[] = {
    {-2.0f, -0.238405844044235},     {0.0f, 0.0},
    {1.0f, 0.731058578630005},       {3.0f, 2.857722380239140},
    {-80.0f, -1.44388110127623e-33},
};

inline double known(Activation activation, const KnownActivation& row) {
  switch (activation) {
    case Activation::kNone:
      return row.x;
    case Activation::kSilu:
      return row.silu;
  }
  return NAN;
}

inline double known(Epilogue epilogue, double activated, double input, double gate) {
  switch (epilogue) {
    case Epilogue::kNone:
      return activated;
    case Epilogue::kResidual:
      return activated + input;
    case Epilogue::kOutputGate:
      return activated * gate;
  }
  return NAN;
}

inline float known(PaddedRows padded_rows, float input) {
  switch (padded_rows) {
    case PaddedRows::kZero:
      return 0.0f;
    case PaddedRows::kUntouched:
      return kPoison;
    case PaddedRows::kCopy:
      return input;
  }
  return NAN;
}

/// Whether the second of two sequences, which alone has a flag, continues from its state; and the
/// first.
inline bool continues(InitialState initial_state, bool flag) {
  switch (initial_state) {
    case InitialState::kNone:
      return false;
    case InitialState::kAll:
      return true;
    case InitialState::kByFlag:
      return flag;
  }
  return false;
}

inline ForwardArgs with_schedule(ForwardArgs args, Schedule schedule, BlockList& list,
                                 const std::vector<std::int64_t>& lengths) {
  args.options.schedule = schedule;
  switch (schedule) {
    case Schedule::kFlat:
      break;
    case Schedule::kBlockList: {
      const Status status = plan_block_list(lengths, list);
      EXPECT_TRUE(status.ok()) << status.message();
      const auto blocks = static_cast<std::int64_t>(list.sequence.size());
      args.options.block_sequence =
          TensorRef::contiguous(list.sequence.data(), DType::kI32, {blocks});
      args.options.block_offset = TensorRef::contiguous(list.offset.data(), DType::kI32, {blocks});
      break;
    }
    case Schedule::kSequenceGrid:
      args.options.max_seqlen = *std::max_element(lengths.begin(), lengths.end());
      break;
  }
  return args;
}

TEST_P(Defects, EveryActivationAndEpilogueHasItsKnownValues) {
  const auto rows = static_cast<std::int32_t>(std::size(kKnownActivations));
  for (const auto& [activation, activation_name] : capabilities().activations) {
    for (const auto& [epilogue, epilogue_name] : capabilities().epilogues) {
      Call call = make({0, rows});
      call.state.clear();
      std::fill(call.weight.begin(), call.weight.end(), 0.0f);
      for (std::int64_t c = 0; c < call.channels; ++c) {
        call.weight[static_cast<std::size_t>((c + 1) * call.width - 1)] = 1.0f;
        for (std::int32_t row = 0; row < rows; ++row) call.x_at(row, c) = kKnownActivations[row].x;
      }
      std::vector<float> gate(call.x.size(), 0.5f);
      ForwardArgs args = call.fill();
      args.epilogue.activation = activation;
      args.epilogue.residual = epilogue == Epilogue::kResidual;
      if (epilogue == Epilogue::kOutputGate) {
        args.epilogue.output_gate =
            TensorRef::contiguous(gate.data(), DType::kF32, {call.tokens, call.channels});
      }
      run(args);
      for (std::int32_t row = 0; row < rows; ++row) {
        const KnownActivation& of = kKnownActivations[row];
        const double expected = known(epilogue, known(activation, of), of.x, 0.5);
        for (std::int64_t c = 0; c < call.channels; ++c) {
          ASSERT_NEAR(call.out_at(row, c), expected, 1e-6 * std::abs(expected))
              << activation_name << ", " << epilogue_name << ", x = " << of.x;
        }
      }
    }
  }
}

TEST_P(Defects, EveryPolicyForPaddedRowsHasItsKnownValues) {
  for (const auto& [padded_rows, name] : capabilities().padded_rows) {
    Call call = make({1, 3}, {}, 4);  // rows 0 and 3 belong to no sequence
    ForwardArgs args = call.fill();
    args.sequences.padded_rows = padded_rows;
    run(args);
    for (std::int64_t c = 0; c < call.channels; ++c) {
      for (const std::int64_t row : {0, 3}) {
        ASSERT_EQ(call.out_at(row, c), known(padded_rows, call.x_at(row, c))) << name;
      }
    }
  }
}

TEST_P(Defects, EveryInitialStateHasItsKnownValues) {
  for (const auto initial_state :
       {InitialState::kNone, InitialState::kAll, InitialState::kByFlag}) {
    Call call = make({0, 2, 4});
    if (initial_state == InitialState::kByFlag) call.flags = {0, 1};
    const Call before = call;
    Call expected = before;
    ForwardArgs args = call.fill();
    args.sequences.initial_state = initial_state;
    run(args);
    for (std::int64_t s = 0; s < 2; ++s) {
      const std::int64_t slot = continues(initial_state, s == 1) ? s : -1;
      const Line line{.call = expected, .begin = 2 * s, .slot = slot};
      for (std::int64_t c = 0; c < call.channels; ++c) {
        ASSERT_EQ(call.out_at(2 * s, c), line.output(0, c)) << "sequence " << s;
      }
    }
  }
}

TEST_P(Defects, EveryScheduleGivesTheSameValues) {
  const std::vector<std::int64_t> lengths = {3, 20, 1};
  std::vector<float> flat;
  for (const auto& [schedule, name] : capabilities().schedules) {
    Call call = make({0, 3, 23, 24});
    BlockList list;
    run(with_schedule(call.fill(), schedule, list, lengths));
    if (schedule == Schedule::kFlat) flat = call.out;
    ASSERT_EQ(call.out, flat) << name;
    ASSERT_EQ(std::count(flat.begin(), flat.end(), kPoison), 0);
  }
}

}  // namespace shortconv::test
