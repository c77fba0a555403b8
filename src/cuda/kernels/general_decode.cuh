// One token of each sequence, for any strides and dtypes, widths up to 64, in place or not.
//
// Threads: a thread processes up to 4 channels of a sequence, a block's threads apart, so that one
// lookup of the sequence serves all of them and adjacent threads have adjacent channels. Results
// are stored last, and threads share nothing, so a call in place is safe.
//
// Bytes moved: x and out once, the state once in each direction; windows of a width without an
// instance are read a second time, from the caches. Ceiling: twice a copy of these bytes, because
// each load and store moves one element.
#pragma once

#include <cstdint>

#include "cuda/device/runtime_strip.cuh"
#include "cuda/device/token.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// Types: RuntimeTypes or RuntimeTypesOfWidth.
template <typename Types>
class GeneralDecode {
 public:
  static constexpr int kChannels = general_decode_channels(Types::kWidth);

  __device__ GeneralDecode(const GeneralParams& params, std::uint32_t sequence,
                           std::int64_t channel)
      : p_(params.problem),
        at_(params.pointers),
        sequence_(sequence),
        channel_(channel),
        count_(static_cast<int>(
            min((params.problem.channels - channel + kGeneralThreads - 1) / kGeneralThreads,
                std::int64_t{kChannels}))) {}

  __device__ void run() const {
    const Sequence s = sequence_at(p_, at_, sequence_);
    if (s.skipped) {
      for (int c = 0; c < count_; ++c) {
        pad_element<Types>(p_, at_, s.begin, channel_ + c * kGeneralThreads);
      }
      return;
    }
    Raw token;
    load(elements(p_.x, at_.x, p_.x.dtype), p_.x, p_.x.dtype, token);
    float sums[kChannels], tokens[kChannels] = {}, gates[kChannels] = {};
    Raw input_gates, output_gates;
    if (p_.input_gate.present) load_gate(p_.input_gate, at_.input_gate, input_gates);
    if (p_.output_gate.present) load_gate(p_.output_gate, at_.output_gate, output_gates);
    for (int c = 0; c < kChannels; ++c) sums[c] = 0.0f;
    if (p_.bias.present) {
      Raw bias;
      load(static_cast<const char*>(at_.bias) + channel_ * p_.bias.channel_stride * weight_bytes(),
           p_.bias, p_.weight.dtype, bias);
      bias.convert(p_.weight.dtype, sums);
    }
    if constexpr (Types::kWidth == 0) {
      token.convert(p_.x.dtype, tokens);
      apply_input_gates(input_gates, tokens);
      add_history(s, sums);
      add_tap(load_taps(p_.width - 1), tokens, sums);
      write_state(s, token, tokens,
                  [&](int k) { return load_input(s, k - history_of<Types>(p_)); });
    } else {
      constexpr int kHistory = Types::kWidth - 1;
      Raw history[kHistory], taps[kHistory + 1];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) history[k] = load_input(s, k - kHistory);
#pragma unroll
      for (int k = 0; k <= kHistory; ++k) taps[k] = load_taps(k);
      token.convert(p_.x.dtype, tokens);
      apply_input_gates(input_gates, tokens);
#pragma unroll
      for (int k = 0; k < kHistory; ++k) {
        float inputs[kChannels];
        history[k].convert(p_.state.dtype, inputs);
        add_tap(taps[k], inputs, sums);
      }
      add_tap(taps[kHistory], tokens, sums);
      write_state(s, token, tokens, [&](int k) { return history[k]; });
    }
    if (p_.output_gate.present) output_gates.convert(p_.x.dtype, gates);
    activate_all(p_.activation, sums);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      sums[c] = finish(p_.epilogue, sums[c], epilogue_operand(p_.epilogue, tokens[c], gates[c]));
    }
    store(sums);
  }

 private:
  using Raw = RawElements<kChannels>;  // one for each channel

  __device__ std::int64_t weight_bytes() const { return element_bytes(p_.weight.dtype); }
  __device__ std::int64_t state_bytes() const { return element_bytes(p_.state.dtype); }
  template <typename Layout>
  __device__ const char* elements(const Layout& layout, const void* data, DType dtype) const {
    const std::int64_t index =
        sequence_ * layout.sequence_stride + channel_ * layout.channel_stride;
    return static_cast<const char*>(data) + index * element_bytes(dtype);
  }
  /// Loads an element of each channel.
  template <typename Layout>
  __device__ void load(const char* from, const Layout& layout, DType dtype, Raw& raw) const {
    const std::int64_t bytes = element_bytes(dtype);
    raw.load(from, kGeneralThreads * layout.channel_stride * bytes, static_cast<int>(bytes),
             count_);
  }
  template <typename Layout>
  __device__ void load_gate(const Layout& layout, const void* data, Raw& raw) const {
    load(elements(layout, data, p_.x.dtype), layout, p_.x.dtype, raw);
  }
  __device__ Raw load_taps(int tap) const {
    Raw raw;
    const std::int64_t first = channel_ * p_.weight.channel_stride + tap * p_.weight.tap_stride;
    load(static_cast<const char*>(at_.weight) + first * weight_bytes(), p_.weight, p_.weight.dtype,
         raw);
    return raw;
  }
  /// An input of the history.
  __device__ Raw load_input(const Sequence& s, std::int64_t input) const {
    Raw raw;
    if (s.read_slot < 0) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) raw.bits[c] = 0;
      return raw;
    }
    const std::int64_t first = state_index(p_, s.read_slot, history_column(p_, s, input), channel_);
    load(static_cast<const char*>(at_.state) + first * state_bytes(), p_.state, p_.state.dtype,
         raw);
    return raw;
  }

  __device__ void apply_input_gates(const Raw& raw, float (&tokens)[kChannels]) const {
    if (!p_.input_gate.present) return;
    float gates[kChannels];
    raw.convert(p_.x.dtype, gates);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      tokens[c] = rounded_to(p_.x.dtype, rounded_product(tokens[c], gates[c]));
    }
  }

  __device__ void add_tap(const Raw& raw, const float (&inputs)[kChannels],
                          float (&sums)[kChannels]) const {
    float taps[kChannels];
    raw.convert(p_.weight.dtype, taps);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sums[c] = __fmaf_rn(taps[c], inputs[c], sums[c]);
  }

  /// All taps but that of the token.
  __device__ void add_history(const Sequence& s, float (&sums)[kChannels]) const {
#pragma unroll 4
    for (int k = 0; k + 1 < p_.width; ++k) {
      float inputs[kChannels];
      const Raw taps = load_taps(k);
      load_input(s, std::int64_t{k + 1 - p_.width} * p_.dilation).convert(p_.state.dtype, inputs);
      add_tap(taps, inputs, sums);
    }
  }

  __device__ char* column(const Sequence& s, std::int64_t number) const {
    return static_cast<char*>(at_.state) +
           state_index(p_, s.write_slot, number, channel_) * state_bytes();
  }
  /// Stores an input of the history to a column of the history, from 0 on.
  __device__ void store_column(const Sequence& s, int number, const Raw& raw) const {
    const std::int64_t step = kGeneralThreads * p_.state.channel_stride;
    void* to = column(s, p_.base_column + number);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c >= count_) break;
      if (state_bytes() == 4) {
        static_cast<std::uint32_t*>(to)[c * step] = raw.bits[c];
      } else {
        static_cast<std::uint16_t*>(to)[c * step] = static_cast<std::uint16_t>(raw.bits[c]);
      }
    }
  }
  /// Stores the token to the last column.
  __device__ void store_token(const Sequence& s, const Raw& raw,
                              const float (&tokens)[kChannels]) const {
    const int last = history_of<Types>(p_) - 1;
    if (p_.state.dtype == p_.x.dtype && !p_.input_gate.present) return store_column(s, last, raw);
    const std::int64_t step = kGeneralThreads * p_.state.channel_stride;
    void* to = column(s, p_.base_column + last);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (c < count_) store_f32(p_.state.dtype, to, c * step, tokens[c]);
    }
  }

  /// Writes the state after the token. input(k) is input k of the history.
  template <typename Input>
  __device__ void write_state(const Sequence& s, const Raw& token, const float (&tokens)[kChannels],
                              const Input& input) const {
    if (s.write_slot < 0) return;
    if (p_.cache_seqlens.present || p_.shifted_columns > 0) {
      for (int c = 0; c < count_; ++c) {
        write_state_of_channel<Types>(p_, at_, s, channel_ + c * kGeneralThreads);
      }
      return;
    }
    // Each input moves to the column before its own, so none is read after it was overwritten.
    if constexpr (Types::kWidth == 0) {
      const int history = history_of<Types>(p_);
#pragma unroll 4
      for (int k = 1; k < history; ++k) store_column(s, k - 1, input(k));
    } else {
#pragma unroll
      for (int k = 1; k + 1 < Types::kWidth; ++k) store_column(s, k - 1, input(k));
    }
    store_token(s, token, tokens);
  }

  __device__ void store(const float (&results)[kChannels]) const {
    char* to = const_cast<char*>(elements(p_.out, at_.out, p_.out.dtype));
    store_elements(p_.out.dtype, results, count_, to, kGeneralThreads * p_.out.channel_stride);
  }

  const Problem& p_;
  const TensorPointers& at_;
  const std::int64_t sequence_, channel_;
  const int count_;  // channels of the thread
};

template <typename Types>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralDecodeMinBlocks)
    decode_general(const __grid_constant__ GeneralParams params) {
  const std::uint32_t sequence = params.launch.channel_blocks.divide(blockIdx.x);
  const std::uint32_t block = blockIdx.x - sequence * params.launch.channel_blocks.divisor();
  const std::int64_t channel =
      std::int64_t{block} * (GeneralDecode<Types>::kChannels * kGeneralThreads) + threadIdx.x;
  if (channel < params.problem.channels) GeneralDecode<Types>(params, sequence, channel).run();
}

}  // namespace shortconv::cuda
