#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

namespace shortconv::tools {

/// The sample at rank ceil(fraction * n), so always a value that was measured. 0 without samples.
[[nodiscard]] inline double percentile(std::vector<double> samples, double fraction) {
  if (samples.empty()) return 0;
  const double count = static_cast<double>(samples.size());
  const double rank = std::clamp(std::ceil(fraction * count), 1.0, count);
  const auto nth = samples.begin() + static_cast<std::ptrdiff_t>(rank) - 1;
  std::nth_element(samples.begin(), nth, samples.end());
  return *nth;
}

[[nodiscard]] inline double median(std::vector<double> samples) {
  return percentile(std::move(samples), 0.5);
}

struct Summary {
  double p50 = 0;
  double mean = 0;
  double p99 = 0;
};

[[nodiscard]] inline Summary summarize(const std::vector<double>& samples) {
  if (samples.empty()) return {};
  const double sum = std::accumulate(samples.begin(), samples.end(), 0.0);
  return {.p50 = percentile(samples, 0.5),
          .mean = sum / static_cast<double>(samples.size()),
          .p99 = percentile(samples, 0.99)};
}

/// At most `limit` of the samples, evenly spread and in their order.
[[nodiscard]] inline std::vector<double> thin_out(const std::vector<double>& samples,
                                                  std::size_t limit) {
  if (samples.size() <= limit) return samples;
  std::vector<double> picked;
  picked.reserve(limit);
  for (std::size_t i = 0; i < limit; ++i) picked.push_back(samples[i * samples.size() / limit]);
  return picked;
}

}  // namespace shortconv::tools
