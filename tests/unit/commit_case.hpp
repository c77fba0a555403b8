// One commit with everything that may be chosen about it, in host memory with guard bands, and what
// it is to do, worked out from the header's words alone. Shared with the tests on a GPU.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "../common/guarded_tensor.hpp"
#include "common/random.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {

enum class WindowForm { kDense, kOverlapping, kPacked, kPackedWindows };

struct CommitCase {
  WindowForm form = WindowForm::kDense;
  PoolLayout windows_layout = PoolLayout::kChannelInnermost;
  PoolLayout state_layout = PoolLayout::kChannelInnermost;
  DType dtype = DType::kF32;
  DType index_dtype = DType::kI32;
  bool strided_indices = false;
  std::int32_t width = 4;
  std::int64_t layers = 2, channels = 16, slots = 13;
  std::int64_t extra_columns = 0, base_column = 0;
  std::int64_t draft_tokens = 4;  // of each sequence of the dense forms
  bool has_slots = true, has_second_slots = true;
  std::optional<std::int64_t> null_slot = 1;

  // Sequence by sequence: all well; short; none when packed; nothing accepted; no slot, but a
  // second one; accepted behind its sequence; null slot; slot outside, second one null; the same
  // slot twice.
  std::vector<std::int64_t> bounds = {0, 3, 4, 4, 6, 10, 12, 14, 15, 18};
  std::vector<std::int64_t> accepted = {2, 0, 0, -1, 3, 4, 1, 0, 1};
  std::vector<std::int64_t> slot = {5, 0, 2, 6, -1, 4, 1, 1000000, 12};
  std::vector<std::int64_t> second_slot = {-1, 7, 3, 8, 9, 10, 11, 1, 12};

  [[nodiscard]] bool packed() const {
    return form == WindowForm::kPacked || form == WindowForm::kPackedWindows;
  }
  [[nodiscard]] std::int64_t sequences() const {
    return static_cast<std::int64_t>(accepted.size());
  }
  [[nodiscard]] std::int32_t rows_per_token() const {
    return form == WindowForm::kOverlapping ? 1 : width - 1;
  }
  [[nodiscard]] std::int64_t packed_tokens() const { return 18; }

  [[nodiscard]] GuardedTensor make_windows() const {
    const std::int64_t rows = width - 1;
    std::vector<std::int64_t> shape;
    if (form == WindowForm::kPackedWindows) {
      shape = {layers, packed_tokens(), rows, channels};
    } else if (form == WindowForm::kPacked) {
      shape = {layers, packed_tokens() * rows, channels};
    } else {
      shape = {layers, sequences(), (draft_tokens - 1) * rows_per_token() + rows, channels};
    }
    GuardedTensor windows(dtype, shape, windows_layout);
    tools::Random random(1);
    for (std::uint8_t& byte : windows.memory) byte = static_cast<std::uint8_t>(random.next());
    return windows;
  }
  [[nodiscard]] GuardedTensor make_state() const {
    return {dtype, {layers, slots, width - 1 + extra_columns, channels}, state_layout};
  }

  /// The pool after the commit: one loop for each index of the definition.
  void expect(GuardedTensor& windows, GuardedTensor& state) const {
    const auto live = [&](std::int64_t s) { return s >= 0 && s < slots && s != null_slot; };
    for (std::int64_t s = 0; s < sequences(); ++s) {
      std::int64_t begin = 0, end = draft_tokens;
      if (packed()) {
        begin = std::min(std::max<std::int64_t>(bounds[s], 0), packed_tokens());
        end = std::min(std::max<std::int64_t>(bounds[s + 1], 0), packed_tokens());
      }
      if (accepted[s] < 0 || accepted[s] >= end - begin) continue;
      std::vector<std::int64_t> to{has_slots ? slot[s] : s};
      if (has_second_slots) to.push_back(second_slot[s]);
      for (const std::int64_t target : to) {
        if (!live(target)) continue;
        for (std::int64_t layer = 0; layer < layers; ++layer) {
          for (std::int64_t k = 0; k < width - 1; ++k) {
            for (std::int64_t c = 0; c < channels; ++c) {
              const std::int64_t token = begin + accepted[s];
              const std::int64_t row = token * rows_per_token() + k;
              const std::uint8_t* from =
                  form == WindowForm::kPackedWindows ? windows.element({layer, token, k, c})
                  : form == WindowForm::kPacked      ? windows.element({layer, row, c})
                                                     : windows.element({layer, s, row, c});
              std::memcpy(state.element({layer, target, base_column + k, c}), from,
                          static_cast<std::size_t>(element_bytes(dtype)));
            }
          }
        }
      }
    }
  }

  [[nodiscard]] std::string text() const {
    return "form " + std::to_string(static_cast<int>(form)) + ", windows layout " +
           std::to_string(static_cast<int>(windows_layout)) + ", state layout " +
           std::to_string(static_cast<int>(state_layout)) + ", dtype " +
           std::to_string(static_cast<int>(dtype)) + ", width " + std::to_string(width) +
           ", channels " + std::to_string(channels);
  }
};

/// The tensors of a case, and its arguments in whatever memory they were copied to.
struct CommitBuffers {
  GuardedTensor windows, state, accepted, slots, second_slots, bounds;

  explicit CommitBuffers(const CommitCase& c)
      : windows(c.make_windows()),
        state(c.make_state()),
        accepted(index_tensor(c.accepted, c.index_dtype, c.strided_indices)),
        slots(index_tensor(c.slot, c.index_dtype, c.strided_indices)),
        second_slots(index_tensor(c.second_slot, c.index_dtype, c.strided_indices)),
        bounds(index_tensor(c.bounds, c.index_dtype, c.strided_indices)) {}

  [[nodiscard]] std::array<GuardedTensor*, 6> all() {
    return {&windows, &state, &accepted, &slots, &second_slots, &bounds};
  }

  /// `bases`: where the memory of each of all() lies.
  [[nodiscard]] CommitArgs args(const CommitCase& c, const std::array<void*, 6>& bases,
                                Device device = {}) const {
    CommitArgs args;
    args.intermediate_states = windows.at(bases[0], device);
    args.state = state.at(bases[1], device);
    args.accepted = accepted.at(bases[2], device);
    if (c.has_slots) args.slots = slots.at(bases[3], device);
    if (c.has_second_slots) args.second_slots = second_slots.at(bases[4], device);
    if (c.packed()) args.query_start_loc = bounds.at(bases[5], device);
    args.width = c.width;
    args.rows_per_token = c.rows_per_token();
    args.base_column = c.base_column;
    args.null_slot = c.null_slot;
    return args;
  }
  [[nodiscard]] CommitArgs host_args(const CommitCase& c) {
    std::array<void*, 6> bases{};
    for (std::size_t i = 0; i < bases.size(); ++i) bases[i] = all()[i]->memory.data();
    return args(c, bases);
  }
};

/// Calls `use` with cases of every form and pair of layouts.
template <typename Use>
void for_each_layout(CommitCase c, Use&& use) {
  for (const WindowForm form : {WindowForm::kDense, WindowForm::kOverlapping, WindowForm::kPacked,
                                WindowForm::kPackedWindows}) {
    for (const PoolLayout windows :
         {PoolLayout::kChannelInnermost, PoolLayout::kWindowInnermost, PoolLayout::kStrided}) {
      for (const PoolLayout state :
           {PoolLayout::kChannelInnermost, PoolLayout::kWindowInnermost, PoolLayout::kStrided}) {
        c.form = form;
        c.windows_layout = windows;
        c.state_layout = state;
        use(c);
      }
    }
  }
}

}  // namespace shortconv
