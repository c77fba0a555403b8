// libFuzzer over the C ABI: descriptors of any shape, stride, dtype, size and enumerator, with
// index tensors full of whatever the input holds. Tensors that are said to have memory get exactly
// as much as their extents claim, so an access outside of them is a report of the address
// sanitizer; what the library refuses must be refused with a text.
//
// Build: cmake --preset fuzz && cmake --build --preset fuzz; run: build/fuzz/tests/shortconv_fuzz
// -max_total_time=600
#include <fuzzer/FuzzedDataProvider.h>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <vector>

#include "capi_arguments.hpp"

namespace shortconv::fuzz {
namespace {

void prepare(FuzzedDataProvider& data) {
  Arguments make(data);
  constexpr std::int32_t kInts[] = {SHORTCONV_I32, SHORTCONV_I64};
  const auto small = [&](int high) { return data.ConsumeIntegralInRange<std::int64_t>(0, high); };
  const auto indices = [&](const std::vector<std::int64_t>& sizes, std::int64_t low,
                           std::int64_t high) {
    shortconv_tensor* view = make.tensor(sizes, data.PickValueInArray(kInts));
    for (std::int64_t column = 0; column < (sizes.size() == 2 ? sizes[1] : 1); ++column) {
      make.fill_indices(view, low, high, column);
    }
    return view;
  };
  const std::int64_t sequences = small(5), tokens = small(20);
  const std::int32_t backend = data.ConsumeIntegralInRange<int>(0, 3);
  int ran = SHORTCONV_OK;
  if (data.ConsumeBool()) {
    shortconv_block_snapshots_args args{};
    args.struct_size = sizeof args;
    args.backend = backend;
    args.tokens = tokens;
    args.block_size = data.ConsumeIntegralInRange<int>(0, 15) == 0
                          ? data.ConsumeIntegral<std::int64_t>()
                          : 1 + small(7);
    args.query_start_loc = indices({sequences + 1}, -2, tokens + 2);
    args.num_computed_tokens = indices({sequences}, -2, 30);
    args.block_slots = indices({sequences, small(12)}, -2, 9);
    const std::int64_t needed = args.block_size > 0 ? tokens / args.block_size : 0;
    args.snapshots = make.tensor({needed + sequences + small(3), 3}, data.PickValueInArray(kInts));
    ran = shortconv_block_snapshots(&args, nullptr);
  } else {
    const bool ragged = data.ConsumeBool();
    const std::vector<std::int64_t> shape =
        ragged ? std::vector{tokens} : std::vector{sequences, tokens};
    shortconv_tree_parents_args args{};
    args.struct_size = sizeof args;
    args.backend = backend;
    args.first_child = indices(shape, -1, tokens);
    args.next_sibling = indices(shape, -1, tokens);
    if (ragged) args.query_start_loc = indices({sequences + 1}, -2, tokens + 2);
    args.parents = make.tensor(shape, data.PickValueInArray(kInts));
    ran = shortconv_tree_parents(&args, nullptr);
  }
  if (ran != SHORTCONV_OK && shortconv_last_error()[0] == '\0') std::abort();
  if (ran == SHORTCONV_INTERNAL) std::abort();
}

void commit(FuzzedDataProvider& data) {
  Arguments make(data);
  constexpr std::int32_t kFloats[] = {SHORTCONV_F32, SHORTCONV_F16, SHORTCONV_BF16, SHORTCONV_F64};
  constexpr std::int32_t kInts[] = {SHORTCONV_I32, SHORTCONV_I64};
  const auto small = [&](int high) { return data.ConsumeIntegralInRange<std::int64_t>(0, high); };
  const auto indices = [&](std::int64_t count, std::int64_t low, std::int64_t high) {
    shortconv_tensor* view = make.tensor({count}, data.PickValueInArray(kInts));
    make.fill_indices(view, low, high);
    return view;
  };
  const std::int64_t layers = small(3), sequences = small(5), tokens = small(6), slots = small(8);
  const std::int64_t channels = small(40), width = 2 + small(7), history = width - 1;
  const std::int32_t dtype = data.PickValueInArray(kFloats);

  shortconv_commit_args args{};
  args.struct_size = data.ConsumeIntegralInRange<int>(0, 63) == 0
                         ? data.ConsumeIntegral<std::uint32_t>() % sizeof args
                         : sizeof args;
  args.width = static_cast<std::int32_t>(width);
  args.rows_per_token = static_cast<std::int32_t>(data.ConsumeBool() ? history : small(3));
  const std::int64_t rows = args.rows_per_token == history ? tokens * history : tokens + history;
  switch (small(3)) {
    case 0:
      args.query_start_loc = indices(sequences + 1, -2, tokens + 2);
      args.intermediate_states = make.tensor({layers, rows, channels}, dtype);
      break;
    case 1:
      args.query_start_loc = indices(sequences + 1, -2, tokens + 2);
      args.intermediate_states = make.tensor({layers, tokens, history, channels}, dtype);
      break;
    default:
      args.intermediate_states = make.tensor({layers, sequences, rows, channels}, dtype);
      break;
  }
  args.base_column = small(3);
  args.state = make.tensor({layers, slots, history + small(4), channels},
                           small(15) == 0 ? data.PickValueInArray(kFloats) : dtype);
  args.accepted = indices(sequences, -2, tokens + 2);
  if (data.ConsumeBool()) args.slots = indices(sequences, -2, slots + 2);
  if (data.ConsumeBool()) args.second_slots = indices(sequences, -2, slots + 2);
  args.null_slot = small(3);
  args.has_null_slot = data.ConsumeBool() ? 1 : 0;
  args.backend = data.ConsumeIntegralInRange<int>(0, 3);
  args.threads = data.ConsumeIntegralInRange<int>(-1, 2);
  const int ran = shortconv_commit(&args, nullptr);
  if (ran != SHORTCONV_OK && shortconv_last_error()[0] == '\0') std::abort();
  if (ran == SHORTCONV_INTERNAL) std::abort();
}

void backward(FuzzedDataProvider& data) {
  Arguments make(data);
  constexpr std::int32_t kFloats[] = {SHORTCONV_F32, SHORTCONV_F16, SHORTCONV_BF16, SHORTCONV_F64};
  constexpr std::int32_t kInts[] = {SHORTCONV_I32, SHORTCONV_I64};
  const auto small = [&](int high) { return data.ConsumeIntegralInRange<std::int64_t>(0, high); };
  const auto one_in = [&](int n) { return data.ConsumeIntegralInRange<int>(0, n - 1) == 0; };
  const std::int64_t tokens = small(24), channels = small(70), width = 2 + small(7);
  const std::int64_t batch = small(4), dilation = one_in(4) ? small(3) : 1;
  const bool dense = one_in(3), ragged = !dense && !one_in(4);
  const std::int64_t sequences = dense ? batch : ragged ? small(6) : 1;
  const std::vector<std::int64_t> rows =
      dense ? std::vector{batch, tokens, channels} : std::vector{tokens, channels};
  const std::vector<std::int64_t> states = {sequences, (width - 1) * (dilation == 0 ? 1 : dilation),
                                            channels};
  const auto x_dtype = data.PickValueInArray(kFloats),
             weight_dtype = data.PickValueInArray(kFloats);
  const auto or_f32 = [&](std::int32_t dtype) {
    return data.ConsumeBool() ? dtype : SHORTCONV_F32;
  };
  const auto maybe = [&](const std::vector<std::int64_t>& sizes,
                         std::int32_t dtype) -> const shortconv_tensor* {
    return data.ConsumeBool() ? make.tensor(sizes, dtype) : nullptr;
  };

  shortconv_backward_args args{};
  args.struct_size = one_in(64) ? data.ConsumeIntegral<std::uint32_t>() % sizeof args : sizeof args;
  args.dilation = static_cast<std::int32_t>(dilation);
  args.activation = data.ConsumeIntegralInRange<int>(0, 1);
  args.residual = one_in(8) ? data.ConsumeIntegralInRange<int>(-1, 2) : 0;
  args.accumulate = data.ConsumeIntegralInRange<int>(0, 1);
  args.backend = data.ConsumeIntegralInRange<int>(0, 3);
  args.threads = data.ConsumeIntegralInRange<int>(-1, 2);
  args.x = make.tensor(rows, x_dtype);
  args.weight = make.tensor({channels, width}, weight_dtype);
  args.bias = maybe({channels}, weight_dtype);
  args.input_gate = one_in(4) ? make.tensor(rows, x_dtype) : nullptr;
  args.output_gate = one_in(4) ? make.tensor(rows, x_dtype) : nullptr;
  if (ragged) {
    shortconv_tensor* bounds = make.tensor({sequences + 1}, data.PickValueInArray(kInts));
    make.fill_indices(bounds, -2, tokens + 2);
    args.query_start_loc = bounds;
  } else if (one_in(3)) {
    shortconv_tensor* numbers = make.tensor(
        dense ? std::vector{batch, tokens} : std::vector{tokens}, data.PickValueInArray(kInts));
    make.fill_indices(numbers, -2, 3);
    args.seq_idx = numbers;
  }
  args.initial_state = maybe(states, data.PickValueInArray(kFloats));
  args.grad_out = make.tensor(rows, data.PickValueInArray(kFloats));
  args.grad_final_state = one_in(3) ? make.tensor(states, data.PickValueInArray(kFloats)) : nullptr;
  args.grad_x = maybe(rows, x_dtype);
  args.grad_weight = maybe({channels, width}, or_f32(weight_dtype));
  if (args.bias != nullptr) args.grad_bias = maybe({channels}, or_f32(weight_dtype));
  if (args.initial_state != nullptr) {
    args.grad_initial_state = maybe(states, or_f32(args.initial_state->dtype));
  }
  if (args.input_gate != nullptr) args.grad_input_gate = maybe(rows, x_dtype);
  if (args.output_gate != nullptr) args.grad_output_gate = maybe(rows, x_dtype);

  shortconv_backward_plan plan{};
  std::int64_t bytes = 0;
  const int planned = shortconv_plan_backward(&args, &plan);
  if (planned != SHORTCONV_OK && shortconv_last_error()[0] == '\0') std::abort();
  if (planned == SHORTCONV_INTERNAL) std::abort();
  if (planned != SHORTCONV_OK) {
    if (shortconv_backward(&args, nullptr) == SHORTCONV_OK) std::abort();
    return;
  }
  if (shortconv_backward_workspace_bytes(&plan, &bytes) != SHORTCONV_OK) std::abort();
  std::vector<std::max_align_t> workspace(static_cast<std::size_t>(bytes) / 16 + 1);
  args.workspace = workspace.data();
  args.workspace_bytes = bytes;
  if (shortconv_run_backward(&plan, &args, nullptr) != SHORTCONV_OK) {
    std::fprintf(stderr, "planned, but not run: %s\n", shortconv_last_error());
    std::abort();
  }
}

void forward(FuzzedDataProvider& data) {
  Arguments make(data);
  constexpr std::int32_t kFloats[] = {SHORTCONV_F32, SHORTCONV_F16, SHORTCONV_BF16, SHORTCONV_F64};
  constexpr std::int32_t kInts[] = {SHORTCONV_I32, SHORTCONV_I64};
  const auto small = [&](int high) { return data.ConsumeIntegralInRange<std::int64_t>(0, high); };

  const std::int64_t tokens = small(24), channels = small(70), batch = small(4),
                     sequences = small(6);
  const std::int64_t width =
      data.ConsumeIntegralInRange<int>(0, 15) == 0 ? small(70) : 2 + small(7);
  const std::int64_t slots = small(8), columns = (width - 1) * (1 + small(2)) + small(3);
  const auto x_dtype = data.PickValueInArray(kFloats);
  const bool dense = data.ConsumeIntegralInRange<int>(0, 3) == 0;
  const std::vector<std::int64_t> rows =
      dense ? std::vector{batch, tokens, channels} : std::vector{tokens, channels};

  shortconv_forward_args args{};
  args.struct_size = data.ConsumeIntegralInRange<int>(0, 63) == 0
                         ? data.ConsumeIntegral<std::uint32_t>() % sizeof args
                         : sizeof args;
  args.x = make.tensor(rows, x_dtype);
  args.out = data.ConsumeIntegralInRange<int>(0, 5) == 0
                 ? args.x
                 : make.tensor(rows, data.ConsumeBool() ? x_dtype : data.PickValueInArray(kFloats));
  const auto gate = [&]() -> const shortconv_tensor* {
    if (data.ConsumeIntegralInRange<int>(0, 3) != 0) return nullptr;
    return make.tensor(rows, data.ConsumeIntegralInRange<int>(0, 15) == 0
                                 ? data.PickValueInArray(kFloats)
                                 : x_dtype);
  };
  args.input_gate = gate();
  args.output_gate = gate();
  args.residual =
      data.ConsumeIntegralInRange<int>(0, 7) == 0 ? data.ConsumeIntegralInRange<int>(-1, 2) : 0;
  args.dilation =
      data.ConsumeIntegralInRange<int>(0, 7) == 0 ? data.ConsumeIntegral<std::int32_t>() % 12 : 0;
  const auto weight_dtype = data.PickValueInArray(kFloats);
  args.weight = make.tensor({channels, width}, weight_dtype);
  if (data.ConsumeBool()) args.bias = make.tensor({channels}, weight_dtype);
  if (data.ConsumeIntegralInRange<int>(0, 3) != 0) {
    args.state = make.tensor({slots, columns, channels}, data.PickValueInArray(kFloats));
  }
  const std::int64_t actual_sequences = dense ? batch : sequences;
  const auto indices = [&](std::int64_t count, std::int64_t low,
                           std::int64_t high) -> const shortconv_tensor* {
    if (data.ConsumeBool()) return nullptr;
    shortconv_tensor* view = make.tensor({count}, data.PickValueInArray(kInts));
    make.fill_indices(view, low, high);
    return view;
  };
  if (!dense) args.query_start_loc = indices(sequences + 1, -2, tokens + 2);
  args.read_slots = indices(actual_sequences, -2, slots + 2);
  args.write_slots = indices(actual_sequences, -2, slots + 2);
  args.read_offsets = indices(actual_sequences, -4, 4);
  if (data.ConsumeBool()) args.has_initial_state = make.tensor({actual_sequences}, SHORTCONV_BOOL);
  const auto option = [&](int known) {
    return data.ConsumeIntegralInRange<int>(0, 31) == 0
               ? data.ConsumeIntegral<std::int32_t>()
               : data.ConsumeIntegralInRange<int>(0, known);
  };
  args.op = option(2);
  args.initial_state = option(2);
  args.activation = option(1);
  args.padded_rows = option(2);
  args.backend = option(3);
  args.schedule = option(2);
  args.max_seqlen = small(24);
  args.base_column = small(3);
  args.null_slot = small(3);
  args.has_null_slot = option(1);
  args.threads = data.ConsumeIntegralInRange<int>(-1, 2);
  if (args.schedule == SHORTCONV_SCHEDULE_BLOCK_LIST) {
    const std::int64_t blocks = small(6);
    shortconv_tensor* list = make.tensor({blocks}, SHORTCONV_I32);
    make.fill_indices(list, -1, sequences + 1);
    args.block_sequence = list;
    list = make.tensor({blocks}, SHORTCONV_I32);
    make.fill_indices(list, -1, 5);
    args.block_offset = list;
  }
  const auto one_in = [&](int n) { return data.ConsumeIntegralInRange<int>(0, n - 1) == 0; };
  if (one_in(3)) args.cache_seqlens = indices(actual_sequences, -4, 40);
  if (one_in(4)) args.shift_full_state = option(1);
  if (one_in(4)) {
    shortconv_tensor* numbers = make.tensor(
        dense ? std::vector{batch, tokens} : std::vector{tokens}, data.PickValueInArray(kInts));
    make.fill_indices(numbers, -2, 3);
    args.seq_idx = numbers;
  }
  if (one_in(3)) {
    shortconv_tensor* list = make.tensor({small(6), 3}, data.PickValueInArray(kInts));
    make.fill_indices(list, -1, actual_sequences, 0);
    make.fill_indices(list, -1, tokens + 1, 1);
    make.fill_indices(list, -1, slots, 2);
    args.snapshots = list;
  }
  if (args.op == SHORTCONV_OP_VERIFY) {
    args.update_state = option(1);
    if (data.ConsumeBool()) {
      shortconv_tensor* parents = make.tensor(
          dense ? std::vector{batch, tokens} : std::vector{tokens}, data.PickValueInArray(kInts));
      make.fill_indices(parents, -2, tokens);
      args.parents = parents;
    }
    const bool by_slot = data.ConsumeBool();
    if (by_slot) args.intermediate_slots = indices(actual_sequences, -2, slots + 1);
    const std::int32_t dtype = args.state != nullptr ? args.state->dtype : x_dtype;
    if (by_slot) {
      args.intermediate_states = make.tensor({slots, small(9), width - 1, channels}, dtype);
    } else if (data.ConsumeBool()) {
      std::vector<std::int64_t> sizes = rows;
      sizes.insert(sizes.end() - 1, width - 1);
      args.intermediate_states = make.tensor(sizes, dtype);
    }
    // The pool's own columns.
    if (by_slot && args.state != nullptr && args.state->ndim == 3 && one_in(3)) {
      shortconv_tensor* windows = make.tensor({}, dtype);
      *windows = *args.state;
      windows->ndim = 4;
      windows->shape[1] = small(9);
      windows->shape[2] = width - 1;
      windows->shape[3] = channels;
      windows->strides[3] = windows->strides[2];
      windows->strides[2] = windows->strides[1];
      args.intermediate_states = windows;
    }
  }

  if (one_in(4)) args.violations = make.tensor({SHORTCONV_VIOLATIONS, 2}, SHORTCONV_I64);

  shortconv_plan plan{};
  const int planned = shortconv_plan_forward(&args, &plan);
  if (planned != SHORTCONV_OK && shortconv_last_error()[0] == '\0') std::abort();
  if (planned == SHORTCONV_INTERNAL) std::abort();
  const int ran = planned == SHORTCONV_OK ? shortconv_run(&plan, &args, nullptr)
                                          : shortconv_forward(&args, nullptr);
  if (planned == SHORTCONV_OK && ran != SHORTCONV_OK) {
    // All that could be refused was, when planning.
    std::fprintf(stderr, "planned, but not run: %s\n", shortconv_last_error());
    std::abort();
  }
}

}  // namespace
}  // namespace shortconv::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  using namespace shortconv::fuzz;
  FuzzedDataProvider data(bytes, size);
  switch (data.ConsumeIntegralInRange<int>(0, 9)) {
    case 0:
      prepare(data);
      break;
    case 1:
      commit(data);
      break;
    case 2:
    case 3:
      backward(data);
      break;
    case 4:
    case 5:
      groups(data);
      break;
    default:
      forward(data);
      break;
  }
  return 0;
}
