#include "replay/verification.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "common/error.hpp"
#include "common/random.hpp"
#include "core/element.hpp"
#include "core/thread_count.hpp"
#include "core/thread_pool.hpp"
#include "replay/call_engine.hpp"
#include "verify/compare.hpp"

namespace shortconv::tools {
namespace {

// Rows that the fp64 reference does at a time: its outputs are large.
constexpr std::int64_t kBlockRows = 32;

Buffer absolute_values(const std::byte* source, DType dtype, std::int64_t count) {
  const std::int64_t bytes = element_bytes(dtype);
  Buffer result(count * bytes);
  for (std::int64_t i = 0; i < count; ++i) {
    store_element(dtype, result.data() + i * bytes,
                  std::fabs(load_element(dtype, source + i * bytes)));
  }
  return result;
}

/// One whole request in one layer.
class Check {
 public:
  Check(const ReplaySetup& setup, const Recording& recording)
      : setup_(setup),
        config_(setup.config),
        recording_(recording),
        weights_(setup.weights[recording.layer]),
        tokens_(setup.requests[recording.request].tokens()),
        first_(recording.first_token) {
    result_.rows = tokens_ - first_;
    result_.values = result_.rows * config_.channels;
  }

  Verification run() {
    const Buffer x = inputs(0, tokens_);
    check_against_one_pass(x);
    check_final_state(x);
    check_against_reference();
    return result_;
  }

 private:
  /// What a block of rows adds to the result; blocks are done in parallel.
  struct BlockResult {
    Status status;
    std::int64_t correctly_rounded = 0;
    std::int64_t inaccurate_values = 0;
    std::string first_failure;
  };

  Buffer inputs(std::int64_t first, std::int64_t count) const {
    const std::int64_t bytes = config_.row_bytes();
    Buffer x(count * bytes);
    for (std::int64_t i = 0; i < count; ++i) {
      std::memcpy(x.data() + i * bytes,
                  setup_.input_row(recording_.layer, recording_.request, first + i),
                  static_cast<std::size_t>(bytes));
    }
    return x;
  }

  // One sequence that starts from zeros. The addresses are of one device.
  ForwardArgs whole_sequence(void* x, void* out, DType out_dtype, std::int64_t tokens, void* weight,
                             void* bias, Device device = {}) const {
    ForwardArgs args;
    args.x = TensorRef::contiguous(x, config_.dtype, {tokens, config_.channels}, device);
    args.out = TensorRef::contiguous(out, out_dtype, {tokens, config_.channels}, device);
    args.weight = TensorRef::contiguous(weight, config_.weight_dtype,
                                        {config_.channels, config_.width}, device);
    if (config_.has_bias) {
      args.bias = TensorRef::contiguous(bias, config_.weight_dtype, {config_.channels}, device);
    }
    args.epilogue.activation = config_.activation;
    return args;
  }

  // By the backend that was replayed.
  void forward_whole(void* x, void* out, void* weight, void* bias, void* stream) const {
    ForwardArgs args =
        whole_sequence(x, out, config_.dtype, tokens_, weight, bias, setup_.device());
    args.options.backend = setup_.backend;
    args.options.threads = setup_.threads;
    require(forward(args, stream));
  }

  Buffer one_pass(const Buffer& x) const {
    Buffer out(tokens_ * config_.row_bytes());
    if (!setup_.on_gpu()) {
      forward_whole(x.data(), out.data(), weights_.weight.data(), weights_.bias.data(), nullptr);
      return out;
    }
    const GpuStream stream;
    const GpuBuffer gpu_x = copied_to_gpu(x);
    const GpuBuffer gpu_out(out.bytes());
    const GpuBuffer gpu_weight = copied_to_gpu(weights_.weight);
    const GpuBuffer gpu_bias = copied_to_gpu(weights_.bias);
    forward_whole(gpu_x.data(), gpu_out.data(), gpu_weight.data(), gpu_bias.data(),
                  stream.handle());
    stream.wait();
    copy_from_gpu(out.data(), gpu_out.data(), out.bytes());
    return out;
  }

  void check_against_one_pass(const Buffer& x) {
    const Buffer out = one_pass(x);
    const std::int64_t bytes = element_bytes(config_.dtype);
    for (std::int64_t i = first_ * config_.channels; i < tokens_ * config_.channels; ++i) {
      const std::byte* recorded = recording_.outputs.data() + i * bytes;
      const std::byte* expected = out.data() + i * bytes;
      if (std::memcmp(recorded, expected, static_cast<std::size_t>(bytes)) == 0) continue;
      ++result_.differing_values;
      note(result_.first_failure, i / config_.channels, i % config_.channels,
           fmt::format("is {}, but {} in one pass over the whole request",
                       load_element(config_.dtype, recorded),
                       load_element(config_.dtype, expected)));
    }
  }

  // The last width - 1 of zeros ++ inputs, exactly.
  void check_final_state(const Buffer& x) {
    const std::int64_t bytes = config_.row_bytes();
    const std::vector<std::byte> zeros(static_cast<std::size_t>(bytes));
    for (std::int64_t column = 0; column < config_.history(); ++column) {
      const std::int64_t token = tokens_ - config_.history() + column;
      const std::byte* expected = token < 0 ? zeros.data() : x.data() + token * bytes;
      const std::byte* found = recording_.final_state.data() + column * bytes;
      if (std::memcmp(found, expected, static_cast<std::size_t>(bytes)) == 0) continue;
      result_.differing_states = 1;
      if (result_.first_failure.empty()) {
        result_.first_failure =
            fmt::format("request {}, layer {}: column {} of the final state is not input {}",
                        recording_.request, recording_.layer, column, token);
      }
    }
  }

  void check_against_reference() {
    const Buffer weight_sizes = absolute_values(weights_.weight.data(), config_.weight_dtype,
                                                config_.channels * config_.width);
    const Buffer bias_sizes =
        absolute_values(weights_.bias.data(), config_.weight_dtype,
                        weights_.bias.bytes() / element_bytes(config_.weight_dtype));
    const std::int64_t count = (result_.rows + kBlockRows - 1) / kBlockRows;
    std::vector<BlockResult> blocks(static_cast<std::size_t>(count));
    for_each_item(available_threads(), count, [&](std::int64_t i) {
      blocks[i] = check_block(first_ + i * kBlockRows, weight_sizes, bias_sizes);
    });
    for (const BlockResult& block : blocks) {
      require(block.status);
      result_.correctly_rounded += block.correctly_rounded;
      result_.inaccurate_values += block.inaccurate_values;
      if (result_.first_failure.empty()) result_.first_failure = block.first_failure;
    }
  }

  // The reference gets the rows of the block and the history before them as a sequence of its own.
  // Its second pass, over absolute values, gives the magnitude that the bound is made from.
  BlockResult check_block(std::int64_t first, const Buffer& weight_sizes,
                          const Buffer& bias_sizes) const {
    BlockResult result;
    const std::int64_t channels = config_.channels;
    const std::int64_t before = std::min(first, config_.history());
    const std::int64_t rows = std::min(kBlockRows, tokens_ - first);
    const std::int64_t fed = before + rows;

    const Buffer x = inputs(first - before, fed);
    const Buffer x_sizes = absolute_values(x.data(), config_.dtype, fed * channels);
    const Buffer references(fed * channels * element_bytes(DType::kF64));
    const Buffer magnitudes(fed * channels * element_bytes(DType::kF64));
    ForwardArgs args = whole_sequence(x.data(), references.data(), DType::kF64, fed,
                                      weights_.weight.data(), weights_.bias.data());
    args.options.backend = BackendId::kReference;
    result.status = forward(args);
    if (!result.status.ok()) return result;
    args = whole_sequence(x_sizes.data(), magnitudes.data(), DType::kF64, fed, weight_sizes.data(),
                          bias_sizes.data());
    args.options.backend = BackendId::kReference;
    args.epilogue.activation = Activation::kNone;
    result.status = forward(args);
    if (!result.status.ok()) return result;

    const auto* reference = reinterpret_cast<const double*>(references.data()) + before * channels;
    const auto* magnitude = reinterpret_cast<const double*>(magnitudes.data()) + before * channels;
    const std::byte* output = recording_.outputs.data() + first * config_.row_bytes();
    for (std::int64_t i = 0; i < rows * channels; ++i) {
      const double got = load_element(config_.dtype, output + i * element_bytes(config_.dtype));
      // What is rounded correctly lies within every bound.
      if (correctly_rounded(config_.dtype, got, reference[i])) {
        ++result.correctly_rounded;
      } else if (!within_bound(config_.dtype, config_.width, config_.activation, got, reference[i],
                               magnitude[i])) {
        ++result.inaccurate_values;
        note(result.first_failure, first + i / channels, i % channels,
             fmt::format("is {}, but {} in fp64, further away than {}", got, reference[i],
                         error_bound(config_.dtype, config_.width, config_.activation, reference[i],
                                     magnitude[i])));
      }
    }
    return result;
  }

  void note(std::string& first_failure, std::int64_t token, std::int64_t channel,
            const std::string& what) const {
    if (!first_failure.empty()) return;
    first_failure = fmt::format("request {}, layer {}, token {}, channel {}: {}",
                                recording_.request, recording_.layer, token, channel, what);
  }

  const ReplaySetup& setup_;
  const LayerConfig& config_;
  const Recording& recording_;
  const LayerWeights& weights_;
  std::int64_t tokens_;
  std::int64_t first_;  // token whose output there is
  Verification result_;
};

void add(const Verification& part, Verification& sum) {
  sum.rows += part.rows;
  sum.values += part.values;
  sum.correctly_rounded += part.correctly_rounded;
  sum.differing_values += part.differing_values;
  sum.differing_states += part.differing_states;
  sum.inaccurate_values += part.inaccurate_values;
  if (sum.first_failure.empty()) sum.first_failure = part.first_failure;
}

}  // namespace

void require_success(const Verification& verification) {
  if (verification.failures() == 0) return;
  throw CommandError(kExitFailed, fmt::format("replay: {} failures, first: {}",
                                              verification.failures(), verification.first_failure));
}

std::vector<std::int64_t> choose_requests(std::span<const Request> requests, std::int64_t count,
                                          std::uint64_t seed, std::int64_t bytes_per_token,
                                          std::int64_t memory_bytes) {
  const std::int64_t wanted = std::min(count, std::ssize(requests));
  if (wanted <= 0) return {};
  const auto shorter = [](const Request& a, const Request& b) { return a.tokens() < b.tokens(); };
  const auto [shortest, longest] = std::minmax_element(requests.begin(), requests.end(), shorter);
  std::vector<std::int64_t> order(requests.size());
  std::iota(order.begin(), order.end(), 0);
  std::swap(order[0], order[longest - requests.begin()]);
  if (order.size() > 1) {
    std::swap(order[1], *std::find(order.begin(), order.end(), shortest - requests.begin()));
  }
  Random random(seed);
  for (std::int64_t i = 2; i < std::ssize(order); ++i) {
    std::swap(order[i], order[random.between(i, std::ssize(order) - 1)]);
  }

  std::vector<std::int64_t> chosen;
  std::int64_t room = memory_bytes;
  for (std::int64_t i = 0; i < std::ssize(order) && std::ssize(chosen) < wanted; ++i) {
    const std::int64_t bytes = requests[order[i]].tokens() * bytes_per_token;
    if (i >= 2 && bytes > room) continue;
    room -= bytes;
    chosen.push_back(order[i]);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

void verify_recordings(const ReplaySetup& setup, std::span<const Recording> recordings,
                       const std::function<void(std::int64_t)>& on_rows,
                       Verification& verification) {
  std::int64_t rows = 0;
  for (const Recording& recording : recordings) {
    const Verification part = Check(setup, recording).run();
    add(part, verification);
    rows += part.rows;
    on_rows(rows);
  }
  verification.requests = std::ssize(recordings) / std::ssize(recorded_layers(setup.config));
  ++verification.runs;
}

}  // namespace shortconv::tools
