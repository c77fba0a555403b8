#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/buffer.hpp"
#include "replay/models.hpp"

namespace shortconv::tools {

/// The activations that enter the convolutions: a function of (seed, layer, request, token,
/// channel), so that a check can make them again. Rows come from a table of about normal numbers by
/// a hash of their coordinates, which makes them as cheap as a copy.
class InputTable {
 public:
  InputTable(std::uint64_t seed, DType dtype, std::int64_t channels);

  [[nodiscard]] const std::byte* row(std::int64_t layer, std::int64_t request,
                                     std::int64_t token) const;
  /// A draft that is not accepted, in that row of the step that begins at `token`.
  [[nodiscard]] const std::byte* wrong_row(std::int64_t layer, std::int64_t request,
                                           std::int64_t token, std::int64_t draft) const;
  [[nodiscard]] std::int64_t row_bytes() const { return row_bytes_; }

 private:
  [[nodiscard]] const std::byte* pick(std::uint64_t hash) const;

  std::uint64_t seed_;
  std::int64_t row_bytes_;
  Buffer rows_;
};

/// Weights and bias of one layer, about normal, different for each layer.
struct LayerWeights {
  Buffer weight;  ///< [channels, width]
  Buffer bias;    ///< [channels], empty without
};
[[nodiscard]] std::vector<LayerWeights> make_weights(std::uint64_t seed, const LayerConfig& config);

}  // namespace shortconv::tools
