// One token of each sequence, for any strides and dtypes, widths up to 64, in place or not.
//
// Threads: a thread processes up to 4 channels, a block's threads apart, of several sequences, one
// after the other, so that it loads the taps once. Adjacent threads have adjacent channels. Threads
// share only the taps of a width without an instance, and which rows and slots their sequences
// have, so a call in place is safe.
//
// Bytes moved: x and out once, the state once in each direction, the weights once a block. Ceiling:
// twice a copy of these bytes, because each load and store moves one element.
#pragma once

#include <cstdint>

#include "cuda/device/general_thread.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/runtime_strip.cuh"
#include "cuda/device/shared_taps.cuh"
#include "cuda/device/token.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// Types: RuntimeTypes or SizedTypes.
template <typename Types>
class GeneralDecode {
 public:
  static constexpr bool kAnyWidth = Types::kWidth == 0;
  static constexpr int kChannels = general_decode_channels(Types::kWidth);

  __device__ GeneralDecode(const GeneralParams& params, std::int64_t channel)
      : p_(params.problem),
        at_(params.pointers),
        channel_(channel),
        count_(static_cast<int>(
            clamped((params.problem.channels - channel + kGeneralThreads - 1) / kGeneralThreads, 0,
                    kChannels))),
        taps_{reinterpret_cast<float*>(dynamic_shared_memory())} {}

  /// All threads of the block call it.
  __device__ void run(std::int64_t first, std::int64_t last) {
    __shared__ Sequence sequences[kDecodeSequences];
    load_taps();
    for (; first < last; first += kDecodeSequences) {
      const auto count = static_cast<int>(min(last - first, std::int64_t{kDecodeSequences}));
      const auto thread = static_cast<int>(threadIdx.x);
      __syncthreads();
      if (thread < count) sequences[thread] = sequence_at(p_, at_, first + thread);
      __syncthreads();
      if (count_ == 0) continue;
      if (count_ == kChannels) {
        for (int i = 0; i < count; ++i) process(sequences[i], first + i, kChannels);
      } else {
        for (int i = 0; i < count; ++i) process(sequences[i], first + i, count_);
      }
    }
  }

 private:
  using Raw = RawElements<kChannels>;  // one for each channel
  static constexpr int kHistory = kAnyWidth ? 0 : Types::kWidth - 1;

  __device__ int state_bytes() const { return static_cast<int>(element_bytes(Types::state(p_))); }
  template <typename Layout>
  __device__ const char* elements(const Layout& layout, const void* data, DType dtype,
                                  std::int64_t sequence) const {
    const std::int64_t index = sequence * layout.sequence_stride + channel_ * layout.channel_stride;
    return static_cast<const char*>(data) + index * element_bytes(dtype);
  }
  /// Loads an element of each of `count` channels.
  __device__ void load(const char* from, std::int64_t channel_stride, DType dtype, int count,
                       Raw& raw) const {
    const std::int64_t bytes = element_bytes(dtype);
    raw.load(from, kGeneralThreads * channel_stride * bytes, static_cast<int>(bytes), count);
  }
  template <typename Layout>
  __device__ void load_row(const Layout& layout, const void* data, std::int64_t sequence, int count,
                           Raw& raw) const {
    load(elements(layout, data, Types::x(p_), sequence), layout.channel_stride, Types::x(p_), count,
         raw);
  }

  __device__ void load_taps() {
    if constexpr (kAnyWidth) {
      taps_.load(p_, at_, channel_ - threadIdx.x);  // run() waits
    } else {
      const auto& layout = p_.weight;
      const std::int64_t bytes = element_bytes(layout.dtype);
      const char* from =
          static_cast<const char*>(at_.weight) + channel_ * layout.channel_stride * bytes;
      Raw raw[kHistory + 1];
#pragma unroll
      for (int k = 0; k <= kHistory; ++k, from += layout.tap_stride * bytes) {
        load(from, layout.channel_stride, layout.dtype, count_, raw[k]);
      }
#pragma unroll
      for (int k = 0; k <= kHistory; ++k) raw[k].convert(layout.dtype, register_taps_[k]);
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) bias_[c] = 0.0f;
    if (!p_.bias.present) return;
    const char* bias = static_cast<const char*>(at_.bias) +
                       channel_ * p_.bias.channel_stride * element_bytes(p_.weight.dtype);
    Raw raw;
    load(bias, p_.bias.channel_stride, p_.weight.dtype, count_, raw);
    raw.convert(p_.weight.dtype, bias_);
  }

  __device__ void process(const Sequence& s, std::int64_t sequence, int count) const {
    if (s.skipped) {
      for (int c = 0; c < count; ++c) {
        pad_element<Types>(p_, at_, s.begin, channel_ + c * kGeneralThreads);
      }
      return;
    }
    Raw token, input_gates, output_gates;
    load_row(p_.x, at_.x, sequence, count, token);
    if (p_.input_gate.present) {
      load_row(p_.input_gate, at_.input_gate, sequence, count, input_gates);
    }
    if (p_.output_gate.present) {
      load_row(p_.output_gate, at_.output_gate, sequence, count, output_gates);
    }
    float sums[kChannels], tokens[kChannels] = {}, gates[kChannels] = {};
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sums[c] = bias_[c];
    const bool shifts = s.write_slot >= 0 && !p_.cache_seqlens.present && p_.shifted_columns == 0;
    if constexpr (kAnyWidth) {
      add_any_history(s, shifts, count, sums);
    } else {
      add_history(s, shifts, count, sums);
    }
    token.convert(Types::x(p_), tokens);
    if (p_.input_gate.present) {
      input_gates.convert(Types::x(p_), gates);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        tokens[c] = rounded_to(Types::x(p_), rounded_product(tokens[c], gates[c]));
      }
    }
    add_tap(kAnyWidth ? p_.width - 1 : kHistory, tokens, sums);
    if (shifts) {
      store_token(s, token, tokens, count);
    } else if (s.write_slot >= 0) {
      for (int c = 0; c < count; ++c) {
        write_state_of_channel<Types>(p_, at_, s, channel_ + c * kGeneralThreads);
      }
    }
    if (p_.output_gate.present) output_gates.convert(Types::x(p_), gates);
    activate_all(p_.activation, sums);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      sums[c] = finish(p_.epilogue, sums[c], epilogue_operand(p_.epilogue, tokens[c], gates[c]));
    }
    char* to = const_cast<char*>(elements(p_.out, at_.out, p_.out.dtype, sequence));
    store_elements(p_.out.dtype, sums, count, to, kGeneralThreads * p_.out.channel_stride);
  }

  __device__ void add_tap(int tap, const float (&inputs)[kChannels],
                          float (&sums)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float value;
      if constexpr (kAnyWidth) {
        value = taps_.at(tap, static_cast<int>(threadIdx.x) + c * kGeneralThreads);
      } else {
        value = register_taps_[tap][c];
      }
      sums[c] = __fmaf_rn(value, inputs[c], sums[c]);
    }
  }

  // All taps but that of the token. `shifts`: moves each input to the column before its own; none
  // is read after it was overwritten.

  __device__ void add_history(const Sequence& s, bool shifts, int count,
                              float (&sums)[kChannels]) const {
    Raw raw[kHistory + 1];
    const std::int64_t step = column_bytes();
    const char* from = column(s.read_slot, s.read_column);
    const std::int64_t columns_to_wrap = p_.state_columns - s.read_column;
#pragma unroll
    for (int k = 0; k < kHistory; ++k, from += step) {
      if (k == columns_to_wrap) from -= p_.state_columns * step;  // circular buffer
      raw[k] = {};
      if (s.read_slot >= 0) load(from, p_.state.channel_stride, Types::state(p_), count, raw[k]);
    }
#pragma unroll
    for (int k = 0; k < kHistory; ++k) {
      float values[kChannels];
      raw[k].convert(Types::state(p_), values);
      add_tap(k, values, sums);
    }
    if (!shifts) return;
    char* to = column(s.write_slot, p_.base_column);
#pragma unroll
    for (int k = 1; k < kHistory; ++k, to += step) store(raw[k], count, to);
  }

  __device__ void add_any_history(const Sequence& s, bool shifts, int count,
                                  float (&sums)[kChannels]) const {
    constexpr int kBatch = 8;  // columns whose loads are in flight together
    const int history = shortconv::history_of(p_), bytes = state_bytes();
    const std::int64_t step = column_bytes();
    const std::int64_t channel_step = kGeneralThreads * p_.state.channel_stride * bytes;
    const char* from = column(s.read_slot, s.read_column);
    char* to = column(s.write_slot, p_.base_column) - step;
    auto columns_to_wrap = static_cast<int>(
        min(p_.state_columns - s.read_column, std::int64_t{history}));  // of a circular buffer
    for (int k = 0; k < history;) {
      if (columns_to_wrap == 0) {
        from -= p_.state_columns * step;
        columns_to_wrap = history - k;
      }
      const int columns = min(columns_to_wrap, kBatch);
      RawElements<kBatch> raw[kChannels] = {};
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (c < count && s.read_slot >= 0) {
          raw[c].load(from + c * channel_step, step, bytes, columns);
        }
      }
      add_columns(k, columns, raw, sums);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (!shifts || c >= count) continue;
        if (k > 0) {
          store_raw(raw[c], bytes, to + c * channel_step, step, columns);
        } else {
          store_raw<1>(raw[c], bytes, to + c * channel_step + step, step, columns);
        }
      }
      from += columns * step;
      to += columns * step;
      columns_to_wrap -= columns;
      k += columns;
    }
  }

  /// Adds those of the history's columns [first, first + columns) that have a tap.
  template <int kBatch>
  __device__ void add_columns(int first, int columns, const RawElements<kBatch> (&raw)[kChannels],
                              float (&sums)[kChannels]) const {
    float values[kChannels][kBatch];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) raw[c].convert(Types::state(p_), values[c]);
    const auto add = [&](int tap, int i) {
      float inputs[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) inputs[c] = values[c][i];
      add_tap(tap, inputs, sums);
    };
    if (p_.dilation != 1) {
      int tap = (first + p_.dilation - 1) / p_.dilation, column = tap * p_.dilation - first;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (i == column && i < columns) {
          add(tap++, i);
          column += p_.dilation;
        }
      }
    } else if (columns == kBatch) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) add(first + i, i);
    } else {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (i < columns) add(first + i, i);
      }
    }
  }

  __device__ std::int64_t column_bytes() const { return p_.state.column_stride * state_bytes(); }
  __device__ char* column(std::int64_t slot, std::int64_t number) const {
    return static_cast<char*>(at_.state) + state_index(p_, slot, number, channel_) * state_bytes();
  }
  /// Stores an element of each of `count` channels to a state.
  __device__ void store(const Raw& raw, int count, char* to) const {
    store_raw(raw, state_bytes(), to, kGeneralThreads * p_.state.channel_stride * state_bytes(),
              count);
  }
  /// Stores the token to the last column.
  __device__ void store_token(const Sequence& s, const Raw& raw, const float (&tokens)[kChannels],
                              int count) const {
    const int last = history_of<Types>(p_) - 1;
    char* to = column(s.write_slot, p_.base_column + last);
    if (Types::state(p_) == Types::x(p_) && !p_.input_gate.present) return store(raw, count, to);
    Raw rounded;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) rounded.bits[c] = bits_of(Types::state(p_), tokens[c]);
    store(rounded, count, to);
  }

  const Problem& p_;
  const TensorPointers& at_;
  const std::int64_t channel_;
  const int count_;  // channels of the thread
  const SharedTaps<kChannels * kGeneralThreads> taps_;
  float register_taps_[kHistory + 1][kChannels], bias_[kChannels];
};

template <typename Types>
__global__ void __launch_bounds__(kGeneralThreads, general_decode_blocks(Types::kWidth))
    decode_general(const __grid_constant__ GeneralParams params) {
  pdl_wait_and_launch(params.launch);
  const auto [unit, channel] =
      GeneralThread(params.launch, GeneralDecode<Types>::kChannels * kGeneralThreads);
  const std::int64_t first = std::int64_t{unit} * params.launch.unit_tokens;
  GeneralDecode<Types>(params, channel)
      .run(first, min(first + params.launch.unit_tokens, params.problem.sequences));
}

}  // namespace shortconv::cuda
