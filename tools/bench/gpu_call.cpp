#include "bench/gpu_call.hpp"

#include <algorithm>
#include <cstring>
#include <span>

#include "bench/random_buffer.hpp"
#include "common/error.hpp"
#include "shortconv/schedule.hpp"
#include "shortconv/violation.hpp"

namespace shortconv::tools::bench {
namespace {

constexpr Device kGpu{DeviceType::kCuda, 0};

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

void fill_random(const GpuBuffer& buffer, std::span<const std::byte> table) {
  const std::int64_t bytes = std::min(std::ssize(table), buffer.bytes());
  copy_to_gpu(buffer.data(), table.data(), bytes);
  repeat_on_gpu(buffer, bytes);
}

template <typename T>
GpuBuffer on_gpu(const std::vector<T>& values) {
  if (values.empty()) return {};
  GpuBuffer buffer(std::ssize(values) * static_cast<std::int64_t>(sizeof(T)));
  copy_to_gpu(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}

}  // namespace

int number_of_sets(std::int64_t touched_bytes, std::int64_t allocated_bytes,
                   std::int64_t cache_bytes) {
  constexpr std::int64_t kFewest = 2, kMost = 64;
  constexpr std::int64_t kMostBytes = std::int64_t{4} << 30;
  const std::int64_t wanted = 3 * cache_bytes / std::max<std::int64_t>(touched_bytes, 1) + 1;
  const std::int64_t affordable = kMostBytes / std::max<std::int64_t>(allocated_bytes, 1);
  return static_cast<int>(std::clamp(std::min(wanted, affordable), kFewest, kMost));
}

SetPlaces place_set(const CallLayout& layout, const CallOptions& options) {
  constexpr std::int64_t kAlignment = 256;  // that of an allocation of its own
  constexpr std::int64_t kVector = 16;
  const std::int64_t row_bytes = element_bytes(options.dtype);
  const std::int64_t state_bytes = element_bytes(options.dtype_of_states());
  SetPlaces places;
  places.out = round_up(layout.x_elements() * row_bytes, kAlignment);
  places.state = places.out + round_up(layout.out_elements() * row_bytes, kAlignment);
  places.copied = round_up((layout.moved_bytes() + 1) / 2, kVector);
  places.copy_target = round_up(places.copied, kAlignment);
  places.windows = places.state + round_up(layout.state_elements() * state_bytes, kAlignment);
  const std::int64_t state_gradient =
      round_up(layout.state_gradient_elements() * state_bytes, kAlignment);
  places.grad_x = places.windows + round_up(layout.window_elements() * state_bytes, kAlignment);
  places.grad_final_state =
      places.grad_x + round_up(layout.grad_x_elements() * row_bytes, kAlignment);
  places.grad_initial_state = places.grad_final_state + state_gradient;
  places.gate_rows = places.grad_initial_state + state_gradient;
  places.gates = places.gate_rows + round_up(layout.gate_elements() * row_bytes, kAlignment);
  places.third = round_up((layout.moved_bytes() + 2) / 3, kVector);
  places.second_read = round_up(places.third, kAlignment);
  places.combined = 2 * places.second_read;
  places.grad_gate_rows =
      places.gates + round_up(layout.gate_elements() * element_bytes(DType::kF32), kAlignment);
  const std::int64_t gate_gradients = layout.is_backward() ? layout.gate_elements() * row_bytes : 0;
  places.bytes = std::max({places.grad_gate_rows + gate_gradients,
                           places.copy_target + places.copied, places.combined + places.third});
  return places;
}

GpuCall::GpuCall(const Shape& shape, const CallOptions& options, std::int64_t cache_bytes)
    : layout_(shape, options),
      places_(place_set(layout_, options)),
      weight_(layout_.weight_elements() * element_bytes(options.dtype_of_weights())),
      bias_(layout_.bias_elements() * element_bytes(options.dtype_of_weights())),
      query_start_loc_(on_gpu(layout_.query_start_loc())),
      read_slots_(on_gpu(layout_.read_slots())),
      has_initial_state_(on_gpu(layout_.has_initial_state())),
      parents_(on_gpu(layout_.parents())),
      ring_positions_(on_gpu(layout_.cache_seqlens())),
      snapshots_(on_gpu(layout_.snapshots())),
      violations_(2 * kViolations * element_bytes(DType::kI64)),
      accepted_(on_gpu(layout_.accepted())),
      seq_idx_(on_gpu(layout_.seq_idx())),
      grad_weight_(layout_.weight_elements() * element_bytes(DType::kF32)),
      grad_bias_(layout_.bias_elements() * element_bytes(DType::kF32)),
      a_log_(layout_.gate_heads() * element_bytes(DType::kF32)),
      dt_bias_(layout_.gate_heads() * element_bytes(DType::kF32)),
      grad_heads_(2 * layout_.gate_heads() * element_bytes(DType::kF32)),
      fetched_(query_start_loc_.bytes()),
      lengths_(shape.lengths) {
  const std::vector<std::byte> table = random_table(options.dtype);
  const std::vector<std::byte> weight_table = random_table(options.dtype_of_weights());
  fill_random(weight_, weight_table);
  fill_random(bias_, weight_table);
  const std::vector<std::byte> gate_table = random_table(DType::kF32);
  fill_random(a_log_, gate_table);
  fill_random(dt_bias_, gate_table);
  const int sets = number_of_sets(layout_.touched_bytes(), places_.bytes, cache_bytes);
  for (int set = 0; set < sets; ++set) {
    fill_random(sets_.emplace_back(places_.bytes), table);
    add_set(sets_.back());
  }
  if (layout_.is_backward()) add_workspaces();
}

void GpuCall::add_set(const GpuBuffer& set) {
  const CallMemory memory = memory_of(set);
  if (layout_.is_commit()) {
    commit_.add_set(layout_.commit_arguments(memory, kGpu));
  } else if (layout_.is_backward() && layout_.is_grouped()) {
    grouped_backward_.add_set(
        layout_.grouped_backward_arguments(memory, kGpu, groups_.emplace_back()));
  } else if (layout_.is_backward()) {
    backward_.add_set(layout_.backward_arguments(memory, kGpu));
  } else if (layout_.is_grouped()) {
    grouped_.add_set(layout_.grouped_arguments(memory, kGpu, groups_.emplace_back()));
  } else {
    forward_.add_set(arguments_of(set));
  }
}

void GpuCall::add_workspaces() {
  const auto add = [this](auto& call, const auto& backward_of) {
    call.prepare();
    for (auto& set : call.addresses) {
      backward_of(set).workspace = workspaces_.emplace_back(workspace_bytes(call.plan)).data();
    }
  };
  if (layout_.is_grouped()) {
    add(grouped_backward_, [](auto& set) -> auto& { return set.backward; });
  } else {
    add(backward_, [](auto& set) -> auto& { return set; });
  }
}

CallMemory GpuCall::memory_of(const GpuBuffer& set) const {
  auto* memory = static_cast<std::byte*>(set.data());
  return {.x = memory,
          .out = memory + places_.out,
          .weight = weight_.data(),
          .bias = bias_.data(),
          .state = memory + places_.state,
          .read_slots = read_slots_.data(),
          .query_start_loc = query_start_loc_.data(),
          .has_initial_state = has_initial_state_.data(),
          .parents = parents_.data(),
          .windows = memory + places_.windows,
          .cache_seqlens = ring_positions_.data(),
          .snapshots = snapshots_.data(),
          .violations = violations_.data(),
          .accepted = accepted_.data(),
          .seq_idx = seq_idx_.data(),
          .grad_x = memory + places_.grad_x,
          .grad_weight = grad_weight_.data(),
          .grad_bias = grad_bias_.data(),
          .grad_final_state = memory + places_.grad_final_state,
          .grad_initial_state = memory + places_.grad_initial_state,
          .gate_rows = memory + places_.gate_rows,
          .gates = memory + places_.gates,
          .a_log = a_log_.data(),
          .dt_bias = dt_bias_.data(),
          .grad_gate_rows = memory + places_.grad_gate_rows,
          .grad_heads = grad_heads_.data()};
}

ForwardArgs GpuCall::arguments_of(const GpuBuffer& set) {
  ForwardArgs args = layout_.arguments(memory_of(set), kGpu);
  if (args.options.schedule == Schedule::kBlockList) {
    // The lengths never change here, so neither does the number of entries.
    BlockList list;
    require(plan_block_list(lengths_, list));
    const std::int64_t entries = std::ssize(list.sequence);
    const std::int64_t bytes = entries * element_bytes(DType::kI32);
    if (block_list_.bytes() == 0) {
      sent_ = PinnedBuffer(2 * bytes);
      block_list_ = GpuBuffer(2 * bytes);
    }
    auto* lists = static_cast<std::byte*>(block_list_.data());
    args.options.block_sequence = TensorRef::contiguous(lists, DType::kI32, {entries}, kGpu);
    args.options.block_offset = TensorRef::contiguous(lists + bytes, DType::kI32, {entries}, kGpu);
  }
  return args;
}

void GpuCall::fetch_lengths(const GpuStream& stream) {
  start_copy_from_gpu(fetched_.data(), query_start_loc_.data(), fetched_.bytes(), stream.handle());
  stream.wait();
  const auto* bounds = reinterpret_cast<const std::int32_t*>(fetched_.data());
  for (std::size_t s = 0; s < lengths_.size(); ++s) lengths_[s] = bounds[s + 1] - bounds[s];
}

// The pinned memory is free again: fetch_lengths has waited for the copy of the last time.
void GpuCall::send_block_list(void* stream) {
  BlockList list;
  require(plan_block_list(lengths_, list));
  const std::int64_t bytes = std::ssize(list.sequence) * element_bytes(DType::kI32);
  std::memcpy(sent_.data(), list.sequence.data(), static_cast<std::size_t>(bytes));
  std::memcpy(sent_.data() + bytes, list.offset.data(), static_cast<std::size_t>(bytes));
  start_copy_to_gpu(block_list_.data(), sent_.data(), 2 * bytes, stream);
}

void GpuCall::prepare(const GpuStream& stream) {
  if (prepare_waits()) fetch_lengths(stream);
  if (layout_.is_commit()) return commit_.prepare();
  if (layout_.is_backward() && layout_.is_grouped()) return grouped_backward_.prepare();
  if (layout_.is_backward()) return backward_.prepare();
  if (layout_.is_grouped()) return grouped_.prepare();
  Options& options = forward_.args.options;
  if (options.schedule == Schedule::kBlockList) send_block_list(stream.handle());
  if (options.schedule == Schedule::kSequenceGrid) {
    options.max_seqlen = *std::ranges::max_element(lengths_);
  }
  forward_.prepare();
}

void GpuCall::run(int set, void* stream) const {
  const auto at = static_cast<std::size_t>(set);
  if (layout_.is_commit()) return commit_.run(at, stream);
  if (layout_.is_backward() && layout_.is_grouped()) return grouped_backward_.run(at, stream);
  if (layout_.is_backward()) return backward_.run(at, stream);
  if (layout_.is_grouped()) return grouped_.run(at, stream);
  forward_.run(at, stream);
}

void GpuCall::copy(int set, void* stream) const {
  auto* memory = static_cast<std::byte*>(sets_[static_cast<std::size_t>(set)].data());
  gpu_copy(memory + places_.copy_target, memory, places_.copied, stream);
}

void GpuCall::overlapped_copy(int set, void* stream) const {
  auto* memory = static_cast<std::byte*>(sets_[static_cast<std::size_t>(set)].data());
  gpu_overlapped_copy(memory + places_.copy_target, memory, places_.copied, stream);
}

void GpuCall::combine(int set, void* stream) const {
  auto* memory = static_cast<std::byte*>(sets_[static_cast<std::size_t>(set)].data());
  gpu_combine(memory + places_.combined, memory, memory + places_.second_read, places_.third,
              stream);
}

}  // namespace shortconv::tools::bench
