// Verify of any call that drafts.cuh and trees.cuh do not support: different dtypes, any strides,
// unaligned addresses, widths up to 64; chains and trees.
//
// Threads: a thread processes one channel of a sequence. Shared memory has its inputs as they are
// in memory: the history, then the next tokens of a chain or the first of a tree. Each thread
// accesses only its column of them. The threads of a block share the windows of a tree and, for
// widths without an instance, the taps.
//
// Bytes moved: x and out once, the state once, width - 1 inputs for each intermediate state (one if
// they overlap). Read again, from the caches: the inputs of a final state, and those of a tree that
// are not in shared memory.
// Ceiling: twice a copy of these bytes, because each load and store moves one element.
#pragma once

#include <cstdint>

#include "cuda/device/activation.cuh"
#include "cuda/device/general_thread.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/raw_elements.cuh"
#include "cuda/device/sequence_rows.cuh"
#include "cuda/device/shared_taps.cuh"
#include "cuda/device/token.cuh"
#include "cuda/kernel_params.hpp"
#include "cuda/tuning.hpp"
#include "op/epilogue.hpp"
#include "op/sequence.hpp"

namespace shortconv::cuda {

/// Types: RuntimeTypes or SizedTypes.
template <typename Types, bool kTrees>
class GeneralVerify {
 public:
  /// Taps whose inputs are in registers together.
  static constexpr int kBatch = Types::kWidth == 0 ? 8 : Types::kWidth;

  __device__ GeneralVerify(const GeneralParams& params, const Sequence& s,
                           const shortconv::IntermediateRows& states, std::int64_t sequence,
                           std::int64_t channel)
      : p_(params.problem),
        at_(params.pointers),
        s_(s),
        sequence_(sequence),
        channel_(channel),
        length_(s.end - s.begin),
        staged_tokens_(static_cast<int>(params.launch.unit_tokens)),
        history_(Types::kWidth == 0 ? p_.width - 1 : Types::kWidth - 1),
        stored_states_(states.tokens),
        state_bytes_(static_cast<int>(element_bytes(Types::state(p_)))),
        column_step_(p_.intermediate_states.column_stride * state_bytes_),
        token_step_(p_.intermediate_states.token_stride * state_bytes_),
        overlap_(column_step_ == token_step_),
        intermediate_states_(static_cast<char*>(at_.intermediate_states) +
                             (states.first + channel * p_.intermediate_states.channel_stride) *
                                 state_bytes_) {
    auto* memory = reinterpret_cast<std::uint32_t*>(dynamic_shared_memory());
    inputs_ = memory + threadIdx.x;
    memory += (history_ + staged_tokens_) * kGeneralThreads;
    gates_ = memory + threadIdx.x;
    if (p_.output_gate.present) memory += staged_tokens_ * kGeneralThreads;
    taps_ = Taps{reinterpret_cast<float*>(memory)};
    if (Types::kWidth == 0) memory += Taps::words(p_.width);
    windows_ = reinterpret_cast<std::int32_t*>(memory);
  }

  /// All threads of the block call it; `inside`: the channel exists.
  __device__ void run(bool inside) {
    if constexpr (Types::kWidth == 0) taps_.load(p_, at_, channel_ - threadIdx.x);
    if (inside) load();
    if constexpr (Types::kWidth == 0) __syncthreads();
    // The final state reads the history from the pool, which intermediate states may overwrite, so
    // it comes first. The tokens have the history in shared memory. A state that replaces its
    // history could come first too, but chains then need ten registers more.
    const bool elsewhere = s_.write_slot != s_.read_slot;
    if (inside && elsewhere) write_state_of_channel<Types>(p_, at_, s_, channel_);
    if constexpr (kTrees) {
      for (std::int64_t base = 0; base < length_; base += kTreeWindowTokens) {
        find_windows(base);
        if (!inside) continue;
        if (length_ <= staged_tokens_) {
          convolve_tokens<true>(base, min(length_, base + kTreeWindowTokens));
        } else {
          convolve_tokens<false>(base, min(length_, base + kTreeWindowTokens));
        }
      }
    } else {
      if (!inside) return;
      while (true) {
        const std::int64_t end = min(length_, first_staged_ + staged_tokens_);
        convolve_tokens<true>(first_staged_, end);
        if (end == length_) break;
        for (int k = 0; k < history_; ++k) row(k) = row(staged_tokens_ + k);
        first_staged_ = end;
        load_tokens_from(end);
      }
    }
    if (inside && !elsewhere) write_state_of_channel<Types>(p_, at_, s_, channel_);
  }

 private:
  using Taps = SharedTaps<kGeneralThreads>;

  /// Where the next token's results go.
  struct Cursor {
    char *states, *out;  // states: column 0 of the intermediate state
  };
  /// A strip of tokens.
  struct Strip {
    RawElements<kGeneralStripTokens> tokens, input_gates, output_gates;
  };

  template <bool kNear>
  __device__ void convolve_tokens(std::int64_t token, std::int64_t end) const {
    const std::int64_t out_step = p_.out.token_stride * element_bytes(p_.out.dtype);
    Cursor to = {intermediate_states_ + token * token_step_,
                 const_cast<char*>(elements(p_.out, at_.out, p_.out.dtype, token))};
    const std::int32_t* window = windows_;
    for (; token < end; ++token) {
      convolve_token<kNear>(token, window, to);
      window += p_.width;
      to.states += token_step_;
      to.out += out_step;
    }
  }

  __device__ std::uint32_t& row(int number) const { return inputs_[number * kGeneralThreads]; }

  /// Element of a token in a tensor with a row for each token.
  template <typename Layout>
  __device__ const char* elements(const Layout& layout, const void* data, DType dtype,
                                  std::int64_t token) const {
    const std::int64_t index =
        token_offset(p_, sequence_, s_.begin, token, layout) + channel_ * layout.channel_stride;
    return static_cast<const char*>(data) + index * element_bytes(dtype);
  }
  /// Loads from a tensor with the shape and dtype of x.
  template <typename Layout, int kCount>
  __device__ void load_rows(const Layout& layout, const void* data, std::int64_t first, int count,
                            RawElements<kCount>& raw) const {
    const auto bytes = static_cast<int>(element_bytes(Types::x(p_)));
    raw.load(elements(layout, data, Types::x(p_), first), layout.token_stride * bytes, bytes,
             count);
  }
  /// Multiplies elements of x by their gates.
  template <int kCount>
  __device__ void apply_input_gates(const RawElements<kCount>& gates,
                                    RawElements<kCount>& raw) const {
    float inputs[kCount], factors[kCount];
    raw.convert(Types::x(p_), inputs);
    gates.convert(Types::x(p_), factors);
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      raw.bits[t] = bits_of(Types::x(p_), rounded_product(inputs[t], factors[t]));
    }
  }

  /// Loads the history, the first tokens and the taps. All loads of a compiled width are issued
  /// before the first one is waited for.
  __device__ void load() {
    Strip strip;
    load_strip(0, strip);
    if constexpr (Types::kWidth == 0) {
      const int history = history_;
      for (int k = 0; k < history; k += kBatch) {
        RawElements<kBatch> raw;
        load_history(k, min(history - k, kBatch), raw);
        store_rows(raw, k, min(history - k, kBatch));
      }
      bias_ = bias_at(p_, at_, channel_);
    } else {
      RawElements<kBatch - 1> raw;
      load_history(0, kBatch - 1, raw);
      load_taps();
      bias_ = bias_at(p_, at_, channel_);
      store_rows(raw, 0, kBatch - 1);
    }
    store_strip(0, strip);
    load_tokens_from(kGeneralStripTokens);
  }

  /// Loads `count` inputs of the history from number `first` on, the oldest one being 0.
  template <int kCount>
  __device__ void load_history(int first, int count, RawElements<kCount>& raw) const {
    const std::int64_t step = p_.state.column_stride * state_bytes_;
    const std::int64_t columns_to_wrap = p_.state_columns - s_.read_column;
    const char* from = static_cast<const char*>(at_.state) +
                       state_index(p_, s_.read_slot, s_.read_column, channel_) * state_bytes_ +
                       first * step;
    if (first > columns_to_wrap) from -= p_.state_columns * step;
#pragma unroll
    for (int i = 0; i < kCount; ++i, from += step) {
      if (first + i == columns_to_wrap) from -= p_.state_columns * step;  // circular buffer
      raw.bits[i] = 0;
      if (i < count && s_.read_slot >= 0) raw.load_one(i, from, state_bytes_);
    }
  }

  template <int kCount>
  __device__ void store_rows(const RawElements<kCount>& raw, int first, int count) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) row(first + i) = raw.bits[i];
    }
  }

  /// Tokens from `first` on that exist and that shared memory has room for, up to a strip.
  __device__ int strip_tokens(std::int64_t first) const {
    const std::int64_t last = min(length_, first_staged_ + staged_tokens_);
    return static_cast<int>(min(last - first, std::int64_t{kGeneralStripTokens}));
  }
  __device__ void load_strip(std::int64_t first, Strip& strip) const {
    const int count = strip_tokens(first);
    load_rows(p_.x, at_.x, first, count, strip.tokens);
    if (p_.input_gate.present) {
      load_rows(p_.input_gate, at_.input_gate, first, count, strip.input_gates);
    }
    if (p_.output_gate.present) {
      load_rows(p_.output_gate, at_.output_gate, first, count, strip.output_gates);
    }
  }
  __device__ void store_strip(std::int64_t first, Strip& strip) const {
    const int count = strip_tokens(first), staged = static_cast<int>(first - first_staged_);
    if (p_.input_gate.present) apply_input_gates(strip.input_gates, strip.tokens);
    store_rows(strip.tokens, history_ + staged, count);
    if (!p_.output_gate.present) return;
#pragma unroll
    for (int t = 0; t < kGeneralStripTokens; ++t) {
      if (t < count) gates_[(staged + t) * kGeneralThreads] = strip.output_gates.bits[t];
    }
  }
  /// Loads the tokens from `first` on that shared memory has room for.
  __device__ void load_tokens_from(std::int64_t first) {
    for (; strip_tokens(first) > 0; first += kGeneralStripTokens) {
      Strip strip;
      load_strip(first, strip);
      store_strip(first, strip);
    }
  }

  __device__ void load_taps() {
    RawElements<kBatch> raw;
    const std::int64_t bytes = element_bytes(p_.weight.dtype);
    raw.load(static_cast<const char*>(at_.weight) + channel_ * p_.weight.channel_stride * bytes,
             p_.weight.tap_stride * bytes, static_cast<int>(bytes), kBatch);
    raw.convert(p_.weight.dtype, register_taps_);
  }

  /// The output gate of a token.
  template <bool kNear>
  __device__ float output_gate(std::int64_t token) const {
    if (!p_.output_gate.present) return 0.0f;
    RawElements<1> raw;
    if (kNear || token < staged_tokens_) {
      raw.bits[0] = gates_[(token - first_staged_) * kGeneralThreads];
    } else {
      load_rows(p_.output_gate, at_.output_gate, token, 1, raw);
    }
    return raw.to_value(Types::x(p_), raw.bits[0]);
  }

  /// Writes the numbers of the inputs of each token's window, oldest first. The history is below 0.
  __device__ void find_windows(std::int64_t base) {
    __syncthreads();
    const std::int64_t token = base + threadIdx.x;
    if (threadIdx.x < kTreeWindowTokens && token < length_) {
      std::int32_t* window = windows_ + threadIdx.x * p_.width;
      std::int64_t input = token;
      for (int k = history_; k >= 0; --k) {
        window[k] = static_cast<std::int32_t>(input);
        input = parent_of(p_, at_, sequence_, s_.begin, input);
      }
    }
    __syncthreads();
  }

  /// Loads kCount inputs of a token's window, from tap `tap` on. kNear: all are in shared memory.
  template <bool kNear, int kCount>
  __device__ void load_window(std::int64_t token, const std::int32_t* window, int tap,
                              RawElements<kCount>& raw, float (&values)[kCount]) const {
    int inputs[kCount];  // the history is below 0
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      // In a chain only the sign matters, and the sequence may be long. A tree has at most
      // kMaxTreeTokens of host/select.hpp.
      inputs[i] = kTrees
                      ? window[tap + i]
                      : static_cast<int>(min(token, std::int64_t{kMaxWidth})) - history_ + tap + i;
    }
    const int first_row = static_cast<int>(token - first_staged_) + tap;  // of a chain
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (kNear || inputs[i] < staged_tokens_) {
        raw.bits[i] = row(kTrees ? history_ + inputs[i] : first_row + i);
      } else {
        RawElements<1> far, gate;
        load_rows(p_.x, at_.x, inputs[i], 1, far);
        if (p_.input_gate.present) {
          load_rows(p_.input_gate, at_.input_gate, inputs[i], 1, gate);
          apply_input_gates(gate, far);
        }
        raw.bits[i] = far.bits[0];
      }
    }
    if (Types::state(p_) == Types::x(p_)) return raw.convert(Types::x(p_), values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = raw.to_value(inputs[i] < 0 ? Types::state(p_) : Types::x(p_), raw.bits[i]);
      // The element of the state, for the intermediate states.
      if (inputs[i] >= 0) raw.bits[i] = bits_of(Types::state(p_), values[i]);
    }
  }

  /// Adds kCount taps and stores their inputs to the intermediate state. `states` is its column 0.
  template <bool kNear, int kCount>
  __device__ void add_taps(std::int64_t token, const std::int32_t* window, int tap, char* states,
                           float& sum, float& newest) const {
    RawElements<kCount> raw;
    float values[kCount];
    load_window<kNear>(token, window, tap, raw, values);
    const bool is_last = Types::kWidth != 0 || tap + kCount == p_.width;
    // If the states overlap, that of the token before has all inputs but the newest.
    if (token < stored_states_ && !(overlap_ && token > 0)) {
      if (Types::kWidth != 0) {
        store_raw<1>(raw, state_bytes_, states, column_step_);
      } else if (tap > 0) {
        store_raw(raw, state_bytes_, states + (tap - 1) * column_step_, column_step_);
      }
    } else if (token < stored_states_ && is_last) {
      store_bits(raw.bits[kCount - 1], state_bytes_, states + (history_ - 1) * column_step_);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum = __fmaf_rn(tap_at(tap + i), values[i], sum);
    newest = values[kCount - 1];
  }

  template <bool kNear>
  __device__ void convolve_token(std::int64_t token, const std::int32_t* window,
                                 const Cursor& to) const {
    float sum = bias_, newest = 0.0f;
    if constexpr (Types::kWidth != 0) {
      add_taps<kNear, kBatch>(token, window, 0, to.states, sum, newest);
    } else {
      add_taps<kNear, 1>(token, window, 0, to.states, sum, newest);
      int tap = 1;
      for (; tap + kBatch <= p_.width; tap += kBatch) {
        add_taps<kNear, kBatch>(token, window, tap, to.states, sum, newest);
      }
      for (; tap < p_.width; ++tap) add_taps<kNear, 1>(token, window, tap, to.states, sum, newest);
    }
    float result = activate(p_.activation, sum);
    if (p_.epilogue != Epilogue::kNone) {
      result = finish(p_.epilogue, result,
                      epilogue_operand(p_.epilogue, newest, output_gate<kNear>(token)));
    }
    store_f32(p_.out.dtype, to.out, 0, result);
  }

  __device__ float tap_at(int tap) const {
    if constexpr (Types::kWidth != 0) return register_taps_[tap];
    return taps_.at(tap, static_cast<int>(threadIdx.x));
  }

  const Problem& p_;
  const TensorPointers& at_;
  const Sequence& s_;
  const std::int64_t sequence_, channel_, length_;
  const int staged_tokens_;  // tokens that shared memory has room for
  const int history_;
  const std::int64_t stored_states_;  // intermediate states: those after the first tokens
  const int state_bytes_;
  const std::int64_t column_step_, token_step_;  // of the intermediate states, in bytes
  const bool overlap_;
  char* const intermediate_states_;
  std::uint32_t *inputs_, *gates_;  // in shared memory, of the thread
  Taps taps_;
  std::int32_t* windows_;
  std::int64_t first_staged_ = 0;
  float bias_ = 0.0f, register_taps_[kBatch];
};

template <typename Types, bool kTrees>
__global__ void __launch_bounds__(kGeneralThreads, general_verify_blocks(Types::kWidth))
    verify_general(const __grid_constant__ GeneralParams params) {
  pdl_wait_and_launch(params.launch);
  const Problem& p = params.problem;
  const TensorPointers& at = params.pointers;
  const auto [unit, channel] = GeneralThread(params.launch, kGeneralThreads);
  const bool inside = channel < p.channels;
  if (unit >= params.launch.tiles) {
    if (inside) pad_outside<Types>(p, at, channel);
    return;
  }
  __shared__ Sequence shared_sequence;
  __shared__ shortconv::IntermediateRows shared_states;
  if (threadIdx.x == 0) {
    shared_sequence = sequence_at(p, at, unit);
    shared_states = shortconv::intermediate_rows(p, at, shared_sequence, unit);
  }
  __syncthreads();
  const Sequence s = shared_sequence;
  if (s.end <= s.begin) return;
  if (s.skipped) {
    if (inside) pad_rows<Types>(p, at, s.begin, s.end, channel);
    return;
  }
  GeneralVerify<Types, kTrees>(params, s, shared_states, unit, channel).run(inside);
}

}  // namespace shortconv::cuda
