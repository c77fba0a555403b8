// Arguments of a forward call from Python.
#include "forward_arguments.hpp"

#include <string>

#include "shortconv/capability.hpp"

namespace shortconv::python {
namespace {

// Layouts of other libraries, added to the op in the first argument of a call: a view made in torch
// takes a microsecond.
constexpr int kOpMask = 3;
constexpr int kChannelsFirst = 4;       // x, out: [..., channels, tokens]
constexpr int kStateChannelsFirst = 8;  // state: [slots, channels, columns]
constexpr int kFlattened = 16;          // x, out: [batch, tokens, channels] are [tokens, channels]
constexpr int kShiftFullState = 32;     // shift_full_state; the last width - 1 columns of the
                                        // state are the history
constexpr int kLongerIndices = 64;      // arguments with one number for each sequence may be longer
                                        // than the batch: the first ones belong to it

constexpr int kCheckNegation = 128;  // refuses tensors that torch may negate lazily

// Frequent values of arguments that are None or left out; a value that is given counts.
constexpr int kInitialState = 256;  // initial_state: True
constexpr int kSilu = 512;          // activation: "silu"
constexpr int kUntouched = 1024;    // padded_rows: "untouched"

/// torch negates imaginary parts of conjugates lazily; their strides are even.
bool may_be_negated(const TensorRef& tensor) {
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {  // the last stride is 1 in most tensors
    if (tensor.strides[axis] % 2 != 0 && tensor.shape[axis] > 1) return false;
  }
  return tensor.dtype == DType::kF32 || tensor.dtype == DType::kF16 ||
         tensor.dtype == DType::kBF16 || tensor.dtype == DType::kF64;
}

// Leaves tensors with fewer axes unchanged; the core refuses them.
void exchange_last_axes(TensorRef& tensor, int min_axes) {
  if (tensor.ndim < min_axes) return;
  tensor = tensor.transposed(tensor.ndim - 2, tensor.ndim - 1);
}

void flatten(std::string_view name, TensorRef& tensor) {
  if (tensor.ndim != 3) return;
  const std::int64_t batch = tensor.shape[0], tokens = tensor.shape[1];
  const std::int64_t row = tokens == 1 ? tensor.strides[0] : tensor.strides[1];
  if (batch > 1 && tokens > 1 && tensor.strides[0] != tokens * row) {
    throw BadArgument{"ValueError", std::string(name) + ": rows are not evenly spaced"};
  }
  tensor = {.data = tensor.data,
            .dtype = tensor.dtype,
            .device = tensor.device,
            .ndim = 2,
            .shape = {batch * tokens, tensor.shape[2]},
            .strides = {row, tensor.strides[2]}};
}

void take_first_indices(ForwardArgs& args) {
  const std::optional<TensorRef>& bounds = args.sequences.query_start_loc;
  std::int64_t sequences = args.x.ndim == 3 || args.op == Op::kDecode ? args.x.shape[0] : 1;
  if (bounds) sequences = bounds->shape[0] - 1;
  const auto shorten = [&](const Argument& row, std::optional<TensorRef>& tensor) {
    if (row.is_per_sequence() && tensor && tensor->shape[0] > sequences && sequences >= 0) {
      tensor->shape[0] = sequences;
    }
  };
  visit_sequence_tensors(shorten, args.sequences);
  visit_pool_tensors(shorten, args.pool);
  visit_draft_tensors(shorten, args.drafts);
}

void apply_layout(int layout, ForwardArgs& args) {
  std::optional<TensorRef>& state = args.pool.state;
  if ((layout & kChannelsFirst) != 0) {
    exchange_last_axes(args.x, 2);
    exchange_last_axes(args.out, 2);
  }
  if ((layout & kStateChannelsFirst) != 0 && state) exchange_last_axes(*state, 3);
  if ((layout & kFlattened) != 0) {
    flatten("x", args.x);
    flatten("out", args.out);
  }
  if ((layout & kShiftFullState) != 0 && state && state->ndim == 3 && args.weight.ndim == 2) {
    args.pool.base_column = state->shape[1] - args.weight.shape[1] + 1;
    args.pool.shift_full_state = true;
  }
  if ((layout & kLongerIndices) != 0) take_first_indices(args);
}

}  // namespace

void ForwardCall::check_negation(std::string_view name, const TensorRef& tensor) const {
  if (has(kCheckNegation) && may_be_negated(tensor)) {
    Arguments::refuse("MayBeNegated", name, "has even strides only");
  }
}

void ForwardCall::read_frequent(Arguments& in, bool has_out) {
  const Capabilities& known = capabilities();
  op_and_layouts = in.small_integer("op");
  args.op = static_cast<Op>(op_and_layouts & kOpMask);
  const auto floating = [&](std::string_view name, auto& tensor) {
    in.tensor(name, tensor);
    check_negation(name, tensor);
  };
  floating("x", args.x);
  if (has_out) floating("out", args.out);
  floating("weight", args.weight);
  floating("bias", args.bias);
  floating("state", args.pool.state);
  in.tensor("read_slots", args.pool.read_slots);
  in.tensor("query_start_loc", args.sequences.query_start_loc);
  in.tensor("has_initial_state", args.sequences.has_initial_state);
  args.sequences.initial_state =
      in.flag("initial_state", has(kInitialState)) ? InitialState::kAll : InitialState::kNone;
  args.epilogue.activation =
      in.named("activation", known.activations, has(kSilu) ? Activation::kSilu : Activation::kNone);
  args.pool.null_slot = in.optional_integer("null_slot");
  args.sequences.padded_rows =
      in.named("padded_rows", known.padded_rows,
               has(kUntouched) ? PaddedRows::kUntouched : PaddedRows::kZero);
}

bool ForwardCall::read_named(std::string_view name, Arguments& in) {
  if (name == "base_column") {
    args.pool.base_column = in.integer(name);
  } else if (name == "shift_full_state") {
    args.pool.shift_full_state = in.flag(name);
  } else if (name == "residual") {
    args.epilogue.residual = in.flag(name);
  } else if (name == "update_state") {
    args.drafts.update_state = in.flag(name);
  } else if (name == "dilation") {
    args.dilation = in.small_integer(name);
  } else if (name == "backend") {
    args.options.backend = in.named(name, capabilities().backends, BackendId::kAuto);
  } else if (name == "threads") {
    args.options.threads = in.small_integer(name);
  } else if (name == "programmatic_launch") {
    args.options.programmatic_launch = in.flag(name);
  } else if (name == "stream") {
    stream = in.next();
  } else {
    return read_named_tensor(
        name, in.next(), [&](const auto& visit) { visit_forward_tensors(visit, args); },
        [&](const auto& tensor) { check_negation(name, tensor); });
  }
  return true;
}

void ForwardCall::apply_layouts() { apply_layout(op_and_layouts, args); }

}  // namespace shortconv::python
