// One channel of one token at a time, from memory, for any strides and element types: the edges of
// the fast kernels and all of the general one. The operations and their order are those of the fast
// kernels, so are the bits.
//
// Element types come as a Types: Typed<T> for x, out and state of one type, AnyTypes where they
// differ or nothing is known at compile time. Typed<T> is for plain calls only, those without
// gates, residual, dilation, rings and snapshots.
#pragma once

#include <cstdint>

#include "core/capability.hpp"
#include "cuda/activation.cuh"
#include "cuda/element.cuh"
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

/// Bit for bit between equal types, with one rounding otherwise.
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

struct AnyTypes {
  static constexpr bool kPlain = false;  // calls of the general kernel, which takes everything
  __device__ static DType x(const Problem& p) { return p.x_dtype; }
  __device__ static DType out(const Problem& p) { return p.out_dtype; }
  __device__ static DType state(const Problem& p) { return p.state_dtype; }
};

template <typename T>
struct Typed {
  static constexpr bool kPlain = true;
  __device__ static constexpr DType x(const Problem&) { return kDTypeOf<T>; }
  __device__ static constexpr DType out(const Problem&) { return kDTypeOf<T>; }
  __device__ static constexpr DType state(const Problem&) { return kDTypeOf<T>; }
};

template <typename Types>
__device__ inline int dilation_of(const Problem& p) {
  return Types::kPlain ? 1 : p.dilation;
}
template <typename Types>
__device__ inline int history_of(const Problem& p) {
  return Types::kPlain ? p.width - 1 : shortconv::history_of(p);
}

/// Where one channel's column of a slot lies, in elements.
__device__ inline std::int64_t state_index(const Problem& p, std::int64_t slot, std::int64_t column,
                                           std::int64_t channel) {
  return slot * p.state_slot + column * p.state_column + channel * p.state_channel;
}

/// A number of `dtype` next to `value`, to nearest even.
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

/// The input of a packed row as fp32.
template <typename Types>
__device__ inline float input_of_row(const Problem& p, const Addresses& at, std::int64_t row,
                                     std::int64_t channel) {
  const float x = load_f32(Types::x(p), at.x, x_row(p, row) + channel * p.x_channel);
  if constexpr (!Types::kPlain) {
    if (p.has_input_gate) {
      const float gate = load_f32(Types::x(p), at.input_gate,
                                  input_gate_row(p, row) + channel * p.input_gate_channel);
      return rounded_to(Types::x(p), rounded_product(x, gate));
    }
  }
  return x;
}

/// The input of a packed row as an element of `to`.
template <typename Types>
__device__ inline void move_input_of_row(const Problem& p, const Addresses& at, std::int64_t row,
                                         std::int64_t channel, DType to_dtype, void* to,
                                         std::int64_t to_index) {
  if (!Types::kPlain && p.has_input_gate) {
    store_f32(to_dtype, to, to_index, input_of_row<Types>(p, at, row, channel));
  } else {
    move_element(Types::x(p), at.x, x_row(p, row) + channel * p.x_channel, to_dtype, to, to_index);
  }
}

/// Input number `token` of a sequence as fp32; those before 0 are its history.
template <typename Types>
__device__ inline float input_at(const Problem& p, const Addresses& at, const Sequence& s,
                                 std::int64_t token, std::int64_t channel) {
  if (token >= 0) return input_of_row<Types>(p, at, s.begin + token, channel);
  if (s.read_slot < 0) return 0.0f;
  return load_f32(Types::state(p), at.state,
                  state_index(p, s.read_slot, history_column(p, s, token), channel));
}

__device__ inline float weight_at(const Problem& p, const Addresses& at, std::int64_t channel,
                                  int tap) {
  return load_f32(p.weight_dtype, at.weight, channel * p.weight_channel + tap * p.weight_tap);
}

__device__ inline float bias_at(const Problem& p, const Addresses& at, std::int64_t channel) {
  return p.has_bias ? load_f32(p.weight_dtype, at.bias, channel * p.bias_channel) : 0.0f;
}

__device__ inline float activate(Activation activation, float sum) {
  return activation == Activation::kSilu ? silu(sum) : sum;
}

/// act(sum) of a token through the epilogue to where it belongs.
template <typename Types>
__device__ inline void store_result(const Problem& p, const Addresses& at, const Sequence& s,
                                    std::int64_t token, std::int64_t channel, float sum) {
  float result = activate(p.activation, sum);
  if constexpr (!Types::kPlain) {
    float operand = 0.0f;
    const std::int64_t row = s.begin + token;
    if (p.epilogue == Epilogue::kResidual) operand = input_of_row<Types>(p, at, row, channel);
    if (p.epilogue == Epilogue::kOutputGate) {
      operand = load_f32(Types::x(p), at.output_gate,
                         output_gate_row(p, row) + channel * p.output_gate_channel);
    }
    result = finish(p.epilogue, result, operand);
  }
  store_f32(Types::out(p), at.out, out_row(p, s.begin + token) + channel * p.out_channel, result);
}

template <typename Types>
__device__ inline void convolve_token(const Problem& p, const Addresses& at, const Sequence& s,
                                      std::int64_t token, std::int64_t channel) {
  float sum = bias_at(p, at, channel);
  for (int k = 0; k < p.width; ++k) {
    const std::int64_t from = token - std::int64_t{p.width - 1 - k} * dilation_of<Types>(p);
    sum = __fmaf_rn(weight_at(p, at, channel, k), input_at<Types>(p, at, s, from, channel), sum);
  }
  store_result<Types>(p, at, s, token, channel, sum);
}

/// An input of the sequence, bit for bit between equal types, to one element of the state pool or
/// of windows.
template <typename Types>
__device__ inline void move_input(const Problem& p, const Addresses& at, const Sequence& s,
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
__device__ inline void convolve_draft(const Problem& p, const Addresses& at, const Sequence& s,
                                      std::int64_t sequence, std::int64_t token,
                                      std::int64_t channel) {
  const int history = p.width - 1;
  std::int64_t line[kMaxWidth];  // the inputs of its window, newest last
  for (std::int64_t input = token, k = history; k >= 0; --k) {
    line[k] = input;
    input = parent_of(p, at, sequence, s.begin, input);
  }
  float sum = bias_at(p, at, channel);
  for (int k = 0; k <= history; ++k) {
    sum = __fmaf_rn(weight_at(p, at, channel, k), input_at<Types>(p, at, s, line[k], channel), sum);
  }
  store_result<Types>(p, at, s, token, channel, sum);
}

/// The windows that draft tokens would leave behind. After the outputs, and overlapping ones column
/// by column upwards: windows may lie where the history does, of which column j of the slot is to
/// have an input that stands to the right of it.
template <typename Types>
__device__ inline void capture_windows(const Problem& p, const Addresses& at, const Sequence& s,
                                       std::int64_t sequence, std::int64_t channel) {
  const int history = p.width - 1;
  const bool overlap = p.window_token == p.window_column;
  const Windows windows = windows_of(p, at, s, sequence);
  for (std::int64_t token = 0; token < windows.tokens; ++token) {
    const std::int64_t first = windows.first + token * p.window_token + channel * p.window_channel;
    std::int64_t line[kMaxWidth];
    for (std::int64_t input = token, k = history; k >= 1; --k) {
      line[k] = input;
      input = parent_of(p, at, sequence, s.begin, input);
    }
    for (int column = overlap && token > 0 ? history - 1 : 0; column < history; ++column) {
      move_input<Types>(p, at, s, line[column + 1], channel, at.windows,
                        first + column * p.window_column);
    }
  }
}

template <typename Types>
__device__ inline void pad_element(const Problem& p, const Addresses& at, std::int64_t row,
                                   std::int64_t channel) {
  const std::int64_t to = out_row(p, row) + channel * p.out_channel;
  if (p.padded_rows == PaddedRows::kZero) store_f32(Types::out(p), at.out, to, 0.0f);
  if (p.padded_rows == PaddedRows::kCopy) {
    move_element(Types::x(p), at.x, x_row(p, row) + channel * p.x_channel, Types::out(p), at.out,
                 to);
  }
}

/// The last inputs of the sequence. Upwards: what a short sequence keeps of its own history moves
/// down, or stays where it is in a ring, so nothing is read after it was overwritten.
template <typename Types>
__device__ inline void write_state_of_channel(const Problem& p, const Addresses& at,
                                              const Sequence& s, std::int64_t channel) {
  if (s.write_slot < 0) return;
  const std::int64_t length = s.end - s.begin;
  for (std::int64_t input = first_kept(p, s); input < length; ++input) {
    const std::int64_t column = kept_column(p, s, input, length);
    move_input<Types>(p, at, s, input, channel, at.state,
                      state_index(p, s.write_slot, column, channel));
  }
}

template <typename Types>
__device__ inline void take_snapshot(const Problem& p, const Addresses& at, const Sequence& s,
                                     const Snapshot& snapshot, std::int64_t channel) {
  for (std::int64_t input = snapshot.token - history_of<Types>(p); input < snapshot.token;
       ++input) {
    const std::int64_t column = kept_column(p, s, input, snapshot.token);
    move_input<Types>(p, at, s, input, channel, at.state,
                      state_index(p, snapshot.slot, column, channel));
  }
}

/// A sequence's snapshots before token `end`, by whoever owns its state and before that is written;
/// or, after that, those that replace its history. The list is in no order.
template <typename Types>
__device__ inline void take_snapshots(const Problem& p, const Addresses& at, const Sequence& s,
                                      std::int64_t sequence, std::int64_t end, bool replacing,
                                      std::int64_t channel) {
  for (std::int64_t number = 0; number < p.snapshots; ++number) {
    const Snapshot snapshot = snapshot_at(p, at, number);
    if (snapshot.sequence == sequence && snapshot.token < end && is_taken(p, s, snapshot) &&
        replaces_history(s, snapshot) == replacing) {
      take_snapshot<Types>(p, at, s, snapshot, channel);
    }
  }
}

/// The part of a sequence that lies in packed rows [begin, end), by the rule of ownership: whoever
/// has the first row does the tokens that reach into the history, wherever they lie, the state, and
/// the snapshots that need it.
template <typename Types>
__device__ inline void convolve_part(const Problem& p, const Addresses& at, const Sequence& s,
                                     std::int64_t sequence, std::int64_t begin, std::int64_t end,
                                     std::int64_t channel) {
  const std::int64_t length = s.end - s.begin;
  const std::int64_t heads = min(length, std::int64_t{history_of<Types>(p)});
  const bool head = s.begin >= begin && s.begin < end;
  std::int64_t first = max(begin - s.begin, heads);
  if (head) {
    for (std::int64_t token = 0; token < heads; ++token) {
      convolve_token<Types>(p, at, s, token, channel);
    }
    if constexpr (!Types::kPlain) {
      take_snapshots<Types>(p, at, s, sequence, history_of<Types>(p), false, channel);
    }
    write_state_of_channel<Types>(p, at, s, channel);
    if constexpr (!Types::kPlain) {
      take_snapshots<Types>(p, at, s, sequence, length + 1, true, channel);
    }
  }
  for (; first < min(end, s.end) - s.begin; ++first) {
    convolve_token<Types>(p, at, s, first, channel);
  }
}

/// Rows of a sequence that seq_idx divides further, up to `last`.
template <typename Types>
__device__ inline void convolve_numbered_rows(const Problem& p, const Addresses& at,
                                              const Sequence& s, std::int64_t& row,
                                              std::int64_t last, std::int64_t channel) {
  const std::int64_t most = max(last - row, std::int64_t{history_of<Types>(p)});
  while (row < last) {
    const Sequence part = numbered_part(p, at, s, row, most);
    const std::int64_t end = min(part.end, last);
    if (!part.skipped) {
      convolve_part<Types>(p, at, part, 0, row, end, channel);  // no snapshots ask for its number
      row = end;
    }
    for (; row < end; ++row) pad_element<Types>(p, at, row, channel);
  }
}

/// Everything that packed rows [begin, end) ask for in one channel.
template <typename Types>
__device__ inline void convolve_rows(const Problem& p, const Addresses& at, std::int64_t begin,
                                     std::int64_t end, std::int64_t channel) {
  std::int64_t row = begin;
  for (std::int64_t sequence = max(find_sequence(p, at, begin), std::int64_t{0});
       row < end && sequence < p.sequences; ++sequence) {
    const Sequence s = sequence_at(p, at, sequence);
    for (; row < min(s.begin, end); ++row) pad_element<Types>(p, at, row, channel);
    const std::int64_t last = min(s.end, end);
    if constexpr (!Types::kPlain) {
      if (p.has_seq_idx) {
        convolve_numbered_rows<Types>(p, at, s, row, last, channel);
        continue;
      }
    }
    if (s.skipped) {
      for (; row < last; ++row) pad_element<Types>(p, at, row, channel);
    } else {
      convolve_part<Types>(p, at, s, sequence, row, last, channel);
      row = last;
    }
  }
  for (; row < end; ++row) pad_element<Types>(p, at, row, channel);
}

/// Rows before the first and after the last sequence, which schedules made of sequences do not
/// visit.
template <typename Types>
__device__ inline void pad_outside(const Problem& p, const Addresses& at, std::int64_t channel) {
  if (p.padded_rows == PaddedRows::kUntouched) return;
  const std::int64_t begin = p.sequences > 0 ? sequence_begin(p, at, 0) : p.tokens;
  for (std::int64_t row = 0; row < begin; ++row) pad_element<Types>(p, at, row, channel);
  if (p.sequences == 0) return;
  for (std::int64_t row = max(begin, sequence_begin(p, at, p.sequences)); row < p.tokens; ++row) {
    pad_element<Types>(p, at, row, channel);
  }
}

}  // namespace shortconv::cuda
