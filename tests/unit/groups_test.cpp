// Calls with groups: what is easily confused between a projection and a delta rule, one rule per
// test. tests/verify/grouped_test.cpp has random calls.
#include "shortconv/groups.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "common/random.hpp"
#include "core/element.hpp"
#include "shortconv/plan.hpp"

namespace shortconv {
namespace {

/// Elements of one dtype; shapes are those of the views.
struct Elements {
  DType dtype = DType::kF32;
  std::vector<char> bytes;

  Elements(DType type, std::int64_t count) : dtype(type) {
    bytes.resize(static_cast<std::size_t>(count * element_bytes(type)), '\xff');
  }
  [[nodiscard]] double operator[](std::int64_t i) const {
    return load_element(dtype, bytes.data() + i * element_bytes(dtype));
  }
  void set(std::int64_t i, double value) {
    store_element(dtype, bytes.data() + i * element_bytes(dtype), value);
  }
  void fill(std::uint64_t seed, double scale = 1) {
    tools::Random random(seed);
    for (std::int64_t i = 0; i < std::ssize(bytes) / element_bytes(dtype); ++i) {
      set(i, scale * random.normal());
    }
  }
  TensorRef view(std::initializer_list<std::int64_t> shape, std::int64_t offset = 0) {
    return TensorRef::contiguous(bytes.data() + offset * element_bytes(dtype), dtype, shape);
  }
};

/// Sizes of a gated delta net, and the columns of its rows.
struct Shape {
  std::int64_t k_heads = 2, v_heads = 4, head_dim = 16;
  bool interleaved = true;

  [[nodiscard]] std::int64_t ratio() const { return v_heads / k_heads; }
  [[nodiscard]] std::int64_t block() const { return 2 * (1 + ratio()) * head_dim; }
  [[nodiscard]] std::int64_t columns() const { return k_heads * block(); }
  [[nodiscard]] std::int64_t channels() const { return (2 * k_heads + v_heads) * head_dim; }
  [[nodiscard]] std::int64_t heads(int group) const { return group < 2 ? k_heads : v_heads; }
  [[nodiscard]] HeadMap map(int group) const {
    const std::int64_t keys = k_heads * head_dim, values = v_heads * head_dim;
    const std::int64_t in_block[] = {0, head_dim, 2 * head_dim, (2 + ratio()) * head_dim};
    const std::int64_t flat[] = {0, keys, 2 * keys, 2 * keys + values};
    if (!interleaved) return {.offset = flat[group]};
    if (group < 2) return {.offset = in_block[group], .head_stride = block()};
    return {.offset = in_block[group],
            .head_stride = head_dim,
            .block_heads = ratio(),
            .block_stride = block()};
  }
  /// Of element d of a head.
  [[nodiscard]] std::int64_t column(int group, std::int64_t head, std::int64_t d) const {
    if (!interleaved) return map(group).offset + head * head_dim + d;
    const std::int64_t in_block = group < 2 ? 1 : ratio();
    return head / in_block * block() + map(group).offset + head % in_block * head_dim + d;
  }
};

/// q, k, v and z of some sequences, and the same without groups.
class Front {
 public:
  Front(BackendId backend, DType type, Shape sizes, std::vector<std::int32_t> bounds,
        std::int64_t pitch = 0)
      : shape(sizes),
        dtype(type),
        tokens(bounds.back()),
        query_start_loc(std::move(bounds)),
        pitch_(pitch == 0 ? sizes.columns() : pitch),
        x(type, tokens * pitch_),
        weight(DType::kF32, sizes.channels() * 4),
        state(type, std::ssize(query_start_loc) * 3 * sizes.channels()) {
    for (int group = 0; group < 4; ++group) {
      outs.emplace_back(type, tokens * sizes.heads(group) * sizes.head_dim);
    }
    weight.fill(2);
    state.fill(3);
    tools::Random random(1);
    for (std::int64_t row = 0; row < tokens; ++row) {
      for (std::int64_t i = 0; i < sizes.columns(); ++i) x.set(row * pitch_ + i, random.normal());
    }
    args.forward.options.backend = backend;
    args.forward.epilogue.activation = Activation::kSilu;
    args.forward.sequences.initial_state = InitialState::kAll;
    for (int group = 0; group < 4; ++group) {
      ChannelGroup& one = groups.emplace_back();
      one.input = sizes.map(group);
      one.copy = group == 3;
      if (group < 2) one.l2_norm.emplace();
    }
  }

  Status run() {
    connect();
    for (int group = 0; group < 4; ++group) {
      groups[static_cast<std::size_t>(group)].out =
          outs[static_cast<std::size_t>(group)].view({tokens, shape.heads(group), shape.head_dim});
    }
    args.groups = groups;
    return forward_groups(args);
  }

  /// [tokens, channels], before norms.
  Elements without_groups() {
    Elements rows(dtype, tokens * shape.channels()), out(dtype, tokens * shape.channels());
    for (std::int64_t row = 0; row < tokens; ++row) {
      for_each_channel([&](int group, std::int64_t head, std::int64_t d, std::int64_t channel) {
        rows.set(row * shape.channels() + channel, x[row * pitch_ + shape.column(group, head, d)]);
      });
    }
    connect();
    ForwardArgs plain = args.forward;
    plain.x = rows.view({tokens, shape.channels()});
    plain.out = out.view({tokens, shape.channels()});
    EXPECT_TRUE(forward(plain).ok());
    return out;
  }

  template <typename Use>
  void for_each_channel(const Use& use) const {
    std::int64_t channel = 0;
    for (int group = 0; group < 3; ++group) {
      for (std::int64_t head = 0; head < shape.heads(group); ++head) {
        for (std::int64_t d = 0; d < shape.head_dim; ++d) use(group, head, d, channel++);
      }
    }
  }

  [[nodiscard]] std::int64_t at(int group, std::int64_t row, std::int64_t head,
                                std::int64_t d) const {
    return (row * shape.heads(group) + head) * shape.head_dim + d;
  }

  Shape shape;
  DType dtype;
  std::int64_t tokens;
  std::vector<std::int32_t> query_start_loc;
  std::int64_t pitch_;
  Elements x, weight, state;
  std::vector<Elements> outs;
  std::vector<ChannelGroup> groups;
  GroupedArgs args;

 private:
  void connect() {
    const std::int64_t sequences = std::ssize(query_start_loc) - 1;
    args.forward.x = x.view({tokens, shape.columns()});
    args.forward.x.strides[0] = pitch_;
    args.forward.weight = weight.view({shape.channels(), 4});
    args.forward.pool.state = state.view({sequences + 1, 3, shape.channels()});
    args.forward.sequences.query_start_loc =
        TensorRef::contiguous(query_start_loc.data(), DType::kI32, {sequences + 1});
  }
};

class Groups : public testing::TestWithParam<BackendId> {
 protected:
  Front make(DType dtype, Shape shape, std::vector<std::int32_t> bounds, std::int64_t pitch = 0) {
    return {GetParam(), dtype, shape, std::move(bounds), pitch};
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Groups, testing::Values(BackendId::kReference, BackendId::kCpu),
                         [](const auto& row) {
                           return row.param == BackendId::kCpu ? "cpu" : "reference";
                         });

// A norm of a norm would be nearly the same with the usual eps and scale.
TEST_P(Groups, NormalizeOnceAndQAndKOnly) {
  Front front = make(DType::kF32, {}, {0, 5});
  for (int group = 0; group < 2; ++group) {
    front.groups[static_cast<std::size_t>(group)].l2_norm = L2Norm{.eps = 0.5f, .scale = 3};
  }
  const std::vector<char> state = front.state.bytes;
  ASSERT_TRUE(front.run().ok());
  front.state.bytes = state;
  const Elements plain = front.without_groups();
  for (std::int64_t row = 0; row < 5; ++row) {
    front.for_each_channel([&](int group, std::int64_t head, std::int64_t d, std::int64_t channel) {
      double expected = plain[row * front.shape.channels() + channel];
      if (group < 2) {
        double sum = 0.5;
        for (std::int64_t i = 0; i < front.shape.head_dim; ++i) {
          sum += std::pow(plain[row * front.shape.channels() + channel - d + i], 2);
        }
        expected *= 3 / std::sqrt(sum);
      }
      const double got = front.outs[static_cast<std::size_t>(group)][front.at(group, row, head, d)];
      EXPECT_NEAR(got, expected, 2e-6) << group << " " << head << " " << d;
    });
  }
}

TEST_P(Groups, NormalizeRoundedResults) {
  Front front = make(DType::kBF16, {.head_dim = 128}, {0, 4});
  const std::vector<char> state = front.state.bytes;
  ASSERT_TRUE(front.run().ok());
  front.state.bytes = state;
  Elements plain = front.without_groups();
  Elements q(DType::kBF16, 4 * 2 * 128);
  for (std::int64_t row = 0; row < 4; ++row) {
    for (std::int64_t i = 0; i < 256; ++i) {
      q.set(row * 256 + i, plain[row * front.shape.channels() + i]);
    }
  }
  ASSERT_TRUE(
      l2_norm(
          {.x = q.view({4, 2, 128}), .out = q.view({4, 2, 128}), .norm = {}, .backend = GetParam()})
          .ok());
  EXPECT_EQ(q.bytes, front.outs[0].bytes);
}

TEST_P(Groups, AddEpsToTheSumOfSquares) {
  Elements x(DType::kF32, 3);
  const double values[] = {3e-4, -4e-4, 0};
  for (int i = 0; i < 3; ++i) x.set(i, values[i]);
  ASSERT_TRUE(l2_norm({.x = x.view({1, 1, 3}),
                       .out = x.view({1, 1, 3}),
                       .norm = {.eps = 1e-6f},
                       .backend = GetParam()})
                  .ok());
  const double root = std::sqrt(25e-8 + 1e-6);
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(x[i], values[i] / root, 1e-7);
}

struct GateCall {
  Elements a{DType::kBF16, 6}, b{DType::kBF16, 6}, a_log{DType::kF32, 3}, dt_bias{DType::kF32, 3};
  Elements g{DType::kF32, 6}, beta{DType::kF32, 6};
  GateArgs args;

  GateCall() {
    a.fill(1, 2);
    b.fill(2, 2);
    a_log.fill(3, 1);
    dt_bias.fill(4, 1);
    a.set(0, 30);   // softplus(x) = x
    a.set(1, -40);  // log(1 + exp(x)) computed so would be 0
    args.a = a.view({2, 3});
    args.b = b.view({2, 3});
    args.a_log = a_log.view({3});
    args.dt_bias = dt_bias.view({3});
    args.g = g.view({2, 3});
    args.beta = beta.view({2, 3});
  }
};

TEST_P(Groups, WriteGOrItsExponential) {
  GateCall log, exp;
  exp.args.decay = DecayForm::kExp;
  ASSERT_TRUE(delta_gates(log.args, GetParam()).ok());
  ASSERT_TRUE(delta_gates(exp.args, GetParam()).ok());
  for (std::int64_t i = 0; i < 6; ++i) {
    const double sum = log.a[i] + log.dt_bias[i % 3];
    const double expected =
        -std::exp(log.a_log[i % 3]) * (sum > 20 ? sum : std::log1p(std::exp(sum)));
    EXPECT_NEAR(log.g[i], expected, 1e-6 * std::fabs(expected)) << i;
    EXPECT_NEAR(exp.g[i], std::exp(expected), 1e-5) << i;
  }
  EXPECT_LT(log.g[1], 0);
}

TEST_P(Groups, RoundBetaOnlyIfAsked) {
  GateCall exact, rounded, doubled;
  rounded.args.round_beta = doubled.args.round_beta = true;
  doubled.args.beta_factor = 2;
  for (GateCall* call : {&exact, &rounded, &doubled}) {
    ASSERT_TRUE(delta_gates(call->args, GetParam()).ok());
  }
  int different = 0;
  for (std::int64_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(exact.beta[i], 1 / (1 + std::exp(-exact.b[i])), 1e-6) << i;
    Elements bf16(DType::kBF16, 1);
    bf16.set(0, exact.beta[i]);
    EXPECT_EQ(rounded.beta[i], bf16[0]) << i;
    EXPECT_EQ(doubled.beta[i], 2 * bf16[0]) << i;
    different += rounded.beta[i] != exact.beta[i] ? 1 : 0;
  }
  EXPECT_GT(different, 3);
}

TEST_P(Groups, ReadAnyRatioOfHeadsInBothLayouts) {
  for (const std::int64_t ratio : {1, 2, 3, 4, 8}) {
    for (const bool interleaved : {false, true}) {
      Front front = make(DType::kF32,
                         {.k_heads = 2, .v_heads = 2 * ratio, .interleaved = interleaved}, {0, 6});
      const std::vector<char> state = front.state.bytes;
      ASSERT_TRUE(front.run().ok());
      std::swap(front.state.bytes, const_cast<std::vector<char>&>(state));
      const Elements plain = front.without_groups();
      // The states are in the order of the channels, whatever the order of the columns.
      EXPECT_EQ(front.state.bytes, state) << ratio;
      for (std::int64_t row = 0; row < 6; ++row) {
        front.for_each_channel(
            [&](int group, std::int64_t head, std::int64_t d, std::int64_t channel) {
              if (group < 2) return;
              EXPECT_EQ(front.outs[2][front.at(2, row, head, d)],
                        plain[row * front.shape.channels() + channel]);
            });
        for (std::int64_t head = 0; head < 2 * ratio; ++head) {
          EXPECT_EQ(front.outs[3][front.at(3, row, head, 5)],
                    front.x[row * front.pitch_ + front.shape.column(3, head, 5)]);
        }
      }
    }
  }
}

// Of projections that are fused with others: multiples of 8 bytes, but not of 16 or 32.
TEST_P(Groups, ReadRowsOfAnyPitch) {
  const Shape small{.k_heads = 2, .v_heads = 4, .head_dim = 64, .interleaved = true};
  const Shape large{.k_heads = 16, .v_heads = 32, .head_dim = 128, .interleaved = false};
  for (const auto& [shape, pitch] :
       {std::pair{small, 1796}, {small, 1668}, {small, 771}, {large, 12352}}) {
    Front dense = make(DType::kBF16, shape, {0, 3, 9});
    Front pitched = make(DType::kBF16, shape, {0, 3, 9}, pitch);
    ASSERT_TRUE(dense.run().ok() && pitched.run().ok());
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(dense.outs[i].bytes, pitched.outs[i].bytes);
    EXPECT_EQ(dense.state.bytes, pitched.state.bytes);
  }
}

// A rank of tensor parallelism has some of the key heads and their value heads.
TEST_P(Groups, OfAShardHaveTheBitsOfTheWhole) {
  Front whole = make(DType::kF32, {.k_heads = 4, .v_heads = 8}, {0, 7});
  Front shard = make(DType::kF32, {.k_heads = 2, .v_heads = 4}, {0, 7});
  const std::int64_t columns = shard.shape.columns();
  for (std::int64_t row = 0; row < 7; ++row) {
    for (std::int64_t i = 0; i < columns; ++i) {
      shard.x.set(row * columns + i, whole.x[row * whole.shape.columns() + columns + i]);
    }
  }
  std::vector<std::int64_t> channel_of;  // in the whole convolution
  shard.for_each_channel([&](int group, std::int64_t head, std::int64_t d, std::int64_t) {
    const std::int64_t first[] = {0, 4, 8};  // heads before the group
    channel_of.push_back((first[group] + shard.shape.heads(group) + head) * 16 + d);
  });
  for (std::int64_t channel = 0; channel < shard.shape.channels(); ++channel) {
    const std::int64_t from = channel_of[static_cast<std::size_t>(channel)];
    for (int tap = 0; tap < 4; ++tap) {
      shard.weight.set(channel * 4 + tap, whole.weight[from * 4 + tap]);
    }
    for (int column = 0; column < 3; ++column) {
      shard.state.set(column * shard.shape.channels() + channel,
                      whole.state[column * whole.shape.channels() + from]);
    }
  }
  ASSERT_TRUE(whole.run().ok() && shard.run().ok());
  for (int group = 0; group < 4; ++group) {
    const auto i = static_cast<std::size_t>(group);
    const std::int64_t heads = shard.shape.heads(group);
    for (std::int64_t row = 0; row < 7; ++row) {
      for (std::int64_t head = 0; head < heads; ++head) {
        EXPECT_EQ(shard.outs[i][shard.at(group, row, head, 3)],
                  whole.outs[i][whole.at(group, row, heads + head, 3)]);
      }
    }
  }
}

// A batch of several sequences, and the same tokens one by one through decode.
TEST_P(Groups, HaveTheSameBitsTokenByToken) {
  Front batch = make(DType::kBF16, {.head_dim = 64}, {0, 1, 12, 13, 40});
  ASSERT_TRUE(batch.run().ok());
  for (std::int64_t sequence = 0; sequence < 4; ++sequence) {
    const std::int64_t begin = batch.query_start_loc[static_cast<std::size_t>(sequence)];
    const std::int64_t end = batch.query_start_loc[static_cast<std::size_t>(sequence) + 1];
    Front single = make(DType::kBF16, {.head_dim = 64}, {0, 1, 12, 13, 40});
    for (std::int64_t row = begin; row < end; ++row) {
      Front token = make(DType::kBF16, {.head_dim = 64}, {0, 1});
      token.weight = single.weight;
      const auto bytes = static_cast<std::size_t>(2 * batch.shape.columns());
      std::memcpy(token.x.bytes.data(), batch.x.bytes.data() + row * 2 * batch.shape.columns(),
                  bytes);
      const std::int64_t slot = 3 * batch.shape.channels() * 2;
      std::memcpy(token.state.bytes.data(), single.state.bytes.data() + sequence * slot,
                  static_cast<std::size_t>(slot));
      ASSERT_TRUE(token.run().ok());
      std::memcpy(single.state.bytes.data() + sequence * slot, token.state.bytes.data(),
                  static_cast<std::size_t>(slot));
      for (int group = 0; group < 4; ++group) {
        const auto i = static_cast<std::size_t>(group);
        const std::int64_t count = token.shape.heads(group) * token.shape.head_dim * 2;
        EXPECT_EQ(std::memcmp(token.outs[i].bytes.data(), batch.outs[i].bytes.data() + row * count,
                              static_cast<std::size_t>(count)),
                  0)
            << "row " << row << ", group " << group;
      }
    }
  }
}

TEST_P(Groups, KeepANanInsideItsHeadAndToken) {
  Front clean = make(DType::kF32, {}, {0, 9}), dirty = make(DType::kF32, {}, {0, 9});
  dirty.x.set(4 * dirty.pitch_ + dirty.shape.column(0, 1, 3),
              std::numeric_limits<double>::quiet_NaN());
  ASSERT_TRUE(clean.run().ok() && dirty.run().ok());
  for (int group = 0; group < 4; ++group) {
    const auto i = static_cast<std::size_t>(group);
    for (std::int64_t row = 0; row < 9; ++row) {
      for (std::int64_t head = 0; head < dirty.shape.heads(group); ++head) {
        // The convolution carries it to the three tokens after it.
        const bool reached = group == 0 && head == 1 && row >= 4 && row <= 7;
        for (std::int64_t d = 0; d < dirty.shape.head_dim; ++d) {
          const std::int64_t at = dirty.at(group, row, head, d);
          EXPECT_EQ(std::isnan(dirty.outs[i][at]), reached);
          if (!reached) {
            EXPECT_EQ(dirty.outs[i][at], clean.outs[i][at]);
          }
        }
      }
    }
  }
}

std::string message_of(Front front, const std::function<void(Front&)>& change) {
  change(front);
  const std::vector<char> state = front.state.bytes, q = front.outs[0].bytes;
  const Status status = front.run();
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(front.state.bytes, state);
  EXPECT_EQ(front.outs[0].bytes, q);
  return status.message();
}

TEST_P(Groups, RefuseWhatDoesNotFit) {
  const Front front = make(DType::kF32, {}, {0, 5});
  EXPECT_EQ(message_of(front, [](Front& f) { f.groups[0].l2_norm->eps = 0; }),
            "groups[0]: eps is 0; expected a positive number");
  EXPECT_EQ(message_of(front, [](Front& f) { f.groups[2].input.offset = 81; }),
            "groups[2]: map reaches beyond the 192 columns of its rows");
  EXPECT_EQ(message_of(front, [](Front& f) { f.groups[2].copy = true; }),
            "groups: have 64 channels, but weight has 128");
  EXPECT_EQ(message_of(front, [](Front& f) { f.groups[3].input_scale = 2; }),
            "groups[3]: is copied; expected neither l2_norm nor input_scale");
  EXPECT_EQ(message_of(front,
                       [](Front& f) {
                         f.args.forward.options.schedule = Schedule::kSequenceGrid;
                         f.args.forward.options.max_seqlen = 5;
                       }),
            "schedule: is sequence-grid; only flat is supported with groups");
  EXPECT_EQ(message_of(front,
                       [](Front& f) {
                         f.args.forward.op = Op::kVerify;
                         f.args.forward.drafts.update_state = true;
                       }),
            "op: is verify, which groups do not support; expected forward or decode");
  EXPECT_EQ(message_of(front, [](Front& f) { f.groups[1].input.block_heads = 1; }),
            "groups[1]: map has blocks of 1 heads, but block_stride is 0");
}

TEST_P(Groups, RefuseOutputsThatOverlap) {
  Front front = make(DType::kF32, {.interleaved = false}, {0, 5});
  ASSERT_TRUE(front.run().ok());  // connects the tensors
  std::vector<ChannelGroup> groups = front.groups;
  front.args.groups = groups;
  groups[1].out.data = groups[0].out.data;
  EXPECT_EQ(forward_groups(front.args).message(),
            "groups[1].out: overlaps groups[0].out; expected separate memory, or other columns of "
            "the same rows");
  groups = front.groups;
  groups[2].out.data = front.args.forward.x.data;
  EXPECT_EQ(forward_groups(front.args).message(),
            "groups[2].out: overlaps x; expected separate memory, or other columns of the same "
            "rows");
}

}  // namespace
}  // namespace shortconv
