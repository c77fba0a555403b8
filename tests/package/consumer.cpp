// The C++ quick start of the README, compiled against the installed package.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "shortconv/plan.hpp"

int main() {
  using namespace shortconv;
  const std::int64_t tokens = 5, channels = 8, width = 4, slots = 2;
  std::vector<float> x(tokens * channels, 1.0f), out(tokens * channels);
  std::vector<float> weight(channels * width, 0.25f), state(slots * (width - 1) * channels);
  std::vector<std::int32_t> query_start_loc = {0, 2, 5};  // two sequences: 2 and 3 tokens

  ForwardArgs args;
  args.x = TensorRef::contiguous(x.data(), DType::kF32, {tokens, channels});
  args.out = TensorRef::contiguous(out.data(), DType::kF32, {tokens, channels});
  args.weight = TensorRef::contiguous(weight.data(), DType::kF32, {channels, width});
  args.pool.state = TensorRef::contiguous(state.data(), DType::kF32, {slots, width - 1, channels});
  args.sequences.query_start_loc = TensorRef::contiguous(query_start_loc.data(), DType::kI32, {3});
  args.epilogue.activation = Activation::kSilu;

  if (Status status = forward(args); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  std::printf("first output %.4f, newest input kept for the next call %.1f\n", out[0],
              state[(width - 2) * channels]);
  return out[0] > 0.14f && out[0] < 0.141f ? 0 : 1;  // silu(0.25)
}
