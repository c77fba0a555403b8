// Grouped calls: blocks of channels that belong to one group, norms, copies and gates. A block's
// rows are normalized right after their convolution, while they are in the caches.
//
// Bytes moved: x once, every output once; normalized rows are read and written again in cache.
#include <array>
#include <cstring>

#include "core/capability.hpp"
#include "core/check.hpp"
#include "core/thread_pool.hpp"
#include "cpu/backend.hpp"
#include "cpu/forward.hpp"
#include "cpu/move.hpp"
#include "cpu/worker.hpp"

namespace shortconv::cpu {
namespace {

/// Values of a head in fp32. Longer heads are sums of such parts, which are subtrees.
constexpr std::int64_t kPart = 1024;

/// Sums of neighbors; an odd one out stays as it is.
std::int64_t add_neighbors(const float* __restrict from, std::int64_t count, float* __restrict to) {
  for (std::int64_t i = 0; i < count / 2; ++i) to[i] = from[2 * i] + from[2 * i + 1];
  if (count % 2 == 1) to[count / 2] = from[count - 1];
  return (count + 1) / 2;
}

/// The tree over the squares of up to kPart values.
float sum_of_squares(const float* values, std::int64_t count) {
  float sums[kPart], others[kPart / 2];
  for (std::int64_t i = 0; i < count; ++i) sums[i] = values[i] * values[i];
  while (count > 1) {
    count = add_neighbors(sums, count, others);
    if (count == 1) return others[0];
    count = add_neighbors(others, count, sums);
  }
  return sums[0];
}

/// Normalizes a head of any length and strides. `kernels` are those of its dtype.
void normalize_head(const Kernels& kernels, DType dtype, const char* from, std::int64_t from_stride,
                    char* to, std::int64_t to_stride, std::int64_t count, const L2Norm& norm) {
  float values[kPart];
  const std::int64_t bytes = element_bytes(dtype);
  const auto load = [&](std::int64_t part) {
    const std::int64_t size = std::min(kPart, count - part * kPart);
    const char* source = from + part * kPart * from_stride * bytes;
    if (from_stride == 1) {
      kernels.load(source, values, size);
    } else {
      for (std::int64_t i = 0; i < size; ++i) {
        values[i] = load_f32(dtype, source + i * from_stride * bytes);
      }
    }
    return size;
  };
  const std::int64_t parts = (count + kPart - 1) / kPart;
  const float sum =
      tree_sum(parts, [&](std::int64_t part) { return sum_of_squares(values, load(part)); });
  const float inverse = inverse_norm(sum, norm.eps);
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t size = parts == 1 ? count : load(part);
    for (std::int64_t i = 0; i < size; ++i) values[i] = rounded_product(values[i], inverse);
    if (norm.scale != 1) {
      for (std::int64_t i = 0; i < size; ++i) values[i] = rounded_product(values[i], norm.scale);
    }
    char* target = to + part * kPart * to_stride * bytes;
    if (to_stride == 1) {
      kernels.store(values, target, size);
    } else {
      for (std::int64_t i = 0; i < size; ++i) {
        store_f32(dtype, target + i * to_stride * bytes, values[i]);
      }
    }
  }
}

template <typename Layout>
char* address(const Layout& layout, void* data, std::int64_t offset) {
  return static_cast<char*>(data) + offset * element_bytes(layout.dtype);
}

/// The gates of rows [begin, end).
void store_gates(const GateProblem& p, const GatePointers& at, std::int64_t sequence_tokens,
                 std::int64_t begin, std::int64_t end) {
  const auto load = [](const auto& layout, void* data, std::int64_t offset) {
    return load_f32(layout.dtype, address(layout, data, offset));
  };
  for (std::int64_t row = begin; row < end; ++row) {
    const auto start = [&](const auto& layout) {
      return packed_row_offset(sequence_tokens, row, layout);
    };
    const std::int64_t a_row = start(p.a), b_row = start(p.b), g_row = start(p.g),
                       beta_row = start(p.beta);
    for (std::int64_t head = 0; head < p.heads; ++head) {
      const float a = load(p.a, at.a, a_row + column_of(p.a_map, head) * p.a.channel_stride);
      const float b = load(p.b, at.b, b_row + column_of(p.b_map, head) * p.b.channel_stride);
      const float a_log = load(p.a_log, at.a_log, head * p.a_log.head_stride);
      const float dt_bias = load(p.dt_bias, at.dt_bias, head * p.dt_bias.head_stride);
      store_f32(DType::kF32, address(p.g, at.g, g_row + head * p.g.head_stride),
                decay_gate(p.decay, a, a_log, dt_bias));
      float beta = sigmoid(b);
      if (p.round_beta) {
        char rounded[sizeof(double)];
        store_f32(p.b.dtype, rounded, beta);
        beta = load_f32(p.b.dtype, rounded);
      }
      store_f32(DType::kF32, address(p.beta, at.beta, beta_row + head * p.beta.head_stride),
                rounded_product(beta, p.beta_factor));
    }
  }
}

std::int64_t block_limit(const Problem& p) {
  return has_general_kernels(p) ? kGeneralGroupChannels : kMaxBlockChannels;
}

}  // namespace

void Worker::use_group_block(const GroupBlock& block) {
  group_block_ = block;
  is_other_block_ = block.group == nullptr || block.group->copy;
  if (block.group == nullptr) return;
  const GroupLayout& group = *block.group;
  channel_ = group.first_channel + block.channel;
  channels_ = static_cast<int>(block.channels);
  x_column_ = block.column;
  input_scale_ = group.input_scale;
  out_.dtype = group.out.dtype;
  out_.sequence_stride = group.out.sequence_stride;
  out_.token_stride = group.out.token_stride;
  out_.channel_stride = 1;
  out_data_ = address(group.out, block.out, block.out_offset);
}

void Worker::finish_rows(std::int64_t begin, std::int64_t end) {
  if (group_block_.group == nullptr) {
    store_gates(groups_->problem().gates, groups_->pointers().gates, p_.sequence_tokens, begin,
                end);
  } else if (group_block_.group->copy) {
    for (std::int64_t row = begin; row < end; ++row) {
      copy_run(x(row, channel_), p_.x.channel_stride, p_.x.dtype, out(row, channel_), 1, out_.dtype,
               channels_);
    }
  } else if (group_block_.group->normalize) {
    normalize_rows(begin, end);
  }
}

void Worker::normalize_rows(std::int64_t begin, std::int64_t end) {
  const GroupLayout& group = *group_block_.group;
  const std::int64_t bytes = group.head_dim * element_bytes(out_.dtype);
  for (std::int64_t row = begin; row < end; ++row) {
    char* head = out(row, channel_);
    for (std::int64_t left = channels_; left > 0; left -= group.head_dim, head += bytes) {
      normalize_head(*config_.out_kernels, out_.dtype, head, 1, head, 1, group.head_dim,
                     group.l2_norm);
    }
  }
}

void Worker::scale_rows(std::int64_t rows, int count, float* to) {
  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = to + r * pitch_;
    for (int c = 0; c < count; ++c) row[c] = rounded_product(row[c], input_scale_);
    config_.x_kernels->store(row, results_, count);
    config_.x_kernels->load(results_, row, count);
  }
}

void Worker::pad_gates(std::int64_t begin, std::int64_t end) {
  const GateProblem& p = groups_->problem().gates;
  const GatePointers& at = groups_->pointers().gates;
  if (p_.padded_rows == PaddedRows::kUntouched) return;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t g_row = packed_row_offset(p_.sequence_tokens, row, p.g);
    const std::int64_t beta_row = packed_row_offset(p_.sequence_tokens, row, p.beta);
    for (std::int64_t head = 0; head < p.heads; ++head) {
      store_f32(DType::kF32, address(p.g, at.g, g_row + head * p.g.head_stride), 0);
      store_f32(DType::kF32, address(p.beta, at.beta, beta_row + head * p.beta.head_stride), 0);
    }
  }
}

Status plan_grouped(const GroupedProblem& p, PlanStorage& storage) {
  const Problem& call = p.forward;
  for (const GroupLayout& group : p.used_groups()) {
    if (!group.normalize || group.head_dim <= block_limit(call)) continue;
    return {Code::kUnsupported, concat("groups: head_dim is ", group.head_dim,
                                       ", but the backend 'cpu' normalizes heads of at most ",
                                       block_limit(call), " channels in a call of this width")};
  }
  if (p.has_gates) {
    for (const DType dtype : {p.gates.a.dtype, p.gates.b.dtype, p.gates.dt_bias.dtype}) {
      if (dtype == DType::kF64) return refuse_f64(BackendId::kCpu);
    }
  }
  CpuConfig config{};
  Problem rows = call;
  rows.out.channel_stride = 1;
  if (Status status = choose_kernels(rows, config); !status.ok()) return status;
  const GroupedPointers at;
  const GroupBlocks blocks(p, at, block_limit(call));
  config.channel_blocks = blocks.count();
  if (call.tokens > 0 && blocks.count() > 0) {
    double channels = 0;
    for (const GroupLayout& group : p.used_groups())
      channels += static_cast<double>(group.channels());
    config.threads =
        thread_limit(call.threads, 2 * channels * static_cast<double>(call.tokens) *
                                       static_cast<double>(element_bytes(call.x.dtype)));
    set_tiles(call, config.threads, 64, config);
  }
  store_choice(storage, config);
  return {};
}

Status run_grouped(const GroupedProblem& p, const PlanStorage& storage, const GroupedPointers& at,
                   void*) {
  const GroupBlocks blocks(p, at, block_limit(p.forward));
  if (p.forward.violations.present) report_violations(p.forward, at.forward);
  if (p.forward.tokens == 0 || blocks.count() == 0) return {};
  return run_items(p.forward, load_choice<CpuConfig>(storage), at.forward, &blocks);
}

std::string describe_grouped(const GroupedProblem& p, const PlanStorage& storage) {
  const auto config = load_choice<CpuConfig>(storage);
  return concat(describe_items(p.forward, config), ", ", std::int64_t{p.group_count}, " groups");
}

Status l2_norm(const L2NormCall& call, void*) {
  if (call.x.dtype == DType::kF64) return refuse_f64(BackendId::kCpu);
  const Kernels& kernels = *select(call.x.dtype, 0, Activation::kNone);
  if (Status status = check_target(kernels.target); !status.ok()) return status;
  const std::int64_t bytes = element_bytes(call.x.dtype);
  const double moved = 2.0 * static_cast<double>(call.rows) * static_cast<double>(call.heads) *
                       static_cast<double>(call.head_dim * bytes);
  constexpr std::int64_t kRows = 16;  // of an item
  for_each_item(thread_limit(0, moved), (call.rows + kRows - 1) / kRows, [&](std::int64_t item) {
    for (std::int64_t row = item * kRows; row < std::min(call.rows, (item + 1) * kRows); ++row) {
      const std::int64_t x_row = packed_row_offset(call.sequence_tokens, row, call.x);
      const std::int64_t out_row = packed_row_offset(call.sequence_tokens, row, call.out);
      for (std::int64_t head = 0; head < call.heads; ++head) {
        normalize_head(
            kernels, call.x.dtype,
            static_cast<const char*>(call.x_data) + (x_row + head * call.x.head_stride) * bytes,
            call.x.channel_stride,
            address(call.out, call.out_data, out_row + head * call.out.head_stride),
            call.out.channel_stride, call.head_dim, call.norm);
      }
    }
  });
  return {};
}

Status delta_gates(const GatesCall& call, void*) {
  for (const DType dtype : {call.gates.a.dtype, call.gates.b.dtype, call.gates.dt_bias.dtype}) {
    if (dtype == DType::kF64) return refuse_f64(BackendId::kCpu);
  }
  constexpr std::int64_t kRows = 64;  // of an item
  // A gate takes some 50 ns, as long as a core copies half a kilobyte.
  const double work =
      512.0 * static_cast<double>(call.rows) * static_cast<double>(call.gates.heads);
  for_each_item(thread_limit(0, work), (call.rows + kRows - 1) / kRows, [&](std::int64_t item) {
    store_gates(call.gates, call.at, call.sequence_tokens, item * kRows,
                std::min(call.rows, (item + 1) * kRows));
  });
  return {};
}

}  // namespace shortconv::cpu
