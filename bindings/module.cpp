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

Status forward_call(Arguments in) {
  const Capabilities& known = capabilities();
  ForwardArgs args;
  args.op = static_cast<Op>(in.small_integer("op"));
  args.x = in.tensor("x");
  args.out = in.tensor("out");
  args.weight = in.tensor("weight");
  args.bias = in.optional_tensor("bias");
  args.state = in.optional_tensor("state");
  args.read_slots = in.optional_tensor("read_slots");
  args.write_slots = in.optional_tensor("write_slots");
  args.read_offsets = in.optional_tensor("read_offsets");
  args.state_base = in.integer("state_base");
  args.null_slot = in.optional_integer("null_slot");
  args.ring_positions = in.optional_tensor("ring_positions");
  args.snapshots = in.optional_tensor("snapshots");
  args.query_start_loc = in.optional_tensor("query_start_loc");
  args.has_initial_state = in.optional_tensor("has_initial_state");
  args.initial_state = in.flag("initial_state") ? InitialState::kAll : InitialState::kNone;
  args.parents = in.optional_tensor("parents");
  args.windows = in.optional_tensor("windows");
  args.window_slots = in.optional_tensor("window_slots");
  args.advance_state = in.flag("advance_state");
  args.input_gate = in.optional_tensor("input_gate");
  args.output_gate = in.optional_tensor("output_gate");
  args.residual = in.flag("residual");
  args.dilation = in.small_integer("dilation");
  args.activation = in.named("activation", known.activations, Activation::kNone);
  args.padded_rows = in.named("padded_rows", known.padded_rows, PaddedRows::kZero);
  args.backend = in.named("backend", known.backends, BackendId::kAuto);
  args.violations = in.optional_tensor("violations");
  args.threads = in.small_integer("threads");
  args.programmatic_launch = in.flag("programmatic_launch");
  void* stream = in.stream("stream", args.x);
  in.end();
  const DeviceGuard guard(args.x.device);
  return forward(args, stream);
}

Status commit_call(Arguments in) {
  CommitArgs args;
  args.windows = in.tensor("windows");
  args.state = in.tensor("state");
  args.accepted = in.tensor("accepted");
  args.slots = in.optional_tensor("slots");
  args.second_slots = in.optional_tensor("second_slots");
  args.query_start_loc = in.optional_tensor("query_start_loc");
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
  args.query_start_loc = in.tensor("query_start_loc");
  args.computed_tokens = in.tensor("computed_tokens");
  args.block_slots = in.tensor("block_slots");
  args.tokens = in.integer("tokens");
  args.block_tokens = in.integer("block_tokens");
  args.snapshots = in.tensor("snapshots");
  args.backend = in.named("backend", capabilities().backends, BackendId::kAuto);
  void* stream = in.stream("stream", args.query_start_loc);
  in.end();
  const DeviceGuard guard(args.query_start_loc.device);
  return block_snapshots(args, stream);
}

Status tree_parents_call(Arguments in) {
  TreeParentsArgs args;
  args.first_child = in.tensor("first_child");
  args.next_sibling = in.tensor("next_sibling");
  args.query_start_loc = in.optional_tensor("query_start_loc");
  args.parents = in.tensor("parents");
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
  return "{\"widths\": " + json_list(known.widths, [](int one) { return std::to_string(one); }) +
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
