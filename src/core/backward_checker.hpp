// The rules between arguments of a backward call, with groups or without. check.cpp has those of
// single tensors.
#pragma once

#include <string_view>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/problem.hpp"

namespace shortconv {

/// Checks the arguments of a backward call. With groups x and grad_x have columns, and there is no
/// grad_out.
class BackwardChecker : public ArgumentChecker {
 public:
  BackwardChecker(const BackwardArgs& args, BackwardProblem& problem, bool has_groups = false)
      : ArgumentChecker("x", args.x.device), args_(args), p_(problem), has_groups_(has_groups) {}

  void check_all() {
    check_call();
    if (ok()) check_memory();
  }

 protected:
  /// All but overlaps.
  void check_call() {
    check_options();
    if (ok()) check_inputs();
    if (ok()) check_tensors();
    if (ok()) check_width(args_.dilation);
    if (ok()) set_sizes();
    if (ok()) check_epilogue();
    if (ok()) check_gradients();
  }

  void check_memory() {
    check_overlaps([](const CheckedTensor&, const CheckedTensor&) { return false; });
  }

  void check_options() {
    check_enumerator("activation", kActivations, args_.activation);
    check_enumerator("backend", kBackends, args_.backend);
    require(args_.threads >= 0, "threads", "is ", std::int64_t{args_.threads},
            "; expected 0 (all) or more");
    require(args_.dilation >= 1, "dilation", "is ", std::int64_t{args_.dilation},
            "; expected 1 or more");
    p_.backend = args_.backend;
    p_.device = args_.x.device;
    p_.activation = args_.activation;
    p_.accumulate = args_.accumulate;
    p_.threads = args_.threads;
  }

  /// A gradient needs its input.
  void check_inputs() {
    const auto require_input = [this](const auto& gradient, const auto& input,
                                      std::string_view name, std::string_view of) {
      require(!gradient || input, name, "is given, but ", of, " is absent");
    };
    require_input(args_.grad_bias, args_.bias, "grad_bias", "bias");
    require_input(args_.grad_initial_state, args_.initial_state, "grad_initial_state",
                  "initial_state");
    require_input(args_.grad_input_gate, args_.input_gate, "grad_input_gate", "input_gate");
    require_input(args_.grad_output_gate, args_.output_gate, "grad_output_gate", "output_gate");
  }

  void check_tensors() {
    require(!args_.query_start_loc || args_.x.ndim == 2, "query_start_loc",
            "is only for x [tokens, channels]; the shape of a batch has its sequences already");
    require(!args_.seq_idx || !args_.query_start_loc, "seq_idx",
            "cannot be combined with query_start_loc: both divide the rows into sequences");
    if (args_.x.ndim != 3) absent_ = AxisSet(Axis::kSequence);
    x_dtype = args_.x.dtype;
    weight_dtype = args_.weight.dtype;
    state_dtype = args_.initial_state ? args_.initial_state->dtype : DType::kF32;
    const std::int64_t width = args_.weight.ndim == 2 ? args_.weight.shape[1] : 0;
    if (width >= 1 && width <= kMaxWidth) {  // others are refused by check_width
      size(Size::kHistory) = {"history", (width - 1) * args_.dilation, "weight"};
    }
    if (!args_.query_start_loc && args_.x.ndim == 2) size(Size::kSequences) = {"sequences", 1, "x"};
    visit_backward_tensors(
        [&]<Axis... kAxes>(Argument row, const auto& tensor, TensorLayout<kAxes...>& layout) {
          constexpr bool kPerToken = ((kAxes == Axis::kToken) || ...);
          if (has_groups_ && row.name == "grad_out") return;
          if (has_groups_ && (row.name == "x" || row.name == "grad_x")) {
            row.sizes[2] = Size::kColumnsOfX;
          }
          check(row, tensor, layout, kPerToken ? absent_ : AxisSet());
        },
        args_, p_);
  }

  void set_sizes() {
    p_.width = static_cast<std::int32_t>(value(Size::kWidth));
    p_.dilation = args_.dilation;
    p_.channels = value(Size::kChannels);
    p_.sequences = value(Size::kSequences);
    if (p_.query_start_loc.present) {
      p_.tokens = value(Size::kTokens);
    } else {
      p_.sequence_tokens = value(Size::kTokens);
      const __int128 rows = static_cast<__int128>(p_.sequences) * p_.sequence_tokens;
      require(rows < kMaxProduct, "x", "has more than 2^62 rows");
      p_.tokens = static_cast<std::int64_t>(rows);
    }
    const __int128 states = static_cast<__int128>(p_.sequences + 1) * (p_.channels + 1);
    require(states < kMaxProduct, "x",
            "has too many sequences and channels; expected fewer than 2^62 in all");
  }

  void check_epilogue() {
    require(!args_.residual || (!p_.input_gate.present && !p_.output_gate.present), "residual",
            "cannot be combined with input_gate or output_gate");
    if (args_.residual) p_.epilogue = Epilogue::kResidual;
    if (p_.output_gate.present) p_.epilogue = Epilogue::kOutputGate;
  }

  void check_gradients() {
    require(!p_.grad_final_state.present || !p_.seq_idx.present, "grad_final_state",
            "cannot be combined with seq_idx, which has no final states");
    const auto require_f32 = [this](const auto& gradient, std::string_view name) {
      require(!p_.accumulate || !gradient.present || gradient.dtype == DType::kF32, name,
              "dtype is ", shortconv::name(gradient.dtype),
              ", but accumulate adds in f32; expected f32");
    };
    require_f32(p_.grad_weight, "grad_weight");
    require_f32(p_.grad_bias, "grad_bias");
  }

  const BackwardArgs& args_;
  BackwardProblem& p_;
  AxisSet absent_;  // of tensors with tokens
  const bool has_groups_;
};

}  // namespace shortconv
