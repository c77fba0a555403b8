// What may stand around the convolution, one rule per test, on both backends.
#include <gtest/gtest.h>

#include <cmath>

#include "call.hpp"

namespace shortconv {
namespace {

class Epilogues : public testing::TestWithParam<BackendId> {
 protected:
  Call make(std::vector<std::int32_t> bounds, std::int64_t rows = -1) {
    Call call(std::move(bounds), rows);
    call.args.backend = GetParam();
    call.args.threads = 1;
    return call;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Epilogues,
                         testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& info) {
                           return info.param == BackendId::kCpu ? "cpu" : "reference";
                         });

TEST_P(Epilogues, ResidualAddsTheTokensOwnInputAfterTheActivation) {
  Call plain = make({0, 2, 7});
  plain.args.activation = Activation::kSilu;
  plain.flags = {1, 0};
  Call call = plain;
  call.args.residual = true;
  plain.run();
  call.run();
  for (std::size_t i = 0; i < call.out.size(); ++i) {
    EXPECT_FLOAT_EQ(call.out[i], plain.out[i] + call.x[i]) << i;
  }
  EXPECT_EQ(call.state, plain.state);
}

TEST_P(Epilogues, PaddedRowsGetNoResidual) {
  for (const PaddedRows policy : {PaddedRows::kZero, PaddedRows::kUntouched, PaddedRows::kCopy}) {
    Call call = make({1, 3, 5}, 6);
    call.read_slots = {-1, 2};
    call.args.residual = true;
    call.args.padded_rows = policy;
    call.run();
    for (const std::int64_t row : {0, 1, 2, 5}) {
      const float wanted = policy == PaddedRows::kZero        ? 0.0f
                           : policy == PaddedRows::kUntouched ? kPoison
                                                              : call.x_at(row, 1);
      EXPECT_EQ(call.out_at(row, 1), wanted) << row;
    }
  }
}

}  // namespace
}  // namespace shortconv
