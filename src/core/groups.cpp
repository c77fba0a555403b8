// GroupedArgs -> GroupedProblem, and the checked calls of l2_norm and delta_gates. The rules of the
// forward call inside a grouped call are in forward_checker.hpp.
#include "core/groups.hpp"

#include "core/backend.hpp"
#include "core/forward_checker.hpp"
#include "core/group_checks.hpp"

namespace shortconv {
namespace {

constexpr AxisSet absent_axes(bool has_sequences) {
  return has_sequences ? AxisSet() : AxisSet(Axis::kSequence);
}

/// Visits the tensors of gates; `use` is called with whether a tensor has an axis of tokens.
template <typename Use>
void check_gate_tensors(const GateArgs& args, GateProblem& p, const Use& use) {
  visit_gate_tensors(
      [&]<Axis... kAxes>(const Argument& row, const TensorRef& tensor,
                         TensorLayout<kAxes...>& layout) {
        constexpr bool kPerToken = ((kAxes == Axis::kToken) || ...);
        use(row, tensor, layout, std::bool_constant<kPerToken>());
      },
      args, p);
}

/// The rest of the arguments of gates, whose tensors have been checked.
void check_gate_options(ArgumentChecker& check, const GateArgs& args, GateProblem& p) {
  check_gate_maps(check, args, p);
  p.round_beta = args.round_beta;
}

class GroupedChecker : public ForwardChecker {
 public:
  GroupedChecker(const GroupedArgs& args, GroupedProblem& problem)
      : ForwardChecker(args.forward, problem.forward, true), grouped_(args), problem_(problem) {}

  void check_all() {
    check_call();
    if (ok()) check_restrictions();
    if (ok()) check_groups();
    if (ok() && grouped_.gates) check_gates();
    if (ok()) check_group_memory();
  }

 private:
  void check_restrictions() {
    problem_.columns = value(Size::kColumnsOfX);
    require_flat("groups");
    require(p_.op != Op::kVerify, "op",
            "is verify, which groups do not support; expected forward or decode");
    const auto count = static_cast<std::int64_t>(grouped_.groups.size());
    require(count >= 1 && count <= kMaxGroups, "groups", "are ", count, "; expected 1 to ",
            std::int64_t{kMaxGroups});
  }

  void check_groups() {
    problem_.group_count = static_cast<std::int32_t>(grouped_.groups.size());
    std::int64_t channels = 0;
    const ChannelGroup* first = nullptr;  // that is convolved
    for (int i = 0; ok() && i < problem_.group_count; ++i) {
      const ChannelGroup& group = grouped_.groups[static_cast<std::size_t>(i)];
      GroupLayout& layout = problem_.groups[static_cast<std::size_t>(i)];
      check_group(group_name(i), group_argument(i), group, layout);
      if (!ok() || group.copy) continue;
      layout.first_channel = channels;
      channels += layout.channels();
      if (first == nullptr) first = &group;
      require(group.out.dtype == first->out.dtype, group_argument(i).name, "dtype is ",
              name(group.out.dtype), ", but another group has ", name(first->out.dtype),
              "; expected one dtype for all groups that are not copied");
    }
    require(channels == p_.channels, "groups", "have ", channels, " channels, but weight has ",
            p_.channels);
    p_.out.dtype = first != nullptr ? first->out.dtype : args_.x.dtype;
  }

  void check_group(std::string_view name, const Argument& row, const ChannelGroup& group,
                   GroupLayout& layout) {
    check_group_tensor(*this, row, group, absent_, layout);
    if (!ok()) return;
    if (has_one_token()) layout.out.token_stride = layout.out.sequence_stride;
    require(group.input_scale == 1 || !p_.input_gate.present, "input_gate",
            "cannot be combined with an input_scale");
    check_group_options(*this, name, row, group, problem_.columns, layout);
  }

  void check_gates() {
    size(Size::kHeads) = {"heads"};
    check_gate_tensors(
        *grouped_.gates, problem_.gates,
        [this](const Argument& row, const TensorRef& tensor, auto& layout, auto per_token) {
          check(row, tensor, layout, per_token ? absent_ : AxisSet());
          if constexpr (per_token) {
            if (has_one_token()) layout.token_stride = layout.sequence_stride;
          }
        });
    if (ok()) check_gate_options(*this, *grouped_.gates, problem_.gates);
    problem_.has_gates = true;
  }

  /// True for a decode call with x [sequences, channels].
  [[nodiscard]] bool has_one_token() const { return p_.op == Op::kDecode && args_.x.ndim != 3; }

  void check_group_memory() {
    check_overlaps([this](const CheckedTensor& written, const CheckedTensor& other) {
      const Columns one = columns_of_tensor(written.tensor);
      const Columns two = columns_of_tensor(other.tensor);
      if (one.count == 0 || two.count == 0) return false;
      return require(disjoint_columns(one, two), written.name, "overlaps ", other.name,
                     "; expected separate memory, or other columns of the same rows");
    });
  }

  /// Of a tensor with rows. Other tensors, and those whose elements are not in columns, have none.
  [[nodiscard]] Columns columns_of_tensor(const TensorRef* tensor) const {
    const auto adjacent = [&](const auto& layout, std::int64_t stride, std::int64_t count) {
      return stride == 1 ? columns_of(*tensor, layout, count) : Columns{};
    };
    const auto is = [&](const std::optional<TensorRef>& one) { return one && tensor == &*one; };
    if (tensor == &args_.x) return adjacent(p_.x, p_.x.channel_stride, problem_.columns);
    if (is(args_.input_gate)) {
      return adjacent(p_.input_gate, p_.input_gate.channel_stride, p_.channels);
    }
    if (is(args_.epilogue.output_gate)) {
      return adjacent(p_.output_gate, p_.output_gate.channel_stride, p_.channels);
    }
    if (grouped_.gates) {
      const GateArgs& gates = *grouped_.gates;
      const GateProblem& p = problem_.gates;
      if (tensor == &gates.a) return adjacent(p.a, p.a.channel_stride, gates.a.shape[axes() - 1]);
      if (tensor == &gates.b) return adjacent(p.b, p.b.channel_stride, gates.b.shape[axes() - 1]);
      if (tensor == &gates.g) return adjacent(p.g, p.g.head_stride, p.heads);
      if (tensor == &gates.beta) return adjacent(p.beta, p.beta.head_stride, p.heads);
    }
    for (std::size_t i = 0; i < grouped_.groups.size(); ++i) {
      if (tensor != &grouped_.groups[i].out) continue;
      const GroupLayout& layout = problem_.groups[i];
      if (layout.out.head_stride < 0) return {};
      return columns_of(*tensor, layout.out,
                        (layout.heads - 1) * layout.out.head_stride + layout.head_dim);
    }
    return {};
  }

  [[nodiscard]] int axes() const { return args_.x.ndim; }

  const GroupedArgs& grouped_;
  GroupedProblem& problem_;
};

/// Sets the rows of a call without a plan.
template <typename Call>
void set_rows(ArgumentChecker& check, std::string_view argument, bool has_sequences, Call& call) {
  const std::int64_t tokens = check.value(Size::kTokens);
  const std::int64_t sequences = has_sequences ? check.value(Size::kSequences) : 1;
  const __int128 rows = static_cast<__int128>(sequences) * tokens;
  check.require(rows < kMaxProduct, argument, "has more than 2^62 rows");
  call.rows = static_cast<std::int64_t>(rows);
  call.sequence_tokens = has_sequences ? tokens : 0;
}

Status check_call(const L2NormArgs& args, L2NormCall& call) {
  using enum Size;
  constexpr std::array<Size, 5> kRow = {kSequences, kTokens, kHeads, kHeadDim};
  ArgumentChecker check("x", args.x.device);
  check.check_enumerator("backend", kBackends, args.backend);
  check.x_dtype = args.x.dtype;
  const AxisSet absent = absent_axes(args.x.ndim == 4);
  check.check(Argument{"x", kRow}, args.x, call.x, absent);
  check.check(Argument{"out", kRow, DTypes::kLikeX, Access::kWrite}, args.out, call.out, absent);
  check_norm(check, "", args.norm);
  if (!check.ok()) return check.status();
  set_rows(check, "x", args.x.ndim == 4, call);
  const bool in_place = args.x.data == args.out.data && call.x == call.out;
  check.check_overlaps([=](const CheckedTensor&, const CheckedTensor&) { return in_place; });
  call.x_data = args.x.data;
  call.out_data = args.out.data;
  call.device = args.x.device;
  call.norm = args.norm;
  call.heads = check.value(kHeads);
  call.head_dim = check.value(kHeadDim);
  return check.status();
}

Status check_call(const GateArgs& args, GatesCall& call) {
  ArgumentChecker check("a", args.a.device);
  const AxisSet absent = absent_axes(args.a.ndim == 3);
  check_gate_tensors(
      args, call.gates,
      [&](const Argument& row, const TensorRef& tensor, auto& layout, auto per_token) {
        check.check(row, tensor, layout, per_token ? absent : AxisSet());
      });
  if (!check.ok()) return check.status();
  set_rows(check, "a", args.a.ndim == 3, call);
  check_gate_options(check, args, call.gates);
  check.check_overlaps([](const CheckedTensor&, const CheckedTensor&) { return false; });
  visit_gate_tensors(
      [](const Argument&, const TensorRef& tensor, void*& pointer) { pointer = tensor.data; }, args,
      call.at);
  call.device = args.a.device;
  return check.status();
}

}  // namespace

Status make_problem(const GroupedArgs& args, GroupedProblem& problem) {
  return make_checked_problem<GroupedChecker>(args, problem);
}

Status l2_norm(const L2NormArgs& args, void* stream) {
  L2NormCall call;
  if (Status status = check_call(args, call); !status.ok()) return status;
  const Backend* backend = nullptr;
  if (Status status = choose_backend(args.backend, call.device.type, "x", backend); !status.ok()) {
    return status;
  }
  if (call.rows == 0 || call.heads == 0 || call.head_dim == 0) return {};
  return backend->l2_norm(call, stream);
}

Status delta_gates(const GateArgs& args, BackendId wanted, void* stream) {
  GatesCall call;
  if (Status status = check_call(args, call); !status.ok()) return status;
  const Backend* backend = nullptr;
  if (Status status = choose_backend(wanted, call.device.type, "a", backend); !status.ok()) {
    return status;
  }
  if (call.rows == 0 || call.gates.heads == 0) return {};
  return backend->delta_gates(call, stream);
}

}  // namespace shortconv
