// Arguments of a backward call from Python.
#include "backward_arguments.hpp"

#include <optional>
#include <string>

#include "forward_arguments.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/capability.hpp"

namespace shortconv::python {

void BackwardCall::read_frequent(Arguments& in, bool has_grad_out) {
  if (has_grad_out) in.tensor("grad_out", args.grad_out);
  in.tensor("x", args.x);
  in.tensor("weight", args.weight);
  in.tensor("bias", args.bias);
  in.tensor("grad_x", args.grad_x);
  in.tensor("grad_weight", args.grad_weight);
  in.tensor("grad_bias", args.grad_bias);
  args.activation = in.named("activation", capabilities().activations, Activation::kNone);
}

bool BackwardCall::read_named(std::string_view name, Arguments& in) {
  if (name == "residual") {
    args.residual = in.flag(name);
  } else if (name == "accumulate") {
    args.accumulate = in.flag(name);
  } else if (name == "dilation") {
    args.dilation = in.small_integer(name);
  } else if (name == "backend") {
    args.backend = in.named(name, capabilities().backends, BackendId::kAuto);
  } else if (name == "threads") {
    args.threads = in.small_integer(name);
  } else if (name == "workspace") {
    workspace = in.next();
  } else if (name == "stream") {
    stream = in.next();
  } else {
    return read_named_tensor(name, in.next(),
                             [&](const auto& visit) { visit_backward_tensors(visit, args); });
  }
  return true;
}

void BackwardCall::apply_workspace() {
  std::optional<TensorRef> memory;
  Arguments::read("workspace", workspace, memory);
  if (!memory) return;
  if (memory->ndim != 1 || memory->dtype != DType::kU8 ||
      (memory->shape[0] > 1 && memory->strides[0] != 1)) {
    Arguments::refuse("ValueError", "workspace", "is not a contiguous array of bytes (uint8)");
  }
  if (memory->device != args.x.device) {
    Arguments::refuse("ValueError", "workspace", "is on another device than x");
  }
  args.workspace = memory->data;
  args.workspace_bytes = memory->shape[0];
}

bool is_workspace_missing(std::int64_t needed, const BackwardArgs& given) {
  const bool is_missing = needed > given.workspace_bytes;
  if (is_missing && given.workspace != nullptr) {
    Arguments::refuse("ValueError", "workspace",
                      "has " + std::to_string(given.workspace_bytes) + " bytes; expected " +
                          std::to_string(needed));
  }
  return is_missing;
}

}  // namespace shortconv::python
