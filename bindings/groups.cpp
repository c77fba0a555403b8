// Calls with groups, norms and gates from Python.
#include "groups.hpp"

#include <array>
#include <string>

#include "backward_arguments.hpp"
#include "device_guard.hpp"
#include "forward_arguments.hpp"
#include "shortconv/groups.hpp"
#include "shortconv/plan.hpp"

namespace shortconv::python {
namespace {

HeadMap read_map(Arguments& in) {
  HeadMap map;
  map.offset = in.integer("offset");
  map.head_stride = in.integer("head_stride");
  map.block_heads = in.integer("block_heads");
  map.block_stride = in.integer("block_stride");
  return map;
}

/// `tensor`: what the call has of the output of a group.
ChannelGroup read_group(Arguments& in, std::string_view tensor) {
  ChannelGroup group;
  in.tensor(tensor, group.out);
  group.input = read_map(in);
  group.copy = in.flag("copy");
  const bool has_norm = in.flag("l2_norm");
  L2Norm norm;
  norm.eps = static_cast<float>(in.number("eps"));
  norm.scale = static_cast<float>(in.number("scale"));
  if (has_norm) group.l2_norm = norm;
  group.input_scale = static_cast<float>(in.number("input_scale"));
  return group;
}

/// The groups of a call, of which `count` are used.
struct Groups {
  std::array<ChannelGroup, kMaxGroups> groups;
  std::size_t count = 0;

  Groups(Arguments& in, std::string_view tensor) {
    const std::int64_t given = in.integer("groups");
    if (given < 1 || given > kMaxGroups) {
      Arguments::refuse(
          "ValueError", "groups",
          "are " + std::to_string(given) + "; expected 1 to " + std::to_string(kMaxGroups));
    }
    for (; count < static_cast<std::size_t>(given); ++count) {
      groups[count] = read_group(in, tensor);
    }
  }

  [[nodiscard]] std::span<const ChannelGroup> used() const {
    return std::span(groups).first(count);
  }
};

template <typename Visit>
void visit_tensors_of(const Visit& visit, GateArgs& args) {
  visit_gate_tensors(visit, args);
}

template <typename Visit>
void visit_tensors_of(const Visit& visit, GateGradientArgs& args) {
  visit_gate_gradient_tensors(visit, args);
}

/// Gates or their gradients as they are read; absent without any of their arguments.
template <typename Args>
struct Gates {
  Args args;
  bool is_given = false;

  [[nodiscard]] bool read_named(std::string_view name, Arguments& in) {
    if (name == "a_map") {
      args.a_map = read_map(in);
    } else if (name == "b_map") {
      args.b_map = read_map(in);
    } else if (name == "decay") {
      const std::string_view form = in.text(name);
      if (form != "log" && form != "exp") {
        Arguments::refuse("ValueError", name,
                          "is '" + std::string(form) + "'; expected 'log', 'exp'");
      }
      args.decay = form == "exp" ? DecayForm::kExp : DecayForm::kLog;
    } else if (name == "beta_factor") {
      args.beta_factor = static_cast<float>(in.number(name));
    } else if (!read_round_beta(name, in)) {
      bool is_tensor = false;
      visit_tensors_of([&](const Argument& row, auto&) { is_tensor |= row.name == name; }, args);
      if (!is_tensor) return false;
      read_named_tensor(name, in.next(), [&](const auto& visit) { visit_tensors_of(visit, args); });
    }
    is_given = true;
    return true;
  }

 private:
  /// The gradients have no such option.
  [[nodiscard]] bool read_round_beta(std::string_view name, Arguments& in) {
    if constexpr (requires { args.round_beta; }) {
      if (name != "round_beta") return false;
      args.round_beta = in.flag(name);
      return true;
    }
    return false;
  }
};

}  // namespace

Status forward_groups_call(Arguments in) {
  ForwardCall call;
  call.read_frequent(in, false);
  const Groups groups(in, "groups.out");
  Gates<GateArgs> gates;
  while (in.has_more()) {
    const std::string_view name = in.text("name of an argument");
    if (!gates.read_named(name, in) && !call.read_named(name, in)) {
      Arguments::refuse("TypeError", name, "is not an argument of this call");
    }
  }
  call.apply_layouts();
  GroupedArgs args;
  args.forward = call.args;
  args.groups = groups.used();
  if (gates.is_given) args.gates = gates.args;
  const DeviceGuard guard(args.forward.x.device);
  return forward_groups(args, Arguments::stream_of("stream", call.stream, args.forward.x));
}

Status backward_groups_call(Arguments in, TVMFFIAny* result) {
  BackwardCall call;
  call.read_frequent(in, false);
  const Groups groups(in, "groups.grad_out");
  Gates<GateGradientArgs> gates;
  while (in.has_more()) {
    const std::string_view name = in.text("name of an argument");
    if (!gates.read_named(name, in) && !call.read_named(name, in)) {
      Arguments::refuse("TypeError", name, "is not an argument of this call");
    }
  }
  call.apply_workspace();
  GroupedBackwardArgs args;
  args.backward = call.args;
  args.groups = groups.used();
  if (gates.is_given) args.gates = gates.args;
  return run_backward<GroupedBackwardOperation>(args, call, result);
}

Status l2_norm_call(Arguments in) {
  L2NormArgs args;
  in.tensor("x", args.x);
  in.tensor("out", args.out);
  args.norm.eps = static_cast<float>(in.number("eps"));
  args.norm.scale = static_cast<float>(in.number("scale"));
  args.backend = in.named("backend", capabilities().backends, BackendId::kAuto);
  void* stream = Arguments::stream_of("stream", in.next(), args.x);
  const DeviceGuard guard(args.x.device);
  return l2_norm(args, stream);
}

Status delta_gates_call(Arguments in) {
  Gates<GateArgs> gates;
  BackendId backend = BackendId::kAuto;
  TVMFFIAny stream{};  // None
  while (in.has_more()) {
    const std::string_view name = in.text("name of an argument");
    if (name == "backend") {
      backend = in.named(name, capabilities().backends, BackendId::kAuto);
    } else if (name == "stream") {
      stream = in.next();
    } else if (!gates.read_named(name, in)) {
      Arguments::refuse("TypeError", name, "is not an argument of this call");
    }
  }
  const DeviceGuard guard(gates.args.a.device);
  return delta_gates(gates.args, backend, Arguments::stream_of("stream", stream, gates.args.a));
}

}  // namespace shortconv::python
