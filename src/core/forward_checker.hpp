// The rules between arguments of a forward call, with groups or without. check.cpp has those of
// single tensors.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "core/history.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {

/// The columns of a tensor in rows that a token stride divides memory into.
struct Columns {
  const void* data = nullptr;
  DType dtype{};
  std::int64_t token_stride = 0, sequence_stride = 0;
  std::int64_t tokens = 0;  // of a sequence; 0: without an axis of sequences
  std::int64_t count = 0;   // from the first element of a row to behind its last one
};

/// Column slices of one wider buffer, such as x and out in a packed projection, interleave without
/// sharing an element.
inline bool disjoint_columns(const Columns& one, const Columns& other) {
  const std::int64_t pitch = one.token_stride;
  if (one.dtype != other.dtype || pitch != other.token_stride || pitch <= 0) return false;
  if (one.sequence_stride != other.sequence_stride) return false;
  const std::int64_t bytes = element_bytes(one.dtype);
  const auto distance = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(other.data) -
                                                  reinterpret_cast<std::uintptr_t>(one.data));
  if (distance % bytes != 0) return false;
  if (one.sequence_stride % pitch != 0) {  // then at least the sequences are apart
    const bool apart = one.sequence_stride / pitch >= one.tokens;
    const std::int64_t from = std::abs(distance / bytes);
    const Columns& first = distance > 0 ? one : other;
    const Columns& second = distance > 0 ? other : one;
    return apart && from >= first.count && from <= pitch - second.count;
  }
  const std::int64_t columns = ((distance / bytes) % pitch + pitch) % pitch;
  return columns >= one.count && pitch - columns >= other.count;
}

/// Checks the arguments of a forward call. With groups x has columns, and there is no out.
class ForwardChecker : public ArgumentChecker {
 public:
  ForwardChecker(const ForwardArgs& args, Problem& problem, bool has_groups = false)
      : ArgumentChecker("x", args.x.device), args_(args), p_(problem), has_groups_(has_groups) {}

  void check_all() {
    check_call();
    if (ok()) check_memory();
  }

 protected:
  /// All but overlaps.
  void check_call() {
    check_options();
    if (ok()) check_tensors();
    if (ok()) check_width(args_.dilation);
    if (ok()) set_width();
    if (ok()) check_epilogue();
    if (ok()) check_sequences();
    if (ok()) check_state();
    if (ok()) check_shift_full_state();
    if (ok()) check_snapshots();
    if (ok()) check_drafts();
    if (ok()) check_schedule();
  }

  void check_options() {
    check_enumerator("op", kOps, args_.op);
    check_enumerator("initial_state", kInitialStates, args_.sequences.initial_state);
    check_enumerator("activation", kActivations, args_.epilogue.activation);
    check_enumerator("padded_rows", kPaddedRows, args_.sequences.padded_rows);
    check_enumerator("schedule", kSchedules, args_.options.schedule);
    check_enumerator("backend", kBackends, args_.options.backend);
    require(args_.options.threads >= 0, "threads", "is ", std::int64_t{args_.options.threads},
            "; expected 0 (all) or more");
    p_.op = args_.op;
    p_.backend = args_.options.backend;
    p_.device = args_.x.device;
    p_.activation = args_.epilogue.activation;
    p_.padded_rows = args_.sequences.padded_rows;
    p_.schedule = args_.options.schedule;
    p_.threads = args_.options.threads;
    p_.programmatic_launch = args_.options.programmatic_launch;
  }

  /// Checks each tensor, and that shared sizes agree.
  void check_tensors() {
    const auto visit = [this]<Axis... kAxes>(const Argument& row, const auto& tensor,
                                             TensorLayout<kAxes...>& layout) {
      constexpr bool kPerToken =
          ((kAxes == Axis::kSequence) || ...) && ((kAxes == Axis::kToken) || ...);
      constexpr bool kStates = kPerToken && ((kAxes == Axis::kColumn) || ...);
      const bool by_slot = kStates && args_.drafts.intermediate_slots.has_value();
      const AxisSet absent = kPerToken && !by_slot ? absent_ : AxisSet();
      if (has_groups_ && row.name == "x") {
        return check(Argument{"x", {Size::kSequences, Size::kTokens, Size::kColumnsOfX}}, tensor,
                     layout, absent);
      }
      if (!has_groups_ || row.name != "out") check(row, tensor, layout, absent);
    };
    const bool decode = args_.op == Op::kDecode;
    if (args_.x.ndim != 3) absent_ = AxisSet(decode ? Axis::kToken : Axis::kSequence);
    x_dtype = args_.x.dtype;
    weight_dtype = args_.weight.dtype;
    if (args_.pool.state) state_dtype = args_.pool.state->dtype;
    visit_row_tensors(visit, args_, p_);
    visit_epilogue_tensors(visit, args_.epilogue, p_);
    require(!args_.sequences.query_start_loc || (args_.x.ndim == 2 && !decode), "query_start_loc",
            "is only for x [tokens, channels] of a forward or verify call; the shape of a batch or "
            "of a decode call has its sequences already");
    require(!args_.sequences.seq_idx || !args_.sequences.query_start_loc, "seq_idx",
            "cannot be combined with query_start_loc: both divide the rows into sequences");
    SharedSize& sequences = size(Size::kSequences);
    if (sequences.value < 0 && !args_.sequences.query_start_loc) sequences = {"sequences", 1, "x"};
    visit_sequence_tensors(visit, args_.sequences, p_);
    visit_pool_tensors(visit, args_.pool, p_);
    size(Size::kHistory) = {"width - 1", value(Size::kWidth) - 1, "weight"};
    if (!args_.drafts.intermediate_slots) {
      size(Size::kIntermediateSlots) = sequences;
      size(Size::kIntermediateTokens) = size(Size::kTokens);
    }
    visit_draft_tensors(visit, args_.drafts, p_);
    visit_option_tensors(visit, args_.options, p_);
    if (ok()) set_sizes();
  }

  void set_sizes() {
    p_.width = static_cast<std::int32_t>(value(Size::kWidth));
    p_.channels = value(Size::kChannels);
    p_.sequences = value(Size::kSequences);
    if (p_.query_start_loc.present) {
      p_.tokens = value(Size::kTokens);
      return;
    }
    p_.sequence_tokens = value(Size::kTokens);
    if (p_.op == Op::kDecode && args_.x.ndim != 3) {  // [sequences, 1, channels]
      p_.sequence_tokens = 1;
      for (auto* rows : {&p_.x, &p_.out, &p_.input_gate, &p_.output_gate}) {
        rows->token_stride = rows->sequence_stride;
      }
    }
    const __int128 rows = static_cast<__int128>(p_.sequences) * p_.sequence_tokens;
    require(rows < kMaxProduct, "x", "has more than 2^62 rows");
    p_.tokens = static_cast<std::int64_t>(rows);
  }

  void set_width() {
    require(args_.dilation == 1 || p_.op != Op::kVerify, "dilation", "is ",
            std::int64_t{args_.dilation}, ", but a verify call supports only 1");
    p_.dilation = args_.dilation;
  }

  void check_epilogue() {
    const bool residual = args_.epilogue.residual;
    require(!residual || (!p_.input_gate.present && !p_.output_gate.present), "residual",
            "cannot be combined with input_gate or output_gate");
    if (residual) p_.epilogue = Epilogue::kResidual;
    if (p_.output_gate.present) p_.epilogue = Epilogue::kOutputGate;
  }

  void check_sequences() {
    p_.initial_state = p_.op == Op::kForward ? args_.sequences.initial_state : InitialState::kAll;
    require(p_.initial_state != InitialState::kByFlag || p_.has_initial_state.present,
            "has_initial_state", "is absent, but initial_state is by-flag");
    if (p_.has_initial_state.present) p_.initial_state = InitialState::kByFlag;
    if (!p_.seq_idx.present) return;
    require(p_.op == Op::kForward, "seq_idx", "is supported by forward calls only");
    require(!p_.write_slots.present && !p_.snapshots.present && !args_.pool.shift_full_state,
            "seq_idx",
            "cannot be combined with write_slots, snapshots or shift_full_state: no state is "
            "written");
    require_flat("seq_idx");
  }

  void check_state() {
    if (args_.pool.null_slot) {
      p_.has_null_slot = true;
      p_.null_slot = *args_.pool.null_slot;
    }
    if (!p_.state.present) return check_absent_state();
    if (p_.cache_seqlens.present) {
      require(!p_.read_offsets.present, "read_offsets", "cannot be combined with cache_seqlens");
      require(args_.pool.base_column == 0, "base_column", "is ", args_.pool.base_column,
              ", but with cache_seqlens slots are circular buffers; expected 0");
    }
    p_.slots = value(Size::kSlots);
    p_.state_columns = value(Size::kColumns);
    p_.base_column = args_.pool.base_column;
    const std::int64_t history = history_of(p_);
    if (p_.base_column < 0 || p_.base_column > p_.state_columns - history) {
      const std::string dilated =
          p_.dilation == 1 ? "" : concat(" with dilation ", std::int64_t{p_.dilation});
      require(false, "state", "has ", p_.state_columns, " columns, but width ",
              std::int64_t{p_.width}, dilated, " needs ", history, " from column ", p_.base_column,
              " (base_column) on");
    }
    require(p_.read_slots.present || p_.slots >= p_.sequences, "state", "has ", p_.slots,
            " slots, but without read_slots sequence s uses slot s; expected at least ",
            p_.sequences);
    p_.writes_state = p_.op == Op::kVerify ? p_.write_slots.present || args_.drafts.update_state
                                           : !p_.seq_idx.present;
  }

  void check_absent_state() {
    p_.state.dtype = DType::kF32;  // of the zeros that sequences start from
    require(p_.initial_state == InitialState::kNone, "state",
            "is absent, but sequences continue from it");
    require(!p_.write_slots.present && !p_.read_offsets.present, "state",
            "is absent, but write_slots or read_offsets address it");
    require(!p_.cache_seqlens.present, "state", "is absent, but cache_seqlens address it");
    require(!args_.pool.shift_full_state, "state", "is absent, but shift_full_state needs it");
  }

  void check_shift_full_state() {
    if (!args_.pool.shift_full_state) return;
    require(p_.op != Op::kVerify, "shift_full_state",
            "is supported by forward and decode; expected false in a verify call");
    require(!p_.cache_seqlens.present, "shift_full_state",
            "cannot be combined with cache_seqlens: a circular buffer shifts nothing");
    require(!p_.read_offsets.present, "shift_full_state",
            "cannot be combined with read_offsets: all histories begin at base_column");
    require(!p_.snapshots.present, "shift_full_state",
            "cannot be combined with snapshots, which hold the history alone");
    require_flat("shift_full_state");
    p_.shifted_columns = args_.pool.base_column;
  }

  void check_snapshots() {
    if (!p_.snapshots.present) return;
    const std::int64_t rows = value(Size::kSnapshots);
    require(rows <= std::numeric_limits<std::int32_t>::max(), "snapshots", "has ", rows,
            " rows; expected fewer than 2^31");
    require(p_.state.present, "state", "is absent, but snapshots are written to it");
    require(p_.op != Op::kVerify, "snapshots",
            "are supported by forward and decode; expected intermediate_states in a verify call");
    require_flat("snapshots");
    p_.snapshot_count = rows;
  }

  void check_drafts() {
    const bool verify = p_.op == Op::kVerify;
    require(verify || (!p_.parents.present && !p_.intermediate_states.present &&
                       !p_.intermediate_slots.present && !args_.drafts.update_state),
            "op",
            "is not verify, but parents, intermediate_states, intermediate_slots or update_state "
            "are given");
    if (!verify) return;
    require(p_.state.present, "state", "is absent, but verify continues from it");
    require_flat("verify");
    require(!p_.parents.present || !p_.writes_state || p_.cache_seqlens.present, "parents",
            "make a tree, which has no final state; expected neither write_slots nor update_state");
    require(p_.intermediate_states.present || !p_.intermediate_slots.present, "intermediate_states",
            "is absent, but intermediate_slots address it");
    if (!p_.intermediate_states.present) return;
    const auto& to = p_.intermediate_states;
    const std::int64_t tokens = value(Size::kIntermediateTokens);
    const bool by_sequence = args_.x.ndim == 3 || p_.intermediate_slots.present;
    const bool overlap =
        to.has_elements && to.token_stride == to.column_stride && p_.width > 2 && tokens > 1;
    require(!overlap || (by_sequence && !p_.parents.present), "intermediate_states",
            "overlap, which needs chains and x [sequences, tokens, channels] or "
            "intermediate_slots");
    if (!p_.intermediate_slots.present) return;
    p_.intermediate_slot_count = value(Size::kIntermediateSlots);
    p_.intermediate_tokens = tokens;
  }

  void check_schedule() {
    const bool lists = p_.block_sequence.present || p_.block_offset.present;
    require(lists == (p_.schedule == Schedule::kBlockList), "block_sequence",
            "is only for schedule block-list, which needs it and block_offset");
    if (p_.schedule == Schedule::kBlockList) {
      require(p_.block_sequence.present && p_.block_offset.present, "block_offset",
              "or block_sequence is absent; schedule block-list needs both");
      p_.block_count = value(Size::kBlocks);
    }
    const std::int64_t longest = args_.options.max_seqlen;
    if (p_.schedule == Schedule::kSequenceGrid) {
      require(longest >= 0 && longest <= p_.tokens, "max_seqlen", "is ", longest,
              "; expected 0 to ", p_.tokens, " (tokens)");
      p_.max_seqlen = longest;
    }
    // With strides of 0 the product of the sizes could exceed 64 bits.
    const auto wide = [](std::int64_t size) { return static_cast<__int128>(size); };
    const __int128 blocks = wide(p_.sequences) * (1 + std::max(p_.max_seqlen, p_.sequence_tokens));
    require(blocks < kMaxProduct && blocks * (1 + wide(p_.channels)) < kMaxProduct, "x",
            "has too many sequences, tokens and channels; expected fewer than 2^62 in all");
  }

  void check_memory() {
    p_.in_place = args_.x.data == args_.out.data && p_.x == p_.out && p_.x.has_elements;
    if (p_.in_place) {
      require(p_.schedule == Schedule::kFlat, "out",
              "is x itself, which only schedule flat supports: the others read inputs after other "
              "blocks wrote");
      require(p_.op != Op::kVerify, "out",
              "is x itself, which verify does not support: intermediate states are taken from x");
      require(!p_.seq_idx.present, "out", "is x itself, which seq_idx does not support");
    }
    check_overlaps([this](const CheckedTensor& written, const CheckedTensor& other) {
      return may_overlap(written, other);
    });
  }

  /// Whether two tensors may overlap although their byte ranges do; some errors have their own
  /// text.
  bool may_overlap(const CheckedTensor& written, const CheckedTensor& other) {
    if (written.tensor == &args_.out) {
      const auto is = [&](const std::optional<TensorRef>& one) {
        return one && other.tensor == &*one;
      };
      const bool x = other.tensor == &args_.x;
      if (x && p_.in_place) return true;
      const auto* rows = x                                ? &p_.x
                         : is(args_.input_gate)           ? &p_.input_gate
                         : is(args_.epilogue.output_gate) ? &p_.output_gate
                                                          : nullptr;
      if (rows == nullptr) return false;
      const bool disjoint = rows->channel_stride == 1 && p_.out.channel_stride == 1 &&
                            disjoint_columns(columns_of(args_.out, p_.out, p_.channels),
                                             columns_of(*other.tensor, *rows, p_.channels));
      return require(disjoint, "out", "overlaps ", other.name, " in part; expected ",
                     x ? "x itself, " : "", "separate memory, or other columns of it");
    }
    if (written.name != "intermediate_states" || other.name != "state") return false;
    return require(are_columns_of_state(), written.name,
                   "overlaps state; expected separate memory or, with intermediate_slots and "
                   "without cache_seqlens, the pool's own columns from base_column on");
  }

  /// Whether intermediate_states is a view of the columns of state, each token one column on: the
  /// next call finds its history by read_offsets.
  [[nodiscard]] bool are_columns_of_state() const {
    if (!p_.intermediate_slots.present || p_.cache_seqlens.present) return false;
    const auto& to = p_.intermediate_states;
    const auto& of = p_.state;
    const auto same = [](std::int64_t count, std::int64_t stride, std::int64_t expected) {
      return count <= 1 || stride == expected;
    };
    const std::int64_t base = p_.base_column * of.column_stride * element_bytes(of.dtype);
    return args_.drafts.intermediate_states->data ==
               static_cast<const char*>(args_.pool.state->data) + base &&
           same(p_.intermediate_slot_count, to.sequence_stride, of.slot_stride) &&
           same(p_.intermediate_tokens, to.token_stride, of.column_stride) &&
           same(p_.width - 1, to.column_stride, of.column_stride) &&
           same(p_.channels, to.channel_stride, of.channel_stride) &&
           p_.intermediate_slot_count <= p_.slots &&
           p_.intermediate_tokens <= p_.state_columns - p_.base_column - (p_.width - 2);
  }

  void require_flat(std::string_view feature) {
    require(p_.schedule == Schedule::kFlat, "schedule", "is ", name(p_.schedule),
            "; only flat is supported with ", feature);
  }

  /// `count`: columns of a row.
  template <typename Layout>
  [[nodiscard]] Columns columns_of(const TensorRef& tensor, const Layout& layout,
                                   std::int64_t count) const {
    return {tensor.data,        layout.dtype, layout.token_stride, layout.sequence_stride,
            p_.sequence_tokens, count};
  }

  const ForwardArgs& args_;
  Problem& p_;
  const bool has_groups_;
  AxisSet absent_;  // axes that per-token tensors lack
};

}  // namespace shortconv
