// Arguments -> Problem. Everything the host can know is checked here and only here.
#include "shortconv/problem.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "core/history.hpp"
#include "shortconv/violation.hpp"

namespace shortconv {
namespace {

bool same_view(const TensorRef& a, const TensorRef& b) {
  return a.data == b.data && a.dtype == b.dtype && a.ndim == b.ndim &&
         std::equal(a.shape, a.shape + a.ndim, b.shape) &&
         std::equal(a.strides, a.strides + a.ndim, b.strides);
}

// Column slices of one wider buffer, such as x and out in a packed projection, interleave without
// sharing an element.
bool disjoint_columns(const TensorRef& a, const TensorRef& b) {
  const int axis = a.ndim - 1;
  if (a.dtype != b.dtype || a.strides[axis] != 1 || b.strides[axis] != 1) return false;
  const std::int64_t pitch = a.strides[axis - 1];
  if (pitch <= 0) return false;
  for (int outer = 0; outer < axis; ++outer) {
    if (a.strides[outer] != b.strides[outer] || a.strides[outer] % pitch != 0) return false;
  }
  const std::int64_t bytes = element_bytes(a.dtype);
  const auto distance = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(b.data) -
                                                  reinterpret_cast<std::uintptr_t>(a.data));
  if (distance % bytes != 0) return false;
  const std::int64_t columns = ((distance / bytes) % pitch + pitch) % pitch;
  return columns >= a.shape[axis] && pitch - columns >= b.shape[axis];
}

constexpr std::initializer_list<DType> kFlags = {DType::kBool, DType::kU8};

void check_options(const ForwardArgs& args, Checker& check) {
  check.require(args.op <= Op::kVerify, "op", "value ", static_cast<std::int64_t>(args.op),
                " is not known (forward, decode, verify)");
  check.require(args.initial_state <= InitialState::kByFlag, "initial_state", "value ",
                static_cast<std::int64_t>(args.initial_state),
                " is not known (none, all, by flag)");
  check_listed(check, "activation", kActivations, args.activation);
  check_listed(check, "padded_rows", kPaddedRows, args.padded_rows);
  check_listed(check, "schedule", kSchedules, args.schedule);
  check_listed(check, "backend", kBackends, args.backend);
}

struct Sizes {
  Symbol tokens{"tokens"}, channels{"channels"}, width{"width"}, batch{"batch"};
  Symbol sequences{"sequences"}, bounds{"sequences + 1"};
  Symbol slots{"slots"}, columns{"columns"}, blocks{"blocks"};
};

// x, out, weight, bias: which rows there are, and how they are laid out.
void check_rows(const ForwardArgs& args, Checker& check, Sizes& sizes, Problem& problem) {
  const bool dense = args.x.ndim == 3;
  const bool flat_decode = args.op == Op::kDecode && !dense;
  if (dense) {
    check.tensor("x", args.x, {&sizes.batch, &sizes.tokens, &sizes.channels});
    check.tensor("out", args.out, {&sizes.batch, &sizes.tokens, &sizes.channels});
  } else {
    check.tensor("x", args.x, {&sizes.tokens, &sizes.channels});
    check.tensor("out", args.out, {&sizes.tokens, &sizes.channels});
  }
  check.dtype("x", args.x, kFloats)
      .dtype("out", args.out, kFloats)
      .device("out", args.out, args.x.device);
  check.tensor("weight", args.weight, {&sizes.channels, &sizes.width});
  check.dtype("weight", args.weight, kFloats).device("weight", args.weight, args.x.device);
  check.require(sizes.width.value >= kMinWidth && sizes.width.value <= kMaxWidth, "weight",
                "width ", sizes.width.value, " is not supported (", std::int64_t{kMinWidth}, " to ",
                std::int64_t{kMaxWidth}, ")");
  if (args.bias) {
    check.tensor("bias", *args.bias, {&sizes.channels});
    check.dtype("bias", *args.bias, {args.weight.dtype}).device("bias", *args.bias, args.x.device);
    problem.bias_channel = args.bias->strides[0];
  }
  check_written(check, "out", args.out);
  if (!check.ok()) return;

  problem.x_dtype = args.x.dtype;
  problem.out_dtype = args.out.dtype;
  problem.weight_dtype = args.weight.dtype;
  problem.has_bias = args.bias.has_value();
  problem.width = static_cast<std::int32_t>(sizes.width.value);
  problem.channels = sizes.channels.value;
  problem.weight_channel = args.weight.strides[0];
  problem.weight_tap = args.weight.strides[1];

  const int token_axis = dense ? 1 : 0;
  problem.x_token = args.x.strides[token_axis];
  problem.x_channel = args.x.strides[token_axis + 1];
  problem.out_token = args.out.strides[token_axis];
  problem.out_channel = args.out.strides[token_axis + 1];
  if (dense) {
    problem.sequence_tokens = sizes.tokens.value;
    problem.x_sequence = args.x.strides[0];
    problem.out_sequence = args.out.strides[0];
    sizes.sequences.value = sizes.batch.value;
  } else if (flat_decode) {  // [sequences, channels] is [sequences, 1, channels]
    problem.sequence_tokens = 1;
    problem.x_sequence = problem.x_token;
    problem.out_sequence = problem.out_token;
    sizes.sequences.value = sizes.tokens.value;
  } else if (!args.query_start_loc) {
    problem.sequence_tokens = sizes.tokens.value;
    sizes.sequences.value = 1;
  }
  if (sizes.sequences.value >= 0) {
    sizes.sequences.owner = "x";
    const __int128 rows = static_cast<__int128>(sizes.sequences.value) * problem.sequence_tokens;
    check.require(rows < (static_cast<__int128>(1) << 62), "x", "has more than 2^62 rows");
    problem.tokens = static_cast<std::int64_t>(rows);
    problem.sequences = sizes.sequences.value;
  } else {
    problem.tokens = sizes.tokens.value;
  }
}

/// A gate has a number for each of x; `strides` are those of a sequence, token and channel.
void check_gate(std::string_view argument, const TensorRef& gate, const ForwardArgs& args,
                Checker& check, Sizes& sizes, std::array<std::int64_t*, 3> strides) {
  const bool dense = args.x.ndim == 3;
  if (dense) {
    check.tensor(argument, gate, {&sizes.batch, &sizes.tokens, &sizes.channels});
  } else {
    check.tensor(argument, gate, {&sizes.tokens, &sizes.channels});
  }
  check.dtype(argument, gate, {args.x.dtype}).device(argument, gate, args.x.device);
  if (!check.ok()) return;
  *strides[0] = dense || args.op == Op::kDecode ? gate.strides[0] : 0;
  *strides[1] = gate.strides[dense ? 1 : 0];
  *strides[2] = gate.strides[dense ? 2 : 1];
}

void check_dilation(const ForwardArgs& args, Checker& check, Problem& problem) {
  constexpr std::int64_t kLongest = kMaxWidth - 1;
  const std::int64_t dilation = args.dilation;
  check.require(dilation >= 1, "dilation", "is ", dilation, "; expected 1 or more");
  check.require((problem.width - 1) * dilation <= kLongest, "dilation", "is ", dilation,
                ", but with width ", std::int64_t{problem.width}, " the history is ",
                (problem.width - 1) * dilation, " inputs; expected ", kLongest, " at most");
  check.require(dilation == 1 || args.op != Op::kVerify, "dilation", "is ", dilation,
                ", but verify has 1 only");
  problem.dilation = args.dilation;
}

void check_epilogue(const ForwardArgs& args, Checker& check, Sizes& sizes, Problem& problem) {
  check.require(!args.residual || (!args.input_gate && !args.output_gate), "residual",
                "does not go with input_gate or output_gate");
  if (args.residual) problem.epilogue = Epilogue::kResidual;
  if (args.input_gate) {
    check_gate(
        "input_gate", *args.input_gate, args, check, sizes,
        {&problem.input_gate_sequence, &problem.input_gate_token, &problem.input_gate_channel});
    problem.has_input_gate = true;
  }
  if (args.output_gate) {
    check_gate(
        "output_gate", *args.output_gate, args, check, sizes,
        {&problem.output_gate_sequence, &problem.output_gate_token, &problem.output_gate_channel});
    problem.epilogue = Epilogue::kOutputGate;
  }
}

void check_query_start_loc(const ForwardArgs& args, Checker& check, Sizes& sizes,
                           Problem& problem) {
  if (!args.query_start_loc) return;
  const TensorRef& bounds = *args.query_start_loc;
  check.require(args.x.ndim == 2 && args.op != Op::kDecode, "query_start_loc",
                "goes with x [tokens, channels] of a forward or verify call only; a batch or a "
                "decode call has its sequences from its shape");
  check.tensor("query_start_loc", bounds, {&sizes.bounds});
  check.dtype("query_start_loc", bounds, kIndices).device("query_start_loc", bounds, args.x.device);
  check.require(sizes.bounds.value >= 1, "query_start_loc",
                "is empty; expected sequences + 1 entries");
  if (!check.ok()) return;
  sizes.sequences = {
      .name = "sequences", .value = sizes.bounds.value - 1, .owner = "query_start_loc"};
  problem.has_query_start_loc = true;
  problem.query_start_loc_dtype = bounds.dtype;
  problem.query_start_loc_stride = bounds.strides[0];
  problem.sequences = sizes.sequences.value;
}

/// An index for each token, of the axes that x has.
void check_token_indices(std::string_view argument, const TensorRef& indices,
                         const ForwardArgs& args, Checker& check, Sizes& sizes) {
  if (args.x.ndim == 3) {
    check.tensor(argument, indices, {&sizes.batch, &sizes.tokens});
  } else {
    check.tensor(argument, indices, {&sizes.tokens});
  }
  check.dtype(argument, indices, kIndices).device(argument, indices, args.x.device);
}

void check_seq_idx(const ForwardArgs& args, Checker& check, Sizes& sizes, Problem& problem) {
  if (!args.seq_idx) return;
  const TensorRef& numbers = *args.seq_idx;
  const bool dense = args.x.ndim == 3;
  check.require(args.op == Op::kForward, "seq_idx", "goes with forward only");
  check.require(!args.query_start_loc, "seq_idx",
                "and query_start_loc exclude each other: both say where sequences begin");
  check_token_indices("seq_idx", numbers, args, check, sizes);
  const bool writes = args.write_slots || args.snapshots || args.keeps_older;
  check.require(!writes, "seq_idx",
                "goes without write_slots, snapshots and keeps_older: no state is written");
  check.require(args.schedule == Schedule::kFlat, "schedule",
                "is not flat, the only one that takes seq_idx");
  if (!check.ok()) return;
  problem.has_seq_idx = true;
  problem.seq_idx_dtype = numbers.dtype;
  problem.seq_idx_sequence = dense ? numbers.strides[0] : 0;
  problem.seq_idx_token = numbers.strides[dense ? 1 : 0];
}

void check_indices(Checker& check, std::string_view argument,
                   const std::optional<TensorRef>& tensor, Symbol& size, Device device,
                   bool& present, DType& dtype, std::int64_t& stride) {
  if (!tensor) return;
  check.tensor(argument, *tensor, {&size})
      .dtype(argument, *tensor, kIndices)
      .device(argument, *tensor, device);
  present = true;
  dtype = tensor->dtype;
  stride = tensor->strides[0];
}

void check_state(const ForwardArgs& args, Checker& check, Sizes& sizes, Problem& problem) {
  const Device device = args.x.device;
  check_indices(check, "read_slots", args.read_slots, sizes.sequences, device,
                problem.has_read_slots, problem.read_slots_dtype, problem.read_slots_stride);
  check_indices(check, "write_slots", args.write_slots, sizes.sequences, device,
                problem.has_write_slots, problem.write_slots_dtype, problem.write_slots_stride);
  check_indices(check, "read_offsets", args.read_offsets, sizes.sequences, device,
                problem.has_read_offsets, problem.read_offsets_dtype, problem.read_offsets_stride);
  check_indices(check, "ring_positions", args.ring_positions, sizes.sequences, device,
                problem.has_ring_positions, problem.ring_positions_dtype,
                problem.ring_positions_stride);

  problem.initial_state = args.op == Op::kForward ? args.initial_state : InitialState::kAll;
  if (args.has_initial_state) {
    const TensorRef& flags = *args.has_initial_state;
    check.tensor("has_initial_state", flags, {&sizes.sequences});
    check.dtype("has_initial_state", flags, kFlags).device("has_initial_state", flags, device);
    problem.initial_state = InitialState::kByFlag;
    problem.flags_stride = flags.strides[0];
  } else {
    check.require(problem.initial_state != InitialState::kByFlag, "has_initial_state",
                  "is absent, but initial_state asks for flags");
  }
  if (args.null_slot) {
    problem.has_null_slot = true;
    problem.null_slot = *args.null_slot;
  }

  if (!args.state) {
    check.require(problem.initial_state == InitialState::kNone, "state",
                  "is absent, but sequences are to continue from it");
    check.require(!args.write_slots && !args.read_offsets, "state",
                  "is absent, but write_slots or read_offsets address it");
    check.require(!args.ring_positions, "state", "is absent, but ring_positions address it");
    check.require(!args.keeps_older, "state", "is absent, but keeps_older is about its columns");
    return;
  }
  if (args.ring_positions) {
    check.require(!args.read_offsets, "read_offsets",
                  "and ring_positions exclude each other: positions say where the history is");
    check.require(args.state_base == 0, "state_base", "is ", args.state_base,
                  ", but a ring, which ring_positions make of a slot, has all columns");
  }
  const TensorRef& state = *args.state;
  check.tensor("state", state, {&sizes.slots, &sizes.columns, &sizes.channels});
  check.dtype("state", state, kFloats).device("state", state, device);
  check_written(check, "state", state);
  const std::int64_t history = history_of(problem);
  const std::string dilated =
      problem.dilation == 1 ? "" : concat(" with dilation ", std::int64_t{problem.dilation});
  check.require(args.state_base >= 0 && args.state_base <= sizes.columns.value - history, "state",
                "has ", sizes.columns.value, " columns, but width ", sizes.width.value, dilated,
                " needs ", history, " from column ", args.state_base, " (state_base) on");
  check.require(args.read_slots.has_value() || sizes.slots.value >= sizes.sequences.value, "state",
                "has ", sizes.slots.value, " slots, but without read_slots each of the ",
                sizes.sequences.value, " sequences uses the slot of its number");
  problem.has_state = true;
  problem.keeps_state =
      args.op == Op::kVerify ? args.write_slots.has_value() || args.advance_state : !args.seq_idx;
  problem.state_dtype = state.dtype;
  problem.slots = sizes.slots.value;
  problem.state_columns = sizes.columns.value;
  problem.state_base = args.state_base;
  problem.state_slot = state.strides[0];
  problem.state_column = state.strides[1];
  problem.state_channel = state.strides[2];
}

void check_older(const ForwardArgs& args, Checker& check, Problem& problem) {
  if (!args.keeps_older) return;
  check.require(args.op != Op::kVerify, "keeps_older",
                "goes with forward and decode; expected false in a verify call");
  check.require(!args.ring_positions, "keeps_older",
                "does not go with ring_positions: all columns of a ring hold inputs");
  check.require(!args.read_offsets, "keeps_older",
                "does not go with read_offsets: all histories begin at state_base");
  check.require(!args.snapshots, "keeps_older",
                "does not go with snapshots, which hold the history alone");
  check.require(args.schedule == Schedule::kFlat, "schedule",
                "is not flat, the only one that has keeps_older");
  problem.older_columns = args.state_base;
}

void check_snapshots(const ForwardArgs& args, Checker& check, Problem& problem) {
  if (!args.snapshots) return;
  const TensorRef& list = *args.snapshots;
  Symbol rows{.name = "snapshots"};
  Symbol columns{.name = "sequence, token, slot", .value = 3, .owner = "the library"};
  check.tensor("snapshots", list, {&rows, &columns});
  check.dtype("snapshots", list, kIndices).device("snapshots", list, args.x.device);
  check.require(rows.value <= std::numeric_limits<std::int32_t>::max(), "snapshots", "has ",
                rows.value, " rows; expected fewer than 2^31");
  check.require(args.state.has_value(), "state", "is absent, but snapshots are written to it");
  check.require(args.op != Op::kVerify, "snapshots",
                "go with forward and decode; expected windows in a verify call");
  check.require(args.schedule == Schedule::kFlat, "schedule",
                "is not flat, the only one that takes snapshots");
  if (!check.ok()) return;
  problem.snapshots = rows.value;
  problem.snapshots_dtype = list.dtype;
  problem.snapshots_row = list.strides[0];
  problem.snapshots_column = list.strides[1];
}

void check_drafts(const ForwardArgs& args, Checker& check, Sizes& sizes, Problem& problem) {
  const bool verify = args.op == Op::kVerify;
  check.require(
      verify || (!args.parents && !args.windows && !args.window_slots && !args.advance_state), "op",
      "is not verify, but parents, windows, window_slots or advance_state are given");
  if (!verify) return;
  check.require(args.state.has_value(), "state", "is absent, but verify continues from it");
  check.require(args.schedule == Schedule::kFlat, "schedule",
                "is not flat, the only one that verify has");
  const bool dense = args.x.ndim == 3;
  if (args.parents) {
    const TensorRef& parents = *args.parents;
    check_token_indices("parents", parents, args, check, sizes);
    check.require(!problem.keeps_state || problem.has_ring_positions, "parents",
                  "make a tree, which has no final state; expected neither write_slots nor "
                  "advance_state");
    if (!check.ok()) return;
    problem.has_parents = true;
    problem.parents_dtype = parents.dtype;
    problem.parents_sequence = dense ? parents.strides[0] : 0;
    problem.parents_token = parents.strides[dense ? 1 : 0];
  }
  check.require(args.windows || !args.window_slots, "windows",
                "is absent, but window_slots address it");
  if (!args.windows || !check.ok()) return;
  const TensorRef& windows = *args.windows;
  Symbol history{.name = "width - 1", .value = sizes.width.value - 1, .owner = "weight"};
  Symbol slots{.name = "window slots"}, tokens = sizes.tokens;
  if (args.window_slots) {
    tokens = {.name = "captured tokens"};
    check_indices(check, "window_slots", args.window_slots, sizes.sequences, args.x.device,
                  problem.has_window_slots, problem.window_slots_dtype,
                  problem.window_slots_stride);
    check.tensor("windows", windows, {&slots, &tokens, &history, &sizes.channels});
  } else if (dense) {
    check.tensor("windows", windows, {&sizes.batch, &sizes.tokens, &history, &sizes.channels});
  } else {
    check.tensor("windows", windows, {&sizes.tokens, &history, &sizes.channels});
  }
  check.dtype("windows", windows, {args.state->dtype}).device("windows", windows, args.x.device);
  check_written(check, "windows", windows);
  if (!check.ok()) return;
  const bool by_sequence = dense || args.window_slots;
  const std::int64_t* strides = windows.strides + (by_sequence ? 1 : 0);
  const bool overlap = strides[0] == strides[1] && sizes.width.value > 2 && tokens.value > 1;
  check.require(!overlap || (by_sequence && !args.parents), "windows",
                "overlap, which takes chains and x [sequences, tokens, channels] or window_slots");
  problem.has_windows = true;
  if (args.window_slots) {
    problem.window_slots = slots.value;
    problem.window_tokens = tokens.value;
  }
  problem.window_sequence = by_sequence ? windows.strides[0] : 0;
  problem.window_token = strides[0];
  problem.window_column = strides[1];
  problem.window_channel = strides[2];
}

void check_schedule(const ForwardArgs& args, Checker& check, Sizes& sizes, Problem& problem) {
  problem.schedule = args.schedule;
  check.require(args.threads >= 0, "threads", "is ", std::int64_t{args.threads},
                "; expected 0 (all) or more");
  problem.threads = args.threads;
  const bool lists = args.block_sequence.has_value() || args.block_offset.has_value();
  check.require(lists == (args.schedule == Schedule::kBlockList), "block_sequence",
                "and block_offset go with schedule block-list, and it needs both");
  if (args.schedule == Schedule::kBlockList && check.ok()) {
    check.require(args.block_sequence && args.block_offset, "block_offset",
                  "or block_sequence is absent; schedule block-list needs both");
    if (!check.ok()) return;
    check.tensor("block_sequence", *args.block_sequence, {&sizes.blocks});
    check.tensor("block_offset", *args.block_offset, {&sizes.blocks});
    check.dtype("block_sequence", *args.block_sequence, {DType::kI32});
    check.dtype("block_offset", *args.block_offset, {DType::kI32});
    check.device("block_sequence", *args.block_sequence, args.x.device);
    check.device("block_offset", *args.block_offset, args.x.device);
    problem.blocks = sizes.blocks.value;
    problem.block_sequence_stride = args.block_sequence->strides[0];
    problem.block_offset_stride = args.block_offset->strides[0];
  }
  if (args.schedule == Schedule::kSequenceGrid) {
    check.require(args.longest_sequence >= 0 && args.longest_sequence <= problem.tokens,
                  "longest_sequence", "is ", args.longest_sequence, "; expected 0 to ",
                  problem.tokens, " (tokens)");
    problem.longest_sequence = args.longest_sequence;
  }
}

// Windows that are the columns of the pool's own slots, one on from token to token: the state rolls
// on within its slot, and the next call finds it by read_offsets.
bool are_columns_of_state(const ForwardArgs& args, const Problem& problem) {
  if (!problem.has_window_slots || problem.has_ring_positions) return false;
  const TensorRef& windows = *args.windows;
  const std::int64_t base =
      problem.state_base * problem.state_column * element_bytes(problem.state_dtype);
  return windows.data == static_cast<const char*>(args.state->data) + base &&
         problem.window_sequence == problem.state_slot &&
         problem.window_token == problem.state_column &&
         problem.window_column == problem.state_column &&
         problem.window_channel == problem.state_channel && problem.window_slots <= problem.slots &&
         problem.window_tokens <= problem.state_columns - problem.state_base - (problem.width - 2);
}

void check_aliases(const ForwardArgs& args, Checker& check, Problem& problem) {
  if (!check.ok()) return;
  problem.in_place = same_view(args.x, args.out) && problem.tokens > 0 && problem.channels > 0;
  if (problem.in_place) {
    check.require(args.schedule == Schedule::kFlat, "out",
                  "is x itself, which only schedule flat can do: the others read inputs after "
                  "other blocks wrote");
  } else {
    check.require(!ranges_overlap(args.x, args.out) || disjoint_columns(args.x, args.out), "out",
                  "overlaps x in part; expected x itself or separate memory");
  }
  check.require(!problem.in_place || args.op != Op::kVerify, "out",
                "is x itself, which verify cannot do: windows are taken from x");
  check.require(!problem.in_place || !args.seq_idx, "out",
                "is x itself, which does not go with seq_idx");
  check.require(!args.seq_idx || !ranges_overlap(args.out, *args.seq_idx), "out",
                "overlaps seq_idx");
  if (args.windows) {
    check.require(!ranges_overlap(*args.windows, args.x), "windows", "overlaps x");
    check.require(!ranges_overlap(*args.windows, args.out), "windows", "overlaps out");
    check.require(
        !ranges_overlap(*args.windows, *args.state) || are_columns_of_state(args, problem),
        "windows",
        "overlaps state; expected separate memory or, with window_slots and without "
        "ring_positions, the pool's own columns from state_base on");
  }
  check.require(!ranges_overlap(args.out, args.weight), "out", "overlaps weight");
  check.require(!args.bias || !ranges_overlap(args.out, *args.bias), "out", "overlaps bias");
  if (args.state) {
    check.require(!ranges_overlap(*args.state, args.x), "state", "overlaps x");
    check.require(!ranges_overlap(*args.state, args.out), "state", "overlaps out");
  }
}

// What is written must not be what a gate is read from.
void check_gate_aliases(std::string_view argument, const std::optional<TensorRef>& gate,
                        const ForwardArgs& args, Checker& check) {
  if (!gate || !check.ok()) return;
  check.require(!ranges_overlap(args.out, *gate) || disjoint_columns(args.out, *gate), "out",
                "overlaps ", argument, "; expected separate memory, or other columns of it");
  if (args.state)
    check.require(!ranges_overlap(*args.state, *gate), "state", "overlaps ", argument);
  if (args.windows) {
    check.require(!ranges_overlap(*args.windows, *gate), "windows", "overlaps ", argument);
  }
}

// The report is written before anything is read, so it may share memory with no argument.
void check_violations(const ForwardArgs& args, Checker& check, Problem& problem) {
  if (!args.violations || !check.ok()) return;
  const TensorRef& report = *args.violations;
  Symbol kinds{.name = "violations", .value = kViolations, .owner = "the library"};
  Symbol columns{.name = "count and first", .value = 2, .owner = "the library"};
  check.tensor("violations", report, {&kinds, &columns});
  check.dtype("violations", report, {DType::kI64}).device("violations", report, args.x.device);
  check_written(check, "violations", report);
  if (!check.ok()) return;
  const auto separate = [&](std::string_view argument, const TensorRef& other) {
    check.require(!ranges_overlap(report, other), "violations", "overlaps ", argument);
  };
  const auto separate_if_present = [&](std::string_view argument,
                                       const std::optional<TensorRef>& other) {
    if (other) separate(argument, *other);
  };
  separate("x", args.x);
  separate("out", args.out);
  separate("weight", args.weight);
  separate_if_present("bias", args.bias);
  separate_if_present("state", args.state);
  separate_if_present("query_start_loc", args.query_start_loc);
  separate_if_present("read_slots", args.read_slots);
  separate_if_present("write_slots", args.write_slots);
  separate_if_present("read_offsets", args.read_offsets);
  separate_if_present("ring_positions", args.ring_positions);
  separate_if_present("snapshots", args.snapshots);
  separate_if_present("parents", args.parents);
  separate_if_present("windows", args.windows);
  separate_if_present("window_slots", args.window_slots);
  separate_if_present("has_initial_state", args.has_initial_state);
  separate_if_present("block_sequence", args.block_sequence);
  separate_if_present("block_offset", args.block_offset);
  separate_if_present("input_gate", args.input_gate);
  separate_if_present("output_gate", args.output_gate);
  separate_if_present("seq_idx", args.seq_idx);
  problem.has_violations = true;
  problem.violations_row = report.strides[0];
  problem.violations_column = report.strides[1];
}

}  // namespace

Status make_problem(const ForwardArgs& args, Problem& problem) {
  Problem made{.op = args.op, .backend = args.backend, .device = args.x.device};
  made.activation = args.activation;
  made.padded_rows = args.padded_rows;
  made.programmatic_launch = args.programmatic_launch;
  Checker check;
  Sizes sizes;
  check_options(args, check);
  if (check.ok()) check_rows(args, check, sizes, made);
  if (check.ok()) check_dilation(args, check, made);
  if (check.ok()) check_epilogue(args, check, sizes, made);
  if (check.ok()) check_query_start_loc(args, check, sizes, made);
  if (check.ok()) check_seq_idx(args, check, sizes, made);
  if (check.ok()) check_state(args, check, sizes, made);
  if (check.ok()) check_older(args, check, made);
  if (check.ok()) check_snapshots(args, check, made);
  if (check.ok()) check_drafts(args, check, sizes, made);
  if (check.ok()) check_schedule(args, check, sizes, made);
  check_aliases(args, check, made);
  check_gate_aliases("input_gate", args.input_gate, args, check);
  check_gate_aliases("output_gate", args.output_gate, args, check);
  check_violations(args, check, made);
  if (!check.ok()) return check.status();
  problem = made;
  return {};
}

}  // namespace shortconv
