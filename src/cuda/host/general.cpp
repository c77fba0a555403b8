#include "cuda/host/general.hpp"

#include <algorithm>

#include "core/capability.hpp"
#include "core/dispatch.hpp"
#include "core/history.hpp"
#include "cuda/host/numbers.hpp"
#include "cuda/tuning.hpp"

namespace shortconv::cuda {
namespace {

/// On average, rounded up.
std::int64_t tokens_per_sequence(const Problem& p) {
  return divide_up(p.tokens, std::max<std::int64_t>(p.sequences, 1));
}

}  // namespace

int general_width(const Problem& p) {
  return p.dilation == 1 && is_listed(kWidths, p.width) ? p.width : 0;
}

int in_place_channels(const Problem& p) {
  const bool few = general_width(p) != 0 && tokens_per_sequence(p) <= kMaxShortInPlaceTokens;
  return few ? kShortInPlaceChannels : kInPlaceChannels;
}

std::int32_t in_place_threads(const Problem& p) {
  const int most = general_width(p) == 0 ? kMaxWideInPlaceThreads : kMaxInPlaceThreads;
  const int channels = in_place_channels(p);
  const std::int64_t strips =
      std::max<std::int64_t>(divide_up(tokens_per_sequence(p), kGeneralStripTokens), 1);
  const std::int64_t steps = divide_up(strips, most / channels);
  return static_cast<std::int32_t>(channels * divide_up(strips, steps));
}

std::int32_t general_shared_bytes(const Problem& p, Kernel kernel, std::int32_t threads) {
  const bool wide = general_width(p) == 0;
  const auto history = static_cast<std::int32_t>(history_of(p));
  constexpr auto kBytes = static_cast<std::int32_t>(sizeof(float));
  if (kernel == Kernel::kInPlace) {
    const std::int32_t channels = in_place_channels(p);
    const std::int32_t rows = history + threads / channels * kGeneralStripTokens;
    return (2 * rows + (wide ? p.width : 0)) * channels * kBytes;
  }
  const bool windows = kernel == Kernel::kGeneral && wide && !p.parents.present;
  return windows ? general_window_bytes(history, p.width) * threads : 0;
}

std::int32_t max_general_shared_bytes(std::int32_t threads) {
  return general_window_bytes(kMaxWidth - 1, kMaxWidth) * threads;
}

}  // namespace shortconv::cuda
