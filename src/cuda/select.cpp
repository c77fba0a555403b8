#include "cuda/select.hpp"

#include <algorithm>
#include <bit>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "core/dispatch.hpp"
#include "cuda/tuning.hpp"
#include "shortconv/schedule.hpp"

namespace shortconv::cuda {
namespace {

std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

/// Of a power of two, as groups of channels and alignments are: a call asks two dozen times.
bool multiple_of(std::int64_t value, std::int64_t of) { return (value & (of - 1)) == 0; }

/// Whether a step along an axis with so many entries keeps groups of `group` elements aligned.
bool keeps_groups(std::int64_t extent, std::int64_t stride, std::int64_t group) {
  return extent <= 1 || multiple_of(stride, group);
}

bool has_f32_states(const Problem& p) {
  return p.has_state && p.state_dtype == DType::kF32 && p.x_dtype != DType::kF32;
}

/// Of rows, and of states unless they are fp32.
bool one_type(const Problem& p) {
  return p.x_dtype == p.out_dtype &&
         (!p.has_state || p.state_dtype == p.x_dtype || has_f32_states(p));
}

/// Types of weights that the token-major kernels come in.
bool own_or_f32_weights(const Problem& p) {
  return p.weight_dtype == p.x_dtype || p.weight_dtype == DType::kF32;
}

std::size_t bytes_of_x(const Problem& p) {
  return static_cast<std::size_t>(element_bytes(p.x_dtype));
}

bool has_output_gate(const Problem& p) { return p.epilogue == Epilogue::kOutputGate; }
bool has_gates(const Problem& p) { return p.has_input_gate || has_output_gate(p); }

bool dense(const Problem& p) { return !p.has_query_start_loc; }

/// Rows of x and out come in whole groups of `group` adjacent channels.
bool token_major(const Problem& p, std::int64_t group) {
  const std::int64_t rows = dense(p) ? p.sequence_tokens : p.tokens;
  const std::int64_t streams = dense(p) ? p.sequences : 1;
  const auto gate = [&](std::int64_t sequence, std::int64_t token, std::int64_t channel) {
    return channel == 1 && keeps_groups(rows, token, group) &&
           keeps_groups(streams, sequence, group);
  };
  return p.x_channel == 1 && p.out_channel == 1 && multiple_of(p.channels, group) &&
         keeps_groups(rows, p.x_token, group) && keeps_groups(rows, p.out_token, group) &&
         keeps_groups(streams, p.x_sequence, group) &&
         keeps_groups(streams, p.out_sequence, group) &&
         (!p.has_input_gate ||
          gate(p.input_gate_sequence, p.input_gate_token, p.input_gate_channel)) &&
         (!has_output_gate(p) ||
          gate(p.output_gate_sequence, p.output_gate_token, p.output_gate_channel));
}

/// Whether numbers of rows, sequences, slots and channels, and steps from one row to the next, fit
/// the 31 bits that the fast kernels count them in. Offsets into tensors have 64.
bool countable(const Problem& p) {
  constexpr std::int64_t kMost = 0x7fffffff;
  constexpr std::int64_t kMostStep = kMost / 64;  // times the rows of a tile, in bytes
  const auto small = [](std::int64_t step, std::int64_t most) {
    return -most < step && step < most;
  };
  return p.tokens < kMost - 64 && p.sequences < kMost && p.slots < kMost &&
         p.channels < kMost - 4096 && p.state_columns < kMost && small(p.x_token, kMostStep) &&
         small(p.out_token, kMostStep) && small(p.input_gate_token, kMostStep) &&
         small(p.output_gate_token, kMostStep) && small(p.query_start_loc_stride, kMostStep) &&
         small(p.read_slots_stride, kMostStep) && small(p.write_slots_stride, kMostStep) &&
         small(p.read_offsets_stride, kMostStep) && small(p.flags_stride, kMostStep) &&
         small(p.parents_token, kMostStep) && small(p.ring_positions_stride, kMostStep) &&
         small(p.window_slots_stride, kMostStep) && small(p.seq_idx_token, kMostStep) &&
         p.window_slots < kMost && p.window_tokens < kMost;
}

/// Columns of a slot that a window is made of.
std::int64_t state_window(const Problem& p) { return p.width - 1 + p.older_columns; }

/// Elements of the vectors that windows of `group` channels are moved in, see load_words.
std::int64_t run_vector(std::int64_t columns, std::int64_t group, DType dtype) {
  const std::int64_t most = 16 / element_bytes(dtype), run = columns * group;
  return std::min(run & -run, most);
}

StateForm state_form(const Problem& p, std::int64_t group) {
  if (!p.has_state || !keeps_groups(p.slots, p.state_slot, group)) return StateForm::kElements;
  const std::int64_t window = state_window(p);
  if (p.state_channel == 1 && keeps_groups(p.state_columns, p.state_column, group)) {
    return StateForm::kChannelVectors;
  }
  // A pool with more columns than the window has gaps between one channel's window and the next.
  const bool run = p.state_columns == window && p.state_channel == window &&
                   (window == 1 || p.state_column == 1);
  return run && keeps_groups(p.slots, p.state_slot, run_vector(window, group, p.state_dtype))
             ? StateForm::kWindowVectors
             : StateForm::kElements;
}

StateForm window_form(const Problem& p, std::int64_t group) {
  const std::int64_t history = p.width - 1;
  const std::int64_t tokens = p.has_window_slots ? p.window_tokens
                              : dense(p)         ? p.sequence_tokens
                                                 : p.tokens;
  const std::int64_t slots = p.has_window_slots ? p.window_slots : p.sequences;
  if (!p.has_windows || !keeps_groups(slots, p.window_sequence, group) ||
      !keeps_groups(tokens, p.window_token, group)) {
    return StateForm::kElements;
  }
  if (p.window_channel == 1 && keeps_groups(history, p.window_column, group)) {
    return StateForm::kChannelVectors;
  }
  const std::int64_t vector = run_vector(history, group, p.state_dtype);
  const bool run = p.window_channel == history && (history == 1 || p.window_column == 1) &&
                   keeps_groups(slots, p.window_sequence, vector) &&
                   keeps_groups(tokens, p.window_token, vector);
  return run ? StateForm::kWindowVectors : StateForm::kElements;
}

/// Adjacent channels that a thread of these kernels moves together.
std::int64_t group_of(const Problem& p, Kernel kernel) {
  switch (kernel) {
    case Kernel::kDecode:
      return 16 / element_bytes(p.x_dtype);
    case Kernel::kSmallDecode:
      return kSmallDecodeGroup;
    case Kernel::kTiles:
    case Kernel::kShortSequences:
    case Kernel::kNumberedTiles:
      return tile_group(bytes_of_x(p));
    case Kernel::kDrafts:
    case Kernel::kTrees:
      return kDraftGroup;
    case Kernel::kSmallTiles:
      return kSmallTileGroup;
    case Kernel::kChunks:
      return 2;
    default:
      return 1;
  }
}

/// Of token-major rows: the kernel of schedule flat.
Kernel tiles_kernel_of(const Problem& p) {
  const bool plain = features_of(p) == Features::kPlain;
  if (p.has_seq_idx) return plain ? Kernel::kNumberedTiles : Kernel::kGeneral;
  if (!plain || !is_listed(kModelWidths, p.width)) return Kernel::kTiles;
  // As many sequences as tokens and no states: bounds that leave room for all there could be.
  const bool spare = !p.has_state && p.sequences >= p.tokens;
  if (p.tokens < kTileTokens * p.sequences && !spare) return Kernel::kShortSequences;
  const std::int64_t tiles = dense(p) ? p.sequences * divide_up(p.sequence_tokens, kTileTokens)
                                      : divide_up(p.tokens, kTileTokens);
  const std::int64_t groups = divide_up(p.channels, kTileChannels);
  return (p.sequences + tiles) * groups <= kSmallTilesUpTo ? Kernel::kSmallTiles : Kernel::kTiles;
}

/// Token-major prefill, decode and chains of drafts with ordered states and weights of x's type
/// have kernels at all of kWidths. Every kernel is code for each of its widths, and the library is
/// to stay small: the others have those of models, states of fp32 beside rows of 16 bits fewer.
bool has_kernels(const Problem& p) {
  if (has_f32_states(p)) {
    return is_listed(kF32StateWidths, p.width) && p.weight_dtype == p.x_dtype;
  }
  if (is_listed(kModelWidths, p.width)) return !has_gates(p) || p.weight_dtype == p.x_dtype;
  return is_listed(kWidths, p.width) && p.weight_dtype == p.x_dtype &&
         features_of(p) == Features::kPlain && !p.has_parents && !p.has_seq_idx &&
         p.schedule == Schedule::kFlat;
}

Kernel kernel_of(const Problem& p) {
  // Kernels that know gates, or states of fp32, know nothing else that is rare.
  const bool gated = features_of(p) == Features::kGated;
  const bool f32_states = features_of(p) == Features::kF32States;
  if (has_gates(p) && (!gated || p.has_parents)) return Kernel::kGeneral;
  if (has_f32_states(p) && (!f32_states || p.op == Op::kVerify)) return Kernel::kGeneral;
  if (p.dilation != 1 || !one_type(p) || !has_kernels(p)) return Kernel::kGeneral;
  if (p.op == Op::kVerify) {
    const bool drafts = token_major(p, kDraftGroup) && own_or_f32_weights(p) && countable(p);
    if (!drafts) return Kernel::kGeneral;
    return p.has_parents ? Kernel::kTrees : Kernel::kDrafts;
  }
  const bool single_tokens = dense(p) && p.sequence_tokens == 1 && !p.has_seq_idx;
  if (p.schedule != Schedule::kFlat) {
    const bool chunks = token_major(p, group_of(p, Kernel::kChunks)) &&
                        p.weight_dtype == p.x_dtype && features_of(p) == Features::kPlain;
    return chunks && countable(p) ? Kernel::kChunks : Kernel::kGeneral;
  }
  if (single_tokens && p.has_state && p.initial_state == InitialState::kAll &&
      p.older_columns <= 1 && own_or_f32_weights(p) && countable(p)) {
    const Features features = features_of(p);
    const bool small = features == Features::kOlder || gated || f32_states ||
                       (features == Features::kPlain && p.tokens * p.channels <= kSmallDecode);
    const Kernel decode = small ? Kernel::kSmallDecode : Kernel::kDecode;
    if (token_major(p, group_of(p, decode))) return decode;
  }
  if (p.in_place || p.older_columns > 0) return Kernel::kGeneral;
  if (token_major(p, group_of(p, Kernel::kTiles)) && own_or_f32_weights(p) && countable(p)) {
    return tiles_kernel_of(p);
  }
  const bool columns =
      is_listed(kModelWidths, p.width) && features_of(p) == Features::kPlain && !p.has_seq_idx;
  if (columns && p.x_token == 1 && p.out_token == 1) return Kernel::kColumns;
  return Kernel::kGeneral;
}

Alignment alignment_of(const Problem& p, Kernel kernel) {
  const std::int64_t group = group_of(p, kernel);
  const auto of = [&](StateForm form, std::int64_t columns) {
    const std::int64_t vector =
        form == StateForm::kWindowVectors ? run_vector(columns, group, p.state_dtype) : group;
    return static_cast<std::uint32_t>(vector * element_bytes(p.state_dtype));
  };
  if (group == 1) return {};
  return {.rows = static_cast<std::uint32_t>(group * element_bytes(p.x_dtype)),
          .state = of(state_form(p, group), state_window(p)),
          .windows = of(window_form(p, group), p.width - 1)};
}

/// Chains of more tokens on average than drafts have: prompts among them, which a thread that takes
/// one strip after the other would be long at. What follows the first strip becomes tiles, as of
/// prefill. Not where windows may lie in the pool, for the history there has to be read first.
bool splits_chains(const Problem& p) {
  return p.op == Op::kVerify && !p.has_parents && !p.has_window_slots &&
         p.tokens > kTileTokens * p.sequences && is_listed(kModelWidths, p.width);
}

std::int64_t chunk_units(const Problem& p, Grid& grid) {
  if (p.schedule == Schedule::kBlockList) return p.blocks;
  const std::int64_t longest = dense(p) ? p.sequence_tokens : p.longest_sequence;
  const std::int64_t chunks = std::max<std::int64_t>(divide_up(longest, kChunkTokens), 1);
  if (chunks <= kMostBlocks) grid.sequence_tiles = FastDivisor(static_cast<std::uint32_t>(chunks));
  return p.sequences * chunks;
}

std::int64_t tiles_of(const Problem& p, std::int64_t tile_tokens, Grid& grid) {
  if (!dense(p)) return divide_up(p.tokens, tile_tokens);
  const std::int64_t each = divide_up(p.sequence_tokens, tile_tokens);
  if (each <= kMostBlocks) grid.sequence_tiles = FastDivisor(static_cast<std::uint32_t>(each));
  return p.sequences * each;
}

/// Units of work along the tokens; sets what the kernel needs to take them apart.
std::int64_t units_of(const Problem& p, Kernel kernel, Grid& grid) {
  switch (kernel) {
    case Kernel::kTiles:  // heads, then tiles
    case Kernel::kShortSequences:
    case Kernel::kSmallTiles:
      return p.sequences + tiles_of(p, kTileTokens, grid);
    case Kernel::kNumberedTiles:
      return tiles_of(p, kTileTokens, grid);
    case Kernel::kDecode:
    case Kernel::kSmallDecode:
    case Kernel::kDrafts:
    case Kernel::kTrees:
      return p.sequences;
    case Kernel::kColumns:
      return tiles_of(p, 32 * 16 / element_bytes(p.x_dtype), grid);
    case Kernel::kChunks:
      return chunk_units(p, grid);
    case Kernel::kGeneral:
      break;
  }
  if (p.in_place || p.op == Op::kVerify) return p.sequences;
  if (p.schedule != Schedule::kFlat) return chunk_units(p, grid);
  std::int64_t rows = kMostGeneralTokens;
  const std::int64_t blocks = divide_up(p.channels, kGeneralThreads);
  while (rows > 1 && divide_up(p.tokens, rows) * blocks < kGeneralBlocks) rows /= 2;
  grid.unit_tokens = static_cast<std::uint32_t>(rows);
  return divide_up(p.tokens, rows);
}

/// Snapshots of inputs in x, which nobody overwrites, are units of their own. Whoever reads a
/// sequence's state takes the others, all of them in place and where it has one token.
std::int64_t snapshot_units(const Problem& p, Kernel kernel) {
  const bool decode = kernel == Kernel::kDecode || kernel == Kernel::kSmallDecode;
  return decode || p.in_place ? 0 : p.snapshots;
}

std::int64_t block_channels(const Problem& p, Kernel kernel, std::int32_t& threads) {
  switch (kernel) {
    case Kernel::kTiles:
    case Kernel::kShortSequences:
    case Kernel::kSmallTiles:
    case Kernel::kNumberedTiles:
      threads = kTileChannels / static_cast<std::int32_t>(group_of(p, kernel));
      return kTileChannels;
    case Kernel::kDecode:
    case Kernel::kSmallDecode: {
      const std::int64_t group = group_of(p, kernel);
      const bool rings = features_of(p) == Features::kRings;
      threads = decode_threads(divide_up(p.channels, group), p.tokens * p.channels, rings);
      return threads * group;
    }
    case Kernel::kDrafts:
    case Kernel::kTrees:
      threads = kDraftThreads;
      return kDraftThreads * kDraftGroup;
    case Kernel::kColumns:
      threads = 32 * kColumnWarps;
      return kColumnWarps * kColumnChannels;
    case Kernel::kChunks:
      threads = kChunkChannels / 2;
      return kChunkChannels;
    case Kernel::kGeneral:
      break;
  }
  threads = kGeneralThreads;
  return kGeneralThreads;
}

/// Heads begin every sequence where there is little to do, so that a tile has one thing to do and
/// the call is over sooner, and where sequences are short, so that most of the work is theirs.
/// Tiles do otherwise, which is less work; then most heads have nothing to do: each takes several
/// groups of channels, and together they take no more than a wave of blocks.
void split_tiles(const Problem& p, std::int64_t tiles, std::int64_t groups, Launch& launch) {
  Grid& grid = launch.grid;
  const bool short_sequences = launch.kernel == Kernel::kShortSequences;
  const std::int64_t heads = p.sequences * groups;
  grid.heads_begin = launch.kernel != Kernel::kTiles || heads + tiles * groups <= kHeadsBeginUpTo;
  const auto waves = static_cast<std::uint64_t>(divide_up(heads, kWaveOfTiles));
  const auto most = static_cast<std::uint64_t>(groups);
  grid.head_rounds = static_cast<std::uint32_t>(
      grid.heads_begin
          ? 1
          : std::min(std::max(std::bit_ceil(waves), kFewestHeadRounds), std::bit_ceil(most)));
  const std::int64_t head_blocks = divide_up(groups, grid.head_rounds);
  const bool needed = grid.heads_begin || !dense(p) || p.sequence_tokens < kTileTokens;
  grid.head_channel_blocks = FastDivisor(static_cast<std::uint32_t>(head_blocks));
  grid.head_blocks = static_cast<std::uint32_t>(needed ? p.sequences * head_blocks : 0);
  const std::int64_t tile_blocks =
      short_sequences ? divide_up(groups, kShortSequenceRounds) : groups;
  grid.channel_blocks = FastDivisor(static_cast<std::uint32_t>(tile_blocks));
  grid.tiles = static_cast<std::uint32_t>(tiles);
  const std::int64_t snapshot_blocks = divide_up(groups, kSnapshotRounds);
  grid.snapshot_channel_blocks = FastDivisor(static_cast<std::uint32_t>(snapshot_blocks));
  const std::int64_t taken = snapshot_units(p, launch.kernel) * snapshot_blocks;
  grid.snapshot_blocks = static_cast<std::uint32_t>(taken);
  launch.blocks = taken + grid.head_blocks + tiles * tile_blocks;
}

/// Tiles cannot know which of them are done with a history. One that a snapshot may replace is not
/// the slot that the final state goes to.
std::int64_t replacing_blocks(const Problem& p, Kernel kernel) {
  const bool may = kernel == Kernel::kTiles && p.has_write_slots;
  return may ? p.snapshots * divide_up(p.channels, kGeneralThreads) : 0;
}

Overlap overlap_of(const Problem& p, const Launch& launch) {
  if (!p.programmatic_launch || !takes_call(launch.kernel)) return Overlap::kNone;
  const bool drafts = launch.kernel == Kernel::kDrafts || launch.kernel == Kernel::kTrees;
  const bool both = !drafts || launch.blocks >= kBothOverlapOfDraftsFrom;
  return both ? Overlap::kBoth : Overlap::kBeginning;
}

/// Overlapped, of 8, 16, 32 and 64 tokens x 8192, a decode takes 1.90, 2.13, 2.49 and 3.33 us
/// without and 1.78, 1.89, 2.27 and 3.15 with it; of 128 and 256 5.25 and 9.83, 5.37 and 10.01 with
/// it; of 64 and 256 x 2048 with gates 2.43 and 3.92, 2.03 and 3.72. With an older column, in
/// windows, 64 go from 4.28 to 4.60. Not measured with states of fp32. What is fetched comes in
/// units of 16 bytes, of which the channels of a last block may not be less than one.
bool fetches_state_early(const Problem& p, const Launch& launch) {
  constexpr std::int64_t kUnit = 16;
  return launch.kernel == Kernel::kSmallDecode && p.tokens * p.channels <= kSmallDecode &&
         features_of(p) != Features::kOlder && launch.grid.state_form != StateForm::kElements &&
         !p.has_read_offsets && p.channels * element_bytes(p.state_dtype) % kUnit == 0;
}

bool cuts_tiles(Kernel kernel) {
  return kernel == Kernel::kTiles || kernel == Kernel::kShortSequences ||
         kernel == Kernel::kSmallTiles;
}

Launch launch_of(const Problem& p, Kernel kernel) {
  Launch launch;
  launch.kernel = kernel;
  const std::int64_t units = units_of(p, kernel, launch.grid);
  // Schedules made of sequences leave out the rows outside of them: one more unit.
  const bool outside = p.op == Op::kVerify || p.schedule != Schedule::kFlat ||
                       (kernel == Kernel::kGeneral && p.in_place);
  const std::int64_t channels = block_channels(p, kernel, launch.threads);
  const std::int64_t blocks = divide_up(p.channels, channels);
  launch.blocks = (units + (outside ? 1 : 0) + snapshot_units(p, kernel)) * blocks;
  if (launch.blocks > kMostBlocks) return launch;
  launch.grid.tiles = static_cast<std::uint32_t>(units);
  launch.grid.channel_blocks = FastDivisor(static_cast<std::uint32_t>(blocks));
  launch.grid.state_form = state_form(p, group_of(p, kernel));
  if (cuts_tiles(kernel)) {
    split_tiles(p, units - p.sequences, blocks, launch);
  }
  if (kernel == Kernel::kDrafts && splits_chains(p)) {
    launch.grid.heads_begin = true;
    launch.blocks = (units + tiles_of(p, kTileTokens, launch.grid)) * blocks;
  }
  launch.grid.window_form = window_form(p, group_of(p, kernel));
  launch.replacing_blocks = replacing_blocks(p, kernel);
  launch.grid.overlap = overlap_of(p, launch);
  launch.grid.early_state = fetches_state_early(p, launch);
  launch.grid.packed_taps =
      p.weight_tap == 1 && p.weight_channel == p.width && (!p.has_bias || p.bias_channel == 1);
  return launch;
}

}  // namespace

std::string_view name(Kernel kernel) {
  switch (kernel) {
    case Kernel::kTiles:
      return "tiles";
    case Kernel::kShortSequences:
      return "short sequences";
    case Kernel::kSmallTiles:
      return "small tiles";
    case Kernel::kNumberedTiles:
      return "numbered tiles";
    case Kernel::kDecode:
      return "decode";
    case Kernel::kSmallDecode:
      return "small decode";
    case Kernel::kDrafts:
      return "drafts";
    case Kernel::kTrees:
      return "trees";
    case Kernel::kColumns:
      return "columns";
    case Kernel::kChunks:
      return "chunks";
    case Kernel::kGeneral:
      break;
  }
  return "general";
}

Features features_of(const Problem& p) {
  const bool all = p.snapshots > 0 || p.has_window_slots || p.epilogue == Epilogue::kResidual ||
                   splits_chains(p);
  if (all) return Features::kAll;
  if (p.older_columns > 0) return Features::kOlder;
  if (p.has_ring_positions) return Features::kRings;
  if (has_gates(p)) return Features::kGated;
  return has_f32_states(p) ? Features::kF32States : Features::kPlain;
}

Status select(const Problem& p, Choice& choice) {
  choice = {};
  if (p.tokens == 0 || p.channels == 0) return {};
  const Kernel kernel = kernel_of(p);
  choice.alignment = alignment_of(p, kernel);
  choice.aligned = launch_of(p, kernel);
  choice.otherwise = choice.alignment.rows == 1 ? choice.aligned : launch_of(p, Kernel::kGeneral);
  for (const Launch* launch : {&choice.aligned, &choice.otherwise}) {
    const std::int64_t blocks = std::max(launch->blocks, launch->replacing_blocks);
    if (blocks > kMostBlocks) {
      return {Code::kUnsupported,
              concat("x: needs ", blocks, " blocks of kernel '", name(launch->kernel),
                     "'; a grid has at most ", kMostBlocks)};
    }
  }
  return {};
}

Entry launch_for(const Choice& choice, const Addresses& at, Launch& launch) {
  const auto aligned = [](const void* address, std::int64_t bytes) {
    return multiple_of(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address)), bytes);
  };
  const Alignment& wanted = choice.alignment;
  const bool fast = aligned(at.x, wanted.rows) && aligned(at.out, wanted.rows) &&
                    aligned(at.input_gate, wanted.rows) && aligned(at.output_gate, wanted.rows);
  launch = fast ? choice.aligned : choice.otherwise;
  if (!aligned(at.state, wanted.state)) launch.grid.state_form = StateForm::kElements;
  if (!aligned(at.windows, wanted.windows)) launch.grid.window_form = StateForm::kElements;
  if (!aligned(at.weight, 16) || !aligned(at.bias, 16)) launch.grid.packed_taps = false;
  return fast ? choice.aligned_entry : choice.otherwise_entry;
}

}  // namespace shortconv::cuda
