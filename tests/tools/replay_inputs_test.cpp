#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>

#include "common/error.hpp"
#include "core/element.hpp"
#include "replay/inputs.hpp"

namespace shortconv::tools {
namespace {

constexpr std::int64_t kChannels = 64;

TEST(InputTable, rows_are_a_function_of_their_coordinates) {
  const InputTable first(1, DType::kBF16, kChannels);
  const InputTable second(1, DType::kBF16, kChannels);
  for (std::int64_t token = 0; token < 100; ++token) {
    EXPECT_EQ(std::memcmp(first.row(2, 3, token), second.row(2, 3, token),
                          static_cast<std::size_t>(first.row_bytes())),
              0);
  }
}

TEST(InputTable, every_coordinate_changes_the_rows) {
  const InputTable table(1, DType::kBF16, kChannels);
  const InputTable other_seed(2, DType::kBF16, kChannels);
  int same_layer = 0, same_request = 0, same_token = 0, same_seed = 0;
  for (std::int64_t token = 0; token < 1000; ++token) {
    const std::byte* row = table.row(0, 0, token);
    same_layer += row == table.row(1, 0, token) ? 1 : 0;
    same_request += row == table.row(0, 1, token) ? 1 : 0;
    same_token += row == table.row(0, 0, token + 1) ? 1 : 0;
    same_seed += std::memcmp(row, other_seed.row(0, 0, token),
                             static_cast<std::size_t>(table.row_bytes())) == 0
                     ? 1
                     : 0;
  }
  // A table of limited size repeats itself now and then.
  EXPECT_LT(same_layer, 10);
  EXPECT_LT(same_request, 10);
  EXPECT_LT(same_token, 10);
  EXPECT_EQ(same_seed, 0);
}

TEST(InputTable, drafts_that_are_wrong_are_other_rows) {
  const InputTable table(1, DType::kBF16, kChannels);
  int right = 0, same_draft = 0, same_token = 0;
  for (std::int64_t token = 0; token < 1000; ++token) {
    const std::byte* row = table.wrong_row(0, 0, token, 1);
    EXPECT_EQ(row, table.wrong_row(0, 0, token, 1));
    right += row == table.row(0, 0, token + 1) ? 1 : 0;
    same_draft += row == table.wrong_row(0, 0, token, 2) ? 1 : 0;
    same_token += row == table.wrong_row(0, 0, token + 1, 1) ? 1 : 0;
  }
  EXPECT_LT(right, 10);
  EXPECT_LT(same_draft, 10);
  EXPECT_LT(same_token, 10);
}

TEST(InputTable, values_are_about_normal_in_every_dtype) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const InputTable table(1, dtype, kChannels);
    double sum = 0, squares = 0;
    constexpr std::int64_t kTokens = 1000;
    for (std::int64_t token = 0; token < kTokens; ++token) {
      for (std::int64_t channel = 0; channel < kChannels; ++channel) {
        const double value =
            load_element(dtype, table.row(0, 0, token) + channel * element_bytes(dtype));
        sum += value;
        squares += value * value;
      }
    }
    EXPECT_NEAR(sum / (kTokens * kChannels), 0, 0.02);
    EXPECT_NEAR(squares / (kTokens * kChannels), 1, 0.03);
  }
}

TEST(Weights, layers_differ_and_the_seed_decides) {
  const LayerConfig config{.channels = kChannels, .width = 4, .layers = 2, .has_bias = true};
  const auto weights = make_weights(1, config);
  const auto again = make_weights(1, config);
  const auto others = make_weights(2, config);
  ASSERT_EQ(weights.size(), 2u);
  const auto same = [](const Buffer& a, const Buffer& b) {
    return a.bytes() == b.bytes() &&
           std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
  };
  EXPECT_EQ(weights[0].weight.bytes(), kChannels * 4 * 2);
  EXPECT_EQ(weights[0].bias.bytes(), kChannels * 2);
  EXPECT_TRUE(same(weights[1].weight, again[1].weight));
  EXPECT_FALSE(same(weights[0].weight, weights[1].weight));
  EXPECT_FALSE(same(weights[0].bias, weights[1].bias));
  EXPECT_FALSE(same(weights[0].weight, others[0].weight));
}

TEST(Models, are_well_formed_and_divide_among_ranks) {
  std::set<std::string_view> names;
  for (const Model& model : models()) {
    EXPECT_TRUE(names.insert(model.name).second);
    EXPECT_EQ(&find_model(model.name), &model);
    const LayerConfig config = configure(model, DType::kBF16, 8, "all");
    EXPECT_EQ(config.channels * 8, model.channels);
    EXPECT_EQ(config.layers, model.layers);
    EXPECT_EQ(config.weight_dtype, model.has_f32_weights ? DType::kF32 : DType::kBF16);
  }
}

TEST(Models, default_model_is_qwen3_next) {
  const LayerConfig config = configure(find_model("qwen3-next-80b"), DType::kBF16, 1, "2");
  EXPECT_EQ(config.channels, 8192);
  EXPECT_EQ(config.width, 4);
  EXPECT_EQ(config.layers, 2);
  EXPECT_EQ(config.activation, Activation::kSilu);
  EXPECT_FALSE(config.has_bias);
  EXPECT_EQ(config.row_bytes(), 16384);
  EXPECT_EQ(config.state_bytes(), 3 * 16384);
}

TEST(Models, refusals_say_what_there_is) {
  const auto refusal = [](const auto& attempt) -> std::string {
    try {
      attempt();
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      return error.what();
    }
    return "accepted";
  };
  const Model& model = find_model("lfm2");
  EXPECT_TRUE(refusal([] {
                (void)find_model("gpt-2");
              }).starts_with("--model: 'gpt-2' is not one of qwen3-next-80b, "));
  EXPECT_EQ(refusal([&] { (void)configure(model, DType::kBF16, 3, "1"); }),
            "--tp: 3 does not divide the 2048 channels of lfm2");
  for (const char* layers : {"0", "11", "-1", "two", "1x", ""}) {
    EXPECT_EQ(refusal([&] { (void)configure(model, DType::kBF16, 1, layers); }),
              "--layers: '" + std::string(layers) +
                  "' is neither 'all' nor a number from 1 to 10, the convolution layers of lfm2");
  }
}

}  // namespace
}  // namespace shortconv::tools
