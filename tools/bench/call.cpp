#include "bench/call.hpp"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "common/error.hpp"
#include "core/element.hpp"
#include "shortconv/schedule.hpp"
#include "verify/random.hpp"

namespace shortconv::tools::bench {
namespace {

constexpr std::align_val_t kAlignment{4096};
constexpr std::int64_t kTableElements = 65521;  // prime: the pattern does not repeat with any pitch

std::vector<std::byte> random_table(DType dtype) {
  const std::int64_t bytes = element_bytes(dtype);
  std::vector<std::byte> table(static_cast<std::size_t>(kTableElements * bytes));
  for (std::int64_t i = 0; i < kTableElements; ++i) {
    store_element(dtype, &table[static_cast<std::size_t>(i * bytes)],
                  verify::normal_from(verify::mix(static_cast<std::uint64_t>(i))));
  }
  return table;
}

}  // namespace

void RandomBuffer::Free::operator()(std::byte* data) const { ::operator delete(data, kAlignment); }

RandomBuffer::RandomBuffer(DType dtype, std::int64_t elements, int threads) {
  const auto bytes = static_cast<std::size_t>(elements * element_bytes(dtype));
  data_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
  const std::vector<std::byte> table = random_table(dtype);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::size_t at = 0; at < bytes; at += table.size()) {
    std::memcpy(data_.get() + at, table.data(), std::min(table.size(), bytes - at));
  }
}

Call::Call(const Shape& shape, const CallOptions& options) : lengths_(shape.lengths) {
  const std::int64_t tokens = shape.tokens();
  const std::int64_t sequences = shape.sequences();
  const std::int64_t channels = shape.channels;
  const std::int64_t history = options.width - 1;
  x_ = RandomBuffer(options.dtype, tokens * channels, options.threads);
  out_ = RandomBuffer(options.dtype, tokens * channels, options.threads);
  weight_ = RandomBuffer(options.dtype, channels * options.width, options.threads);
  bias_ = RandomBuffer(options.dtype, channels, options.threads);
  state_ = RandomBuffer(options.dtype, sequences * history * channels, options.threads);

  const auto rows = [&](void* data) {
    return shape.layout == Layout::kTokenMajor
               ? TensorRef::contiguous(data, options.dtype, {tokens, channels})
               : TensorRef::contiguous(data, options.dtype, {channels, tokens}).transposed(0, 1);
  };
  args_.op = shape.op;
  args_.x = rows(x_.data());
  args_.out = rows(out_.data());
  args_.weight = TensorRef::contiguous(weight_.data(), options.dtype, {channels, options.width});
  args_.bias = TensorRef::contiguous(bias_.data(), options.dtype, {channels});
  args_.state =
      shape.state_layout == StateLayout::kChannelInnermost
          ? TensorRef::contiguous(state_.data(), options.dtype, {sequences, history, channels})
          : TensorRef::contiguous(state_.data(), options.dtype, {sequences, channels, history})
                .transposed(1, 2);
  args_.activation = options.activation;
  args_.backend = options.backend;
  args_.threads = options.threads;

  std::int64_t resumed = 0;
  query_start_loc_.push_back(0);
  for (std::int64_t s = 0; s < sequences; ++s) {
    query_start_loc_.push_back(query_start_loc_.back() + static_cast<std::int32_t>(lengths_[s]));
    has_initial_state_.push_back(shape.resumed(s) ? 1 : 0);
    resumed += has_initial_state_.back();
  }
  if (shape.op == Op::kForward) {
    args_.schedule = options.schedule;
    args_.query_start_loc =
        TensorRef::contiguous(query_start_loc_.data(), DType::kI32, {sequences + 1});
    args_.has_initial_state =
        TensorRef::contiguous(has_initial_state_.data(), DType::kBool, {sequences});
  }
  bytes_ = (2 * tokens + (sequences + resumed) * history) * channels * element_bytes(options.dtype);
}

void Call::prepare() {
  if (args_.schedule == Schedule::kBlockList) {
    BlockList list = plan_block_list(lengths_);
    block_sequence_ = std::move(list.sequence);
    block_offset_ = std::move(list.offset);
    args_.block_sequence =
        TensorRef::contiguous(block_sequence_.data(), DType::kI32, {std::ssize(block_sequence_)});
    args_.block_offset =
        TensorRef::contiguous(block_offset_.data(), DType::kI32, {std::ssize(block_offset_)});
  } else if (args_.schedule == Schedule::kSequenceGrid) {
    args_.longest_sequence = *std::max_element(lengths_.begin(), lengths_.end());
  }
  Problem problem;
  require(make_problem(args_, problem));
  require(make_plan(problem, plan_));
}

void Call::run() const { require(shortconv::run(plan_, addresses(args_))); }

}  // namespace shortconv::tools::bench
