// Rows and states of one channel of a backward call, for any strides and dtypes.
#pragma once

#include <cstdint>

#include "cuda/backward_params.hpp"
#include "cuda/device/raw_elements.cuh"
#include "cuda/device/tap_windows.cuh"
#include "cuda/device/token.cuh"
#include "op/epilogue.hpp"

namespace shortconv::cuda {

/// What has a row is the current sequence, which the strip sets.
class BackwardElements {
 public:
  static constexpr int kBatch = kBatchRows;
  using Values = BatchValues;
  using Raw = RawElements<kBatch>;

 protected:
  __device__ BackwardElements(const BackwardProblem& p, const BackwardPointers& at,
                              std::int64_t channel)
      : p_(p), at_(at), channel_(channel) {}

  /// Offset of a row of the current sequence or padding, in elements.
  template <typename Layout>
  __device__ std::int64_t offset(const Layout& layout, std::int64_t row) const {
    return batch_row_ * layout.sequence_stride + (row - batch_begin_) * layout.token_stride;
  }
  template <typename Layout>
  __device__ std::int64_t element(const Layout& layout, std::int64_t row) const {
    return offset(layout, row) + channel_ * layout.channel_stride;
  }
  template <typename Layout>
  __device__ float load_row(const Layout& layout, const void* data, std::int64_t row) const {
    return load_f32(layout.dtype, data, element(layout, row));
  }
  template <typename Layout>
  __device__ void store_row(const Layout& layout, void* data, std::int64_t row, float value) const {
    if (layout.present) store_f32(layout.dtype, data, element(layout, row), value);
  }
  /// Loads `count` rows of the sequence.
  template <typename Layout>
  __device__ void load_raw(const Layout& layout, const void* data, std::int64_t row, int count,
                           Raw& raw) const {
    const auto bytes = static_cast<int>(element_bytes(layout.dtype));
    const char* from = static_cast<const char*>(data) + element(layout, row) * bytes;
    if (count == kBatch && layout.token_stride == 1 && is_aligned_run(from)) {
      raw.load_run(from, bytes);
    } else {
      raw.load(from, layout.token_stride * bytes, bytes, count);
    }
  }
  template <typename Layout>
  __device__ void load_rows(const Layout& layout, const void* data, std::int64_t row,
                            Values& values) const {
    Raw raw;
    load_raw(layout, data, row, kBatch, raw);
    raw.convert(layout.dtype, values);
  }
  /// Stores a whole batch.
  template <typename Layout>
  __device__ void store_rows(const Layout& layout, void* data, std::int64_t row,
                             const Values& values) const {
    if (!layout.present) return;
    const auto bytes = static_cast<int>(element_bytes(layout.dtype));
    char* to = static_cast<char*>(data) + element(layout, row) * bytes;
    if (layout.token_stride == 1 && is_aligned_run(to)) {
      Raw raw;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) raw.bits[i] = bits_of(layout.dtype, values[i]);
      raw.store_run(to, bytes);
    } else {
      store_elements(layout.dtype, values, kBatch, to, layout.token_stride);
    }
  }
  template <typename Layout>
  __device__ std::int64_t state_index(const Layout& layout, std::int64_t column) const {
    return sequence_ * layout.sequence_stride + column * layout.column_stride +
           channel_ * layout.channel_stride;
  }

  /// x * input_gate, rounded to the dtype of x.
  __device__ float gated(float x, float gate) const {
    return rounded_to(p_.x.dtype, rounded_product(x, gate));
  }
  /// x, or x * input_gate.
  __device__ float input(std::int64_t row) const {
    const float x = load_row(p_.x, at_.x, row);
    return p_.input_gate.present ? gated(x, load_row(p_.input_gate, at_.input_gate, row)) : x;
  }
  __device__ void apply_input_gate(std::int64_t row, int count, Values& x) const {
    if (!p_.input_gate.present) return;
    Raw raw = {};
    Values gate;
    load_raw(p_.input_gate, at_.input_gate, row, count, raw);
    raw.convert(p_.input_gate.dtype, gate);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) x[i] = gated(x[i], gate[i]);
  }
  /// The inputs of 8 rows of the sequence.
  __device__ void load_inputs(std::int64_t row, Values& inputs) const {
    load_rows(p_.x, at_.x, row, inputs);
    apply_input_gate(row, kBatch, inputs);
  }

  __device__ float initial_state(std::int64_t column) const {
    if (!p_.initial_state.present || sequence_ < 0) return 0;
    return load_f32(p_.initial_state.dtype, at_.initial_state,
                    state_index(p_.initial_state, column));
  }

  const BackwardProblem& p_;
  const BackwardPointers& at_;
  const std::int64_t channel_;
  std::int64_t sequence_ = -1;                    // whose states belong to the rows; -1: none
  std::int64_t batch_row_ = 0, batch_begin_ = 0;  // of a dense batch, and its first packed row
};

}  // namespace shortconv::cuda
