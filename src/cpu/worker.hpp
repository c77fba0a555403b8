// One thread's part of a CPU call: tiles of packed rows, one block of channels at a time.
//
// Threads: an item is one tile of one block of channels. The tile with the first row of a sequence
// loads the history, writes the final state, then computes the first `start_tokens` tokens, even
// those beyond its last row. Other tiles skip these tokens and do not access the state. A slot is
// therefore read before it is written. kernels-inl.hpp gives the bytes moved and the ceiling.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/capability.hpp"
#include "cpu/group_blocks.hpp"
#include "cpu/kernels.hpp"
#include "op/sequence.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv::cpu {

/// Inner loop for tokens whose whole window is in x.
enum class Form : std::uint8_t {
  kTokenMajor,     // adjacent channels in x and out
  kChannelsFirst,  // adjacent tokens
  kStaged,         // any strides, different dtypes, in place: through fp32 rows of the scratch
};

/// What a plan of the CPU backend holds.
struct CpuConfig {
  const Kernels *x_kernels, *out_kernels, *weight_kernels, *state_kernels;
  const Kernels* f32_kernels;
  Form form;
  std::int32_t threads;
  std::int32_t block_channels;  // of each block of channels
  std::int64_t tile_tokens;
  std::int64_t tiles;
  std::int64_t channel_blocks;
  std::int64_t start_tokens;  // length of the history; all tokens when in place
  bool stream;                // non-temporal stores of outputs too large for the caches, if aligned
};

// Limits of the scratch. 2048 channels make runs of 4 KiB, which the hardware prefetches. The
// general path has up to 64 taps and smaller blocks of channels.
inline constexpr int kMaxBlockChannels = 2048;
// Of decodes: taps and rows of a block fit into the L1 cache. 1 x 8192 bf16 takes 5.9 us instead of
// 7.6; blocks of 512 make 64 x 8192 slower.
inline constexpr int kTokenBlockChannels = 1024;
inline constexpr int kGeneralBlockChannels = 64;
inline constexpr int kGeneralGroupChannels = 192;  // blocks of grouped calls are whole heads
inline constexpr int kStageTokens = 8;

/// True if a call has the kernels for any width and dilation.
inline bool has_general_kernels(const Problem& p) {
  return p.dilation > 1 || p.width > kWidths.all.back();
}

/// Buffers of a thread, about 0.4 MB: more than the stack of every thread has left.
struct Scratch {
  // Sizes in floats.
  static constexpr int kWidest = std::ranges::max(kWidths.all);  // with blocks of kMaxBlockChannels
  static constexpr int kTaps = kWidest * kMaxBlockChannels;
  static constexpr int kStage = (kWidest - 1 + kStageTokens) * kMaxBlockChannels;
  static constexpr int kResults = kStageTokens * kMaxBlockChannels;
  static_assert(kMaxWidth * kGeneralGroupChannels <= kTaps);
  static_assert((2 * (kMaxWidth - 1) + kStageTokens) * kGeneralGroupChannels <= kStage);
  static_assert(2 * (kWidest - 1) + 1 <=
                kWidest - 1 + kStageTokens);  // history and window of a token of a tree
  static_assert((kMaxWidth - 1) * kGeneralGroupChannels <= kResults);

  alignas(64) float taps[kTaps];
  alignas(64) float bias[kMaxBlockChannels];
  alignas(64) float arranged_taps[kTaps];  // in the lane order of the dtype of x
  alignas(64) float arranged_bias[kMaxBlockChannels];
  // The history, then up to kStageTokens inputs.
  alignas(64) float stage[kStage];
  // First the history with the bits of its slot, then output gates, then results of the stage.
  alignas(64) float results[kResults];
};

class Worker {
 public:
  /// `groups` is null in a call without groups.
  Worker(const Problem& problem, const CpuConfig& config, const TensorPointers& pointers,
         bool replaces_histories, const GroupBlocks* groups, Scratch& scratch)
      : p_(problem),
        config_(config),
        at_(pointers),
        taps_(scratch.taps),
        bias_(scratch.bias),
        arranged_taps_(scratch.arranged_taps),
        arranged_bias_(scratch.arranged_bias),
        stage_(scratch.stage),
        results_(scratch.results),
        replaces_histories_(replaces_histories),
        groups_(groups),
        out_(problem.out),
        stream_(config.stream && reinterpret_cast<std::uintptr_t>(pointers.out) % 64 == 0) {}

  /// Orders non-temporal stores. Every thread calls this after its last item.
  void finish() const;

  /// Item = channel block * tiles + tile: consecutive items share a channel block and its taps.
  void process(std::int64_t item);

  /// Item = channel block * snapshots + snapshot. Call for all snapshots before the first
  /// process(), which may overwrite their inputs. process() writes those that replace a history.
  void take_snapshot(std::int64_t item);

 private:
  // worker.cpp: items.
  void use_channels(std::int64_t block);
  /// Taps in channel order; overwrites the stage.
  void load_taps();
  void load_bias();  // in both orders
  void process_tile(std::int64_t tile);
  void process_block(std::int64_t sequence, std::int64_t block, bool to_the_end);
  /// Rows [row, end) of a sequence that seq_idx divides into parts.
  void process_seq_idx(const Sequence& s, std::int64_t sequence, std::int64_t row,
                       std::int64_t end);
  /// Tokens [first, last) of a sequence, relative to its begin; first == 0 includes the state.
  void process_tokens(const Sequence& s, std::int64_t sequence, std::int64_t first,
                      std::int64_t last);
  void pad_outside();
  void pad_rows(std::int64_t begin, std::int64_t end);

  // groups.cpp: grouped calls.
  void use_group_block(const GroupBlock& block);
  /// The rest of rows whose channels have been convolved, or all of a block without a convolution.
  void finish_rows(std::int64_t begin, std::int64_t end);
  void normalize_rows(std::int64_t begin, std::int64_t end);
  void pad_gates(std::int64_t begin, std::int64_t end);
  [[nodiscard]] bool is_convolved() const { return !is_other_block_; }
  void scale_rows(std::int64_t rows, int count, float* to);

  // drafts.cpp: draft tokens.
  void process_drafts(std::int64_t sequence);
  void write_intermediate_states(const Sequence& s, std::int64_t sequence);
  void convolve_tree(const Sequence& s, std::int64_t sequence);

  // state.cpp: states. All but load_history, take_snapshot and uses_slots_directly require a loaded
  // history.
  /// Copies the history, or zeros, to raw_history().
  void load_history(const Sequence& s);
  void write_state(const Sequence& s);
  /// Writes the snapshots of a sequence to the slot that the sequence starts from.
  void replace_history(const Sequence& s, std::int64_t sequence);
  /// Writes inputs [first, end) to their columns of a slot in ascending order: inputs older than
  /// the history are read from their slot before they are overwritten.
  void write_inputs(const Sequence& s, std::int64_t first, std::int64_t end, std::int64_t slot);
  /// Copies the inputs of a row, all channels of the block; `scratch` holds a row.
  void move_inputs(std::int64_t row, char* to, std::int64_t to_stride, DType to_dtype,
                   void* scratch);
  /// True if the kernel may read the history from the columns of its slot and write the final
  /// state.
  [[nodiscard]] bool uses_slots_directly() const;
  [[nodiscard]] char* raw_history(std::int64_t column) {
    return reinterpret_cast<char*>(results_) + column * pitch_ * element_bytes(p_.state.dtype);
  }
  /// True if a slot is [channels, history] without gaps.
  [[nodiscard]] bool has_dense_slots() const {
    return p_.state.column_stride == 1 && p_.state.channel_stride == history_of(p_);
  }

  // convolve.cpp: outputs. Channels [from, from + count) count from the first of the block.
  /// Tokens [first, last); first == 0 requires a loaded history.
  void convolve(const Sequence& s, std::int64_t first, std::int64_t last);
  /// Tokens [0, last) and the final state, between the columns of slots; see uses_slots_directly.
  void convolve_between_slots(const Sequence& s, std::int64_t last);
  /// Tokens [0, last) after the loaded history.
  void convolve_start(const Sequence& s, std::int64_t last);
  /// Tokens whose whole window is in x.
  void convolve_direct(const Sequence& s, std::int64_t first, std::int64_t last);
  /// The token-major kernel on rows [row, row + tokens) of the first `count` channels. For
  /// `history` and `state` see Block.
  void convolve_token_major(std::int64_t row, std::int64_t tokens, int count,
                            const void* const* history = nullptr, void* const* state = nullptr);
  /// Convolves from fp32 rows in the stage. For first == 0 the stage holds the history.
  void convolve_staged(const Sequence& s, std::int64_t first, std::int64_t last, int from,
                       int count);
  /// The fp32 kernel on up to kStageTokens rows, to `row` of out.
  void convolve_stage_rows(const float* inputs, std::int64_t row, std::int64_t tokens, int from,
                           int count);
  /// True if history and inputs are rows for the token-major kernel.
  [[nodiscard]] bool has_rows_of_inputs(const Sequence& s) const {
    return form() == Form::kTokenMajor && (p_.state.dtype == p_.x.dtype || s.read_slot < 0);
  }
  void stage_history();
  void arrange_taps();
  /// A block with the taps in channel order, without gates.
  [[nodiscard]] Block make_block(const Rows& inputs, void* out, std::int64_t out_token_stride,
                                 std::int64_t out_channel_stride, std::int64_t tokens,
                                 int channels) const;
  /// Rows with the dtype of x, times gates if present, -> rows of the stage. Gates overwrite
  /// results_.
  void gather(const Rows& from, const Rows& gates, std::int64_t rows, int count, float* to);
  void gather_inputs(std::int64_t row, std::int64_t rows, int from, int count, float* to);
  /// Copies output gates to results_ as fp32; the kernel overwrites them with results.
  Rows gather_output_gate(std::int64_t row, std::int64_t tokens, int from, int count);
  void scatter_results(std::int64_t row, std::int64_t rows, int from, int count);

  /// Scaled inputs go through the stage.
  [[nodiscard]] Form form() const { return input_scale_ == 1 ? config_.form : Form::kStaged; }

  /// Smallest multiple of the steps of the stage that holds `count` channels.
  [[nodiscard]] int padded(int count) const {
    const int step = config_.f32_kernels->step;
    return (count + step - 1) / step * step;
  }

  // Addresses; `row` is packed, `channel` counts from the first channel of the convolution.
  template <typename Layout>
  char* row_address(void* base, const Layout& layout, std::int64_t row,
                    std::int64_t channel) const {
    return static_cast<char*>(base) +
           (row_offset(p_, row, layout) + channel * layout.channel_stride) *
               element_bytes(layout.dtype);
  }
  const char* x(std::int64_t row, std::int64_t channel) const {
    return row_address(at_.x, p_.x, row, x_column_ + (channel - channel_));
  }
  char* out(std::int64_t row, std::int64_t channel) const {
    return row_address(out_data_, out_, row, channel - channel_);
  }
  /// Rows of a gate from `row` and the given channel of the block on; absent without the gate.
  template <typename Layout>
  Rows gate_rows(void* base, const Layout& layout, std::int64_t row, int from = 0) const {
    if (!layout.present) return {};
    return {row_address(base, layout, row, channel_ + from), layout.token_stride,
            layout.channel_stride};
  }
  Rows input_gates(std::int64_t row, int from = 0) const {
    return gate_rows(at_.input_gate, p_.input_gate, row, from);
  }
  Rows output_gates(std::int64_t row, int from = 0) const {
    return gate_rows(at_.output_gate, p_.output_gate, row, from);
  }
  [[nodiscard]] bool has_dense_weight() const {
    return p_.weight.tap_stride == 1 && p_.weight.channel_stride == p_.width;
  }
  /// True if the kernels for x take the weight as it is.
  [[nodiscard]] bool has_weight_of_kernels() const {
    return has_only_rows_ && has_dense_weight() && p_.weight.dtype == p_.x.dtype &&
           config_.x_kernels->arrange_weight != nullptr;
  }
  /// First tap of the block's first channel.
  [[nodiscard]] const char* weight() const {
    return static_cast<const char*>(at_.weight) +
           channel_ * p_.weight.channel_stride * element_bytes(p_.weight.dtype);
  }
  /// First channel of the block in a column of a slot.
  char* state(std::int64_t slot, std::int64_t column) const {
    return static_cast<char*>(at_.state) +
           (slot * p_.state.slot_stride + column * p_.state.column_stride +
            channel_ * p_.state.channel_stride) *
               element_bytes(p_.state.dtype);
  }

  const Problem& p_;
  const CpuConfig& config_;
  const TensorPointers& at_;
  // See Scratch.
  float *const taps_, *const bias_, *const arranged_taps_, *const arranged_bias_;
  float *const stage_, *const results_;
  const bool replaces_histories_;  // true if some snapshots replace a history
  const GroupBlocks* const groups_;
  // Of the block: its columns of x, its output from its first channel on.
  std::int64_t x_column_ = 0;
  TensorLayout<Axis::kSequence, Axis::kToken, Axis::kChannel> out_;
  char* out_data_ = nullptr;
  GroupBlock group_block_;
  bool is_other_block_ = false;  // copies or gates
  float input_scale_ = 1;
  const bool stream_;
  std::int64_t block_ = -1;
  std::int64_t channel_ = 0;  // first of the block
  int channels_ = 0;
  int pitch_ = 0;  // padded(channels_)

  bool has_only_rows_ = false;  // true if all tokens go to the token-major kernel in the dtype of x
  bool arranged_ = false;       // true if arranged_taps_ belong to the block
  int zeros_of_bias_ = 0;       // without a bias: leading elements of both buffers that are 0
};

}  // namespace shortconv::cpu
