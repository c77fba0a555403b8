// One channel of one token at a time, from memory, for any strides and dtypes: results, padding,
// states and snapshots. The operations and their order are those of the other kernels, and so are
// the bits of the results. runtime_strip.cuh has the results of more tokens.
//
// Types gives the dtypes: StaticTypes<T> if x, out and state have the same one, RuntimeTypes
// otherwise. StaticTypes<T> is only for plain calls, without gates, residual, dilation, circular
// buffers and snapshots.
#pragma once

#include <cstdint>

#include "core/capability.hpp"
#include "cuda/device/activation.cuh"
#include "cuda/device/element.cuh"
#include "op/epilogue.hpp"
#include "op/sequence.hpp"

namespace shortconv::cuda {

__device__ inline float load_f32(DType dtype, const void* base, std::int64_t index) {
  switch (dtype) {
    case DType::kF16:
      return to_f32(static_cast<const F16*>(base)[index]);
    case DType::kBF16:
      return to_f32(static_cast<const BF16*>(base)[index]);
    default:
      return static_cast<const float*>(base)[index];
  }
}

__device__ inline void store_f32(DType dtype, void* base, std::int64_t index, float value) {
  switch (dtype) {
    case DType::kF16:
      static_cast<F16*>(base)[index] = from_f32<F16>(value);
      return;
    case DType::kBF16:
      static_cast<BF16*>(base)[index] = from_f32<BF16>(value);
      return;
    default:
      static_cast<float*>(base)[index] = value;
  }
}

/// Copies the bits between equal dtypes and rounds once otherwise.
__device__ inline void move_element(DType from_dtype, const void* from, std::int64_t from_index,
                                    DType to_dtype, void* to, std::int64_t to_index) {
  if (from_dtype != to_dtype) {
    store_f32(to_dtype, to, to_index, load_f32(from_dtype, from, from_index));
  } else if (element_bytes(to_dtype) == 4) {
    static_cast<std::uint32_t*>(to)[to_index] = static_cast<const std::uint32_t*>(from)[from_index];
  } else {
    static_cast<std::uint16_t*>(to)[to_index] = static_cast<const std::uint16_t*>(from)[from_index];
  }
}

struct RuntimeTypes {
  static constexpr bool kPlain = false;  // any call
  static constexpr int kWidth = 0;       // any width and dilation
  __device__ static DType x(const Problem& p) { return p.x.dtype; }
  __device__ static DType out(const Problem& p) { return p.out.dtype; }
  __device__ static DType state(const Problem& p) { return p.state.dtype; }
};

/// For calls without dilation.
template <int kTaps>
struct RuntimeTypesOfWidth : RuntimeTypes {
  static constexpr int kWidth = kTaps;
};

/// For calls whose x has elements of kXBytes and whose state has x's type or is fp32: sizes are
/// known, and of types only f16 and bf16 are told apart.
template <int kXBytes, int kStateBytes, int kTaps>
struct SizedTypes : RuntimeTypesOfWidth<kTaps> {
  static_assert(kXBytes == 2 || kXBytes == kStateBytes);
  __device__ static DType x(const Problem& p) {
    if constexpr (kXBytes == 4) return DType::kF32;
    return p.x.dtype == DType::kF16 ? DType::kF16 : DType::kBF16;
  }
  __device__ static DType state(const Problem& p) {
    if constexpr (kStateBytes == kXBytes) return x(p);
    return DType::kF32;
  }
};

template <typename T>
struct StaticTypes {
  static constexpr bool kPlain = true;
  __device__ static constexpr DType x(const Problem&) { return kDTypeOf<T>; }
  __device__ static constexpr DType out(const Problem&) { return kDTypeOf<T>; }
  __device__ static constexpr DType state(const Problem&) { return kDTypeOf<T>; }
};

template <typename Types>
__device__ inline int history_of(const Problem& p) {
  return Types::kPlain ? p.width - 1 : shortconv::history_of(p);
}

/// Offset of one channel's column of a slot, in elements.
__device__ inline std::int64_t state_index(const Problem& p, std::int64_t slot, std::int64_t column,
                                           std::int64_t channel) {
  return slot * p.state.slot_stride + column * p.state.column_stride +
         channel * p.state.channel_stride;
}

/// `value` rounded to `dtype`, to nearest even.
__device__ inline float rounded_to(DType dtype, float value) {
  switch (dtype) {
    case DType::kF16:
      return to_f32(from_f32<F16>(value));
    case DType::kBF16:
      return to_f32(from_f32<BF16>(value));
    default:
      return value;
  }
}

/// Input of a packed row as fp32.
template <typename Types>
__device__ inline float input_of_row(const Problem& p, const TensorPointers& at, std::int64_t row,
                                     std::int64_t channel) {
  const float x =
      load_f32(Types::x(p), at.x, row_offset(p, row, p.x) + channel * p.x.channel_stride);
  if constexpr (!Types::kPlain) {
    if (p.input_gate.present) {
      const float gate =
          load_f32(Types::x(p), at.input_gate,
                   row_offset(p, row, p.input_gate) + channel * p.input_gate.channel_stride);
      return rounded_to(Types::x(p), rounded_product(x, gate));
    }
  }
  return x;
}

/// Stores the input of a packed row in `to`.
template <typename Types>
__device__ inline void move_input_of_row(const Problem& p, const TensorPointers& at,
                                         std::int64_t row, std::int64_t channel, DType to_dtype,
                                         void* to, std::int64_t to_index) {
  if (!Types::kPlain && p.input_gate.present) {
    store_f32(to_dtype, to, to_index, input_of_row<Types>(p, at, row, channel));
  } else {
    move_element(Types::x(p), at.x, row_offset(p, row, p.x) + channel * p.x.channel_stride,
                 to_dtype, to, to_index);
  }
}

/// Input of a sequence as fp32: a token, or an input of the history, below 0.
template <typename Types>
__device__ inline float input_at(const Problem& p, const TensorPointers& at, const Sequence& s,
                                 std::int64_t token, std::int64_t channel) {
  if (token >= 0) return input_of_row<Types>(p, at, s.begin + token, channel);
  if (s.read_slot < 0) return 0.0f;
  return load_f32(Types::state(p), at.state,
                  state_index(p, s.read_slot, history_column(p, s, token), channel));
}

__device__ inline float weight_at(const Problem& p, const TensorPointers& at, std::int64_t channel,
                                  int tap) {
  return load_f32(p.weight.dtype, at.weight,
                  channel * p.weight.channel_stride + tap * p.weight.tap_stride);
}

__device__ inline float bias_at(const Problem& p, const TensorPointers& at, std::int64_t channel) {
  return p.bias.present ? load_f32(p.weight.dtype, at.bias, channel * p.bias.channel_stride) : 0.0f;
}

/// A token of a plain call.
template <typename Types>
__device__ inline void convolve_token(const Problem& p, const TensorPointers& at, const Sequence& s,
                                      std::int64_t token, std::int64_t channel) {
  float sum = bias_at(p, at, channel);
  for (int k = 0; k < p.width; ++k) {
    const std::int64_t from = token - (p.width - 1 - k);
    sum = __fmaf_rn(weight_at(p, at, channel, k), input_at<Types>(p, at, s, from, channel), sum);
  }
  store_f32(Types::out(p), at.out,
            row_offset(p, s.begin + token, p.out) + channel * p.out.channel_stride,
            activate(p.activation, sum));
}

/// Copies an input of the sequence to an element of the state pool or of intermediate_states.
template <typename Types>
__device__ inline void move_input(const Problem& p, const TensorPointers& at, const Sequence& s,
                                  std::int64_t input, std::int64_t channel, void* to,
                                  std::int64_t to_index) {
  const DType state = Types::state(p);
  if (input >= 0) {
    move_input_of_row<Types>(p, at, s.begin + input, channel, state, to, to_index);
  } else if (s.read_slot >= 0) {
    move_element(state, at.state, state_index(p, s.read_slot, history_column(p, s, input), channel),
                 state, to, to_index);
  } else {
    store_f32(state, to, to_index, 0.0f);
  }
}

template <typename Types>
__device__ inline void pad_element(const Problem& p, const TensorPointers& at, std::int64_t row,
                                   std::int64_t channel) {
  const std::int64_t to = row_offset(p, row, p.out) + channel * p.out.channel_stride;
  if (p.padded_rows == PaddedRows::kZero) store_f32(Types::out(p), at.out, to, 0.0f);
  if (p.padded_rows == PaddedRows::kCopy) {
    move_element(Types::x(p), at.x, row_offset(p, row, p.x) + channel * p.x.channel_stride,
                 Types::out(p), at.out, to);
  }
}

template <typename Types>
__device__ inline void pad_rows(const Problem& p, const TensorPointers& at, std::int64_t begin,
                                std::int64_t end, std::int64_t channel) {
  for (; begin < end; ++begin) pad_element<Types>(p, at, begin, channel);
}

/// Writes the final state. In ascending order no input is read after it was overwritten: inputs of
/// the history move to lower columns or, in a circular buffer, stay in theirs.
template <typename Types>
__device__ inline void write_state_of_channel(const Problem& p, const TensorPointers& at,
                                              const Sequence& s, std::int64_t channel) {
  if (s.write_slot < 0) return;
  const std::int64_t length = s.end - s.begin;
  for (std::int64_t input = first_written_input(p, s); input < length; ++input) {
    const std::int64_t column = written_column(p, s, input, length);
    move_input<Types>(p, at, s, input, channel, at.state,
                      state_index(p, s.write_slot, column, channel));
  }
}

template <typename Types>
__device__ inline void take_snapshot(const Problem& p, const TensorPointers& at, const Sequence& s,
                                     const Snapshot& snapshot, std::int64_t channel) {
  for (std::int64_t input = snapshot.token - history_of<Types>(p); input < snapshot.token;
       ++input) {
    const std::int64_t column = written_column(p, s, input, snapshot.token);
    move_input<Types>(p, at, s, input, channel, at.state,
                      state_index(p, snapshot.slot, column, channel));
  }
}

/// Writes the snapshots of a sequence before token `end`. The thread that writes the final state
/// calls it twice: before, for those that do not replace the history, and after, for the others.
template <typename Types>
__device__ inline void take_snapshots(const Problem& p, const TensorPointers& at, const Sequence& s,
                                      std::int64_t sequence, std::int64_t end, bool replacing,
                                      std::int64_t channel) {
  for (std::int64_t number = 0; number < p.snapshot_count; ++number) {
    const Snapshot snapshot = snapshot_at(p, at, number);
    if (snapshot.sequence == sequence && snapshot.token < end && is_taken(p, s, snapshot) &&
        replaces_history(s, snapshot) == replacing) {
      take_snapshot<Types>(p, at, s, snapshot, channel);
    }
  }
}

/// Writes a row of the list if its token is not below `first` and it replaces the history of its
/// sequence or not, as `replacing` says.
__device__ inline void take_listed_snapshot(const Problem& p, const TensorPointers& at,
                                            std::int64_t number, std::int64_t first, bool replacing,
                                            std::int64_t channel) {
  const Snapshot snapshot = snapshot_at(p, at, number);
  if (snapshot.token < first || snapshot.sequence < 0 || snapshot.sequence >= p.sequences) return;
  const Sequence s = sequence_at(p, at, snapshot.sequence);
  if (is_taken(p, s, snapshot) && replaces_history(s, snapshot) == replacing) {
    take_snapshot<RuntimeTypes>(p, at, s, snapshot, channel);
  }
}

}  // namespace shortconv::cuda
