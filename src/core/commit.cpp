// CommitArgs -> CommitProblem: the rules between arguments. check.cpp has those of single tensors.
#include "core/capability.hpp"
#include "core/check.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {
namespace {

class CommitChecker : public ArgumentChecker {
 public:
  CommitChecker(const CommitArgs& args, CommitProblem& problem)
      : ArgumentChecker("intermediate_states", args.intermediate_states.device),
        args_(args),
        p_(problem) {}

  void check_all() {
    check_options();
    if (ok()) check_tensors();
    if (ok()) check_sizes();
    if (ok()) {
      check_overlaps([](const CheckedTensor&, const CheckedTensor&) { return false; });
    }
  }

 private:
  void check_options() {
    const std::int64_t rows = std::int64_t{args_.width} - 1, per_token = args_.rows_per_token;
    check_enumerator("backend", kBackends, args_.backend);
    require(args_.threads >= 0, "threads", "is ", std::int64_t{args_.threads},
            "; expected 0 (all) or more");
    require(args_.width >= kMinWidth && args_.width <= kMaxWidth, "width", "is ",
            std::int64_t{args_.width}, "; expected ", std::int64_t{kMinWidth}, " to ",
            std::int64_t{kMaxWidth});
    if (args_.query_start_loc) {
      require(per_token == rows, "rows_per_token", "is ", per_token,
              ", but packed intermediate states do not overlap; expected ", rows, " (width - 1)");
    } else {
      require(per_token == rows || per_token == 1, "rows_per_token", "is ", per_token,
              "; expected ", rows, " (width - 1) or 1 (they overlap)");
    }
    p_.backend = args_.backend;
    p_.device = args_.intermediate_states.device;
    p_.width = args_.width;
    p_.threads = args_.threads;
    p_.base_column = args_.base_column;
    p_.has_null_slot = args_.null_slot.has_value();
    p_.null_slot = args_.null_slot.value_or(0);
  }

  void check_tensors() {
    const bool packed = args_.query_start_loc.has_value();
    has_token_axis_ = packed && args_.intermediate_states.ndim == 4;
    AxisSet absent(Axis::kToken);
    if (packed) absent = AxisSet(Axis::kToken, Axis::kSequence);
    if (has_token_axis_) {
      absent = AxisSet(Axis::kSequence);
      size(Size::kRows) = {"width - 1", p_.width - 1, "width"};
    }
    visit_commit_tensors(
        [&]<Axis... kAxes>(const Argument& row, const auto& tensor,
                           TensorLayout<kAxes...>& layout) {
          constexpr bool kPerToken = ((kAxes == Axis::kToken) || ...);
          check(row, tensor, layout, kPerToken ? absent : AxisSet());
        },
        args_, p_);
  }

  void check_sizes() {
    p_.layers = value(Size::kLayers);
    p_.sequences = value(Size::kSequences);
    p_.channels = value(Size::kChannels);
    p_.slot_count = value(Size::kSlots);
    p_.state_columns = value(Size::kColumns);
    set_tokens();
    require(p_.state.dtype == p_.intermediate_states.dtype, "intermediate_states", "dtype is ",
            name(p_.intermediate_states.dtype), ", but state has ", name(p_.state.dtype),
            "; a commit copies bits and converts nothing");
    const std::int64_t history = p_.width - 1;
    require(p_.base_column >= 0 && p_.base_column <= p_.state_columns - history, "state", "has ",
            p_.state_columns, " columns, but width ", std::int64_t{p_.width}, " needs ", history,
            " from column ", p_.base_column, " (base_column) on");
    require(p_.slots.present || p_.slot_count >= p_.sequences, "state", "has ", p_.slot_count,
            " slots, but without slots sequence s uses slot s; expected at least ", p_.sequences);
    // With strides of 0 the product of the sizes could exceed 64 bits.
    const __int128 states = static_cast<__int128>(p_.layers) * p_.sequences;
    require(states < kMaxProduct && states * p_.channels < kMaxProduct, "intermediate_states",
            "has more than 2^62 elements to commit");
  }

  void set_tokens() {
    if (has_token_axis_) {
      p_.tokens = value(Size::kTokens);
      return;
    }
    const std::int64_t rows = value(Size::kRows), history = p_.width - 1;
    p_.tokens = rows < history ? 0 : (rows - history) / args_.rows_per_token + 1;
    auto& from = p_.intermediate_states;
    from.token_stride = p_.tokens > 1 ? args_.rows_per_token * from.column_stride : 0;
  }

  const CommitArgs& args_;
  CommitProblem& p_;
  bool has_token_axis_ = false;
};

}  // namespace

Status make_problem(const CommitArgs& args, CommitProblem& problem) {
  return make_checked_problem<CommitChecker>(args, problem);
}

}  // namespace shortconv
