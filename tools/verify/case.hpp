// A random problem, as plain values that can be printed and changed. No memory: see buffers.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shortconv/problem.hpp"

namespace shortconv::tools::verify {

/// A tensor in an allocation of its own.
struct TensorSpec {
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // in elements
  std::int64_t origin = 0;            // element of the allocation that has all indices 0
  std::int64_t elements = 1;          // of the allocation

  [[nodiscard]] std::int64_t offset(std::initializer_list<std::int64_t> index) const;

  /// x and out: rows of all sequences numbered through, whether packed or dense.
  [[nodiscard]] std::int64_t row_offset(std::int64_t row, std::int64_t channel) const;
};

[[nodiscard]] TensorSpec dense(DType dtype, std::vector<std::int64_t> shape);

/// Calls `visit` with the offset of every element, the last axis running fastest.
template <typename Visit>
void for_each_element(const TensorSpec& spec, Visit&& visit) {
  std::vector<std::int64_t> index(spec.shape.size());
  std::int64_t count = 1;
  for (std::int64_t extent : spec.shape) count *= extent;
  std::int64_t offset = spec.origin;
  for (; count > 0; --count) {
    visit(offset);
    for (std::size_t axis = index.size(); axis-- > 0;) {
      offset += spec.strides[axis];
      if (++index[axis] < spec.shape[axis]) break;
      offset -= index[axis] * spec.strides[axis];
      index[axis] = 0;
    }
  }
}

struct IndexTensor {
  TensorSpec spec;
  std::vector<std::int64_t> values;
};

enum class Layout { kTokenMajor, kChannelMajor, kStrided };

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
  std::int64_t longest_sequence = 0;
  int threads = 1;
  bool in_place = false;  // x is out as well; `out` has no memory of its own

  Layout layout = Layout::kTokenMajor;  // of x
  TensorSpec x, out, weight;
  std::optional<TensorSpec> bias, state;
  std::optional<TensorSpec> input_gate, output_gate;
  std::int64_t state_base = 0;
  std::optional<std::int64_t> null_slot;
  std::optional<IndexTensor> query_start_loc, read_slots, write_slots, read_offsets;
  std::optional<IndexTensor> has_initial_state;

  std::vector<std::int64_t> starts;  // first row of each sequence, and the end of the last

  double x_scale = 1;
  int special_period = 0;  // one in so many inputs is NaN or infinite; 0 = none

  [[nodiscard]] std::int64_t rows() const;
  [[nodiscard]] std::int64_t history() const { return std::int64_t{width - 1} * dilation; }
  [[nodiscard]] std::int64_t channels() const { return x.shape.back(); }
  [[nodiscard]] std::int64_t sequences() const {
    return static_cast<std::int64_t>(starts.size()) - 1;
  }
  [[nodiscard]] std::int64_t length(std::int64_t sequence) const;
  [[nodiscard]] std::int64_t slots() const { return state ? state->shape[0] : 0; }
  [[nodiscard]] std::int64_t read_slot(std::int64_t sequence) const;
  [[nodiscard]] std::int64_t write_slot(std::int64_t sequence) const;
  /// Columns to skip when reading, clamped to the pool.
  [[nodiscard]] std::int64_t read_offset(std::int64_t sequence) const;
  [[nodiscard]] bool resumed(std::int64_t sequence) const;

  /// Neither negative, nor the null slot, nor beyond the pool.
  [[nodiscard]] bool valid_slot(std::int64_t slot) const;
  /// A sequence with rows that the operator must leave alone.
  [[nodiscard]] bool skipped(std::int64_t sequence) const {
    return !valid_slot(read_slot(sequence));
  }
};

/// The same case for the same seed, always.
[[nodiscard]] Case make_case(std::uint64_t seed);

/// What a case can be selected by, and its first lines when printed: "width" -> "4" and so on.
[[nodiscard]] std::vector<std::pair<std::string_view, std::string>> traits(const Case& problem);

[[nodiscard]] std::string to_string(const Case& problem);

/// Changes only how the case is stored or scheduled, not what it computes.
[[nodiscard]] Case with_other_layouts(const Case& problem, std::uint64_t seed);

}  // namespace shortconv::tools::verify
