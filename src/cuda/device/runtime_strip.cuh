// Convolution of strips of 8 tokens of one channel, for any strides and dtypes. general.cuh and
// groups.cuh use it. The operations and their order are those of the other kernels, and so are the
// bits of the results.
//
// The window stays in the thread from strip to strip, so each input is loaded once: in registers
// for compiled widths, otherwise in shared memory, which kernels with such windows are launched
// with (general_window_bytes).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/memory.cuh"
#include "cuda/device/raw_elements.cuh"
#include "cuda/device/token.cuh"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {

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

/// A channel of a sequence. Types: RuntimeTypes or RuntimeTypesOfWidth.
template <typename Types>
class RuntimeStrips {
  template <int kWidth>
  struct RegisterWindow;
  struct SharedWindow;

 public:
  using Window = std::conditional_t<Types::kWidth == 0, SharedWindow,
                                    RegisterWindow<Types::kWidth == 0 ? 2 : Types::kWidth>>;
  using RawTokens = RawElements<kGeneralStripTokens>;

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
    Window window(*this);
    RawTokens next;
    next.load(from, x_step, x_bytes_, tokens_of_strip(first, last));
    window.load_taps(*this);
    window.load_history(*this, first);
    window.convert_taps(*this);
    while (true) {
      float tokens[kGeneralStripTokens], results[kGeneralStripTokens];
      const int count = tokens_of_strip(first, last);
      next.convert(p_.x.dtype, tokens);
      if (first + kGeneralStripTokens < last) {
        from += kGeneralStripTokens * x_step;
        next.load(from, x_step, x_bytes_, tokens_of_strip(first + kGeneralStripTokens, last));
      }
      RawTokens gate;
      load_output_gate(first, count, gate);
      apply_input_gate(first, count, tokens);
      window.convolve(*this, tokens, results);
      finish_strip(tokens, gate, results);
      store_elements(p_.out.dtype, results, count, to, p_.out.token_stride);
      to += kGeneralStripTokens * out_step;
      first += kGeneralStripTokens;
      if (first >= last) return;
    }
  }

  // For blocks whose threads share inputs. In place, x is overwritten when all threads have loaded
  // the tokens of a step.

  /// Loads up to a strip of tokens.
  __device__ void load_strip(std::int64_t first, int count, RawTokens& raw) const {
    load_tokens(first, count, raw);
  }
  /// The inputs of these tokens.
  __device__ void convert_strip(std::int64_t first, int count, const RawTokens& raw,
                                float (&tokens)[kGeneralStripTokens]) const {
    raw.convert(p_.x.dtype, tokens);
    apply_input_gate(first, count, tokens);
  }
  __device__ void load_taps(Window& window) const {
    window.load_taps(*this);
    window.convert_taps(*this);
  }
  /// Processes a strip. `rows` has the inputs from that of the strip's oldest tap on, `row_stride`
  /// apart; `tokens` are the newest of them.
  __device__ void convolve_strip(Window& window, const float* rows, int row_stride,
                                 std::int64_t first, int count,
                                 const float (&tokens)[kGeneralStripTokens]) const {
    float results[kGeneralStripTokens];
    RawTokens gate;
    load_output_gate(first, count, gate);
    window.convolve(*this, rows, row_stride, tokens, results);
    finish_strip(tokens, gate, results);
    char* to = const_cast<char*>(elements(p_.out, at_.out, p_.out.dtype, first));
    store_elements(p_.out.dtype, results, count, to, p_.out.token_stride);
  }
  /// Whether the final state is the last tokens of x, as they are.
  __device__ bool state_is_in_x() const {
    return s_.end - s_.begin >= shortconv::history_of(p_) && !p_.input_gate.present &&
           !p_.cache_seqlens.present && p_.shifted_columns == 0;
  }
  /// The state of such a sequence: loads it, and stores it when the history is no longer needed.
  template <int kHistory>
  __device__ void load_state(RawElements<kHistory>& raw) const {
    load_tokens(s_.end - s_.begin - kHistory, kHistory, raw);
  }
  template <int kHistory>
  __device__ void store_state(const RawElements<kHistory>& raw) const {
    if (s_.write_slot < 0) return;
    std::int64_t to = state_index(p_, s_.write_slot, p_.base_column, channel_);
#pragma unroll
    for (int k = 0; k < kHistory; ++k, to += p_.state.column_stride) {
      store_input(raw.bits[k], p_.x.dtype, at_.state, to);
    }
  }
  /// Input of a token or, below 0, of the history.
  __device__ float input(std::int64_t token) const {
    return input_at<Types>(p_, at_, s_, token, channel_);
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
    __device__ explicit RegisterWindow(const RuntimeStrips&) {}

    __device__ void load_taps(const RuntimeStrips& strips) { taps.load(strips, 0, kWidth); }
    __device__ void convert_taps(const RuntimeStrips& strips) {
      bias = bias_at(strips.p_, strips.at_, strips.channel_);
      taps.convert(strips);
    }
    /// Loads the inputs before token `first`.
    __device__ void load_history(const RuntimeStrips& strips, std::int64_t first) {
      strips.load_inputs(first - kHistory, kHistory, history);
    }

    /// The sums of a strip, the next one after that of the call before.
    __device__ void convolve(const RuntimeStrips&, const float (&tokens)[kGeneralStripTokens],
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
    /// The sums of a strip whose inputs are in shared memory.
    __device__ void convolve(const RuntimeStrips& strips, const float* rows, int row_stride,
                             const float (&tokens)[kGeneralStripTokens],
                             float (&results)[kGeneralStripTokens]) {
#pragma unroll
      for (int k = 0; k < kHistory; ++k) history[k] = rows[k * row_stride];
      convolve(strips, tokens, results);
    }
  };

  /// Inputs and taps in shared memory, as fp32. Those of adjacent threads are adjacent.
  struct SharedWindow {
    float* inputs;  // those before the strip, then the strip
    float* taps;
    int stride;  // between inputs and between taps

    /// Of one thread.
    __device__ explicit SharedWindow(const RuntimeStrips& strips)
        : inputs(reinterpret_cast<float*>(dynamic_shared_memory()) + threadIdx.x),
          taps(inputs +
               (shortconv::history_of(strips.p_) + kGeneralStripTokens) * std::int64_t{blockDim.x}),
          stride(static_cast<int>(blockDim.x)) {}
    /// Only the taps, at `rows`, are those of the window; threads share them and the inputs.
    __device__ void share(float* rows, int row_stride) { taps = rows, stride = row_stride; }

    __device__ void load_taps(const RuntimeStrips&) {}
    __device__ void convert_taps(const RuntimeStrips& strips) {
      constexpr int kBatch = 4;
      const int width = strips.p_.width;
#pragma unroll 1
      for (int tap = 0; tap < width; tap += kBatch) {
        const int count = min(kBatch, width - tap);
        Taps<kBatch> batch;
        batch.load(strips, tap, count);
        batch.convert(strips);
        store_rows(batch.values, count, taps + tap * stride);
      }
    }
    __device__ void load_history(const RuntimeStrips& strips, std::int64_t first) {
      constexpr int kBatch = 4;
      const int history = shortconv::history_of(strips.p_);
#pragma unroll 1
      for (int k = 0; k < history; k += kBatch) {
        const int count = min(kBatch, history - k);
        float batch[kBatch];
        strips.load_inputs(first - history + k, count, batch);
        store_rows(batch, count, inputs + k * stride);
      }
    }
    template <int kCount>
    __device__ void store_rows(const float (&values)[kCount], int count, float* to) const {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i < count) to[i * stride] = values[i];
      }
    }

    __device__ void convolve(const RuntimeStrips& strips,
                             const float (&tokens)[kGeneralStripTokens],
                             float (&results)[kGeneralStripTokens]) {
      const int history = shortconv::history_of(strips.p_);
      store_rows(tokens, kGeneralStripTokens, inputs + history * stride);
      convolve(strips, inputs, stride, tokens, results);
      const float* from = inputs + kGeneralStripTokens * stride;
#pragma unroll 4
      for (int k = 0; k < history; ++k) inputs[k * stride] = from[k * stride];
    }

    __device__ void convolve(const RuntimeStrips& strips, const float* rows, int row_stride,
                             const float (&)[kGeneralStripTokens],
                             float (&results)[kGeneralStripTokens]) const {
      const Problem& p = strips.p_;
      const float bias = bias_at(p, strips.at_, strips.channel_);
#pragma unroll
      for (int t = 0; t < kGeneralStripTokens; ++t) results[t] = bias;
      if (p.dilation == 1) {
        add_adjacent_taps(p.width, rows, row_stride, results);
      } else {
#pragma unroll 1
        for (int tap = 0; tap < p.width; ++tap) {
          const float value = taps[tap * stride];
          const float* from = rows + tap * p.dilation * row_stride;
#pragma unroll
          for (int t = 0; t < kGeneralStripTokens; ++t) {
            results[t] = __fmaf_rn(value, from[t * row_stride], results[t]);
          }
        }
      }
    }

    /// The inputs of a tap are those of the tap before and one more, so each is loaded once.
    __device__ void add_adjacent_taps(int width, const float* rows, int row_stride,
                                      float (&results)[kGeneralStripTokens]) const {
      constexpr int kGroup = 4;  // taps
      float inputs[kShared + kGroup];
#pragma unroll
      for (int i = 0; i < kShared; ++i) inputs[i] = rows[i * row_stride];
      const float* from = rows + kShared * row_stride;
      int tap = 0;
#pragma unroll 2
      for (; tap + kGroup <= width; tap += kGroup) {
        add_taps<kGroup>(tap, from, row_stride, inputs, results);
      }
#pragma unroll 1
      for (; tap < width; ++tap) add_taps<1>(tap, from, row_stride, inputs, results);
    }
    template <int kTaps, int kInputs>
    __device__ void add_taps(int tap, const float*& from, int row_stride, float (&inputs)[kInputs],
                             float (&results)[kGeneralStripTokens]) const {
      float values[kTaps];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        values[k] = taps[(tap + k) * stride];
        inputs[kShared + k] = from[k * row_stride];
      }
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
#pragma unroll
        for (int t = 0; t < kGeneralStripTokens; ++t) {
          results[t] = __fmaf_rn(values[k], inputs[t + k], results[t]);
        }
      }
#pragma unroll
      for (int i = 0; i < kShared; ++i) inputs[i] = inputs[i + kTaps];
      from += kTaps * row_stride;
    }
    static constexpr int kShared = kGeneralStripTokens - 1;  // inputs that the next tap has too
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

  /// Stores an input of this dtype as one of that of the state.
  __device__ void store_input(std::uint32_t bits, DType dtype, void* to, std::int64_t index) const {
    if (dtype != p_.state.dtype) {
      store_f32(p_.state.dtype, to, index, RawElements<1>::to_value(dtype, bits));
    } else if (element_bytes(p_.state.dtype) == 4) {
      static_cast<std::uint32_t*>(to)[index] = bits;
    } else {
      static_cast<std::uint16_t*>(to)[index] = static_cast<std::uint16_t>(bits);
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
        store_input(raw.bits[i], input + i >= 0 ? p_.x.dtype : p_.state.dtype, to, index);
      }
    }
  }

  /// Loads inputs.
  template <int kCount>
  __device__ void load_inputs(std::int64_t first, int count, float (&inputs)[kCount]) const {
    RawElements<kCount> raw;
    if (first >= 0) {
      load_tokens(first, count, raw);
      raw.convert(p_.x.dtype, inputs);
      apply_input_gate(first, count, inputs);
    } else if (p_.input_gate.present) {
#pragma unroll 1
      for (int i = 0; i < count; ++i) set_element(inputs, i, input(first + i));
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

  __device__ void load_output_gate(std::int64_t first, int count, RawTokens& gate) const {
    if (p_.output_gate.present) load_rows(p_.output_gate, at_.output_gate, first, count, gate);
  }

  /// Activation and epilogue of the sums of tokens with these inputs. The gate is loaded before.
  __device__ void finish_strip(const float (&tokens)[kGeneralStripTokens], const RawTokens& gate,
                               float (&results)[kGeneralStripTokens]) const {
    activate_all(p_.activation, results);
    if (p_.epilogue == Epilogue::kNone) return;
    float gates[kGeneralStripTokens] = {};
    if (p_.output_gate.present) gate.convert(p_.x.dtype, gates);
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
