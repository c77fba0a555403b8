#include "verify/buffers.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "common/error.hpp"
#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/schedule.hpp"
#include "verify/on_gpu.hpp"

namespace shortconv::tools::verify {
namespace {

// As far as a kernel could reach by one vector too many in the widest tensor; a multiple of every
// vector's alignment, so that the misalignment of a case is what its spec says.
constexpr std::int64_t kGuardBytes = 256;

// All ones is a NaN in every floating type, -1 as an index and true as a flag.
constexpr std::byte kPoison{0xff};

enum class Role : std::uint64_t { kX = 1, kWeight, kBias, kState, kInputGate, kOutputGate };

struct Filling {
  std::uint64_t seed;
  double scale;
  int special_period;

  [[nodiscard]] double at(std::int64_t index) const {
    const std::uint64_t hash = mix(seed ^ static_cast<std::uint64_t>(index));
    if (special_period != 0 && hash % static_cast<std::uint64_t>(special_period) == 0) {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      // All ones as well: rounding it as if it were a number carries out of the exponent.
      const double special[] = {std::numeric_limits<double>::quiet_NaN(),
                                std::bit_cast<double>(~std::uint64_t{0}), kInfinity, -kInfinity};
      return special[mix(hash) % 4];
    }
    return scale * normal_from(mix(hash));
  }
};

void fill(const TensorBuffer& buffer, const Filling& filling) {
  std::int64_t number = 0;  // of the logical element, so strides do not matter
  for_each_element(buffer.spec(),
                   [&](std::int64_t offset) { buffer.store(offset, filling.at(number++)); });
}

TensorBuffer list_buffer(const std::vector<std::int32_t>& entries) {
  IndexTensor index{dense(DType::kI32, {static_cast<std::int64_t>(entries.size())}), {}};
  index.values.assign(entries.begin(), entries.end());
  return index_buffer(index);
}

std::optional<TensorRef> view_of(const std::optional<TensorBuffer>& buffer) {
  if (!buffer) return std::nullopt;
  return buffer->view();
}

}  // namespace

TensorBuffer index_buffer(const IndexTensor& index) {
  TensorBuffer buffer(index.spec);
  auto value = index.values.begin();
  for_each_element(index.spec, [&](std::int64_t offset) {
    // Little endian: the first bytes are the value in any width that holds it.
    std::memcpy(buffer.element(offset), &*value++,
                static_cast<std::size_t>(element_bytes(index.spec.dtype)));
  });
  return buffer;
}

std::optional<TensorBuffer> index_buffer(const std::optional<IndexTensor>& index) {
  if (!index) return std::nullopt;
  return index_buffer(*index);
}

TensorBuffer::TensorBuffer(TensorSpec spec)
    : spec_(std::move(spec)),
      memory_(2 * kGuardBytes + spec_.elements * element_bytes(spec_.dtype)) {
  std::ranges::fill(bytes(), kPoison);
}

TensorBuffer::TensorBuffer(const TensorBuffer& other)
    : spec_(other.spec_), memory_(other.memory_.bytes()) {
  std::ranges::copy(other.bytes(), bytes().begin());
}

TensorBuffer& TensorBuffer::operator=(const TensorBuffer& other) {
  return *this = TensorBuffer(other);
}

std::span<std::byte> TensorBuffer::bytes() const {
  return {memory_.data(), static_cast<std::size_t>(memory_.bytes())};
}

std::byte* TensorBuffer::element(std::int64_t offset) const {
  return memory_.data() + kGuardBytes + offset * element_bytes(spec_.dtype);
}

double TensorBuffer::load(std::int64_t offset) const {
  return load_element(spec_.dtype, element(offset));
}

void TensorBuffer::store(std::int64_t offset, double value) const {
  store_element(spec_.dtype, element(offset), value);
}

bool TensorBuffer::same_element(std::int64_t offset, const TensorBuffer& other,
                                std::int64_t other_offset) const {
  return std::memcmp(element(offset), other.element(other_offset),
                     static_cast<std::size_t>(element_bytes(spec_.dtype))) == 0;
}

TensorRef TensorBuffer::view(const TensorSpec& spec) const {
  TensorRef view;
  view.data = element(spec.origin);
  view.dtype = spec.dtype;
  view.ndim = static_cast<std::int32_t>(spec.shape.size());
  std::ranges::copy(spec.shape, view.shape);
  std::ranges::copy(spec.strides, view.strides);
  return view;
}

std::vector<const TensorBuffer*> CaseBuffers::tensors() const {
  std::vector<const TensorBuffer*> list{&x, &out, &weight};
  for (const std::optional<TensorBuffer>* buffer :
       {&bias, &state, &input_gate, &output_gate, &query_start_loc, &has_initial_state, &read_slots,
        &write_slots, &read_offsets, &block_sequence, &block_offset, &cache_seqlens, &snapshots,
        &parents, &seq_idx, &windows, &intermediate_slots, &violations}) {
    if (*buffer) list.push_back(&**buffer);
  }
  return list;
}

CaseBuffers make_buffers(const Case& problem) {
  const auto filling = [&](Role role, double scale, int special_period) {
    return Filling{mix(problem.seed ^ (static_cast<std::uint64_t>(role) << 60)), scale,
                   special_period};
  };
  CaseBuffers buffers{.x = TensorBuffer(problem.x),
                      .out = TensorBuffer(problem.in_place ? dense(DType::kF32, {0}) : problem.out),
                      .weight = TensorBuffer(problem.weight),
                      .query_start_loc = index_buffer(problem.query_start_loc),
                      .has_initial_state = index_buffer(problem.has_initial_state),
                      .read_slots = index_buffer(problem.read_slots),
                      .write_slots = index_buffer(problem.write_slots),
                      .read_offsets = index_buffer(problem.read_offsets),
                      .cache_seqlens = index_buffer(problem.cache_seqlens),
                      .snapshots = index_buffer(problem.snapshots),
                      .parents = index_buffer(problem.parents),
                      .seq_idx = index_buffer(problem.seq_idx),
                      .intermediate_slots = index_buffer(problem.intermediate_slots)};
  if (problem.windows && problem.windows_kind != WindowsKind::kPool) {
    buffers.windows.emplace(*problem.windows);
  }
  if (problem.violations) buffers.violations.emplace(*problem.violations);
  fill(buffers.x, filling(Role::kX, problem.x_scale, problem.special_period));
  fill(buffers.weight, filling(Role::kWeight, 0.5, 0));
  if (problem.bias) {
    buffers.bias = TensorBuffer(*problem.bias);
    fill(*buffers.bias, filling(Role::kBias, 1, 0));
  }
  const auto gate = [&](const std::optional<TensorSpec>& spec, Role role) {
    std::optional<TensorBuffer> buffer;
    if (!spec) return buffer;
    buffer.emplace(*spec);
    fill(*buffer, filling(role, 1, problem.special_period));
    return buffer;
  };
  buffers.input_gate = gate(problem.input_gate, Role::kInputGate);
  buffers.output_gate = gate(problem.output_gate, Role::kOutputGate);
  if (problem.state) {
    buffers.state = TensorBuffer(*problem.state);
    fill(*buffers.state, filling(Role::kState, problem.x_scale, problem.special_period));
  }
  if (problem.schedule == Schedule::kBlockList) {
    std::vector<std::int64_t> lengths;
    for (std::int64_t s = 0; s < problem.sequences(); ++s) lengths.push_back(problem.length(s));
    BlockList list;
    require(plan_block_list(lengths, list));
    buffers.block_sequence = list_buffer(list.sequence);
    buffers.block_offset = list_buffer(list.offset);
  }
  return buffers;
}

ForwardArgs make_arguments(const Case& problem, const CaseBuffers& buffers, BackendId backend) {
  ForwardArgs arguments;
  arguments.op = problem.op;
  arguments.x = buffers.x.view();
  arguments.out = buffers.result(problem).view();
  arguments.weight = buffers.weight.view();
  arguments.bias = view_of(buffers.bias);
  arguments.pool.state = view_of(buffers.state);
  arguments.pool.read_slots = view_of(buffers.read_slots);
  arguments.pool.write_slots = view_of(buffers.write_slots);
  arguments.pool.read_offsets = view_of(buffers.read_offsets);
  arguments.pool.base_column = problem.base_column;
  arguments.pool.shift_full_state = problem.shift_full_state;
  arguments.pool.null_slot = problem.null_slot;
  arguments.sequences.query_start_loc = view_of(buffers.query_start_loc);
  arguments.sequences.has_initial_state = view_of(buffers.has_initial_state);
  arguments.sequences.initial_state = problem.initial_state;
  arguments.pool.cache_seqlens = view_of(buffers.cache_seqlens);
  arguments.pool.snapshots = view_of(buffers.snapshots);
  arguments.drafts.parents = view_of(buffers.parents);
  arguments.sequences.seq_idx = view_of(buffers.seq_idx);
  arguments.drafts.intermediate_states = view_of(buffers.windows);
  if (problem.windows_kind == WindowsKind::kPool) {
    arguments.drafts.intermediate_states = buffers.state->view(*problem.windows);
  }
  arguments.drafts.intermediate_slots = view_of(buffers.intermediate_slots);
  arguments.drafts.update_state = problem.update_state;
  arguments.options.violations = view_of(buffers.violations);
  arguments.epilogue.activation = problem.activation;
  arguments.sequences.padded_rows = problem.padded_rows;
  arguments.input_gate = view_of(buffers.input_gate);
  arguments.epilogue.output_gate = view_of(buffers.output_gate);
  arguments.epilogue.residual = problem.epilogue == Epilogue::kResidual;
  arguments.dilation = problem.dilation;
  arguments.options.backend = backend;
  arguments.options.schedule = problem.schedule;
  arguments.options.max_seqlen = problem.max_seqlen;
  arguments.options.block_sequence = view_of(buffers.block_sequence);
  arguments.options.block_offset = view_of(buffers.block_offset);
  arguments.options.threads = problem.threads;
  return arguments;
}

Status run_case(const Case& problem, const CaseBuffers& buffers, BackendId backend) {
  const ForwardArgs arguments = make_arguments(problem, buffers, backend);
  return backend == BackendId::kCuda ? forward_on_gpu(arguments, buffers) : forward(arguments);
}

}  // namespace shortconv::tools::verify
