// The Python module: each function reads its arguments in the order in which python/shortconv
// passes them, calls the core and turns a Status into an exception. Nothing is copied and nothing
// is kept.
#include <tvm/ffi/c_api.h>

#include <exception>
#include <new>
#include <string>

#include "arguments.hpp"
#include "device_guard.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/commit.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/prepare.hpp"
#include "shortconv/version.h"

namespace shortconv::python {
namespace {

const char* exception_of(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
      return "ValueError";
    case Code::kUnsupported:
      return "NotImplementedError";
    default:
      return "RuntimeError";
  }
}

// No C++ exception may leave: the caller is C.
template <typename Work>
int guarded(Work&& work) {
  try {
    const Status status = work();
    if (status.ok()) return 0;
    TVMFFIErrorSetRaisedFromCStr(exception_of(status.code()), status.message().c_str());
  } catch (const BadArgument& bad) {
    TVMFFIErrorSetRaisedFromCStr(bad.exception, bad.message.c_str());
  } catch (const std::bad_alloc&) {
    TVMFFIErrorSetRaisedFromCStr("MemoryError", "out of host memory");
  } catch (const std::exception& error) {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", error.what());
  }
  return -1;
}

// What an op is combined with in the first argument of a call: the layouts that other libraries'
// functions have their tensors in. A view that torch makes of a tensor takes a microsecond.
constexpr int kOpMask = 3;
constexpr int kChannelsFirst = 4;       // x, out: [..., channels, tokens]
constexpr int kStateChannelsFirst = 8;  // state: [slots, channels, columns]
constexpr int kFlattened = 16;          // x, out: [batch, tokens, channels] are [tokens, channels]
// State: its last width - 1 columns are the history, and all of them move along.
constexpr int kRolling = 32;

// A tensor with another number of axes stays as it is, and is refused for that.
void exchange_last_axes(TensorRef& tensor, int fewest_axes) {
  if (tensor.ndim < fewest_axes) return;
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

void apply_layout(int layout, ForwardArgs& args) {
  if ((layout & kChannelsFirst) != 0) {
    exchange_last_axes(args.x, 2);
    exchange_last_axes(args.out, 2);
  }
  if ((layout & kStateChannelsFirst) != 0 && args.state) exchange_last_axes(*args.state, 3);
  if ((layout & kFlattened) != 0) {
    flatten("x", args.x);
    flatten("out", args.out);
  }
  if ((layout & kRolling) != 0 && args.state && args.state->ndim == 3 && args.weight.ndim == 2) {
    args.state_base = args.state->shape[1] - args.weight.shape[1] + 1;
    args.keeps_older = true;
  }
}

// What most calls have comes first; further arguments may be left out.
Status forward_call(Arguments in) {
  const Capabilities& known = capabilities();
  ForwardArgs args;
  const std::int32_t call = in.small_integer("op");
  args.op = static_cast<Op>(call & kOpMask);
  in.tensor("x", args.x);
  in.tensor("out", args.out);
  in.tensor("weight", args.weight);
  in.tensor("bias", args.bias);
  in.tensor("state", args.state);
  in.tensor("read_slots", args.read_slots);
  in.tensor("query_start_loc", args.query_start_loc);
  in.tensor("has_initial_state", args.has_initial_state);
  args.initial_state = in.flag("initial_state") ? InitialState::kAll : InitialState::kNone;
  args.activation = in.named("activation", known.activations, Activation::kNone);

  args.null_slot = in.optional_integer("null_slot");
  args.padded_rows = in.named("padded_rows", known.padded_rows, PaddedRows::kZero);
  in.tensor("ring_positions", args.ring_positions);
  in.tensor("write_slots", args.write_slots);
  args.state_base = in.integer("state_base", 0);
  args.residual = in.flag("residual");
  args.keeps_older = in.flag("keeps_older");

  in.tensor("read_offsets", args.read_offsets);
  in.tensor("snapshots", args.snapshots);
  in.tensor("parents", args.parents);
  in.tensor("windows", args.windows);
  in.tensor("window_slots", args.window_slots);
  args.advance_state = in.flag("advance_state");
  in.tensor("seq_idx", args.seq_idx);
  in.tensor("input_gate", args.input_gate);
  in.tensor("output_gate", args.output_gate);
  args.dilation = in.small_integer("dilation", 1);
  args.backend = in.named("backend", known.backends, BackendId::kAuto);
  in.tensor("violations", args.violations);
  args.threads = in.small_integer("threads", 0);
  args.programmatic_launch = in.flag("programmatic_launch", true);
  void* stream = in.stream("stream", args.x);
  in.end();
  apply_layout(call, args);
  const DeviceGuard guard(args.x.device);
  return forward(args, stream);
}

Status commit_call(Arguments in) {
  CommitArgs args;
  in.tensor("windows", args.windows);
  in.tensor("state", args.state);
  in.tensor("accepted", args.accepted);
  in.tensor("slots", args.slots);
  in.tensor("second_slots", args.second_slots);
  in.tensor("query_start_loc", args.query_start_loc);
  args.width = in.small_integer("width");
  args.token_rows = in.small_integer("token_rows");
  args.state_base = in.integer("state_base");
  args.null_slot = in.optional_integer("null_slot");
  args.backend = in.named("backend", capabilities().backends, BackendId::kAuto);
  args.threads = in.small_integer("threads");
  void* stream = in.stream("stream", args.windows);
  in.end();
  const DeviceGuard guard(args.windows.device);
  return commit(args, stream);
}

Status block_snapshots_call(Arguments in) {
  BlockSnapshotsArgs args;
  in.tensor("query_start_loc", args.query_start_loc);
  in.tensor("computed_tokens", args.computed_tokens);
  in.tensor("block_slots", args.block_slots);
  args.tokens = in.integer("tokens");
  args.block_tokens = in.integer("block_tokens");
  in.tensor("snapshots", args.snapshots);
  args.backend = in.named("backend", capabilities().backends, BackendId::kAuto);
  void* stream = in.stream("stream", args.query_start_loc);
  in.end();
  const DeviceGuard guard(args.query_start_loc.device);
  return block_snapshots(args, stream);
}

Status tree_parents_call(Arguments in) {
  TreeParentsArgs args;
  in.tensor("first_child", args.first_child);
  in.tensor("next_sibling", args.next_sibling);
  in.tensor("query_start_loc", args.query_start_loc);
  in.tensor("parents", args.parents);
  args.backend = in.named("backend", capabilities().backends, BackendId::kAuto);
  void* stream = in.stream("stream", args.first_child);
  in.end();
  const DeviceGuard guard(args.first_child.device);
  return tree_parents(args, stream);
}

std::string quoted(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return result + '"';
}

template <typename Range, typename Text>
std::string json_list(const Range& range, Text&& text) {
  std::string result = "[";
  for (const auto& one : range) {
    if (result.size() > 1) result += ", ";
    result += text(one);
  }
  return result + "]";
}

std::string capabilities_json() {
  const Capabilities& known = capabilities();
  const auto names = [](const auto& list) {
    return json_list(list, [](const auto& row) { return quoted(row.name); });
  };
  const auto number = [](int one) { return std::to_string(one); };
  return "{\"widths\": " + json_list(known.widths, number) +
         ", \"model_widths\": " + json_list(known.model_widths, number) +
         ", \"max_width\": " + std::to_string(known.max_width) +
         ", \"dtypes\": " + names(known.dtypes) + ", \"activations\": " + names(known.activations) +
         ", \"epilogues\": " + names(known.epilogues) +
         ", \"padded_rows\": " + names(known.padded_rows) + ", \"backends\": " +
         json_list(backend_info(),
                   [](const BackendInfo& one) {
                     return "{\"name\": " + quoted(one.name) +
                            ", \"available\": " + (one.available ? "true" : "false") +
                            ", \"detail\": " + quoted(one.detail) + "}";
                   }) +
         "}";
}

Status return_text(const std::string& text, TVMFFIAny* result) {
  const TVMFFIByteArray bytes{text.data(), text.size()};
  if (TVMFFIStringFromByteArray(&bytes, result) == 0) return {};
  return {Code::kInternal, "a text could not be handed over"};
}

}  // namespace
}  // namespace shortconv::python

using namespace shortconv;
using namespace shortconv::python;

// apache-tvm-ffi finds a module's functions by these names.
extern "C" {

SHORTCONV_API int __tvm_ffi_forward(void*, const TVMFFIAny* arguments, std::int32_t count,
                                    TVMFFIAny*) {
  return guarded([&] { return forward_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_commit(void*, const TVMFFIAny* arguments, std::int32_t count,
                                   TVMFFIAny*) {
  return guarded([&] { return commit_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_block_snapshots(void*, const TVMFFIAny* arguments, std::int32_t count,
                                            TVMFFIAny*) {
  return guarded([&] { return block_snapshots_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_tree_parents(void*, const TVMFFIAny* arguments, std::int32_t count,
                                         TVMFFIAny*) {
  return guarded([&] { return tree_parents_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_capabilities(void*, const TVMFFIAny*, std::int32_t, TVMFFIAny* result) {
  return guarded([&] { return return_text(capabilities_json(), result); });
}

SHORTCONV_API int __tvm_ffi_version(void*, const TVMFFIAny*, std::int32_t, TVMFFIAny* result) {
  return guarded([&] { return return_text(SHORTCONV_VERSION, result); });
}

}  // extern "C"
