#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "shortconv/export.h"
#include "shortconv/status.hpp"
#include "shortconv/tensor.hpp"

namespace shortconv {

/// Which call this is. A commit has a problem of its own (commit.hpp).
enum class Op : std::uint8_t {
  kForward,  ///< x is [tokens, channels] with query_start_loc (one sequence without), or [batch,
             ///< tokens, channels]
  kDecode,   ///< x is [sequences, channels] or [sequences, tokens, channels]; every sequence is
             ///< resumed
  kVerify,   ///< x as for kForward, draft tokens; every sequence is resumed unless flags say
             ///< otherwise, and no state is written but by write_slots or advance_state
};

enum class Activation : std::uint8_t { kNone, kSilu };

/// What becomes of act(a) before it is rounded; made from residual and output_gate.
enum class Epilogue : std::uint8_t {
  kNone,
  kResidual,    ///< act(a) + the token's own input
  kOutputGate,  ///< act(a) * output_gate
};

/// How the work of a ragged batch is found; all give the same bits. docs/design.md compares them.
enum class Schedule : std::uint8_t {
  kFlat,  ///< fixed tiles over the packed rows, sequences found by search; needs no lengths on the
          ///< host
  kBlockList,  ///< one entry per (sequence, 8 tokens) in two lists that the caller builds from the
               ///< lengths
  kSequenceGrid,  ///< sequences x chunks of the longest sequence, most of them empty on a skewed
                  ///< batch
};

/// What the rows of skipped sequences and the rows outside query_start_loc hold afterwards.
enum class PaddedRows : std::uint8_t { kZero, kUntouched, kCopy };

/// Which sequences continue from their slot rather than from zeros.
enum class InitialState : std::uint8_t { kNone, kAll, kByFlag };

enum class BackendId : std::uint8_t { kAuto, kReference, kCpu, kCuda };

/// Arguments of one call. Axis order is fixed; any memory layout is expressed by strides.
struct ForwardArgs {
  Op op = Op::kForward;
  TensorRef x;                    ///< see Op; f32, f16 or bf16 (f64: reference backend)
  TensorRef out;                  ///< shape of x, own strides and floating dtype; may be x itself
  TensorRef weight;               ///< [channels, width]; tap width-1 multiplies the current token
  std::optional<TensorRef> bias;  ///< [channels], dtype of weight

  std::optional<TensorRef>
      state;  ///< [slots, columns >= history, channels], inputs, newest last; history: width-1
  std::optional<TensorRef> read_slots;   ///< [sequences] i32 or i64; absent: slot = sequence number
  std::optional<TensorRef> write_slots;  ///< [sequences]; absent: as read_slots
  std::optional<TensorRef>
      read_offsets;             ///< [sequences]; columns to skip when reading, clamped to the pool
  std::int64_t state_base = 0;  ///< first column that belongs to the history
  bool keeps_older = false;  ///< the columns before state_base hold older inputs, which move along:
                             ///< a slot's first state_base + history columns are its newest inputs
                             ///< afterwards. Not for kVerify; schedule flat
  std::optional<std::int64_t> null_slot;  ///< a slot that means padding, as every negative one does
  /// [sequences] i32 or i64: the inputs of each sequence before this call. Slots are then rings:
  /// input number n of a sequence lies in column n modulo columns. A negative position counts as 0.
  std::optional<TensorRef> ring_positions = {};
  /// [snapshots, 3] i32 or i64, rows (sequence, token, slot), in any order: the slot receives the
  /// state of the sequence before this token, its number of tokens being the end. Not for kVerify.
  std::optional<TensorRef> snapshots = {};

  std::optional<TensorRef>
      query_start_loc;  ///< [sequences + 1] i32 or i64, in the memory of x's device
  std::optional<TensorRef> has_initial_state;        ///< [sequences] bool; replaces initial_state
  InitialState initial_state = InitialState::kNone;  ///< without flags; decode always means kAll
  /// [batch, tokens], or [tokens], as x has it, i32 or i64: a row of the batch holds several
  /// sequences, as training packs them. A new number begins one from zeros, negative numbers are
  /// padding, and no state is written: the slot is read, by what begins the row. For kForward
  /// without query_start_loc; schedule flat, not in place.
  std::optional<TensorRef> seq_idx = {};

  // kVerify only.
  std::optional<TensorRef> parents;  ///< i32 or i64, [tokens], or [sequences, tokens] as x has it:
                                     ///< a token's parent, counted from the first of its sequence,
                                     ///< -1 for none; parents come first. Absent: a chain
  std::optional<TensorRef> windows;  ///< [tokens, width-1, channels], or [sequences, tokens,
                                     ///< width-1, channels], dtype of state: the inputs that a
                                     ///< token would leave behind. Equal strides of tokens and
                                     ///< columns make those of a dense chain overlap
  bool advance_state = false;        ///< write final states to read_slots, as a forward call does
  /// [sequences] i32 or i64: where windows, now [window slots, tokens, width-1, channels] whatever
  /// x is, has those of each sequence. Negative, null or outside: none of them are captured.
  std::optional<TensorRef> window_slots = {};

  Activation activation = Activation::kNone;
  PaddedRows padded_rows = PaddedRows::kZero;
  std::optional<TensorRef> input_gate = {};   ///< shape and dtype of x, own strides: the inputs are
                                              ///< x * input_gate, rounded to that dtype
  std::optional<TensorRef> output_gate = {};  ///< shape and dtype of x, own strides: act(a) is
                                              ///< multiplied by it in fp32
  bool residual = false;      ///< add the token's own input to act(a); not with a gate
  std::int32_t dilation = 1;  ///< tokens from one tap to the next; not with verify. The history is
                              ///< (width-1) * dilation inputs, 63 at most

  BackendId backend = BackendId::kAuto;
  Schedule schedule = Schedule::kFlat;
  std::int64_t longest_sequence = 0;        ///< kSequenceGrid: tokens of the longest sequence
  std::optional<TensorRef> block_sequence;  ///< kBlockList: [blocks] i32, from plan_block_list
  std::optional<TensorRef> block_offset;    ///< kBlockList: [blocks] i32, in chunks of kChunkTokens
  std::optional<TensorRef> violations = {};  ///< [kViolations, 2] i64, written: the checked mode
                                             ///< reports bad index values here, violation.hpp
  std::int32_t threads = 0;                  ///< CPU: how many to use; 0 = as many as OpenMP offers
  bool programmatic_launch = true;  ///< CUDA, from Hopper on: may start while the kernel before is
                                    ///< ending, which most calls gain by; waits for it before it
                                    ///< reads or writes, but small decodes have their states
                                    ///< fetched into the cache
};

/// Everything that decides a kernel and nothing that changes from call to call: no addresses. Made
/// by make_problem; hashable, comparable, printable.
struct Problem {
  Op op = Op::kForward;
  BackendId backend = BackendId::kAuto;
  Device device;

  DType x_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  DType weight_dtype = DType::kF32;
  DType state_dtype = DType::kF32;
  DType query_start_loc_dtype = DType::kI32;
  DType read_slots_dtype = DType::kI32;
  DType write_slots_dtype = DType::kI32;
  DType read_offsets_dtype = DType::kI32;
  DType parents_dtype = DType::kI32;
  DType ring_positions_dtype = DType::kI32;
  DType snapshots_dtype = DType::kI32;
  DType window_slots_dtype = DType::kI32;
  DType seq_idx_dtype = DType::kI32;

  Activation activation = Activation::kNone;
  Epilogue epilogue = Epilogue::kNone;
  PaddedRows padded_rows = PaddedRows::kZero;
  InitialState initial_state = InitialState::kNone;
  Schedule schedule = Schedule::kFlat;

  bool has_bias = false;
  bool has_state = false;
  bool has_query_start_loc = false;
  bool has_read_slots = false;
  bool has_write_slots = false;
  bool has_read_offsets = false;
  bool has_null_slot = false;
  bool has_parents = false;
  bool has_windows = false;
  bool has_ring_positions = false;
  bool has_window_slots = false;
  bool has_input_gate = false;
  bool has_seq_idx = false;
  bool keeps_state = false;  ///< final states are written
  bool has_violations = false;
  bool in_place = false;
  bool programmatic_launch = false;

  std::int32_t width = 0;
  std::int32_t dilation = 1;
  std::int32_t threads = 0;

  std::int64_t tokens = 0;  ///< packed rows in all
  std::int64_t channels = 0;
  std::int64_t sequences = 0;
  std::int64_t sequence_tokens = 0;  ///< dense batches: tokens of each; 0 with query_start_loc
  std::int64_t slots = 0;
  std::int64_t state_columns = 0;
  std::int64_t state_base = 0;
  std::int64_t older_columns = 0;  ///< of those before state_base: all with keeps_older, else none
  std::int64_t null_slot = 0;
  std::int64_t longest_sequence = 0;
  std::int64_t blocks = 0;
  std::int64_t snapshots = 0;
  std::int64_t window_slots = 0;   ///< with window_slots: how many there are,
  std::int64_t window_tokens = 0;  ///< and of how many tokens each has windows

  // Strides in elements. Those from sequence to sequence are used by dense batches only.
  std::int64_t x_sequence = 0, x_token = 0, x_channel = 0;
  std::int64_t out_sequence = 0, out_token = 0, out_channel = 0;
  std::int64_t input_gate_sequence = 0, input_gate_token = 0, input_gate_channel = 0;
  std::int64_t output_gate_sequence = 0, output_gate_token = 0, output_gate_channel = 0;
  std::int64_t weight_channel = 0, weight_tap = 0, bias_channel = 0;
  std::int64_t state_slot = 0, state_column = 0, state_channel = 0;
  std::int64_t query_start_loc_stride = 1, read_slots_stride = 1, write_slots_stride = 1;
  std::int64_t read_offsets_stride = 1, flags_stride = 1;
  std::int64_t block_sequence_stride = 1, block_offset_stride = 1;
  // The sequence of windows is a slot where there are window_slots.
  std::int64_t parents_sequence = 0, parents_token = 1;
  std::int64_t window_sequence = 0, window_token = 0, window_column = 0, window_channel = 0;
  std::int64_t violations_row = 2, violations_column = 1;
  std::int64_t ring_positions_stride = 1;
  std::int64_t snapshots_row = 3, snapshots_column = 1;
  std::int64_t window_slots_stride = 1;
  std::int64_t seq_idx_sequence = 0, seq_idx_token = 1;

  friend bool operator==(const Problem&, const Problem&) = default;
};

/// Checks the arguments against the specification and against each other. All refusals that need no
/// device happen here; on failure `problem` is left as it was.
SHORTCONV_API Status make_problem(const ForwardArgs& args, Problem& problem);

SHORTCONV_API std::size_t hash(const Problem& problem);

/// One line with the fields that differ from their defaults.
SHORTCONV_API std::string to_string(const Problem& problem);

}  // namespace shortconv
