#include "bench/kernel_choice.hpp"

#include <cstdint>

#include "common/error.hpp"
#include "cuda/host/select.hpp"
#include "shortconv/plan.hpp"
#include "shortconv/problem.hpp"

namespace shortconv::tools::bench {

ForwardArgs imagined_arguments(const Shape& shape, const CallOptions& options) {
  // Aligned as allocations are, and farther apart than any tensor is long.
  constexpr std::uintptr_t kApart = std::uintptr_t{1} << 40;
  std::uintptr_t address = 0;
  const auto next = [&] { return reinterpret_cast<void*>(address += kApart); };
  const CallMemory memory{.x = next(),
                          .out = next(),
                          .weight = next(),
                          .bias = next(),
                          .state = next(),
                          .read_slots = next(),
                          .query_start_loc = next(),
                          .has_initial_state = next(),
                          .parents = next(),
                          .windows = next(),
                          .cache_seqlens = next(),
                          .snapshots = next(),
                          .violations = next(),
                          .seq_idx = next()};
  return CallLayout(shape, options).arguments(memory, {DeviceType::kCuda, 0});
}

std::string chosen_kernel(const Shape& shape, const CallOptions& options, int multiprocessors) {
  constexpr int kHopper = 90;
  const ForwardArgs args = imagined_arguments(shape, options);
  Problem problem;
  require(make_problem(args, problem));
  const cuda::DeviceProperties device{.multiprocessors = multiprocessors, .architecture = kHopper};
  cuda::KernelConfig config;
  require(cuda::select(problem, device, cuda::policy_for(device), config));
  cuda::LaunchConfig launch;
  (void)cuda::launch_for(config, pointers(args), launch);  // for the alignment of the addresses
  return cuda::name_of(launch);
}

}  // namespace shortconv::tools::bench
