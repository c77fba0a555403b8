// Arguments of a forward call. Each tensor is declared once, in the group it belongs to; the groups
// are templates, so that the tensors of a call (ForwardArgs), their layouts (Problem) and their
// addresses (TensorPointers) are the same list of members.
#pragma once

#include <cstdint>
#include <optional>

#include "shortconv/tensor.hpp"

namespace shortconv {

enum class Op : std::uint8_t {
  kForward,  ///< x is [tokens, channels] with query_start_loc (one sequence without), or
             ///< [sequences, tokens, channels]
  kDecode,   ///< x is [sequences, channels] or [sequences, tokens, channels]; every sequence
             ///< continues from its state unless has_initial_state says otherwise
  kVerify,   ///< x as for kForward, draft tokens; states as for kDecode, but written only with
             ///< write_slots or update_state
};

enum class Activation : std::uint8_t { kNone, kSilu };

/// Last operation on act(a) before it is rounded; follows from residual and output_gate.
enum class Epilogue : std::uint8_t {
  kNone,
  kResidual,    ///< act(a) + the token's own input
  kOutputGate,  ///< act(a) * output_gate
};

/// How the work of a ragged batch is divided; all give the same bits. docs/design.md compares them.
enum class Schedule : std::uint8_t {
  kFlat,       ///< fixed tiles over the packed rows; sequences are found by a search on the
               ///< device, the host needs no lengths
  kBlockList,  ///< two lists with one entry for every 8 tokens of a sequence, built by the caller
  kSequenceGrid,  ///< sequences x blocks of the longest sequence
};

/// Contents of the output rows of skipped sequences and of rows outside query_start_loc.
enum class PaddedRows : std::uint8_t { kZero, kUntouched, kCopy };

/// Which sequences continue from their state; the others start from zeros.
enum class InitialState : std::uint8_t { kNone, kAll, kByFlag };

enum class BackendId : std::uint8_t { kAuto, kReference, kCpu, kCuda };

/// Axes of the tensor arguments.
enum class Axis : std::uint8_t {
  kLayer,
  kSequence,
  kSlot,
  kEntry,  ///< entry of a list whose length is independent of the batch
  kToken,
  kColumn,  ///< of a state, oldest input first
  kTap,     ///< of the weights; the last one multiplies the current token
  kHead,
  kChannel,  ///< with kHead: of a head
};

// In the groups, Tensor<axes...> is the type of one member and Required<axes...> the type of a
// required member. A leading sequence axis of a tensor with tokens is absent where x is packed.

template <template <Axis...> typename Tensor, template <Axis...> typename Required = Tensor>
struct RowTensors {
  Required<Axis::kSequence, Axis::kToken, Axis::kChannel> x{};    ///< f32, f16 or bf16 (f64:
                                                                  ///< reference backend only)
  Required<Axis::kSequence, Axis::kToken, Axis::kChannel> out{};  ///< shape of x, any floating
                                                                  ///< dtype; may be x itself
  Required<Axis::kChannel, Axis::kTap> weight{};                  ///< [channels, width]
  Tensor<Axis::kChannel> bias{};                                  ///< [channels], dtype of weight
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel>
      input_gate{};  ///< shape and dtype of x: the inputs are x * input_gate, rounded to that dtype

  friend bool operator==(const RowTensors&, const RowTensors&) = default;
};

template <template <Axis...> typename Tensor>
struct EpilogueTensors {
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel>
      output_gate{};  ///< shape and dtype of x: multiplied with act(a) in fp32

  friend bool operator==(const EpilogueTensors&, const EpilogueTensors&) = default;
};

template <template <Axis...> typename Tensor>
struct SequenceTensors {
  Tensor<Axis::kSequence> query_start_loc{};    ///< [sequences + 1] i32 or i64: sequence s has rows
                                                ///< query_start_loc[s] to query_start_loc[s + 1]
  Tensor<Axis::kSequence> has_initial_state{};  ///< [sequences] bool; replaces initial_state
  /// i32 or i64, [tokens] or [sequences, tokens] as x has them: packed training batches. A new
  /// number starts a sequence from zeros, negative numbers are padding. The state is read by the
  /// first sequence of a row and not written. Forward only, without query_start_loc.
  Tensor<Axis::kSequence, Axis::kToken> seq_idx{};

  friend bool operator==(const SequenceTensors&, const SequenceTensors&) = default;
};

template <template <Axis...> typename Tensor>
struct PoolTensors {
  /// [slots, columns >= history, channels]: the last inputs of each slot's sequence, newest last.
  /// The history is the (width - 1) * dilation inputs before a token.
  Tensor<Axis::kSlot, Axis::kColumn, Axis::kChannel> state{};
  Tensor<Axis::kSequence> read_slots{};  ///< [sequences] i32 or i64; absent: slot = sequence number
  Tensor<Axis::kSequence> write_slots{};   ///< [sequences] i32 or i64; absent: as read_slots
  Tensor<Axis::kSequence> read_offsets{};  ///< [sequences] i32 or i64: columns to skip when
                                           ///< reading, clamped to the pool
  /// [sequences] i32 or i64: number of inputs each sequence had before this call. Slots are then
  /// circular buffers: input n of a sequence is in column n modulo columns. Negative counts as 0.
  Tensor<Axis::kSequence> cache_seqlens{};
  /// [snapshots, 3] i32 or i64, rows (sequence, token, slot) in any order: the slot receives the
  /// state of the sequence before this token. Forward and decode only.
  Tensor<Axis::kEntry, Axis::kColumn> snapshots{};

  friend bool operator==(const PoolTensors&, const PoolTensors&) = default;
};

template <template <Axis...> typename Tensor>
struct DraftTensors {
  /// i32 or i64, [tokens] or [sequences, tokens] as x has them: a token's parent, counted from the
  /// first token of its sequence, -1 for none; parents come first. Absent: each token follows the
  /// one before.
  Tensor<Axis::kSequence, Axis::kToken> parents{};
  /// dtype of state, [tokens, width - 1, channels] or [sequences, tokens, width - 1, channels],
  /// written: the state after each token. Equal token and column strides make those of a chain
  /// overlap.
  Tensor<Axis::kSequence, Axis::kToken, Axis::kColumn, Axis::kChannel> intermediate_states{};
  /// [sequences] i32 or i64: intermediate_states are then [intermediate slots, tokens, width - 1,
  /// channels] whatever x is. Sequences with a negative, null or outside slot are not captured.
  Tensor<Axis::kSequence> intermediate_slots{};

  friend bool operator==(const DraftTensors&, const DraftTensors&) = default;
};

template <template <Axis...> typename Tensor>
struct OptionTensors {
  Tensor<Axis::kEntry> block_sequence{};  ///< kBlockList: [blocks] i32, from plan_block_list
  Tensor<Axis::kEntry> block_offset{};    ///< kBlockList: [blocks] i32, in kBlockTokens
  Tensor<Axis::kEntry, Axis::kColumn>
      violations{};  ///< [kViolations, 2] i64, written: the checked
                     ///< mode counts bad index values, violation.hpp

  friend bool operator==(const OptionTensors&, const OptionTensors&) = default;
};

template <template <Axis...> typename Tensor>
struct ForwardTensors : RowTensors<Tensor>,
                        EpilogueTensors<Tensor>,
                        SequenceTensors<Tensor>,
                        PoolTensors<Tensor>,
                        DraftTensors<Tensor>,
                        OptionTensors<Tensor> {
  friend bool operator==(const ForwardTensors&, const ForwardTensors&) = default;
};

template <Axis...>
using RequiredTensor = TensorRef;
template <Axis...>
using OptionalTensor = std::optional<TensorRef>;
template <Axis...>
using TensorPointer = void*;

/// Which rows belong together.
struct SequenceArgs : SequenceTensors<OptionalTensor> {
  InitialState initial_state = InitialState::kNone;  ///< without has_initial_state
  PaddedRows padded_rows = PaddedRows::kZero;
};

/// Where states are kept between calls.
struct PoolArgs : PoolTensors<OptionalTensor> {
  std::int64_t base_column = 0;   ///< first column of the history
  bool shift_full_state = false;  ///< the columns before base_column hold older inputs and shift
                                  ///< with the history. Schedule flat, not for kVerify
  std::optional<std::int64_t> null_slot;  ///< slot that means padding, as every negative one does
};

/// Draft tokens; kVerify only.
struct DraftArgs : DraftTensors<OptionalTensor> {
  bool update_state = false;  ///< write final states to read_slots, as a forward call does
};

/// From the sum a to out: activation, then one of residual and output_gate.
struct EpilogueArgs : EpilogueTensors<OptionalTensor> {
  Activation activation = Activation::kNone;
  bool residual = false;  ///< add the token's own input to act(a); excludes both gates
};

/// How the call is run. On one backend none of these changes a bit of the results.
struct Options : OptionTensors<OptionalTensor> {
  BackendId backend = BackendId::kAuto;
  Schedule schedule = Schedule::kFlat;
  std::int64_t max_seqlen = 0;  ///< kSequenceGrid: tokens of the longest sequence
  /// CPU: threads that work on the call, the calling one among them, at most 256 and no more than
  /// there is work for. 0: those of OMP_NUM_THREADS or, without it, of the processors that the
  /// process may use; small calls use fewer.
  std::int32_t threads = 0;
  /// CUDA, from Hopper on: programmatic dependent launch. The kernel may start while the one before
  /// it in the stream ends; it waits before it reads or writes tensors.
  bool programmatic_launch = true;
};

/// Arguments of one call. Axis order is fixed; strides express any memory layout.
struct ForwardArgs : RowTensors<OptionalTensor, RequiredTensor> {
  Op op = Op::kForward;
  std::int32_t dilation = 1;  ///< tokens from one tap to the next; 1 for kVerify. The history has
                              ///< at most 63 inputs
  EpilogueArgs epilogue;
  SequenceArgs sequences;
  PoolArgs pool;
  DraftArgs drafts;
  Options options;
};

template <template <Axis...> typename Tensor, template <Axis...> typename Required = Tensor>
struct CommitTensors {
  /// From kVerify, dtype of state: [layers, sequences, rows, channels]. With query_start_loc
  /// [layers, rows, channels], or [layers, tokens, width - 1, channels].
  Required<Axis::kLayer, Axis::kSequence, Axis::kToken, Axis::kColumn, Axis::kChannel>
      intermediate_states{};
  Required<Axis::kLayer, Axis::kSlot, Axis::kColumn, Axis::kChannel>
      state{};  ///< [layers, slots, columns >= width - 1, channels]
  Required<Axis::kSequence>
      accepted{};                   ///< [sequences] i32 or i64: number of the last accepted token
                                    ///< in its sequence, from 0; negative: nothing to commit
  Tensor<Axis::kSequence> slots{};  ///< [sequences] i32 or i64; absent: slot = sequence number
  Tensor<Axis::kSequence> second_slots{};  ///< [sequences] i32 or i64; a second slot to write
  Tensor<Axis::kSequence>
      query_start_loc{};  ///< [sequences + 1] i32 or i64: bounds of ragged drafts

  friend bool operator==(const CommitTensors&, const CommitTensors&) = default;
};

/// Commits accepted drafts: copies, for each sequence, the state after its last accepted token to
/// the sequence's slot, in all layers at once.
struct CommitArgs : CommitTensors<OptionalTensor, RequiredTensor> {
  std::int32_t width = 0;           ///< of the convolution: a state has width - 1 rows
  std::int32_t rows_per_token = 0;  ///< rows from one token's state to the next one's: width - 1,
                                    ///< or 1 where they overlap
  std::int64_t base_column = 0;     ///< first column of the history
  std::optional<std::int64_t> null_slot;  ///< slot that means padding, as every negative one does
  BackendId backend = BackendId::kAuto;
  std::int32_t threads = 0;  ///< CPU: see Options
};

template <template <Axis...> typename Tensor, template <Axis...> typename Required = Tensor>
struct BackwardTensors {
  // Inputs of the forward call.
  Required<Axis::kSequence, Axis::kToken, Axis::kChannel> x{};
  Required<Axis::kChannel, Axis::kTap> weight{};
  Tensor<Axis::kChannel> bias{};
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel> input_gate{};
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel> output_gate{};
  Tensor<Axis::kSequence> query_start_loc{};
  Tensor<Axis::kSequence, Axis::kToken> seq_idx{};
  /// [sequences, history, channels]: the inputs before each sequence, newest last; absent: zeros.
  /// With seq_idx those before each row of the batch.
  Tensor<Axis::kSequence, Axis::kColumn, Axis::kChannel> initial_state{};

  // Gradients of the results of the forward call.
  Required<Axis::kSequence, Axis::kToken, Axis::kChannel> grad_out{};  ///< shape of x, any floating
                                                                       ///< dtype
  /// [sequences, history, channels], any floating dtype; absent: zeros. Not with seq_idx, which has
  /// no final states.
  Tensor<Axis::kSequence, Axis::kColumn, Axis::kChannel> grad_final_state{};

  // Gradients to compute, written; absent: not computed.
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel> grad_x{};  ///< shape and dtype of x; rows
                                                                   ///< without a sequence are 0
  Tensor<Axis::kChannel, Axis::kTap> grad_weight{};  ///< shape of weight; its dtype or f32
  Tensor<Axis::kChannel> grad_bias{};                ///< [channels]; dtype of weight or f32
  Tensor<Axis::kSequence, Axis::kColumn, Axis::kChannel>
      grad_initial_state{};  ///< shape of initial_state; its dtype or f32
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel> grad_input_gate{};   ///< as input_gate
  Tensor<Axis::kSequence, Axis::kToken, Axis::kChannel> grad_output_gate{};  ///< as output_gate

  friend bool operator==(const BackwardTensors&, const BackwardTensors&) = default;
};

/// Arguments of a backward call: the gradients of a forward call (Op::kForward) whose states are
/// functional, initial_state in and a final state out.
struct BackwardArgs : BackwardTensors<OptionalTensor, RequiredTensor> {
  std::int32_t dilation = 1;                  ///< as in the forward call
  Activation activation = Activation::kNone;  ///< as in the forward call
  bool residual = false;                      ///< as in the forward call
  bool accumulate = false;  ///< add to grad_weight and grad_bias, which are f32 then
  BackendId backend = BackendId::kAuto;
  std::int32_t threads = 0;   ///< CPU: see Options
  void* workspace = nullptr;  ///< for backward(): memory on x's device, aligned to 16 bytes; see
                              ///< workspace_bytes in plan.hpp
  std::int64_t workspace_bytes = 0;
};

}  // namespace shortconv
