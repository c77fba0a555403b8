#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "shortconv/problem.hpp"

namespace shortconv::tools {

/// The convolution layers of a published model.
struct Model {
  std::string_view name;
  std::string_view description;
  std::int64_t channels;  ///< of one layer, before tensor parallelism
  std::int32_t width;
  std::int64_t layers;  ///< with a convolution, out of all
  Activation activation = Activation::kSilu;
  bool has_bias = false;
  bool has_f32_weights = false;  ///< whatever the dtype of the activations
};

[[nodiscard]] std::span<const Model> models();

/// Throws CommandError when there is none of that name.
[[nodiscard]] const Model& find_model(std::string_view name);

/// A model's layers as one rank runs them.
struct LayerConfig {
  std::int64_t channels = 0;
  std::int32_t width = 0;
  std::int64_t layers = 0;
  Activation activation = Activation::kNone;
  bool has_bias = false;
  DType dtype = DType::kBF16;  ///< of inputs, outputs and states
  DType weight_dtype = DType::kBF16;

  [[nodiscard]] std::int64_t history() const { return width - 1; }
  [[nodiscard]] std::int64_t row_bytes() const { return channels * element_bytes(dtype); }
  [[nodiscard]] std::int64_t state_bytes() const { return history() * row_bytes(); }
};

/// `layers` is a number or "all". Throws CommandError when `ranks` does not divide the channels.
[[nodiscard]] LayerConfig configure(const Model& model, DType dtype, std::int64_t ranks,
                                    const std::string& layers);

}  // namespace shortconv::tools
