// GroupedBackwardArgs -> GroupedBackwardProblem. The rules of the backward call inside it are in
// backward_checker.hpp.
#include "core/backward_checker.hpp"
#include "core/group_checks.hpp"

namespace shortconv {
namespace {

class GroupedBackwardChecker : public BackwardChecker {
 public:
  GroupedBackwardChecker(const GroupedBackwardArgs& args, GroupedBackwardProblem& problem)
      : BackwardChecker(args.backward, problem.backward, true), grouped_(args), problem_(problem) {}

  void check_all() {
    check_restrictions();
    if (ok()) check_call();
    if (ok()) check_groups();
    if (ok() && grouped_.gates) check_gates();
    if (ok()) check_memory();
  }

 private:
  void check_restrictions() {
    const auto refuse = [this](bool is_given, std::string_view name) {
      require(!is_given, name, "cannot be combined with gradients of groups");
    };
    refuse(args_.initial_state.has_value(), "initial_state");
    refuse(args_.grad_final_state.has_value(), "grad_final_state");
    refuse(args_.input_gate.has_value(), "input_gate");
    refuse(args_.output_gate.has_value(), "output_gate");
    refuse(args_.residual, "residual");
    refuse(args_.dilation != 1, "dilation");
    const auto count = static_cast<std::int64_t>(grouped_.groups.size());
    require(count >= 1 && count <= kMaxGroups, "groups", "are ", count, "; expected 1 to ",
            std::int64_t{kMaxGroups});
  }

  void check_groups() {
    problem_.columns = value(Size::kColumnsOfX);
    problem_.group_count = static_cast<std::int32_t>(grouped_.groups.size());
    std::int64_t channels = 0;
    for (int i = 0; ok() && i < problem_.group_count; ++i) {
      const ChannelGroup& group = grouped_.groups[static_cast<std::size_t>(i)];
      GroupLayout& layout = problem_.groups[static_cast<std::size_t>(i)];
      const Argument row = group_gradient_argument(i);
      check_group_tensor(*this, row, group, absent_, layout);
      if (!ok()) return;
      require(group.input_scale == 1, group_name(i), "input_scale is ", group.input_scale,
              "; expected 1 in a backward call");
      check_group_options(*this, group_name(i), row, group, problem_.columns, layout);
      if (group.copy) continue;
      layout.first_channel = channels;
      channels += layout.channels();
    }
    require(channels == p_.channels, "groups", "have ", channels, " channels, but weight has ",
            p_.channels);
  }

  void check_gates() {
    size(Size::kHeads) = {"heads"};
    visit_gate_gradient_tensors(
        [this]<Axis... kAxes>(const Argument& row, const auto& tensor,
                              TensorLayout<kAxes...>& layout) {
          constexpr bool kPerToken = ((kAxes == Axis::kToken) || ...);
          check(row, tensor, layout, kPerToken ? absent_ : AxisSet());
        },
        *grouped_.gates, problem_.gates);
    if (ok()) check_gate_maps(*this, *grouped_.gates, problem_.gates);
    problem_.has_gates = true;
  }

  const GroupedBackwardArgs& grouped_;
  GroupedBackwardProblem& problem_;
};

}  // namespace

Status make_problem(const GroupedBackwardArgs& args, GroupedBackwardProblem& problem) {
  return make_checked_problem<GroupedBackwardChecker>(args, problem);
}

}  // namespace shortconv
