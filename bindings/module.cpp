// The Python module: each function reads its arguments in the order of python/shortconv, calls the
// core and converts a Status to an exception. It copies no tensors and has no state.
#include <tvm/ffi/c_api.h>

#include <exception>
#include <new>
#include <string>

#include "arguments.hpp"
#include "backward_arguments.hpp"
#include "device_guard.hpp"
#include "forward_arguments.hpp"
#include "groups.hpp"
#include "shortconv/argument_table.hpp"
#include "shortconv/capability.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/prepare.hpp"
#include "shortconv/version.h"
#include "shortconv/violation.hpp"

namespace shortconv::python {
namespace {

const char* exception_of(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
      return "ValueError";
    case Code::kUnsupported:
      return "NotImplementedError";
    case Code::kOutOfMemory:
      return "MemoryError";
    case Code::kOk:
    case Code::kUnavailable:
    case Code::kInternal:
      break;
  }
  return "RuntimeError";
}

// Catches all C++ exceptions: the caller is C.
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

/// The frequent arguments come first, in this order; the others follow as name and value.
Status forward_call(Arguments in) {
  ForwardCall call;
  call.read_frequent(in, true);
  while (in.has_more()) {
    const std::string_view name = in.text("name of an argument");
    if (!call.read_named(name, in)) {
      Arguments::refuse("TypeError", name, "is not an argument of this call");
    }
  }
  call.apply_layouts();
  const DeviceGuard guard(call.args.x.device);
  return forward(call.args, Arguments::stream_of("stream", call.stream, call.args.x));
}

Status commit_call(Arguments in) {
  CommitArgs args;
  in.tensor("intermediate_states", args.intermediate_states);
  in.tensor("state", args.state);
  in.tensor("accepted", args.accepted);
  args.width = in.small_integer("width");
  args.rows_per_token = args.width - 1;
  TVMFFIAny stream{};
  while (in.has_more()) {
    const std::string_view name = in.text("name of an argument");
    if (name == "rows_per_token") {
      args.rows_per_token = in.small_integer(name);
    } else if (name == "base_column") {
      args.base_column = in.integer(name);
    } else if (name == "null_slot") {
      args.null_slot = in.optional_integer(name);
    } else if (name == "backend") {
      args.backend = in.named(name, capabilities().backends, BackendId::kAuto);
    } else if (name == "threads") {
      args.threads = in.small_integer(name);
    } else if (name == "stream") {
      stream = in.next();
    } else if (!read_named_tensor(name, in.next(),
                                  [&](const auto& visit) { visit_commit_tensors(visit, args); })) {
      Arguments::refuse("TypeError", name, "is not an argument of this call");
    }
  }
  const DeviceGuard guard(args.intermediate_states.device);
  return commit(args, Arguments::stream_of("stream", stream, args.intermediate_states));
}

Status backward_call(Arguments in, TVMFFIAny* result) {
  BackwardCall call;
  call.read_frequent(in, true);
  while (in.has_more()) {
    const std::string_view name = in.text("name of an argument");
    if (!call.read_named(name, in)) {
      Arguments::refuse("TypeError", name, "is not an argument of this call");
    }
  }
  call.apply_workspace();
  return run_backward<BackwardOperation>(call.args, call, result);
}

Status block_snapshots_call(Arguments in) {
  BlockSnapshotsArgs args;
  in.tensor("query_start_loc", args.query_start_loc);
  in.tensor("num_computed_tokens", args.num_computed_tokens);
  in.tensor("block_slots", args.block_slots);
  args.tokens = in.integer("tokens");
  args.block_size = in.integer("block_size");
  in.tensor("snapshots", args.snapshots);
  args.backend = in.named("backend", capabilities().backends, BackendId::kAuto);
  void* stream = Arguments::stream_of("stream", in.next(), args.query_start_loc);
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
  void* stream = Arguments::stream_of("stream", in.next(), args.first_child);
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

/// The tensor arguments of an operation, for the schema of its torch operator.
std::string arguments_json(Arguments in) {
  std::string rows;
  const auto add = [&](const Argument& row, const auto&) {
    rows += (rows.empty() ? "" : ", ") + std::string("{\"name\": ") + quoted(row.name) +
            ", \"written\": " + (is_written(row.access) ? "true" : "false") + "}";
  };
  const std::string_view operation = in.text("operation");
  if (operation == "forward") {
    ForwardArgs args;
    visit_forward_tensors(add, args);
  } else if (operation == "backward") {
    BackwardArgs args;
    visit_backward_tensors(add, args);
  } else {
    Arguments::refuse("ValueError", "operation", "is not 'forward' or 'backward'");
  }
  return "[" + rows + "]";
}

/// The rows of the report of the checked mode, in their order.
std::string violations_json() {
  std::string rows;
  for (int row = 0; row < kViolations; ++row) {
    const auto violation = static_cast<Violation>(row);
    rows += (row == 0 ? "" : ", ") + std::string("{\"name\": ") + quoted(name(violation)) +
            ", \"description\": " + quoted(describe(violation)) + "}";
  }
  return "[" + rows + "]";
}

Status return_text(const std::string& text, TVMFFIAny* result) {
  const TVMFFIByteArray bytes{text.data(), text.size()};
  if (TVMFFIStringFromByteArray(&bytes, result) == 0) return {};
  return {Code::kInternal, "could not create the result string"};
}

}  // namespace
}  // namespace shortconv::python

using namespace shortconv;
using namespace shortconv::python;

// apache-tvm-ffi looks up the functions of a module by these names.
extern "C" {

SHORTCONV_API int __tvm_ffi_forward(void*, const TVMFFIAny* arguments, std::int32_t count,
                                    TVMFFIAny*) {
  return guarded([&] { return forward_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_forward_groups(void*, const TVMFFIAny* arguments, std::int32_t count,
                                           TVMFFIAny*) {
  return guarded([&] { return forward_groups_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_l2_norm(void*, const TVMFFIAny* arguments, std::int32_t count,
                                    TVMFFIAny*) {
  return guarded([&] { return l2_norm_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_delta_gates(void*, const TVMFFIAny* arguments, std::int32_t count,
                                        TVMFFIAny*) {
  return guarded([&] { return delta_gates_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_commit(void*, const TVMFFIAny* arguments, std::int32_t count,
                                   TVMFFIAny*) {
  return guarded([&] { return commit_call({arguments, count}); });
}

SHORTCONV_API int __tvm_ffi_backward(void*, const TVMFFIAny* arguments, std::int32_t count,
                                     TVMFFIAny* result) {
  return guarded([&] { return backward_call({arguments, count}, result); });
}

SHORTCONV_API int __tvm_ffi_backward_groups(void*, const TVMFFIAny* arguments, std::int32_t count,
                                            TVMFFIAny* result) {
  return guarded([&] { return backward_groups_call({arguments, count}, result); });
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

SHORTCONV_API int __tvm_ffi_arguments(void*, const TVMFFIAny* arguments, std::int32_t count,
                                      TVMFFIAny* result) {
  return guarded([&] { return return_text(arguments_json({arguments, count}), result); });
}

SHORTCONV_API int __tvm_ffi_violations(void*, const TVMFFIAny*, std::int32_t, TVMFFIAny* result) {
  return guarded([&] { return return_text(violations_json(), result); });
}

SHORTCONV_API int __tvm_ffi_version(void*, const TVMFFIAny*, std::int32_t, TVMFFIAny* result) {
  return guarded([&] { return return_text(SHORTCONV_VERSION, result); });
}

}  // extern "C"
