#include "replay/inputs.hpp"

#include <algorithm>
#include <utility>

#include "common/random.hpp"
#include "core/element.hpp"
#include "core/thread_count.hpp"
#include "core/thread_pool.hpp"
#include "replay/hash.hpp"

namespace shortconv::tools {
namespace {

// Enough that a row taken for another one shows; few enough to be made in a fraction of a second.
constexpr std::int64_t kTableRows = 2048;

// What random numbers are for, so that no two uses share them.
enum Use : std::int64_t { kInput = 1, kWeight, kBias, kWrongDraft };

Buffer random_values(std::uint64_t stream, DType dtype, std::int64_t count, double scale) {
  const std::int64_t bytes = element_bytes(dtype);
  Buffer values(count * bytes);
  constexpr std::int64_t kRun = 4096;
  for_each_item(available_threads(), (count + kRun - 1) / kRun, [&](std::int64_t run) {
    for (std::int64_t i = run * kRun; i < std::min(count, (run + 1) * kRun); ++i) {
      const double value = normal_from(mix(stream + static_cast<std::uint64_t>(i)));
      store_element(dtype, values.data() + i * bytes, scale * value);
    }
  });
  return values;
}

}  // namespace

InputTable::InputTable(std::uint64_t seed, DType dtype, std::int64_t channels)
    : seed_(seed),
      row_bytes_(channels * element_bytes(dtype)),
      rows_(random_values(hash_of(seed, {kInput}), dtype, kTableRows * channels, 1.0)) {}

const std::byte* InputTable::row(std::int64_t layer, std::int64_t request,
                                 std::int64_t token) const {
  return pick(hash_of(seed_, {kInput, layer, request, token}));
}

const std::byte* InputTable::wrong_row(std::int64_t layer, std::int64_t request, std::int64_t token,
                                       std::int64_t draft) const {
  return pick(hash_of(seed_, {kWrongDraft, layer, request, token, draft}));
}

const std::byte* InputTable::pick(std::uint64_t hash) const {
  return rows_.data() + static_cast<std::int64_t>(hash % kTableRows) * row_bytes_;
}

std::vector<LayerWeights> make_weights(std::uint64_t seed, const LayerConfig& config) {
  constexpr double kScale = 0.5;  // outputs of about the size of the inputs with four taps
  std::vector<LayerWeights> weights;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    LayerWeights made;
    made.weight = random_values(hash_of(seed, {kWeight, layer}), config.weight_dtype,
                                config.channels * config.width, kScale);
    if (config.has_bias) {
      made.bias = random_values(hash_of(seed, {kBias, layer}), config.weight_dtype, config.channels,
                                kScale);
    }
    weights.push_back(std::move(made));
  }
  return weights;
}

}  // namespace shortconv::tools
