// The example of docs/commit.md.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "shortconv/plan.hpp"

int main() {
  using namespace shortconv;
  const std::int64_t layers = 2, sequences = 2, drafts = 3, width = 4, channels = 8, slots = 6;
  const std::int64_t rows = drafts * (width - 1);                   // one state after the other
  std::vector<float> states(layers * sequences * rows * channels);  // verify filled it
  std::vector<float> state(layers * slots * (width - 1) * channels);
  for (std::size_t i = 0; i < states.size(); ++i) states[i] = static_cast<float>(i);

  std::vector<std::int32_t> accepted = {2, 0};        // all three drafts, only the first one
  std::vector<std::int32_t> working_slots = {4, 1};   // where decode continues
  std::vector<std::int32_t> tracked_slots = {5, -1};  // the prefix cache keeps the first one

  CommitArgs args;
  args.intermediate_states =
      TensorRef::contiguous(states.data(), DType::kF32, {layers, sequences, rows, channels});
  args.state =
      TensorRef::contiguous(state.data(), DType::kF32, {layers, slots, width - 1, channels});
  args.accepted = TensorRef::contiguous(accepted.data(), DType::kI32, {sequences});
  args.slots = TensorRef::contiguous(working_slots.data(), DType::kI32, {sequences});
  args.second_slots = TensorRef::contiguous(tracked_slots.data(), DType::kI32, {sequences});
  args.width = width;
  args.rows_per_token = width - 1;

  if (Status status = commit(args); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  const std::int64_t slot = (width - 1) * channels;
  std::printf("slot 4 begins with %.0f, slot 5 with %.0f, slot 1 with %.0f\n", state[4 * slot],
              state[5 * slot], state[1 * slot]);
  const float third = 2.0f * slot, first_of_second = 1.0f * rows * channels;
  return state[4 * slot] == third && state[5 * slot] == third && state[slot] == first_of_second ? 0
                                                                                                : 1;
}
