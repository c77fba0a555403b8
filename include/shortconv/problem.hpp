// A call without its addresses: what decides a kernel and stays the same from call to call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "shortconv/arguments.hpp"
#include "shortconv/export.h"
#include "shortconv/status.hpp"

namespace shortconv {

/// Elements from one index of an axis to the next.
template <Axis>
struct Stride;
template <>
struct Stride<Axis::kLayer> {
  std::int64_t layer_stride = 0;
  static constexpr auto kMember = &Stride::layer_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};
template <>
struct Stride<Axis::kSequence> {
  std::int64_t sequence_stride = 0;
  static constexpr auto kMember = &Stride::sequence_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};
template <>
struct Stride<Axis::kSlot> {
  std::int64_t slot_stride = 0;
  static constexpr auto kMember = &Stride::slot_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};
template <>
struct Stride<Axis::kEntry> {
  std::int64_t entry_stride = 0;
  static constexpr auto kMember = &Stride::entry_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};
template <>
struct Stride<Axis::kToken> {
  std::int64_t token_stride = 0;
  static constexpr auto kMember = &Stride::token_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};
template <>
struct Stride<Axis::kColumn> {
  std::int64_t column_stride = 0;
  static constexpr auto kMember = &Stride::column_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};
template <>
struct Stride<Axis::kTap> {
  std::int64_t tap_stride = 0;
  static constexpr auto kMember = &Stride::tap_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};
template <>
struct Stride<Axis::kHead> {
  std::int64_t head_stride = 0;
  static constexpr auto kMember = &Stride::head_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};
template <>
struct Stride<Axis::kChannel> {
  std::int64_t channel_stride = 0;
  static constexpr auto kMember = &Stride::channel_stride;
  friend bool operator==(const Stride&, const Stride&) = default;
};

/// Dtype and strides of a tensor argument. The stride of an absent leading axis is 0.
template <Axis... kAxes>
struct TensorLayout : Stride<kAxes>... {
  DType dtype{};  ///< 0 if absent
  bool present = false;
  bool has_elements = false;  ///< then its address must not be null

  friend bool operator==(const TensorLayout&, const TensorLayout&) = default;
};

/// Made by make_problem; hashable, comparable, printable.
struct Problem : ForwardTensors<TensorLayout> {
  Op op = Op::kForward;
  BackendId backend = BackendId::kAuto;
  Device device;

  Activation activation = Activation::kNone;
  Epilogue epilogue = Epilogue::kNone;
  PaddedRows padded_rows = PaddedRows::kZero;
  InitialState initial_state = InitialState::kNone;
  Schedule schedule = Schedule::kFlat;

  bool has_null_slot = false;
  bool writes_state = false;  ///< final states are written
  bool in_place = false;
  bool programmatic_launch = false;

  std::int32_t width = 0;
  std::int32_t dilation = 1;
  std::int32_t threads = 0;

  std::int64_t tokens = 0;  ///< rows of x
  std::int64_t channels = 0;
  std::int64_t sequences = 0;
  std::int64_t sequence_tokens = 0;  ///< dense batches: tokens of each sequence; packed rows: 0
  std::int64_t slots = 0;
  std::int64_t state_columns = 0;
  std::int64_t base_column = 0;
  std::int64_t shifted_columns = 0;  ///< columns before base_column that shift with the history
  std::int64_t null_slot = 0;
  std::int64_t max_seqlen = 0;
  std::int64_t block_count = 0;              ///< entries of block_sequence
  std::int64_t snapshot_count = 0;           ///< rows of snapshots
  std::int64_t intermediate_slot_count = 0;  ///< with intermediate_slots: number of slots,
  std::int64_t intermediate_tokens = 0;      ///< and of tokens in each

  friend bool operator==(const Problem&, const Problem&) = default;
};

/// Checks the arguments against the specification and against each other. All errors that can be
/// found without a device are found here; `problem` is left unchanged then.
SHORTCONV_API Status make_problem(const ForwardArgs& args, Problem& problem);

SHORTCONV_API std::size_t hash(const Problem& problem);

/// One line with the fields that differ from their defaults.
SHORTCONV_API std::string to_string(const Problem& problem);

/// A commit without its addresses. intermediate_states and state have one dtype.
struct CommitProblem : CommitTensors<TensorLayout> {
  BackendId backend = BackendId::kAuto;
  Device device;

  bool has_null_slot = false;

  std::int32_t width = 0;
  std::int32_t threads = 0;

  std::int64_t layers = 0;
  std::int64_t sequences = 0;
  std::int64_t tokens = 0;  ///< with intermediate states: of each sequence; packed: in all
  std::int64_t channels = 0;
  std::int64_t slot_count = 0;
  std::int64_t state_columns = 0;
  std::int64_t base_column = 0;
  std::int64_t null_slot = 0;

  friend bool operator==(const CommitProblem&, const CommitProblem&) = default;
};

/// As make_problem.
[[nodiscard]] SHORTCONV_API Status make_problem(const CommitArgs& args, CommitProblem& problem);

/// A backward call without its addresses.
struct BackwardProblem : BackwardTensors<TensorLayout> {
  BackendId backend = BackendId::kAuto;
  Device device;

  Activation activation = Activation::kNone;
  Epilogue epilogue = Epilogue::kNone;
  bool accumulate = false;

  std::int32_t width = 0;
  std::int32_t dilation = 1;
  std::int32_t threads = 0;

  std::int64_t tokens = 0;  ///< rows of x
  std::int64_t channels = 0;
  std::int64_t sequences = 0;
  std::int64_t sequence_tokens = 0;  ///< dense batches: tokens of each sequence; packed rows: 0

  friend bool operator==(const BackwardProblem&, const BackwardProblem&) = default;
};

/// As make_problem.
[[nodiscard]] SHORTCONV_API Status make_problem(const BackwardArgs& args, BackwardProblem& problem);

/// As to_string.
SHORTCONV_API std::string to_string(const BackwardProblem& problem);

}  // namespace shortconv
