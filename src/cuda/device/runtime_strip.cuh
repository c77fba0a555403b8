// Convolution of strips of 8 tokens of one channel, for any strides and dtypes. general.cuh and
// groups.cuh use it. The operations and their order are those of the other kernels, and so are the
// bits of the results.
//
// What differs between calls is looked up once for a strip, not for each of its elements, and the
// elements of a strip are loaded before the first is converted: a conversion waits for its load,
// and the branch to the conversion of a dtype would wait with it.
//
// Windows of a compiled width stay in registers from strip to strip, so each input is loaded once.
// Other windows are loaded for 4 taps at a time, dilated ones for each tap: mostly from the caches.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/token.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

/// The bits of elements of any dtype.
template <int kCount>
struct RawElements {
  std::uint32_t bits[kCount];

  __device__ void load_one(int index, const void* from, int bytes) {
    if (bytes == 4) {
      bits[index] = *static_cast<const std::uint32_t*>(from);
    } else {
      bits[index] = *static_cast<const std::uint16_t*>(from);
    }
  }
  /// Loads the first `count`, `stride_bytes` apart.
  __device__ void load(const char* from, std::int64_t stride_bytes, int bytes, int count) {
    if (bytes == 4) {
      load_as<std::uint32_t>(from, stride_bytes, count);
    } else {
      load_as<std::uint16_t>(from, stride_bytes, count);
    }
  }
  template <typename T>
  __device__ void load_as(const char* from, std::int64_t stride_bytes, int count) {
    if (count == kCount) {
#pragma unroll
      for (int i = 0; i < kCount; ++i, from += stride_bytes) {
        bits[i] = *reinterpret_cast<const T*>(from);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i, from += stride_bytes) {
        if (i < count) bits[i] = *reinterpret_cast<const T*>(from);
      }
    }
  }

  __device__ static float to_value(DType dtype, std::uint32_t bits) {
    switch (dtype) {
      case DType::kF16: {
        const auto half = static_cast<std::uint16_t>(bits);
        return to_f32(reinterpret_cast<const F16&>(half));
      }
      case DType::kBF16:
        return __uint_as_float(bits << 16);
      default:
        return __uint_as_float(bits);
    }
  }
  /// Writes the values of all elements to `values`.
  __device__ void convert(DType dtype, float* values) const {
    switch (dtype) {
      case DType::kF16:
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[i] = to_value(DType::kF16, bits[i]);
        return;
      case DType::kBF16:
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[i] = to_value(DType::kBF16, bits[i]);
        return;
      default:
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[i] = to_value(DType::kF32, bits[i]);
    }
  }
};

/// Stores the first `count` values, `stride` elements apart.
template <typename T, int kCount>
__device__ inline void store_elements(const float (&values)[kCount], int count, void* to,
                                      std::int64_t stride) {
  T* address = static_cast<T*>(to);
  if (count == kCount) {
#pragma unroll
    for (int t = 0; t < kCount; ++t, address += stride) *address = from_f32<T>(values[t]);
  } else {
#pragma unroll
    for (int t = 0; t < kCount; ++t, address += stride) {
      if (t < count) *address = from_f32<T>(values[t]);
    }
  }
}

template <int kCount>
__device__ inline void store_elements(DType dtype, const float (&values)[kCount], int count,
                                      void* to, std::int64_t stride) {
  switch (dtype) {
    case DType::kF16:
      return store_elements<F16>(values, count, to, stride);
    case DType::kBF16:
      return store_elements<BF16>(values, count, to, stride);
    default:
      return store_elements<F32>(values, count, to, stride);
  }
}

template <int kCount>
__device__ inline void activate_all(Activation activation, float (&sums)[kCount]) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kSilu:
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] = silu(sums[i]);
      return;
  }
}

/// Inputs of a sequence that are neither in its state nor in x any more, because the call works in
/// place: those before token `end`, one row of the block's channels for each, as fp32.
struct KeptInputs {
  const float (*rows)[kInPlaceChannels] = nullptr;  // null: no token was overwritten
  std::int64_t end = 0;
};

/// A channel of a sequence. Types: RuntimeTypes or RuntimeTypesOfWidth.
template <typename Types>
class RuntimeStrips {
  template <int kWidth>
  struct RegisterWindow;
  struct MemoryWindow;

 public:
  using Window = std::conditional_t<Types::kWidth == 0, MemoryWindow,
                                    RegisterWindow<Types::kWidth == 0 ? 2 : Types::kWidth>>;

  __device__ RuntimeStrips(const Problem& p, const TensorPointers& at, const Sequence& s,
                           std::int64_t channel)
      : p_(p),
        at_(at),
        s_(s),
        channel_(channel),
        x_bytes_(static_cast<int>(element_bytes(p.x.dtype))),
        x_(static_cast<const char*>(at.x) +
           (row_offset(p, s.begin, p.x) + channel * p.x.channel_stride) * x_bytes_) {}

  /// Processes tokens [first, last). Either `first` is 0 or the window of that token is in x.
  __device__ void convolve(std::int64_t first, std::int64_t last) const {
    const std::int64_t x_step = p_.x.token_stride * x_bytes_;
    const std::int64_t out_step = p_.out.token_stride * element_bytes(p_.out.dtype);
    const char* from = x_ + first * x_step;
    char* to = const_cast<char*>(elements(p_.out, at_.out, p_.out.dtype, first));
    Window window;
    RawElements<kGeneralStripTokens> next;
    next.load(from, x_step, x_bytes_, tokens_of_strip(first, last));
    window.load_taps(*this);
    window.load_history(*this, first, {});
    window.convert_taps(*this);
    while (true) {
      float tokens[kGeneralStripTokens], results[kGeneralStripTokens];
      const int count = tokens_of_strip(first, last);
      next.convert(p_.x.dtype, tokens);
      if (first + kGeneralStripTokens < last) {
        from += kGeneralStripTokens * x_step;
        next.load(from, x_step, x_bytes_, tokens_of_strip(first + kGeneralStripTokens, last));
      }
      apply_input_gate(first, count, tokens);
      window.convolve(*this, first, count, {}, tokens, results);
      finish_strip(first, count, tokens, results);
      store_elements(p_.out.dtype, results, count, to, p_.out.token_stride);
      to += kGeneralStripTokens * out_step;
      first += kGeneralStripTokens;
      if (first >= last) return;
    }
  }

  __device__ void load_taps(Window& window) const {
    window.load_taps(*this);
    window.convert_taps(*this);
  }
  /// The results of up to 8 tokens from `first` on, which are not stored: x may be overwritten when
  /// the other threads have read their inputs. `window` has the taps.
  __device__ void convolve_strip(Window& window, std::int64_t first, int count,
                                 const KeptInputs& kept,
                                 float (&results)[kGeneralStripTokens]) const {
    RawElements<kGeneralStripTokens> raw;
    float tokens[kGeneralStripTokens];
    load_tokens(first, count, raw);
    window.load_history(*this, first, kept);
    raw.convert(p_.x.dtype, tokens);
    apply_input_gate(first, count, tokens);
    window.convolve(*this, first, count, kept, tokens, results);
    finish_strip(first, count, tokens, results);
  }
  __device__ void store(std::int64_t first, int count,
                        const float (&results)[kGeneralStripTokens]) const {
    char* to = const_cast<char*>(elements(p_.out, at_.out, p_.out.dtype, first));
    store_elements(p_.out.dtype, results, count, to, p_.out.token_stride);
  }

  /// Input of a token or, below 0, of the history.
  __device__ float input(std::int64_t token, const KeptInputs& kept) const {
    if (kept.rows == nullptr || token >= kept.end) {
      return input_at<Types>(p_, at_, s_, token, channel_);
    }
    return kept.rows[token - kept.end + shortconv::history_of(p_)][threadIdx.x % kInPlaceChannels];
  }

  /// Writes the final state, in ascending columns: no input is read after it was overwritten.
  __device__ void write_state() const {
    if (s_.write_slot < 0) return;
    if (p_.cache_seqlens.present) return write_state_of_channel<Types>(p_, at_, s_, channel_);
    const std::int64_t length = s_.end - s_.begin;
    const std::int64_t first = first_written_input(p_, s_);
    move_inputs(first, length, at_.state,
                state_index(p_, s_.write_slot, written_column(p_, s_, first, length), channel_),
                p_.state.column_stride);
  }

  /// Writes the states after the draft tokens of a chain, in ascending columns: overlapping states
  /// may overlap the history too.
  __device__ void write_chain_states(std::int64_t sequence) const {
    const auto& states = p_.intermediate_states;
    const auto rows = shortconv::intermediate_rows(p_, at_, s_, sequence);
    const std::int64_t to = rows.first + channel_ * states.channel_stride;
    const int history = p_.width - 1;
    if (states.token_stride == states.column_stride && rows.tokens > 0) {
      return move_inputs(1 - history, rows.tokens, at_.intermediate_states, to,
                         states.column_stride);
    }
    for (std::int64_t token = 0; token < rows.tokens; ++token) {
      move_inputs(token + 1 - history, token + 1, at_.intermediate_states,
                  to + token * states.token_stride, states.column_stride);
    }
  }

  __device__ static int tokens_of_strip(std::int64_t first, std::int64_t last) {
    return static_cast<int>(min(last - first, std::int64_t{kGeneralStripTokens}));
  }

 private:
  /// `kTaps` taps from `first_tap` on; those that do not exist are not used.
  template <int kTaps>
  struct Taps {
    RawElements<kTaps> raw;
    float values[kTaps];
    __device__ void load(const RuntimeStrips& strips, int first_tap, int count) {
      const auto& layout = strips.p_.weight;
      const std::int64_t bytes = element_bytes(layout.dtype);
      const std::int64_t first =
          strips.channel_ * layout.channel_stride + first_tap * layout.tap_stride;
      raw.load(static_cast<const char*>(strips.at_.weight) + first * bytes,
               layout.tap_stride * bytes, static_cast<int>(bytes), count);
    }
    __device__ void convert(const RuntimeStrips& strips) {
      raw.convert(strips.p_.weight.dtype, values);
    }
  };

  /// The inputs before a strip, and the taps, in registers.
  template <int kWidth>
  struct RegisterWindow {
    static constexpr int kHistory = kWidth - 1;
    float history[kHistory], bias;
    Taps<kWidth> taps;

    __device__ void load_taps(const RuntimeStrips& strips) { taps.load(strips, 0, kWidth); }
    __device__ void convert_taps(const RuntimeStrips& strips) {
      bias = bias_at(strips.p_, strips.at_, strips.channel_);
      taps.convert(strips);
    }
    /// Loads the inputs before token `first`.
    __device__ void load_history(const RuntimeStrips& strips, std::int64_t first,
                                 const KeptInputs& kept) {
      strips.load_inputs(first - kHistory, kHistory, kept, history);
    }

    __device__ void convolve(const RuntimeStrips&, std::int64_t, int, const KeptInputs&,
                             const float (&tokens)[kGeneralStripTokens],
                             float (&results)[kGeneralStripTokens]) {
      float inputs[kHistory + kGeneralStripTokens];
#pragma unroll
      for (int k = 0; k < kHistory; ++k) inputs[k] = history[k];
#pragma unroll
      for (int t = 0; t < kGeneralStripTokens; ++t) inputs[kHistory + t] = tokens[t];
#pragma unroll
      for (int t = 0; t < kGeneralStripTokens; ++t) {
        results[t] = bias;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          results[t] = __fmaf_rn(taps.values[k], inputs[t + k], results[t]);
        }
      }
#pragma unroll
      for (int k = 0; k < kHistory; ++k) history[k] = inputs[kGeneralStripTokens + k];
    }
  };

  /// Loads the inputs again for each group of taps.
  struct MemoryWindow {
    __device__ void load_taps(const RuntimeStrips&) {}
    __device__ void convert_taps(const RuntimeStrips&) {}
    __device__ void load_history(const RuntimeStrips&, std::int64_t, const KeptInputs&) {}

    __device__ void convolve(const RuntimeStrips& strips, std::int64_t first, int count,
                             const KeptInputs& kept, const float (&)[kGeneralStripTokens],
                             float (&results)[kGeneralStripTokens]) {
      constexpr int kGroup = 4;
      const Problem& p = strips.p_;
      const float bias = bias_at(p, strips.at_, strips.channel_);
#pragma unroll
      for (int t = 0; t < kGeneralStripTokens; ++t) results[t] = bias;
      if (p.dilation == 1) {
#pragma unroll 1
        for (int tap = 0; tap < p.width; tap += kGroup) {
          add_taps<kGroup>(strips, first, count, tap, kept, results);
        }
      } else {
#pragma unroll 1
        for (int tap = 0; tap < p.width; ++tap) {
          add_taps<1>(strips, first, count, tap, kept, results);
        }
      }
    }

    template <int kTaps>
    __device__ static void add_taps(const RuntimeStrips& strips, std::int64_t first, int count,
                                    int first_tap, const KeptInputs& kept,
                                    float (&results)[kGeneralStripTokens]) {
      const Problem& p = strips.p_;
      const int used = min(kTaps, p.width - first_tap);
      Taps<kTaps> taps;
      float inputs[kTaps - 1 + kGeneralStripTokens];
      taps.load(strips, first_tap, used);
      strips.load_inputs(first - std::int64_t{p.width - 1 - first_tap} * p.dilation,
                         count + used - 1, kept, inputs);
      taps.convert(strips);
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        if (k >= used) break;
#pragma unroll
        for (int t = 0; t < kGeneralStripTokens; ++t) {
          results[t] = __fmaf_rn(taps.values[k], inputs[t + k], results[t]);
        }
      }
    }
  };

  template <typename Layout>
  __device__ const char* elements(const Layout& layout, const void* data, DType dtype,
                                  std::int64_t first) const {
    const std::int64_t index = row_offset(p_, s_.begin, layout) + first * layout.token_stride +
                               channel_ * layout.channel_stride;
    return static_cast<const char*>(data) + index * element_bytes(dtype);
  }
  /// Loads from a tensor with the shape and dtype of x.
  template <typename Layout, int kCount>
  __device__ void load_rows(const Layout& layout, const void* data, std::int64_t first, int count,
                            RawElements<kCount>& raw) const {
    const std::int64_t bytes = element_bytes(p_.x.dtype);
    raw.load(elements(layout, data, p_.x.dtype, first), layout.token_stride * bytes,
             static_cast<int>(bytes), count);
  }
  /// Loads elements of x.
  template <int kCount>
  __device__ void load_tokens(std::int64_t first, int count, RawElements<kCount>& raw) const {
    const std::int64_t step = p_.x.token_stride * x_bytes_;
    raw.load(x_ + first * step, step, x_bytes_, count);
  }

  template <int kCount>
  __device__ void apply_input_gate(std::int64_t first, int count, float (&inputs)[kCount]) const {
    if (!p_.input_gate.present) return;
    RawElements<kCount> raw;
    float gates[kCount];
    load_rows(p_.input_gate, at_.input_gate, first, count, raw);
    raw.convert(p_.x.dtype, gates);
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      if (t < count) inputs[t] = rounded_to(p_.x.dtype, rounded_product(inputs[t], gates[t]));
    }
  }

  /// Loads elements of x and, below token 0, of the state. Not for gated inputs.
  template <int kCount>
  __device__ void load_mixed(std::int64_t first, int count, RawElements<kCount>& raw) const {
    const auto state_bytes = static_cast<int>(element_bytes(p_.state.dtype));
    const std::int64_t x_step = p_.x.token_stride * x_bytes_;
    const char* tokens = x_ + first * x_step;
#pragma unroll
    for (int i = 0; i < kCount; ++i, tokens += x_step) {
      if (i >= count) continue;
      if (first + i >= 0) {
        raw.load_one(i, tokens, x_bytes_);
      } else if (s_.read_slot >= 0) {
        const std::int64_t index =
            state_index(p_, s_.read_slot, history_column(p_, s_, first + i), channel_);
        raw.load_one(i, static_cast<const char*>(at_.state) + index * state_bytes, state_bytes);
      } else {
        raw.bits[i] = 0;
      }
    }
  }

  /// Copies inputs [input, end) to elements of the dtype of the state, `stride` elements apart.
  __device__ void move_inputs(std::int64_t input, std::int64_t end, void* to, std::int64_t index,
                              std::int64_t stride) const {
    if (p_.input_gate.present) {
      for (; input < end; ++input, index += stride) {
        move_input<Types>(p_, at_, s_, input, channel_, to, index);
      }
      return;
    }
    constexpr int kBatch = 4;
    for (; input < end; input += kBatch) {
      RawElements<kBatch> raw;
      const int count = static_cast<int>(min(end - input, std::int64_t{kBatch}));
      load_mixed(input, count, raw);
#pragma unroll
      for (int i = 0; i < kBatch; ++i, index += stride) {
        if (i >= count) break;
        if (input + i >= 0 && p_.x.dtype != p_.state.dtype) {
          store_f32(p_.state.dtype, to, index, raw.to_value(p_.x.dtype, raw.bits[i]));
        } else if (element_bytes(p_.state.dtype) == 4) {
          static_cast<std::uint32_t*>(to)[index] = raw.bits[i];
        } else {
          static_cast<std::uint16_t*>(to)[index] = static_cast<std::uint16_t>(raw.bits[i]);
        }
      }
    }
  }

  /// Loads inputs.
  template <int kCount>
  __device__ void load_inputs(std::int64_t first, int count, const KeptInputs& kept,
                              float (&inputs)[kCount]) const {
    RawElements<kCount> raw;
    if (first >= kept.end) {
      load_tokens(first, count, raw);
      raw.convert(p_.x.dtype, inputs);
      apply_input_gate(first, count, inputs);
    } else if (Types::kWidth == 0 || kept.rows != nullptr || p_.input_gate.present) {
#pragma unroll 1
      for (int i = 0; i < count; ++i) set_element(inputs, i, input(first + i, kept));
    } else {
      load_mixed(first, count, raw);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        inputs[i] = raw.to_value(first + i >= 0 ? p_.x.dtype : p_.state.dtype, raw.bits[i]);
      }
    }
  }

  /// values[index] = value, with the values in registers.
  template <int kCount>
  __device__ static void set_element(float (&values)[kCount], int index, float value) {
#pragma unroll
    for (int t = 0; t < kCount; ++t) values[t] = t == index ? value : values[t];
  }

  /// Activation and epilogue of the sums of tokens with these inputs.
  __device__ void finish_strip(std::int64_t first, int count,
                               const float (&tokens)[kGeneralStripTokens],
                               float (&results)[kGeneralStripTokens]) const {
    activate_all(p_.activation, results);
    if (p_.epilogue == Epilogue::kNone) return;
    float gates[kGeneralStripTokens] = {};
    if (p_.output_gate.present) {
      RawElements<kGeneralStripTokens> raw;
      load_rows(p_.output_gate, at_.output_gate, first, count, raw);
      raw.convert(p_.x.dtype, gates);
    }
#pragma unroll
    for (int t = 0; t < kGeneralStripTokens; ++t) {
      results[t] =
          finish(p_.epilogue, results[t], epilogue_operand(p_.epilogue, tokens[t], gates[t]));
    }
  }

  const Problem& p_;
  const TensorPointers& at_;
  const Sequence& s_;
  const std::int64_t channel_;
  const int x_bytes_;
  const char* const x_;  // element of token 0 in x
};

}  // namespace shortconv::cuda
