// One thread's part of a call: walks tiles of packed rows for one block of channels at a time.
//
// Who owns what: the tile that holds a sequence's first row owns the sequence's state. It loads the
// history, then writes the final state, then convolves the first `head_tokens` tokens, even beyond
// its own end; other tiles leave those tokens alone and never look at the state. Reading a slot
// therefore precedes writing it by construction.
#pragma once

#include <cstdint>

#include "cpu/kernels.hpp"
#include "op/sequence.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv::cpu {

/// Which inner loop a plan uses where the whole history of a token lies in x.
enum class Form : std::uint8_t {
  kRows,     // channels adjacent in x and out
  kColumns,  // tokens adjacent
  kStaged,   // any strides, differing dtypes, in place: through fp32 rows on the stack
};

/// What make_plan decides for the CPU.
struct Choice {
  const Kernels *of_x, *of_out, *of_weight, *of_state;
  const Kernels* of_stage;  // fp32
  Form form;
  std::int32_t threads;
  std::int32_t block_channels;
  std::int64_t tile_tokens;
  std::int64_t tiles;
  std::int64_t channel_blocks;
  std::int64_t head_tokens;  // the history's length, or everything when working in place
  bool stream;               // outputs too large for the caches bypass them, if aligned
};

class Worker {
 public:
  Worker(const Problem& problem, const Choice& choice, const Addresses& addresses,
         bool replaces_histories)
      : p_(problem),
        choice_(choice),
        at_(addresses),
        replaces_histories_(replaces_histories),
        stream_(choice.stream && reinterpret_cast<std::uintptr_t>(addresses.out) % 64 == 0) {}

  /// Streamed stores are ordered by nothing else: every thread calls this after its last item.
  void finish() const;

  /// Item = channel block * tiles + tile: neighbours share a channel block and its taps.
  void process(std::int64_t item);

  /// Item = channel block * snapshots + snapshot. All of them before the first process(), which may
  /// overwrite what they are taken from, and takes those that replace a history themselves.
  void take_snapshot(std::int64_t item);

  // Limits of the stack buffers. 2048 channels make runs of 4 KiB that the hardware prefetches; the
  // general path has up to 64 taps and takes fewer channels at a time.
  static constexpr int kMaxBlockChannels = 2048;
  static constexpr int kGeneralBlockChannels = 64;
  static constexpr int kStageTokens = 8;

 private:
  void use_channels(std::int64_t block);
  void flat_tile(std::int64_t tile);
  void chunk(std::int64_t sequence, std::int64_t chunk, bool to_the_end);
  /// One sequence of draft tokens, by whoever has it.
  void drafts(std::int64_t sequence);
  void capture_windows(const Sequence& s, std::int64_t sequence);
  void convolve_tree(const Sequence& s, std::int64_t sequence);
  void pad_outside();
  void pad_rows(std::int64_t begin, std::int64_t end);

  /// Tokens [first, last) of a sequence (relative to its begin); `head` = this caller owns its
  /// state.
  void tokens(const Sequence& s, std::int64_t sequence, std::int64_t first, std::int64_t last,
              bool head);
  /// Rows [row, end) of a sequence that seq_idx divides further.
  void numbered_tokens(const Sequence& s, std::int64_t sequence, std::int64_t row,
                       std::int64_t end);
  /// As `tokens` without the state; of a head the history has been loaded.
  void convolve(const Sequence& s, std::int64_t first, std::int64_t last, bool head);
  /// The history as it lies in its slot, or zeros, into raw_history().
  void load_history(const Sequence& s);
  /// The final state, where one is kept; the history has been loaded.
  void write_state(const Sequence& s);
  /// The snapshots of a sequence that go to the slot it begins from; the history has been loaded.
  void replace_history(const Sequence& s, std::int64_t sequence);
  /// Inputs [first, end) to the columns of a slot that they have there, one by one upwards: those
  /// older than the history are still in their slot, and nothing is read after it was overwritten.
  void keep_inputs(const Sequence& s, std::int64_t first, std::int64_t end, std::int64_t slot);
  [[nodiscard]] char* raw_history(std::int64_t column) {
    return reinterpret_cast<char*>(results_) + column * pitch_ * element_bytes(p_.state_dtype);
  }
  /// Whether a slot is [channels, history] without gaps.
  [[nodiscard]] bool dense_window() const {
    return p_.state_column == 1 && p_.state_channel == history_of(p_);
  }
  void arrange_taps();
  /// The tokens whose window reaches back into the history.
  void convolve_heads(const Sequence& s, std::int64_t heads);
  /// The first `count` channels of rows of x's type, wherever they lie, to out from `row` on.
  /// `input_gate`: of those rows, if they are not inputs yet.
  void convolve_rows(const void* from, std::int64_t from_token, const Rows& input_gate,
                     std::int64_t row, std::int64_t tokens, int count);
  void direct(const Sequence& s, std::int64_t first, std::int64_t last);
  /// Through the stage, channels [from, from + count) of the block. The stage holds the history if
  /// first == 0.
  void through_stage(const Sequence& s, std::int64_t first, std::int64_t last, int from, int count);

  /// The block's inputs of a row to a run of `to_dtype` with a stride; `scratch` holds a row.
  void move_inputs(std::int64_t row, char* to, std::int64_t to_stride, DType to_dtype,
                   void* scratch);

  /// rows x channels of elements of x's type -> stage rows.
  void gather(const char* from, std::int64_t token_stride, std::int64_t channel_stride,
              std::int64_t rows, int count, float* to);
  /// Inputs -> stage rows, results -> out; `row` is packed, `channel` within the tensor. Gathering
  /// gated ones takes results_.
  void gather_rows(std::int64_t row, std::int64_t rows, std::int64_t channel, int count, float* to);
  /// For the stage's kernel: output gates of tokens in results_, where their results will be.
  Rows gather_output_gate(std::int64_t row, std::int64_t tokens, int from, int count);
  void scatter_rows(const float* from, std::int64_t row, std::int64_t rows, std::int64_t channel,
                    int count);

  const char* x(std::int64_t row, std::int64_t channel) const {
    return static_cast<const char*>(at_.x) +
           (x_row(p_, row) + channel * p_.x_channel) * element_bytes(p_.x_dtype);
  }
  const char* input_gate(std::int64_t row, std::int64_t channel) const {
    return static_cast<const char*>(at_.input_gate) +
           (input_gate_row(p_, row) + channel * p_.input_gate_channel) * element_bytes(p_.x_dtype);
  }
  const char* output_gate(std::int64_t row, std::int64_t channel) const {
    return static_cast<const char*>(at_.output_gate) +
           (output_gate_row(p_, row) + channel * p_.output_gate_channel) *
               element_bytes(p_.x_dtype);
  }
  char* out(std::int64_t row, std::int64_t channel) const {
    return static_cast<char*>(at_.out) +
           (out_row(p_, row) + channel * p_.out_channel) * element_bytes(p_.out_dtype);
  }
  /// The gates of tokens from a row on, absent if the problem has none.
  Rows input_gates(std::int64_t row) const {
    if (!p_.has_input_gate) return {};
    return {input_gate(row, channel_), p_.input_gate_token, p_.input_gate_channel};
  }
  Rows output_gates(std::int64_t row) const {
    if (p_.epilogue != Epilogue::kOutputGate) return {};
    return {output_gate(row, channel_), p_.output_gate_token, p_.output_gate_channel};
  }
  char* window(std::int64_t first, std::int64_t column) const {
    return static_cast<char*>(at_.windows) +
           (first + column * p_.window_column + channel_ * p_.window_channel) *
               element_bytes(p_.state_dtype);
  }
  char* state(std::int64_t slot, std::int64_t column, std::int64_t channel) const {
    return static_cast<char*>(at_.state) +
           (slot * p_.state_slot + column * p_.state_column + channel * p_.state_channel) *
               element_bytes(p_.state_dtype);
  }

  const Problem& p_;
  const Choice& choice_;
  const Addresses& at_;
  const bool replaces_histories_;  // there are snapshots that do
  const bool stream_;
  std::int64_t block_ = -1;
  std::int64_t channel_ = 0;  // first of the block
  int channels_ = 0;
  int pitch_ = 0;  // channels_ rounded up to whole steps

  bool arranged_ = false;  // whether arranged_taps_ and arranged_bias_ are those of the block

  // Sizes in floats; the general path has up to 64 taps, but few channels.
  static constexpr int kTaps = 8 * kMaxBlockChannels;
  static constexpr int kStage = (7 + kStageTokens) * kMaxBlockChannels;
  static constexpr int kResults = kStageTokens * kMaxBlockChannels;
  static_assert(64 * kGeneralBlockChannels <= kTaps);
  static_assert((2 * 63 + kStageTokens) * kGeneralBlockChannels <= kStage);
  static_assert(2 * 7 + 1 <= 7 + kStageTokens);  // history and window of a tree
  static_assert(63 * kGeneralBlockChannels <= kResults);

  alignas(64) float taps_[kTaps];
  alignas(64) float bias_[kMaxBlockChannels];
  alignas(64) float arranged_taps_[kTaps];  // in the lane order of x's type, for Form::kRows
  alignas(64) float arranged_bias_[kMaxBlockChannels];
  // width-1 rows of history, then up to kStageTokens inputs.
  alignas(64) float stage_[kStage];
  // Results of the stage; before there are any, the gates that go into them, and before those the
  // history in the bits it has in its slot.
  alignas(64) float results_[kResults];
};

}  // namespace shortconv::cpu
