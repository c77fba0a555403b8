// A random problem, as plain values that can be printed and changed. No memory: see buffers.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shortconv/problem.hpp"
#include "verify/layout.hpp"

namespace shortconv::tools::verify {

enum class Layout { kTokenMajor, kChannelMajor, kStrided };

/// Where a verify call leaves its windows.
enum class WindowsKind {
  kNone,
  kRows,              // of each row of x
  kOverlapping,       // the same of a dense chain, in tokens + width - 2 columns
  kSlots,             // by intermediate_slots
  kOverlappingSlots,  // both
  kPool,              // by intermediate_slots in the pool's own columns; no memory of their own
};

/// A row of the list of snapshots.
struct SnapshotRow {
  std::int64_t sequence, token, slot;
};

struct Case {
  std::uint64_t seed = 0;

  Op op = Op::kForward;
  int width = 4;
  int dilation = 1;
  Activation activation = Activation::kNone;
  Epilogue epilogue = Epilogue::kNone;
  PaddedRows padded_rows = PaddedRows::kZero;
  InitialState initial_state = InitialState::kNone;
  Schedule schedule = Schedule::kFlat;
  std::int64_t max_seqlen = 0;
  int threads = 1;
  bool in_place = false;  // x is out as well; `out` has no memory of its own

  Layout layout = Layout::kTokenMajor;  // of x
  TensorSpec x, out, weight;
  std::optional<TensorSpec> bias, state;
  std::optional<TensorSpec> input_gate, output_gate;
  std::int64_t base_column = 0;
  bool shift_full_state = false;
  std::optional<std::int64_t> null_slot;
  std::optional<IndexTensor> query_start_loc, read_slots, write_slots, read_offsets;
  std::optional<IndexTensor> has_initial_state, cache_seqlens, snapshots, seq_idx;

  // kVerify only.
  bool update_state = false;
  WindowsKind windows_kind = WindowsKind::kNone;
  std::optional<TensorSpec> windows;
  std::optional<IndexTensor> parents, intermediate_slots;

  std::optional<TensorSpec> violations;

  std::vector<std::int64_t> starts;  // first row of each sequence, and the end of the last

  double x_scale = 1;
  int special_period = 0;  // one in so many inputs is NaN or infinite; 0 = none

  [[nodiscard]] std::int64_t rows() const;
  [[nodiscard]] std::int64_t history() const { return std::int64_t{width - 1} * dilation; }
  /// Columns before the history that move along with it.
  [[nodiscard]] std::int64_t older() const { return shift_full_state ? base_column : 0; }
  [[nodiscard]] std::int64_t channels() const { return x.shape.back(); }
  [[nodiscard]] std::int64_t sequences() const {
    return static_cast<std::int64_t>(starts.size()) - 1;
  }
  [[nodiscard]] std::int64_t length(std::int64_t sequence) const;
  [[nodiscard]] std::int64_t slots() const { return state ? state->shape[0] : 0; }
  [[nodiscard]] std::int64_t read_slot(std::int64_t sequence) const;
  /// -1 where a verify call keeps no state.
  [[nodiscard]] std::int64_t write_slot(std::int64_t sequence) const;
  [[nodiscard]] bool writes_state() const {
    return op == Op::kVerify ? write_slots || update_state : !seq_idx;
  }
  /// Columns to skip when reading, clamped to the pool.
  [[nodiscard]] std::int64_t read_offset(std::int64_t sequence) const;
  [[nodiscard]] bool resumed(std::int64_t sequence) const;
  /// The ring's column of an input of this call; those of the history have numbers below 0.
  [[nodiscard]] std::int64_t ring_column(std::int64_t sequence, std::int64_t input) const;
  /// The token before a token, below 0 in the history.
  [[nodiscard]] std::int64_t token_before(std::int64_t sequence, std::int64_t token) const;
  [[nodiscard]] std::int64_t snapshot_count() const {
    return snapshots ? snapshots->spec.shape[0] : 0;
  }
  [[nodiscard]] SnapshotRow snapshot(std::int64_t number) const;
  /// Whether the specification has it written.
  [[nodiscard]] bool is_taken(const SnapshotRow& snapshot) const;
  /// First element of the window after a token, in `windows`, or nothing if it is not captured.
  [[nodiscard]] std::optional<std::int64_t> window_offset(std::int64_t sequence,
                                                          std::int64_t token) const;

  /// Neither negative, nor the null slot, nor beyond the pool.
  [[nodiscard]] bool valid_slot(std::int64_t slot) const;
  /// A sequence with rows that the operator must leave alone.
  [[nodiscard]] bool skipped(std::int64_t sequence) const {
    return !valid_slot(read_slot(sequence));
  }
  /// A row that seq_idx takes for padding.
  [[nodiscard]] bool padded_by_number(std::int64_t row) const {
    return seq_idx && seq_idx->values[row] < 0;
  }
  /// One that reads, computes and writes.
  [[nodiscard]] bool live(std::int64_t sequence) const {
    return !skipped(sequence) && length(sequence) > 0;
  }
};

/// The same case for the same seed, always. `choices` replace the first draws: see Random.
[[nodiscard]] Case make_case(std::uint64_t seed, std::span<const std::uint8_t> choices = {});

/// A case as engines have it, for kernels that do not take everything: x, out and state of one
/// type, weights of it or fp32, no dilation, a width with kernels of its own, channels by
/// fours, and mostly everything aligned and without gaps. One in twenty of make_case is of that
/// kind.
[[nodiscard]] Case make_fast_case(std::uint64_t seed, DType dtype);

/// What a case can be selected by, and its first lines when printed: "width" -> "4" and so on.
[[nodiscard]] std::vector<std::pair<std::string_view, std::string>> traits(const Case& problem);

/// The same keys with every value that make_case and make_fast_case give them.
using TraitValues = std::vector<std::pair<std::string_view, std::vector<std::string>>>;
[[nodiscard]] TraitValues possible_traits();

[[nodiscard]] std::string to_string(const Case& problem);

/// Changes only how the case is stored or scheduled, not what it computes.
[[nodiscard]] Case with_other_layouts(const Case& problem, std::uint64_t seed);

}  // namespace shortconv::tools::verify
