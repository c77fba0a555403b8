#include "replay/models.hpp"

#include <fmt/format.h>

#include <charconv>

#include "common/error.hpp"
#include "common/text.hpp"

namespace shortconv::tools {
namespace {

// Channels follow from the heads in the published configurations: for gated delta nets
// 2 * key heads * 128 + value heads * 128, for Kimi's delta attention q, k and v of 32 * 128 each
// in one packed call, for Mamba 2 the x, B and C parts of the input projection.
constexpr Model kModels[] = {
    {.name = "qwen3-next-80b",
     .description = "Qwen3-Next-80B-A3B, gated delta net",
     .channels = 8192,
     .width = 4,
     .layers = 36},
    {.name = "qwen3.5-397b",
     .description = "Qwen3.5-397B-A17B, gated delta net",
     .channels = 12288,
     .width = 4,
     .layers = 45},
    {.name = "qwen3.5-27b",
     .description = "Qwen3.5-27B, gated delta net",
     .channels = 10240,
     .width = 4,
     .layers = 48},
    {.name = "kimi-linear-48b",
     .description = "Kimi-Linear-48B-A3B, q, k and v packed, fp32 weights",
     .channels = 12288,
     .width = 4,
     .layers = 20,
     .has_f32_weights = true},
    {.name = "nemotron-h",
     .description = "Nemotron-3-Super, Mamba 2 with bias",
     .channels = 10240,
     .width = 4,
     .layers = 40,
     .has_bias = true},
    {.name = "lfm2",
     .description = "LFM2-1.2B, three taps and no activation",
     .channels = 2048,
     .width = 3,
     .layers = 10,
     .activation = Activation::kNone},
};

std::int64_t parse_layers(const std::string& text, const Model& model) {
  if (text == "all") return model.layers;
  std::int64_t layers = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layers);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  if (!is_number || layers < 1 || layers > model.layers) {
    throw CommandError(kExitUsage, fmt::format("--layers: {} is neither 'all' nor a number from "
                                               "1 to {}, the convolution layers of {}",
                                               in_quotes(text), model.layers, model.name));
  }
  return layers;
}

}  // namespace

std::span<const Model> models() { return kModels; }

const Model& find_model(std::string_view name) {
  std::string names;
  for (const Model& model : kModels) {
    if (model.name == name) return model;
    names += names.empty() ? "" : ", ";
    names += model.name;
  }
  throw CommandError(kExitUsage,
                     fmt::format("--model: {} is not one of {}", in_quotes(name), names));
}

LayerConfig configure(const Model& model, DType dtype, std::int64_t ranks,
                      const std::string& layers) {
  if (ranks < 1 || model.channels % ranks != 0) {
    throw CommandError(kExitUsage, fmt::format("--tp: {} does not divide the {} channels of {}",
                                               ranks, model.channels, model.name));
  }
  return {.channels = model.channels / ranks,
          .width = model.width,
          .layers = parse_layers(layers, model),
          .activation = model.activation,
          .has_bias = model.has_bias,
          .dtype = dtype,
          .weight_dtype = model.has_f32_weights ? DType::kF32 : dtype};
}

}  // namespace shortconv::tools
